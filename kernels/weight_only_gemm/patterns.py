"""The subgraphs that the weight-only products replace: dequantized weights in a linear layer, with what follows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from trtforge.kernels import Op

GRAPH_ACTIVATIONS: dict[str, Callable[[Any, Any], Any]] = {
    "none": lambda f, x: x,
    "relu": lambda f, x: f.relu(x),
    "gelu_erf": lambda f, x: f.gelu(x, approximate="none"),
    "gelu_tanh": lambda f, x: f.gelu(x, approximate="tanh"),
    "silu": lambda f, x: f.silu(x),
}


def _declare(op: Op, dequantize: str, name: str, activation: str, activate: Callable[[Any, Any], Any]) -> None:
    attributes = {"activation": activation}

    @op.pattern(inputs=("x", "w", "scale", "bias"), attributes=attributes, name=f"{name}_linear_bias_{activation}")
    def _(f: Any, x: Any, w: Any, scale: Any, bias: Any) -> Any:
        return activate(f, f.add(f.matmul(x, f.call(dequantize, w, scale), transpose_b=True), bias))

    @op.pattern(inputs=("x", "w", "scale"), attributes=attributes, name=f"{name}_linear_{activation}")
    def _(f: Any, x: Any, w: Any, scale: Any) -> Any:
        return activate(f, f.matmul(x, f.call(dequantize, w, scale), transpose_b=True))


def declare(int8_weight_gemm: Op, int4_weight_gemm: Op) -> None:
    """Add the patterns. Replacing is refused by the ops' contracts where the codes are not theirs (fp8), or rows of
    packed weights end in a short group."""
    for activation, activate in GRAPH_ACTIVATIONS.items():
        _declare(int8_weight_gemm, "trtforge::dequantize_token", "int8", activation, activate)
        _declare(int4_weight_gemm, "trtforge::dequantize_int4", "int4", activation, activate)
