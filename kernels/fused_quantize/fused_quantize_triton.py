"""Normalization or gating and quantization per row in Triton: one program per row, the row held in registers."""

import triton
import triton.language as tl

from trtforge.kernels.common.quantize_triton import encode, finite_magnitude, scale_of


@triton.jit
def _row(pointer, row, N, columns):
    return tl.load(pointer + row * N + columns, mask=columns < N, other=0.0)


@triton.jit
def _store_codes(value, static_scale, y, scale, row, N, columns, TO: tl.constexpr):
    """Scale and codes of one row of float32 values."""
    if static_scale is None:
        divisor = scale_of(tl.max(tl.where(columns < N, finite_magnitude(value), 0), axis=0), TO)
    else:
        divisor = tl.load(static_scale)
    code = encode(tl.math.div_rn(value, tl.broadcast_to(divisor, value.shape)), TO)
    tl.store(y + row * N + columns, code.to(tl.uint8).to(y.dtype.element_ty, bitcast=True), mask=columns < N)
    tl.store(scale + row, divisor)


@triton.jit
def _rounded(value, TO: tl.constexpr):
    """A float32 value rounded to a 16-bit type, still in float32. Written out for bfloat16, which the interpreter
    computes as float32."""
    if TO == "bfloat16":
        bits = value.to(tl.int32, bitcast=True)
        nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) & -65536  # ties to even; a carry goes into the exponent
        return tl.where(value == value, nearest, bits | 0x400000).to(tl.float32, bitcast=True)
    else:
        tl.static_assert(TO == "float16")
        return value.to(tl.float16).to(tl.float32)


@triton.jit
def _rms_normalized(x, weight, N, columns, EPS: tl.constexpr):
    gain = tl.load(weight + columns, mask=columns < N, other=0.0).to(tl.float32)
    return x * (1.0 / tl.sqrt(tl.sum(x * x, axis=0) / N + EPS)) * gain


@triton.jit
def rms_norm_quantize(
    x, weight, static_scale, M, N, y, scale, BLOCK: tl.constexpr, EPS: tl.constexpr, TO: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    value = _rms_normalized(_row(x, row, N, columns).to(tl.float32), weight, N, columns, EPS)
    _store_codes(value, static_scale, y, scale, row, N, columns, TO)


@triton.jit
def add_rms_norm_quantize(
    x,
    residual,
    weight,
    static_scale,
    M,
    N,
    y,
    scale,
    sum,
    BLOCK: tl.constexpr,
    EPS: tl.constexpr,
    TO: tl.constexpr,
    SUM_TYPE: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    total = _row(x, row, N, columns).to(tl.float32) + _row(residual, row, N, columns).to(tl.float32)
    rounded = _rounded(total, SUM_TYPE)
    tl.store(sum + row * N + columns, rounded.to(sum.dtype.element_ty), mask=columns < N)
    value = _rms_normalized(rounded, weight, N, columns, EPS)
    _store_codes(value, static_scale, y, scale, row, N, columns, TO)


@triton.jit
def layer_norm_quantize(
    x, weight, bias, static_scale, M, N, y, scale, BLOCK: tl.constexpr, EPS: tl.constexpr, TO: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < N
    values = _row(x, row, N, columns).to(tl.float32)
    centered = tl.where(inside, values - tl.sum(values, axis=0) / N, 0.0)
    unit = centered * (1.0 / tl.sqrt(tl.sum(centered * centered, axis=0) / N + EPS))
    value = unit * tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    if bias is not None:
        value += tl.load(bias + columns, mask=inside, other=0.0).to(tl.float32)
    _store_codes(value, static_scale, y, scale, row, N, columns, TO)


@triton.jit
def silu_mul_quantize(gate, up, static_scale, M, N, y, scale, BLOCK: tl.constexpr, TO: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    g = _row(gate, row, N, columns).to(tl.float32)
    value = g / (1.0 + tl.exp(-g)) * _row(up, row, N, columns).to(tl.float32)
    _store_codes(value, static_scale, y, scale, row, N, columns, TO)
