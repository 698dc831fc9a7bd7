"""Float <-> 8-bit and 4-bit codes for Triton kernels: the arithmetic of ``common/quantize.cuh``, bit for bit.

Conversions are written in integer and float32 arithmetic, not as casts: Triton cannot convert to e4m3 before sm_89,
and its interpreter neither rounds ties to even nor saturates. Everything here means the same compiled and interpreted.
"""

import triton
import triton.language as tl


@triton.jit
def qmax(TO: tl.constexpr):
    """The value that the largest magnitude of a group is mapped to."""
    if TO == "float8_e4m3fn":
        value: tl.constexpr = 448.0
    elif TO == "float8_e5m2":
        value: tl.constexpr = 57344.0
    elif TO == "int4":
        value: tl.constexpr = 7.0
    else:
        tl.static_assert(TO == "int8")
        value: tl.constexpr = 127.0
    return value


@triton.jit
def finite_magnitude(x):
    """|x| as an int32 that orders like the float; 0 for NaN and infinities. x: float32."""
    magnitude = x.to(tl.int32, bitcast=True) & 0x7FFFFFFF
    return tl.where(magnitude < 0x7F800000, magnitude, 0)


@triton.jit
def scale_of(magnitude, TO: tl.constexpr):
    """max(absmax / qmax, 2^-126), rounded once. magnitude: the bits of absmax."""
    absmax = magnitude.to(tl.float32, bitcast=True)
    quotient = tl.math.div_rn(absmax, tl.zeros_like(absmax) + qmax(TO))
    return tl.maximum(quotient, 1.1754943508222875e-38)


@triton.jit
def _round_to_integer(value, lowest: tl.constexpr, highest: tl.constexpr):
    number = tl.where(value == value, value, 0.0)
    clamped = tl.minimum(tl.maximum(number, lowest), highest)
    return ((clamped + 12582912.0) - 12582912.0).to(tl.int32)  # 1.5 * 2^23: float32 addition rounds ties to even


@triton.jit
def _round_to_fp8(value, MANTISSA: tl.constexpr, EXPONENT_MIN: tl.constexpr, largest: tl.constexpr):
    dropped: tl.constexpr = 23 - MANTISSA
    smallest_normal: tl.constexpr = (127 + EXPONENT_MIN) << 23
    aligned: tl.constexpr = (127 + EXPONENT_MIN + dropped) << 23
    rebias: tl.constexpr = (127 + EXPONENT_MIN - 1) << MANTISSA
    bits = value.to(tl.int32, bitcast=True)
    magnitude_bits = bits & 0x7FFFFFFF
    magnitude = tl.minimum(tl.where(value == value, tl.abs(value), 0.0), largest)
    kept = magnitude.to(tl.int32, bitcast=True)
    rounded = kept + ((kept >> dropped) & 1) + ((1 << (dropped - 1)) - 1)
    normal = (rounded >> dropped) - rebias
    unit = (tl.zeros_like(kept) + aligned).to(tl.float32, bitcast=True)
    subnormal = (magnitude + unit).to(tl.int32, bitcast=True) - aligned
    code = tl.where(kept < smallest_normal, subnormal, normal) | ((bits >> 24) & 0x80)
    return tl.where(magnitude_bits > 0x7F800000, 0x7F, code)


@triton.jit
def encode(value, TO: tl.constexpr):
    """The code of a float32 value in the low bits of an int32: nearest, ties to even, saturating."""
    if TO == "float8_e4m3fn":
        return _round_to_fp8(value, 3, -6, 448.0)
    elif TO == "float8_e5m2":
        return _round_to_fp8(value, 2, -14, 57344.0)
    elif TO == "int4":
        return _round_to_integer(value, -7.0, 7.0)
    else:
        return _round_to_integer(value, -128.0, 127.0)


@triton.jit
def decode_int4(nibble):
    """The signed 4-bit integer in the low nibble of an int32."""
    return ((nibble & 0xF) ^ 8) - 8


@triton.jit
def decode(code, FROM: tl.constexpr):
    """The exact float32 value of the code in the low 8 bits of an int32."""
    if FROM == "int8":
        value = (((code & 0xFF) ^ 0x80) - 0x80).to(tl.float32)
    else:
        magnitude = code & 0x7F
        if FROM == "float8_e4m3fn":
            number = (magnitude << 20).to(tl.float32, bitcast=True) * 1.329227995784916e36  # 2^(127 - 7)
            special = tl.where(magnitude == 0x7F, 0x7FC00000, 0)
        else:
            tl.static_assert(FROM == "float8_e5m2")
            number = (magnitude << 21).to(tl.float32, bitcast=True) * 5.192296858534828e33  # 2^(127 - 15)
            special = tl.where(magnitude > 0x7C, 0x7FC00000, tl.where(magnitude == 0x7C, 0x7F800000, 0))
        bits = tl.where(special != 0, special, number.to(tl.int32, bitcast=True))
        value = (bits | ((code & 0x80) << 24)).to(tl.float32, bitcast=True)
    return value
