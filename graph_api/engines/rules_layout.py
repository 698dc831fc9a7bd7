"""Lowering rules of the primitives that make, move and pick elements."""

from __future__ import annotations

from typing import Any

import numpy as np

from trtforge.bindings.dtypes import DTYPES
from trtforge.graph_api.engines.lowering import Lowering, Value, lowers
from trtforge.graph_api.shapes import Shape
from trtforge.graph_api.tensor import Node
from trtforge.kernels.dims import IntLike, constant_value


@lowers("reshape")
def _(g: Lowering, node: Node, x: Value, *, shape: Shape) -> Value:
    return g.reshape(x, shape)


@lowers("permute")
def _(g: Lowering, node: Node, x: Value, *, axes: tuple[int, ...]) -> Value:
    return g.permute(x, axes)


@lowers("expand")
def _(g: Lowering, node: Node, x: Value, *, shape: Shape) -> Value:
    full = x if x.rank == len(shape) else g.reshape(x, (*(1,) * (len(shape) - x.rank), *x.shape))
    stride = [0 if constant_value(have) == 1 else 1 for have in full.shape]
    return g.slice(full, (0,) * len(shape), shape, stride)


@lowers("slice")
def _(g: Lowering, node: Node, x: Value, *, axis: int, start: IntLike, stop: IntLike, step: int) -> Value:
    at = axis % x.rank
    first: list[IntLike] = [0] * x.rank
    stride = [1] * x.rank
    first[at], stride[at] = start, step
    return g.slice(x, first, node.outputs[0].shape, stride)


@lowers("concat")
def _(g: Lowering, node: Node, *values: Value, axis: int) -> Value:
    layer = g.network.add_concatenation([v.tensor for v in values])
    if layer is not None:
        layer.axis = axis % values[0].rank
    return g.add(layer, node.outputs[0].shape, values[0].dtype, "concat")


@lowers("gather")
def _(g: Lowering, node: Node, x: Value, indices: Value, *, axis: int) -> Value:
    layer = g.network.add_gather(x.tensor, indices.tensor, axis % x.rank)
    return g.add(layer, node.outputs[0].shape, x.dtype, "gather")


@lowers("arange")
def _(g: Lowering, node: Node, *, size: IntLike, dtype: str) -> Value:
    known = constant_value(size)
    if known is not None:
        return g.constant(np.arange(known, dtype=DTYPES[dtype].numpy))
    layer = g.network.add_fill((1,), g.trt.FillOperation.LINSPACE, getattr(g.trt.DataType, dtype.upper()))
    if layer is not None:
        layer.set_input(0, g.extent(size))
        layer.set_input(1, g.constant(np.zeros((), DTYPES[dtype].numpy)).tensor)  # the first value
        layer.set_input(2, g.constant(np.ones(1, DTYPES[dtype].numpy)).tensor)  # the step of each axis
    return g.add(layer, (size,), dtype, "arange")


@lowers("dim_value")
def _(g: Lowering, node: Node, *, value: IntLike, dtype: str) -> Value:
    known = constant_value(value)
    if known is not None:
        return g.constant(np.full((), known, DTYPES[dtype].numpy))
    return g.cast(g.reshape(Value(g.extent(value), (1,), "int64"), ()), dtype)


def _has_cache_layer(node: Node, trt: Any) -> str | None:
    if not hasattr(trt.INetworkDefinition, "add_kv_cache_update"):
        return f"{trt.__name__} {trt.__version__} has no KV-cache layer (TensorRT has one from 10.15 on)"
    return None


@lowers("kv_cache_update", _has_cache_layer)
def _(g: Lowering, node: Node, cache: Value, new: Value, positions: Value) -> Value:
    layer = g.network.add_kv_cache_update(cache.tensor, new.tensor, positions.tensor, g.trt.KVCacheMode.LINEAR)
    return g.add(layer, cache.shape, cache.dtype, "kv_cache_update")
