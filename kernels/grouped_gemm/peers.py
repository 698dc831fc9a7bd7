"""What the grouped product is timed against: PyTorch's `_grouped_mm`, and the dense product of equal work."""

from typing import Any

import numpy as np

from trtforge.bindings.optional import available
from trtforge.kernels.fused_gemm.peers import activation_function

#: Columns of a part that the reference is run on in a benchmark.
_PART_COLUMNS = 16


def _offers(function: str) -> bool:
    if not available("torch"):
        return False
    import torch

    return hasattr(torch, function)


def _declare_part(op: Any) -> None:
    @op.part
    def _(rng: Any, d: Any, has: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Some columns of every expert's weights: which rows an expert has is data."""
        first = int(rng.integers(max(d.N - _PART_COLUMNS, 0) + 1))
        columns = np.s_[:, first : first + _PART_COLUMNS]
        of_weights = [name for name in ("w", "w_scale", "bias") if name in op.inputs]
        return {name: columns for name in of_weights if name != "bias" or has.bias}, {"y": columns}


def declare(op: Any) -> None:
    """The peers of ``grouped_gemm``."""
    _declare_part(op)

    @op.peer(
        "_grouped_mm",
        requires=[
            (lambda: _offers("_grouped_mm"), "is not in this PyTorch"),
            (lambda dt: dt["x"] == "bfloat16", "multiplies bfloat16"),
            (lambda has: not has.bias, "adds no bias"),
            (lambda d: d.K % 8 == 0 and d.N % 8 == 0, "needs rows of 16-byte multiples"),
        ],
    )
    def _(x: Any, w: Any, offsets: Any, bias: Any, *, activation: str) -> Any:
        import torch

        return activation_function(activation)(torch._grouped_mm(x, w.transpose(-2, -1), offs=offsets))

    @op.peer("cuBLAS, one expert", instead="a dense product of as many rows: every row with the first expert's weights")
    def _(x: Any, w: Any, offsets: Any, bias: Any, *, activation: str) -> Any:
        return x @ w[0].t()


def declare_scaled(op: Any) -> None:
    """The peers of ``scaled_grouped_gemm``."""
    _declare_part(op)

    @op.peer(
        "_scaled_grouped_mm",
        requires=[
            (lambda: _offers("_scaled_grouped_mm"), "is not in this PyTorch"),
            (lambda a: a.activation == "none" and a.to == "bfloat16", "has no activation, and bfloat16 results"),
            (lambda has: not has.bias, "adds no bias"),
            (lambda d: d.K % 16 == 0 and d.N % 16 == 0, "needs rows of 16-byte multiples"),
        ],
    )
    def _(x: Any, w: Any, offsets: Any, x_scale: Any, w_scale: Any, bias: Any, *, to: str, activation: str) -> Any:
        import torch

        return torch._scaled_grouped_mm(
            x, w.transpose(-2, -1), x_scale, w_scale, offs=offsets, out_dtype=torch.bfloat16, use_fast_accum=True
        )
