"""Quantization in NumPy: one definition for every granularity, in float32 where the kernels are in float32.

A *group* is ``(rows, columns)`` of a matrix; 0 stands for all of them: per tensor (0, 0), per token (1, 0), per block
(1, 128), per tile (128, 128). Scales of a matrix [R, C] form the grid [ceil(R / rows), ceil(C / columns)].
"""

from __future__ import annotations

import ml_dtypes
import numpy as np

#: The value that the largest magnitude of a group is mapped to.
QMAX = {"int8": 127.0, "float8_e4m3fn": 448.0, "float8_e5m2": 57344.0, "int4": 7.0}

#: The range of the codes; int8 keeps the -128 that TensorRT and ONNX have, int4 is symmetric.
INTEGER_RANGE = {"int8": (-128.0, 127.0), "int4": (-7.0, 7.0)}

#: No scale is smaller: the smallest normal float32. A group of zeros gets it, and 0 / scale stays 0.
SMALLEST_SCALE = np.float32(2.0**-126)

#: The code of NaN in both 8-bit floating-point formats.
NAN_CODE = 0x7F

_FLOAT8 = {"float8_e4m3fn": ml_dtypes.float8_e4m3fn, "float8_e5m2": ml_dtypes.float8_e5m2}

Group = tuple[int, int]


def as_matrix(x: np.ndarray) -> np.ndarray:
    """[..., K] as [rows, K]."""
    return x.reshape(-1, x.shape[-1])


def finite_magnitude(x: np.ndarray) -> np.ndarray:
    """|x| as float32; 0 for NaN and infinities, which set no scale."""
    wide = x.astype(np.float32)
    return np.where(np.isfinite(wide), np.abs(wide), np.float32(0))


def _ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def _group_size(group: Group, shape: tuple[int, int]) -> Group:
    return group[0] or shape[0], group[1] or shape[1]


def absmax(x: np.ndarray, group: Group) -> np.ndarray:
    """The largest finite magnitude of every group of a matrix, as a grid of float32."""
    rows, columns = _group_size(group, x.shape)
    down, across = _ceil_div(x.shape[0], rows), _ceil_div(x.shape[1], columns)
    padded = np.zeros((down * rows, across * columns), np.float32)
    padded[: x.shape[0], : x.shape[1]] = finite_magnitude(x)
    return padded.reshape(down, rows, across, columns).max(axis=(1, 3))


def scale_of(largest: np.ndarray, to: str) -> np.ndarray:
    """max(absmax / qmax, 2^-126), one float32 division."""
    return np.maximum(largest.astype(np.float32) / np.float32(QMAX[to]), SMALLEST_SCALE)


def spread(scale: np.ndarray, group: Group, shape: tuple[int, int]) -> np.ndarray:
    """The scale of every element of a matrix of that shape."""
    rows, columns = _group_size(group, shape)
    return np.repeat(np.repeat(scale, rows, axis=0), columns, axis=1)[: shape[0], : shape[1]]


def encode(value: np.ndarray, to: str) -> np.ndarray:
    """The codes of float32 values: nearest, ties to even, saturating. int4 codes come back as int8."""
    if to in INTEGER_RANGE:
        number = np.where(np.isnan(value), np.float32(0), value)
        return np.clip(np.rint(number), *INTEGER_RANGE[to]).astype(np.int8)
    limited = np.clip(value, -QMAX[to], QMAX[to]).astype(_FLOAT8[to])
    codes = np.where(np.isnan(value), np.uint8(NAN_CODE), limited.view(np.uint8))
    return codes.view(_FLOAT8[to])


def quantize(x: np.ndarray, scale: np.ndarray, group: Group, to: str) -> np.ndarray:
    """Codes of a matrix, given the grid of scales: one float32 division per element."""
    with np.errstate(all="ignore"):
        return encode(x.astype(np.float32) / spread(scale, group, x.shape), to)


def dequantize(codes: np.ndarray, scale: np.ndarray, group: Group, to: np.dtype) -> np.ndarray:
    """float(code) * scale: one float32 product, then one rounding to the output type."""
    with np.errstate(all="ignore"):
        return (codes.astype(np.float32) * spread(scale, group, codes.shape)).astype(to)


def share_of(count: int, parts: int, step: int) -> int:
    """How many consecutive elements one of ``parts`` partial maxima covers, a multiple of ``step``."""
    return _ceil_div(_ceil_div(count, parts), step) * step


def absmax_partials(x: np.ndarray, parts: int, step: int) -> np.ndarray:
    """The largest finite magnitude of each share of the flattened array; 0 for a share beyond its end."""
    share = share_of(x.size, parts, step)
    padded = np.zeros(parts * share, np.float32)
    padded[: x.size] = finite_magnitude(x).ravel()
    return padded.reshape(parts, share).max(axis=1)


def pack_int4(codes: np.ndarray) -> np.ndarray:
    """Two codes per byte along the last axis, the even index in the low nibble."""
    nibbles = codes.astype(np.uint8) & 0xF
    return nibbles[..., 0::2] | (nibbles[..., 1::2] << 4)


def unpack_int4(packed: np.ndarray) -> np.ndarray:
    """The signed codes of :func:`pack_int4`, as int8."""
    nibbles = np.stack([packed & 0xF, packed >> 4], axis=-1).reshape(*packed.shape[:-1], -1)
    return ((nibbles ^ 8).astype(np.int8)) - np.int8(8)
