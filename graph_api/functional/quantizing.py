"""Quantization and dequantization, composed of the registered ops of trtforge.kernels.quantize."""

from __future__ import annotations

from typing import Any

from trtforge.bindings.errors import GraphError
from trtforge.graph_api.functional.basic import as_tensor, call
from trtforge.graph_api.tensor import Tensor

GRANULARITIES = ("tensor", "token", "block", "tile")


def _checked(function: str, granularity: str) -> str:
    if granularity not in GRANULARITIES:
        raise GraphError(f"{function}: granularity is {granularity!r}; accepted: {', '.join(GRANULARITIES)}")
    return granularity


def quantize(x: Tensor, scale: Any = None, *, granularity: str = "tensor", to: str = "float8_e4m3fn") -> Any:
    """Codes of ``x`` and their float32 scale: saturate(round(x / scale)).

    ``granularity``: one scale per ``tensor``, per ``token`` (row), per ``block`` of 128 along the last axis, or per
    128 x 128 ``tile``. ``to``: int8, float8_e4m3fn or float8_e5m2. Without ``scale`` it is taken from the data and
    returned, (codes, scale); with one, the codes alone are.
    """
    _checked("quantize", granularity)
    if scale is not None:
        fixed = as_tensor(scale, x.network, None, "quantize")
        return call(f"trtforge::quantize_{granularity}_static", x, fixed, to=to)
    if granularity == "tensor":
        return call("trtforge::quantize_tensor", x, call("trtforge::absmax_partials", x), to=to)
    return call(f"trtforge::quantize_{granularity}", x, to=to)


def dequantize(codes: Tensor, scale: Any, *, granularity: str = "tensor", to: str = "float16") -> Tensor:
    """codes * scale as a float dtype ``to``; granularities as in :func:`quantize`."""
    _checked("dequantize", granularity)
    factor = as_tensor(scale, codes.network, None, "dequantize")
    return call(f"trtforge::dequantize_{granularity}", codes, factor, to=to)


def pack_int4(weight: Any) -> tuple[Tensor, Tensor]:
    """A matrix packed to 4-bit codes, two to a byte, with a float32 scale per group of its rows."""
    return call("trtforge::pack_int4", weight)


def dequantize_int4(codes: Tensor, scale: Any, *, to: str = "float16") -> Tensor:
    """The matrix that :func:`pack_int4` packed, as a float dtype ``to``."""
    return call("trtforge::dequantize_int4", codes, as_tensor(scale, codes.network, None, "dequantize_int4"), to=to)


__all__ = ["dequantize", "dequantize_int4", "pack_int4", "quantize"]
