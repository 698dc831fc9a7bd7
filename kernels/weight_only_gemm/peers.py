"""What the weight-only products are timed against: cuBLAS on 16-bit weights, and PyTorch's 4-bit kernel."""

from __future__ import annotations

from typing import Any

from trtforge.kernels import Op
from trtforge.kernels.fused_gemm.peers import activation_function

_GROUP = 128
_TINYGEMM_TILES = 8  # of 16 along K that a thread of the 4-bit kernel has together


def _dequantized(w: Any, scale: Any, zero: Any, kind: Any) -> Any:
    """The 16-bit matrix of packed codes, group by group of columns: no temporary is larger than a fraction of it."""
    import torch

    weights = torch.empty((w.shape[0], 2 * w.shape[1]), dtype=kind, device=w.device)
    for group in range(scale.shape[1]):
        packed = w[:, group * _GROUP // 2 : (group + 1) * _GROUP // 2].to(torch.int32)
        codes = torch.stack((packed & 15, packed >> 4), dim=-1).reshape(w.shape[0], _GROUP)
        numbers = torch.where(codes > 7, codes - 16, codes).float()
        if zero is not None:
            numbers = numbers - zero[:, group, None].float()
        weights[:, group * _GROUP : (group + 1) * _GROUP] = (numbers * scale[:, group, None]).to(kind)
    return weights


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
    def _(x: Any, w: Any, scale: Any, bias: Any, zero: Any, *, activation: str) -> Any:
        return multiply(x, _dequantized(w, scale, zero, x.dtype), bias, activation)

    @int4_weight_gemm.peer(
        "tinygemm int4",
        setup=True,
        requires=[
            (lambda dt: dt["x"] == "bfloat16", "multiplies bfloat16"),
            (lambda d: d.N % 8 == 0, "needs N to be a multiple of 8"),
            (lambda a, has: a.activation == "none" and not has.bias, "has no bias and no activation"),
            (lambda has: not has.zero, "is given codes without zero points"),
        ],
    )
    def _(x: Any, w: Any, scale: Any, bias: Any, zero: Any, *, activation: str) -> Any:
        import torch

        offset = w ^ 0x88  # codes + 8; the even element in the high nibble
        packed = torch._convert_weight_to_int4pack((offset << 4 | offset >> 4).contiguous(), _TINYGEMM_TILES)
        factors = scale.t().to(x.dtype)
        scales_and_zeros = torch.stack((factors, torch.zeros_like(factors)), dim=-1).contiguous()
        rows = x.reshape(-1, x.shape[-1])
        return lambda: torch._weight_int4pack_mm(rows, packed, _GROUP, scales_and_zeros)
