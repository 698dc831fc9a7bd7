"""What the scaled product is timed against: PyTorch's `_scaled_mm` (cuBLASLt) and `_int_mm`, bare and with scales.

`_scaled_mm` is asked for its fast accumulation: like ours, it leaves the sums of fp8 products to the tensor cores for
the whole of K. Without it, cuBLASLt adds parts in float32, which is slower, and what `block_scaled_gemm` does.
"""

from typing import Any

import numpy as np

#: Rows of a part that the reference is run on in a benchmark.
_PART_ROWS = 16


def declare(op: Any) -> None:
    """Add the peers to ``op``."""

    @op.peer(
        "_scaled_mm",
        requires=[
            (lambda dt: dt["x"] == "float8_e4m3fn", "multiplies fp8"),
            (lambda a: a.activation == "none" and a.to == "bfloat16", "has no activation, and bfloat16 results"),
            (lambda d: d.SX == d.M and d.SW == d.N, "is asked for with scales per row and per channel"),
        ],
    )
    def _(x: Any, w: Any, x_scale: Any, w_scale: Any, bias: Any, *, to: str, activation: str) -> Any:
        import torch

        return torch._scaled_mm(
            x, w.t(), x_scale.view(-1, 1), w_scale.view(1, -1), bias, out_dtype=torch.bfloat16, use_fast_accum=True
        )

    multiplies_int8 = [
        (lambda dt: dt["x"] == "int8", "multiplies int8"),
        (lambda d: d.M > 16, "needs more than 16 rows"),
    ]
    only_scales = (lambda a, has: a.activation == "none" and not has.bias, "is asked for without bias and activation")

    @op.peer("_int_mm, then scales", requires=[*multiplies_int8, only_scales])
    @op.peer("_int_mm and scales, torch.compile", compile=True, requires=[*multiplies_int8, only_scales])
    def _(x: Any, w: Any, x_scale: Any, w_scale: Any, bias: Any, *, to: str, activation: str) -> Any:
        import torch

        scaled = torch._int_mm(x, w.t()).float() * x_scale.view(-1, 1) * w_scale.view(1, -1)
        return scaled.to(torch.bfloat16 if to == "bfloat16" else torch.float16)

    @op.peer("_int_mm", requires=multiplies_int8, instead="the bare int32 product, no scales")
    def _(x: Any, w: Any, x_scale: Any, w_scale: Any, bias: Any, *, to: str, activation: str) -> Any:
        import torch

        return torch._int_mm(x, w.t())

    @op.part
    def _(rng: Any, d: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Some rows of x and their scales."""
        rows = np.sort(rng.choice(d.M, min(_PART_ROWS, d.M), replace=False))
        inputs = {"x": rows} if d.SX == 1 else {"x": rows, "x_scale": rows}
        return inputs, {"y": rows}
