"""Primitives that pick elements by index, and the KV-cache write."""

from __future__ import annotations

from typing import Any

from trtforge.bindings.dtypes import DTYPES
from trtforge.bindings.errors import GraphError
from trtforge.graph_api import shapes
from trtforge.graph_api.primitive import FLOATS, Call, Primitive, Value, declare
from trtforge.graph_api.tensor import Tensor
from trtforge.kernels.dims import constant_value

INDEX = ("int32", "int64")


def _infer_gather(call: Call, x: Tensor, indices: Tensor, *, axis: int) -> Value:
    if indices.dtype not in INDEX:
        call.fail(f"the indices are {indices.dtype}", " | ".join(INDEX))
    axis = call.axis(axis, x.rank)
    call.attributes["axis"] = axis
    at = axis + x.rank
    return (*x.shape[:at], *indices.shape, *x.shape[at + 1 :]), x.dtype


def _run_gather(xp: Any, x: Any, indices: Any, *, axis: int) -> Any:
    try:
        return xp.take(x, indices, axis=axis)
    except IndexError:
        raise GraphError(
            f"gather: an index is outside 0..{x.shape[axis] - 1}; the indices span {indices.min()}..{indices.max()}"
        ) from None


def _infer_kv_cache_update(call: Call, cache: Tensor, new: Tensor, positions: Tensor) -> Value:
    call.same_dtype(cache, new, among=tuple(DTYPES))
    if cache.rank != 4 or new.rank != 4 or positions.rank != 1:
        call.fail(
            f"the ranks are {cache.rank}, {new.rank} and {positions.rank}",
            "cache [B, H, Smax, D], new [B, H, S, D], positions [B]",
        )
    batch, heads, capacity, width = cache.shape
    if (new.shape[0], new.shape[1], new.shape[3]) != (batch, heads, width):
        call.fail(
            f"new has shape {shapes.text(new.shape)} but the cache {shapes.text(cache.shape)}",
            "equal batch, heads and head width",
        )
    if positions.shape[0] != batch or positions.dtype != "int32":
        call.fail(f"positions is {positions.dtype}{shapes.text(positions.shape)}", f"int32[{batch}]")
    rows, room = constant_value(new.shape[2]), constant_value(capacity)
    if rows is not None and room is not None and rows > room:
        call.fail(f"{rows} new rows do not fit into a cache of {room}", "S of at most Smax")
    return cache.shape, cache.dtype


def _run_kv_cache_update(xp: Any, cache: Any, new: Any, positions: Any) -> Any:
    rows, capacity = new.shape[2], cache.shape[2]
    for b, start in enumerate(positions.tolist()):
        if start < 0 or start + rows > capacity:
            raise GraphError(
                f"kv_cache_update: sequence {b} writes rows {start}..{start + rows - 1} into a cache of {capacity} rows"
            )
        cache[b, :, start : start + rows] = new[b]
    return cache


def _infer_rope(call: Call, x: Tensor, cos: Tensor, sin: Tensor) -> Value:
    if x.dtype not in FLOATS or cos.dtype != "float32" or sin.dtype != "float32":
        call.fail(f"the dtypes are {x.dtype}, {cos.dtype} and {sin.dtype}", "x of a float dtype, float32 tables")
    if x.rank != 4 or x.shape[3] % 2 != 0:
        call.fail(f"x has shape {shapes.text(x.shape)}", "[B, H, S, D] with D even")
    batch, _, rows, width = x.shape
    half = width // 2
    accepted = [(rows, half), (batch, rows, half), (1, rows, half), (batch, 1, rows, half), (1, 1, rows, half)]
    if cos.shape != sin.shape or cos.shape not in accepted:
        call.fail(
            f"the tables have shapes {shapes.text(cos.shape)} and {shapes.text(sin.shape)}",
            " | ".join(map(shapes.text, accepted)),
        )
    return x.shape, x.dtype


def _run_rope(xp: Any, x: Any, cos: Any, sin: Any) -> Any:
    half = x.shape[-1] // 2
    if cos.ndim == 3:  # [B, S, D/2]: the same for every head
        cos, sin = cos[:, None], sin[:, None]
    first, second = x[..., :half], x[..., half:]
    out = xp.empty(x.shape, x.dtype)
    out[..., :half] = first * cos - second * sin
    out[..., half:] = second * cos + first * sin
    return out


declare(
    Primitive("rope", ("x", "cos", "sin"), _infer_rope, _run_rope),
    Primitive("gather", ("x", "indices"), _infer_gather, _run_gather, {"axis": 0}, "bits"),
    Primitive(
        "kv_cache_update",
        ("cache", "new", "positions"),
        _infer_kv_cache_update,
        _run_kv_cache_update,
        compute="bits",
        in_place=0,
        doc="Rows new[b] [H, S, D] are written to cache[b] [H, Smax, D] from row positions[b] on, in place.",
    ),
)
