"""Lowering rules of products, reductions, normalizations and the rotary embedding.

What the reference computes in float32 and rounds once is done in float32 here too where half precision would lose
digits that matter (sums, normalizations, rotations); the builder fuses the casts into the neighboring kernels.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from trtforge.graph_api.engines.lowering import Lowering, Value, lowers
from trtforge.graph_api.primitive import FLOATS
from trtforge.graph_api.tensor import Node
from trtforge.kernels.dims import is_symbolic


@lowers("matmul")
def _(g: Lowering, node: Node, a: Value, b: Value, *, transpose_a: bool, transpose_b: bool) -> Value:
    a, b = g.align(a, b)
    kinds = g.trt.MatrixOperation
    layer = g.network.add_matrix_multiply(
        a.tensor,
        kinds.TRANSPOSE if transpose_a else kinds.NONE,
        b.tensor,
        kinds.TRANSPOSE if transpose_b else kinds.NONE,
    )
    return g.add(layer, node.outputs[0].shape, a.dtype, "matmul")


def _reduction(name: str, op: str, wide: bool) -> None:
    @lowers(name)
    def _(g: Lowering, node: Node, x: Value, *, axis: tuple[int, ...], keepdims: bool) -> Value:
        source = g.cast(x, "float32") if wide and x.dtype in FLOATS else x
        return g.cast(g.reduce(op, source, axis, keepdims), x.dtype)


_reduction("sum", "SUM", wide=True)
_reduction("mean", "AVG", wide=True)
_reduction("max", "MAX", wide=False)


@lowers("argmax")
def _(g: Lowering, node: Node, x: Value, *, axis: int, keepdims: bool) -> Value:
    # The library finds the best of one of the last four axes, of rank 2 or more.
    at = axis % x.rank
    flat = g.reshape(x, (1, *x.shape)) if x.rank == 1 else x
    moved = at + flat.rank - x.rank
    layer = g.network.add_topk(flat.tensor, g.trt.TopKOperation.MAX, 1, 1 << moved)
    kept = tuple(1 if i == moved else d for i, d in enumerate(flat.shape))
    best = g.add(layer, kept, "int32", "topk", output=1)
    shape = node.outputs[0].shape
    return best if best.shape == shape else g.reshape(best, shape)


@lowers("softmax")
def _(g: Lowering, node: Node, x: Value, *, axis: int) -> Value:
    layer = g.network.add_softmax(x.tensor)
    if layer is not None:
        layer.axes = 1 << (axis % x.rank)
    return g.add(layer, x.shape, x.dtype, "softmax")


@lowers("rms_norm")
def _(g: Lowering, node: Node, x: Value, weight: Value | None, *, eps: float) -> Value:
    wide = g.cast(x, "float32")
    squares = g.reduce("AVG", g.elementwise("PROD", wide, wide), (-1,), True)
    root = g.unary("SQRT", g.elementwise("SUM", squares, g.scalar(eps, "float32", x.rank)))
    y = g.elementwise("DIV", wide, root)
    if weight is not None:
        y = g.elementwise("PROD", y, g.cast(weight, "float32"))
    return g.cast(y, x.dtype)


def _needs_width(node: Node, trt: Any) -> str | None:
    x, weight, bias = node.inputs
    if x is not None and is_symbolic(x.shape[-1]) and (weight is None or bias is None):
        return (
            f"the normalized axis {x.shape[-1]} is dynamic, and a constant scale or shift would have to be made for it"
        )
    return None


@lowers("layer_norm", _needs_width)
def _(g: Lowering, node: Node, x: Value, weight: Value | None, bias: Value | None, *, eps: float) -> Value:
    wide = g.cast(x if x.rank > 1 else g.reshape(x, (1, *x.shape)), "float32")
    shape = (*(1,) * (wide.rank - 1), x.shape[-1])

    def factor(given: Value | None, value: float) -> Value:
        if given is not None:
            return g.reshape(g.cast(given, "float32"), shape)
        return g.constant(np.full([int(d) for d in shape], value, np.float32))

    scale, shift = factor(weight, 1.0), factor(bias, 0.0)
    newer = getattr(g.network, "add_normalization_v2", None)  # TensorRT 10.15 and later
    add = g.network.add_normalization if newer is None else newer
    layer = add(wide.tensor, scale.tensor, shift.tensor, 1 << (wide.rank - 1))
    if layer is not None:
        layer.epsilon = eps
    y = g.cast(g.add(layer, wide.shape, "float32", "normalization"), x.dtype)
    return y if x.rank > 1 else g.reshape(y, x.shape)


@lowers("rope")
def _(g: Lowering, node: Node, x: Value, cos: Value, sin: Value) -> Value:
    batch, heads, rows, width = x.shape
    half = int(width) // 2
    if cos.rank == 3:  # [B, S, D/2]: the same for every head
        cos, sin = (g.reshape(t, (t.shape[0], 1, *t.shape[1:])) for t in (cos, sin))
    wide = g.cast(x, "float32")
    part = (batch, heads, rows, half)
    first = g.slice(wide, (0, 0, 0, 0), part, (1, 1, 1, 1))
    second = g.slice(wide, (0, 0, 0, half), part, (1, 1, 1, 1))
    turned = [
        g.elementwise("SUB", g.elementwise("PROD", first, cos), g.elementwise("PROD", second, sin)),
        g.elementwise("SUM", g.elementwise("PROD", second, cos), g.elementwise("PROD", first, sin)),
    ]
    layer = g.network.add_concatenation([t.tensor for t in turned])
    if layer is not None:
        layer.axis = 3
    return g.cast(g.add(layer, x.shape, "float32", "concat"), x.dtype)
