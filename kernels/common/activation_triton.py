"""Activation functions on float32 values for Triton kernels: those of ``common/epilogue/activation.cuh``."""

import triton
import triton.language as tl


@triton.jit
def activate(value, ACTIVATION: tl.constexpr):
    """The activation of that name: none, relu, gelu_erf, gelu_tanh or silu. value: float32."""
    if ACTIVATION == "none":
        return value
    elif ACTIVATION == "relu":
        return tl.where(value < 0.0, 0.0, value)  # NaN stays NaN
    elif ACTIVATION == "gelu_erf":
        return 0.5 * value * (1.0 + tl.math.erf(value * 0.7071067811865476))
    elif ACTIVATION == "gelu_tanh":
        # (1 + tanh u) / 2 = sigmoid(2u), with u = sqrt(2/pi) (x + 0.044715 x^3)
        return value * tl.sigmoid(1.5957691216057308 * value * (1.0 + 0.044715 * value * value))
    else:
        tl.static_assert(ACTIVATION == "silu")
        return value * tl.sigmoid(value)
