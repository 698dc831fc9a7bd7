"""Lowering rules of the elementwise primitives, one row or function each."""

from __future__ import annotations

import numpy as np

from trtforge.graph_api.engines.lowering import Lowering, Value, joint_shape, lowers
from trtforge.graph_api.primitive import FLOATS
from trtforge.graph_api.tensor import Node


def _unary(name: str, op: str) -> None:
    @lowers(name)
    def _(g: Lowering, node: Node, x: Value) -> Value:
        return g.unary(op, x)


def _activation(name: str, op: str) -> None:
    @lowers(name)
    def _(g: Lowering, node: Node, x: Value) -> Value:
        return g.activation(op, x)


def _binary(name: str, op: str) -> None:
    @lowers(name)
    def _(g: Lowering, node: Node, a: Value, b: Value) -> Value:
        return g.elementwise(op, a, b)


def _comparison(name: str, op: str) -> None:
    @lowers(name)
    def _(g: Lowering, node: Node, a: Value, b: Value) -> Value:
        return g.elementwise(op, a, b, "bool")


for _name, _op in {
    "neg": "NEG", "exp": "EXP", "log": "LOG", "sqrt": "SQRT", "abs": "ABS", "erf": "ERF", "sin": "SIN", "cos": "COS",
    "logical_not": "NOT",
}.items():  # fmt: skip
    _unary(_name, _op)
for _name, _op in {"tanh": "TANH", "sigmoid": "SIGMOID"}.items():
    _activation(_name, _op)
for _name, _op in {
    "add": "SUM", "sub": "SUB", "mul": "PROD", "div": "DIV", "floor_div": "FLOOR_DIV", "pow": "POW", "maximum": "MAX",
    "minimum": "MIN", "logical_and": "AND", "logical_or": "OR",
}.items():  # fmt: skip
    _binary(_name, _op)
_comparison("lt", "LESS")
_comparison("gt", "GREATER")


@lowers("rsqrt")
def _(g: Lowering, node: Node, x: Value) -> Value:
    # In float32: the square root of a half-precision number, rounded, would lose half of the reciprocal's digits.
    return g.cast(g.unary("RECIP", g.unary("SQRT", g.cast(x, "float32"))), x.dtype)


@lowers("relu")
def _(g: Lowering, node: Node, x: Value) -> Value:
    return g.activation("RELU", x) if x.dtype in FLOATS else g.elementwise("MAX", x, g.scalar(0, x.dtype, x.rank))


@lowers("silu")
def _(g: Lowering, node: Node, x: Value) -> Value:
    wide = g.cast(x, "float32")
    return g.cast(g.elementwise("PROD", wide, g.activation("SIGMOID", wide)), x.dtype)


@lowers("gelu")
def _(g: Lowering, node: Node, x: Value, *, approximate: str) -> Value:
    return g.activation("GELU_TANH" if approximate == "tanh" else "GELU_ERF", x)


@lowers("mod")
def _(g: Lowering, node: Node, a: Value, b: Value) -> Value:
    return g.elementwise("SUB", a, g.elementwise("PROD", g.elementwise("FLOOR_DIV", a, b), b))


@lowers("eq")
def _(g: Lowering, node: Node, a: Value, b: Value) -> Value:
    return g.elementwise("EQUAL", a, b, "bool")


@lowers("ne")
def _(g: Lowering, node: Node, a: Value, b: Value) -> Value:
    return g.unary("NOT", g.elementwise("EQUAL", a, b, "bool"))


def _or_equal(name: str, op: str) -> None:
    """``a <= b`` as (a < b or a == b), which is false for NaN; not (a > b) would be true."""

    @lowers(name)
    def _(g: Lowering, node: Node, a: Value, b: Value) -> Value:
        return g.elementwise("OR", g.elementwise(op, a, b, "bool"), g.elementwise("EQUAL", a, b, "bool"))


_or_equal("le", "LESS")
_or_equal("ge", "GREATER")


@lowers("where")
def _(g: Lowering, node: Node, condition: Value, a: Value, b: Value) -> Value:
    condition, a, b = g.align(condition, a, b)
    shape = joint_shape(condition.shape, joint_shape(a.shape, b.shape))
    return g.add(g.network.add_select(condition.tensor, a.tensor, b.tensor), shape, a.dtype, "select")


@lowers("cast")
def _(g: Lowering, node: Node, x: Value, *, dtype: str) -> Value:
    if dtype == "bool" and x.dtype in FLOATS:  # NaN is true, as in NumPy
        zero = g.constant(np.zeros((1,) * x.rank, np.float32))
        return g.unary("NOT", g.elementwise("EQUAL", g.cast(x, "float32"), zero, "bool"))
    return g.cast(x, dtype)
