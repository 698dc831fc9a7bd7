"""What the kernels of this family compute, in NumPy: float64 up to the value that is quantized, then the rule of
:mod:`trtforge.kernels.quantize.reference` in float32."""

from __future__ import annotations

import numpy as np

from trtforge.kernels.quantize import reference as quantization

PER_ROW = (1, 0)


def rms_normalized(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    """x / sqrt(mean(x²) + eps) · weight over the last axis, float64."""
    wide = x.astype(np.float64)
    return wide / np.sqrt(np.mean(wide * wide, axis=-1, keepdims=True) + eps) * weight.astype(np.float64)


def layer_normalized(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, eps: float) -> np.ndarray:
    """(x - mean) / sqrt(variance + eps) · weight + bias over the last axis, float64."""
    wide = x.astype(np.float64)
    centered = wide - np.mean(wide, axis=-1, keepdims=True)
    y = centered / np.sqrt(np.mean(centered * centered, axis=-1, keepdims=True) + eps) * weight.astype(np.float64)
    return y if bias is None else y + bias.astype(np.float64)


def silu_times(gate: np.ndarray, up: np.ndarray) -> np.ndarray:
    """gate / (1 + exp(-gate)) · up, float64."""
    wide = gate.astype(np.float64)
    return wide / (1.0 + np.exp(-wide)) * up.astype(np.float64)


def rounded_sum(x: np.ndarray, residual: np.ndarray) -> np.ndarray:
    """x + residual, added in float32 and rounded to the type of both."""
    return (x.astype(np.float32) + residual.astype(np.float32)).astype(x.dtype)


def quantized_rows(value: np.ndarray, static_scale: np.ndarray | None, to: str) -> tuple[np.ndarray, np.ndarray]:
    """Codes [*M, N] and scales [*M] of values that are rounded to float32 first; a given scale holds for all rows."""
    matrix = quantization.as_matrix(value.astype(np.float32))
    if static_scale is None:
        scale = quantization.scale_of(quantization.absmax(matrix, PER_ROW), to)
    else:
        scale = np.full((matrix.shape[0], 1), static_scale[0], np.float32)
    codes = quantization.quantize(matrix, scale, PER_ROW, to)
    return codes.reshape(value.shape), scale.reshape(value.shape[:-1])
