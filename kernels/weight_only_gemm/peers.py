"""What the weight-only products are timed against: cuBLAS on 16-bit weights, and PyTorch's 4-bit kernel."""

from __future__ import annotations

from typing import Any

from trtforge.kernels import Op
from trtforge.kernels.fused_gemm.peers import activation_function

_GROUP = 128
_TINYGEMM_TILES = 8  # of 16 along K that a thread of the 4-bit kernel has together


def _nibbles(w: Any) -> Any:
    """The signed codes of packed 4-bit weights."""
    import torch

    return (torch.stack((w & 0xF, w >> 4), dim=-1).reshape(w.shape[0], -1) ^ 8).to(torch.int8) - 8


def declare(int8_weight_gemm: Op, int4_weight_gemm: Op) -> None:
    """Add the peers."""

    def multiply(x: Any, weights: Any, bias: Any, activation: str) -> Any:
        import torch.nn.functional as F

        then = activation_function(activation)
        return lambda: then(F.linear(x, weights, bias))

    @int8_weight_gemm.peer("cuBLAS, 16-bit weights", setup=True)
    def _(x: Any, w: Any, scale: Any, bias: Any, *, activation: str) -> Any:
        return multiply(x, (w.float() * scale[:, None]).to(x.dtype), bias, activation)

    @int4_weight_gemm.peer("cuBLAS, 16-bit weights", setup=True)
    def _(x: Any, w: Any, scale: Any, bias: Any, *, activation: str) -> Any:
        grouped = _nibbles(w).float().reshape(w.shape[0], -1, _GROUP) * scale[:, :, None]
        return multiply(x, grouped.to(x.dtype).reshape(w.shape[0], -1), bias, activation)

    @int4_weight_gemm.peer(
        "tinygemm int4",
        setup=True,
        requires=[
            (lambda dt: dt["x"] == "bfloat16", "multiplies bfloat16"),
            (lambda d: d.N % 8 == 0, "needs N to be a multiple of 8"),
            (lambda a, has: a.activation == "none" and not has.bias, "has no bias and no activation"),
        ],
    )
    def _(x: Any, w: Any, scale: Any, bias: Any, *, activation: str) -> Any:
        import torch

        offset = w ^ 0x88  # codes + 8; the even element in the high nibble
        packed = torch._convert_weight_to_int4pack((offset << 4 | offset >> 4).contiguous(), _TINYGEMM_TILES)
        factors = scale.t().to(x.dtype)
        scales_and_zeros = torch.stack((factors, torch.zeros_like(factors)), dim=-1).contiguous()
        rows = x.reshape(-1, x.shape[-1])
        return lambda: torch._weight_int4pack_mm(rows, packed, _GROUP, scales_and_zeros)
