"""Quantization and dequantization: int8, fp8 (e4m3, e5m2) and packed int4; per tensor, token, block and tile.

**What every op of the family does.** ``y = saturate(round(x / scale))`` and ``x = float(y) * scale``, where

- the quotient is one correctly rounded float32 division and the rounding goes to the nearest code, ties to even;
- a dynamic scale is ``max(absmax / qmax, 2^-126)``: one float32 division, qmax 127 (int8), 448 (e4m3), 57344 (e5m2),
  7 (int4). The floor keeps the scale of a group of zeros (and of groups near the end of float32's range) normal, so
  that 0 / scale is 0;
- NaN becomes NaN in fp8 (code 0x7f) and 0 in int8 and int4; infinities saturate like any other large value;
- NaN and infinities take no part in absmax: one broken element does not erase the rest of its group;
- int8 saturates to -128..127 as TensorRT and ONNX QuantizeLinear do (a dynamic scale reaches -127 only), int4 to -7..7.

Kernels and reference agree bit for bit: there is no tolerance anywhere in the family.

**Ops.**

====================================================  ==============================  =====================
op                                                    inputs -> outputs               attributes
====================================================  ==============================  =====================
``quantize_{token,block,tile}``                       x -> y, scale                   ``to``: code format
``absmax_partials``, then ``quantize_tensor``         x -> partials; x, partials ->   ``to``: code format
                                                      y, scale
``quantize_{tensor,token,block,tile}_static``         x, scale -> y                   ``to``: code format
``dequantize_{tensor,token,block,tile}``              y, scale -> x                   ``to``: float type
``pack_int4`` / ``unpack_int4`` / ``dequantize_int4``  x -> y, scale / y -> x /        ``to``: float type
                                                      y, scale -> x                   (dequantize_int4)
====================================================  ==============================  =====================

**How a graph composes them.** An op is one launch, so the functional layer maps

- ``quantize(x, granularity=g, to=t)`` with g in token, block, tile to ``quantize_<g>(x, to=t) -> (y, scale)``;
- ``quantize(x, granularity="tensor", to=t)`` to ``quantize_tensor(x, absmax_partials(x), to=t) -> (y, scale)``: two
  nodes, the 2 KiB of partial maxima between them;
- ``quantize(x, scale, granularity=g, to=t)`` to ``quantize_<g>_static(x, scale, to=t) -> y``;
- ``dequantize(y, scale, granularity=g, to=t)`` to ``dequantize_<g>(y, scale, to=t) -> x``; fake quantization is
  ``dequantize(*quantize(x, g), g)``;
- int4 weights to ``pack_int4`` once, on the host or at build time, and ``dequantize_int4`` (or a GEMM that takes
  packed weights) at run time; :func:`composition` names the ops.

The granularities are described in :mod:`trtforge.kernels.quantize.granularity`; rows of tensor, token and block are
all leading dimensions of x, a tile needs a matrix.
"""

from trtforge.bindings.errors import ContractError
from trtforge.kernels import Op
from trtforge.kernels.quantize.dynamic import (
    absmax_partials,
    quantize_block,
    quantize_tensor,
    quantize_tile,
    quantize_token,
)
from trtforge.kernels.quantize.int4 import dequantize_int4, pack_int4, unpack_int4
from trtforge.kernels.quantize.static import DEQUANTIZE, STATIC

DYNAMIC = {"tensor": quantize_tensor, "token": quantize_token, "block": quantize_block, "tile": quantize_tile}


def composition(granularity: str, *, static: bool = False) -> tuple[Op, ...]:
    """The ops that quantize at a granularity, in the order in which they run.

    ``static``: the scale is an input. One op each, but ``(absmax_partials, quantize_tensor)`` for a dynamic scale per
    tensor: the partials are the second input of the second op. Raises ContractError for an unknown granularity.
    """
    if granularity not in DYNAMIC:
        raise ContractError(f"granularity is {granularity!r}; accepted: {', '.join(DYNAMIC)}")
    if static:
        return (STATIC[granularity],)
    return (absmax_partials, quantize_tensor) if granularity == "tensor" else (DYNAMIC[granularity],)


def dequantization(granularity: str) -> Op:
    """The op that dequantizes at a granularity. Raises ContractError for an unknown one."""
    if granularity not in DEQUANTIZE:
        raise ContractError(f"granularity is {granularity!r}; accepted: {', '.join(DEQUANTIZE)}")
    return DEQUANTIZE[granularity]


__all__ = [
    "DEQUANTIZE",
    "DYNAMIC",
    "STATIC",
    "absmax_partials",
    "composition",
    "dequantization",
    "dequantize_int4",
    "pack_int4",
    "quantize_block",
    "quantize_tensor",
    "quantize_tile",
    "quantize_token",
    "unpack_int4",
]
