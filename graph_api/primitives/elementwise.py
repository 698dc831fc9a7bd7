"""Elementwise primitives: one row each, with the value in NumPy and as a CUDA C expression.

In an expression, float16 and bfloat16 inputs are ``float`` already; the result is rounded once when it is stored.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from trtforge.bindings.dtypes import DTYPES
from trtforge.graph_api.primitive import FLOATS, INTS, NUMBERS, REQUIRED, Call, Primitive, Value, declare
from trtforge.graph_api.tensor import Tensor

BOOL = ("bool",)


def _same(among: tuple[str, ...], result: str = "") -> Callable[..., Value]:
    """All inputs of one dtype out of ``among``, broadcast; the result has that dtype, or ``result``."""

    def infer(call: Call, *inputs: Tensor, **attributes: Any) -> Value:
        dtype = call.same_dtype(*inputs, among=among)
        return call.broadcast(*inputs), result or dtype

    return infer


def _unary(name: str, run: Callable[[Any, Any], Any], expression: str, among: tuple[str, ...] = FLOATS) -> Primitive:
    return Primitive(name, ("x",), _same(among), run, expression=expression)


def _binary(
    name: str,
    run: Callable[[Any, Any, Any], Any],
    expression: str,
    among: tuple[str, ...] = NUMBERS,
    commutative: bool = False,
    result: str = "",
) -> Primitive:
    return Primitive(name, ("a", "b"), _same(among, result), run, expression=expression, commutative=commutative)


def sigmoid(xp: Any, x: Any) -> Any:
    """1 / (1 + e^-x) without overflow: the exponential is taken of -|x|."""
    small = xp.exp(-xp.abs(x))
    return xp.where(x >= 0, 1 / (1 + small), small / (1 + small))


def erf(xp: Any, x: Any) -> Any:
    """The error function, to float32 accuracy, in float64 arithmetic.

    Series of Abramowitz & Stegun 7.1.6 for |x| < 2.5, continued fraction 7.1.14 of erfc beyond.
    """
    wide = xp.asarray(x).astype(xp.float64)
    magnitude = xp.abs(wide)
    near = xp.minimum(magnitude, 2.5)
    term = 2 / math.sqrt(math.pi) * near * xp.exp(-near * near)
    series = term.copy()
    for n in range(1, 36):
        term = term * (2 * near * near / (2 * n + 1))
        series = series + term
    far = xp.clip(magnitude, 2.5, 6.0)
    fraction = far
    for n in range(30, 0, -1):
        fraction = far + (n / 2) / fraction
    tail = 1 - xp.exp(-far * far) / (math.sqrt(math.pi) * fraction)
    return xp.sign(wide) * xp.where(magnitude < 2.5, series, tail)


def gelu(xp: Any, x: Any, approximate: str) -> Any:
    """x * Phi(x), or its tanh approximation (Hendrycks & Gimpel 2016, arXiv:1606.08415)."""
    if approximate == "tanh":
        return 0.5 * x * (1 + xp.tanh(np.float32(math.sqrt(2 / math.pi)) * (x + np.float32(0.044715) * x * x * x)))
    return (0.5 * x * (1 + erf(xp, x * math.sqrt(0.5)))).astype(xp.float32)


def _infer_gelu(call: Call, x: Tensor, *, approximate: str) -> Value:
    if approximate not in ("none", "tanh"):
        call.fail(f"approximate is {approximate!r}", "'none' | 'tanh'")
    return x.shape, call.same_dtype(x, among=FLOATS)


def _infer_where(call: Call, condition: Tensor, a: Tensor, b: Tensor) -> Value:
    if condition.dtype != "bool":
        call.fail(f"the condition is {condition.dtype}", "bool, as comparisons make it")
    return call.broadcast(condition, a, b), call.same_dtype(a, b, among=(*NUMBERS, "bool"))


def _infer_cast(call: Call, x: Tensor, *, dtype: str) -> Value:
    served = (*NUMBERS, "bool")
    if dtype not in served:
        call.fail(f"cannot cast to {dtype!r}", " | ".join(served) + "; functional.quantize makes 8-bit floats")
    if x.dtype not in served:
        call.fail(f"cannot cast from {x.dtype}", " | ".join(served) + "; functional.dequantize reads 8-bit floats")
    return x.shape, dtype


def _run_cast(xp: Any, x: Any, *, dtype: str) -> Any:
    # Half precision arrives widened to float32 and is rounded after this function: only numbers change kind here.
    if dtype in FLOATS:
        return x.astype(xp.float32)
    return x.astype(DTYPES[dtype].numpy)


declare(
    _unary("neg", lambda xp, x: -x, "-x", NUMBERS),
    _unary("exp", lambda xp, x: xp.exp(x), "expf(x)"),
    _unary("log", lambda xp, x: xp.log(x), "logf(x)"),
    _unary("sqrt", lambda xp, x: xp.sqrt(x), "sqrtf(x)"),
    _unary("rsqrt", lambda xp, x: 1 / xp.sqrt(x), "1.0f / sqrtf(x)"),
    _unary("abs", lambda xp, x: xp.abs(x), "x < 0 ? -x : x", NUMBERS),
    _unary("erf", lambda xp, x: erf(xp, x).astype(xp.float32), "erff(x)"),
    _unary("sin", lambda xp, x: xp.sin(x), "sinf(x)"),
    _unary("cos", lambda xp, x: xp.cos(x), "cosf(x)"),
    _unary("tanh", lambda xp, x: xp.tanh(x), "tanhf(x)"),
    _unary("sigmoid", sigmoid, "1.0f / (1.0f + expf(-x))"),
    _unary("relu", lambda xp, x: xp.maximum(x, 0), "x < 0 ? decltype(x)(0) : x", NUMBERS),
    _unary("silu", lambda xp, x: x * sigmoid(xp, x), "x / (1.0f + expf(-x))"),
    _unary("logical_not", lambda xp, x: ~x, "!x", BOOL),
    Primitive(
        "gelu",
        ("x",),
        _infer_gelu,
        lambda xp, x, approximate: gelu(xp, x, approximate),
        {"approximate": "none"},
        expression={
            "none": "0.5f * x * (1.0f + erff(x * 0.70710678118654752f))",
            "tanh": "0.5f * x * (1.0f + tanhf(0.79788456080286536f * (x + 0.044715f * x * x * x)))",
        },
    ),
    _binary("add", lambda xp, a, b: a + b, "a + b", commutative=True),
    _binary("sub", lambda xp, a, b: a - b, "a - b"),
    _binary("mul", lambda xp, a, b: a * b, "a * b", commutative=True),
    _binary("div", lambda xp, a, b: a / b, "a / b", FLOATS),
    _binary("floor_div", lambda xp, a, b: a // b, "floor_quotient(a, b)", INTS),
    _binary("mod", lambda xp, a, b: a % b, "a - floor_quotient(a, b) * b", INTS),
    _binary("pow", lambda xp, a, b: xp.power(a, b), "powf(a, b)", FLOATS),
    _binary("maximum", lambda xp, a, b: xp.maximum(a, b), "(a != a || a > b) ? a : b", commutative=True),
    _binary("minimum", lambda xp, a, b: xp.minimum(a, b), "(a != a || a < b) ? a : b", commutative=True),
    _binary("eq", lambda xp, a, b: a == b, "a == b", (*NUMBERS, "bool"), commutative=True, result="bool"),
    _binary("ne", lambda xp, a, b: a != b, "a != b", (*NUMBERS, "bool"), commutative=True, result="bool"),
    _binary("lt", lambda xp, a, b: a < b, "a < b", result="bool"),
    _binary("le", lambda xp, a, b: a <= b, "a <= b", result="bool"),
    _binary("gt", lambda xp, a, b: a > b, "a > b", result="bool"),
    _binary("ge", lambda xp, a, b: a >= b, "a >= b", result="bool"),
    _binary("logical_and", lambda xp, a, b: a & b, "a && b", BOOL, commutative=True),
    _binary("logical_or", lambda xp, a, b: a | b, "a || b", BOOL, commutative=True),
    Primitive(
        "where",
        ("condition", "a", "b"),
        _infer_where,
        lambda xp, condition, a, b: xp.where(condition, a, b),
        expression="condition ? a : b",
    ),
    Primitive("cast", ("x",), _infer_cast, _run_cast, {"dtype": REQUIRED}, expression="x"),
)
