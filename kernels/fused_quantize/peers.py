"""What the ops of this family are timed against: the same composition in PyTorch, eager and compiled.

The value that is quantized is kept in float32, as in the ops: a compiler fuses that into one kernel and needs no
rounding in between.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from trtforge.kernels import Op

_LARGEST = {"int8": 127.0, "float8_e4m3fn": 448.0, "float8_e5m2": 57344.0}


def quantized_rows(value: Any, static_scale: Any, to: str) -> tuple[Any, Any]:
    """Codes and scales per row of a float32 tensor."""
    import torch

    largest = _LARGEST[to]
    if static_scale is None:
        scale = (value.abs().amax(-1, keepdim=True) / largest).clamp(min=2.0**-126)
    else:
        scale = static_scale.expand(*value.shape[:-1], 1)
    quotient = value / scale
    quotient = quotient.round().clamp(-128.0, 127.0) if to == "int8" else quotient.clamp(-largest, largest)
    return quotient.to(getattr(torch, to)), scale.squeeze(-1)


def _rms_normalized(x: Any, weight: Any, eps: float) -> Any:
    wide = x.float()
    return wide * (wide.square().mean(-1, keepdim=True) + eps).rsqrt() * weight.float()


def _rms_norm(x: Any, weight: Any, static_scale: Any, *, eps: float, to: str) -> tuple[Any, Any]:
    return quantized_rows(_rms_normalized(x, weight, eps), static_scale, to)


def _add_rms_norm(x: Any, residual: Any, weight: Any, static_scale: Any, *, eps: float, to: str) -> tuple[Any, ...]:
    total = x + residual
    return (*quantized_rows(_rms_normalized(total, weight, eps), static_scale, to), total)


def _layer_norm(x: Any, weight: Any, bias: Any, static_scale: Any, *, eps: float, to: str) -> tuple[Any, Any]:
    import torch.nn.functional as F

    shift = None if bias is None else bias.float()
    return quantized_rows(F.layer_norm(x.float(), weight.shape, weight.float(), shift, eps), static_scale, to)


def _silu_mul(gate: Any, up: Any, static_scale: Any, *, to: str) -> tuple[Any, Any]:
    import torch.nn.functional as F

    return quantized_rows(F.silu(gate.float()) * up.float(), static_scale, to)


_COMPOSED: dict[str, Callable[..., Any]] = {
    "trtforge::rms_norm_quantize_token": _rms_norm,
    "trtforge::add_rms_norm_quantize_token": _add_rms_norm,
    "trtforge::layer_norm_quantize_token": _layer_norm,
    "trtforge::silu_mul_quantize_token": _silu_mul,
}


def declare(*ops: Op) -> None:
    """Give each op its two peers."""
    for op in ops:
        op.peer("torch.compile", compile=True)(op.peer("PyTorch eager")(_COMPOSED[op.name]))
