"""What the block-scaled product is timed against: PyTorch's `_scaled_mm` with the same scales (cuBLASLt)."""

from collections.abc import Callable
from typing import Any

import numpy as np

#: Rows of a part that the reference is run on in a benchmark.
_PART_ROWS = 16


def declare(op: Any) -> None:
    """Add the peers to ``op``."""

    @op.peer(
        "_scaled_mm",
        setup=True,
        requires=[
            (lambda a: a.activation == "none" and a.to == "bfloat16", "has no activation, and bfloat16 results"),
            (lambda has: not has.bias, "is asked for without a bias"),
            (lambda d: d.K % 512 == 0 and d.N % 128 == 0, "wants rows of scales of 16-byte multiples"),
            (
                lambda d: d.M % 4 == 0 and d.M > 16,
                "wants columns of scales of 16-byte multiples, and more than 16 rows",
            ),
        ],
    )
    def _(x: Any, w: Any, x_scale: Any, w_scale: Any, bias: Any, *, to: str, activation: str) -> Callable[[], Any]:
        import torch

        # cuBLASLt wants the scales of x column by column: they are turned around before the clock starts.
        by_column = x_scale.t().contiguous().t()
        return lambda: torch._scaled_mm(x, w.t(), by_column, w_scale.t(), out_dtype=torch.bfloat16)

    @op.part
    def _(rng: Any, d: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Some rows of x and their scales."""
        rows = np.sort(rng.choice(d.M, min(_PART_ROWS, d.M), replace=False))
        return {"x": rows, "x_scale": rows}, {"y": rows}
