"""Primitives that move elements without looking at them: reshape, permute, expand, slice, concat."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trtforge.bindings.dtypes import DTYPES
from trtforge.graph_api import shapes
from trtforge.graph_api.primitive import REQUIRED, Call, Primitive, Value, declare
from trtforge.graph_api.shapes import Shape
from trtforge.graph_api.tensor import Tensor
from trtforge.kernels.dims import IntLike, cdiv, constant_value, maximum, minimum


def _infer_reshape(call: Call, x: Tensor, *, shape: Shape) -> Value:
    full = shapes.infer_missing(shape, x.size)
    if full is None or shapes.volume(full) != x.size:
        call.fail(
            f"{shapes.text(shape)} cannot be proved to have the {x.size} elements of {shapes.text(x.shape)}",
            "dimensions with the same product, one of them -1 if the others divide it",
        )
    call.attributes["shape"] = full
    return full, x.dtype


def _infer_permute(call: Call, x: Tensor, *, axes: tuple[int, ...]) -> Value:
    full = tuple(call.axis(a, x.rank) + x.rank for a in axes)
    if sorted(full) != list(range(x.rank)):
        call.fail(f"axes {axes} is no permutation", f"each of the {x.rank} axes once")
    call.attributes["axes"] = full
    return tuple(x.shape[a] for a in full), x.dtype


def _infer_expand(call: Call, x: Tensor, *, shape: Shape) -> Value:
    if len(shape) < x.rank:
        call.fail(f"{shapes.text(shape)} has fewer axes than the input", f"rank {x.rank} or more")
    padded = (*(None,) * (len(shape) - x.rank), *x.shape)
    full: list[IntLike] = []
    for have, wanted in zip(padded, shape):
        size = have if wanted == -1 and have is not None else wanted
        if size == -1 or (have is not None and have != 1 and have != size):
            call.fail(
                f"{shapes.text(x.shape)} does not expand to {shapes.text(shape)}",
                "for each axis, counted from the last, its own size, -1 to keep it, or any size where it is 1",
            )
        full.append(size)
    call.attributes["shape"] = tuple(full)
    return tuple(full), x.dtype


def _bound(size: IntLike, value: IntLike, ranges: Mapping[str, shapes.Dim]) -> IntLike:
    """A slice bound as NumPy reads it: negative ints count from the end, and bounds are clamped to the axis.

    ``ranges`` of the dimensions: a bound that the axis always reaches needs no clamp.
    """
    known = constant_value(value)
    if known is None:
        return value
    if known < 0:
        return maximum(size + known, 0)
    return known if shapes.at_most(known, size, ranges) else minimum(size, known)


def _infer_slice(call: Call, x: Tensor, *, axis: int, start: IntLike, stop: IntLike | None, step: int) -> Value:
    axis = call.axis(axis, x.rank)
    size = x.shape[axis]
    if isinstance(step, bool) or not isinstance(step, int) or step < 1:
        call.fail(f"the step is {step!r}", "an int of at least 1")
    ranges = x.network.dims
    first, last = _bound(size, start, ranges), size if stop is None else _bound(size, stop, ranges)
    length = cdiv(last - first, step)
    known = constant_value(length)
    if known is not None and known < 1:
        call.fail(f"the slice {start}:{stop}:{step} of an axis of size {size} is empty", "at least one element")
    call.attributes.update(axis=axis, start=first, stop=last)
    sizes = list(x.shape)
    sizes[axis] = length
    return tuple(sizes), x.dtype


def _run_slice(xp: Any, x: Any, *, axis: int, start: int, stop: int, step: int) -> Any:
    where = [slice(None)] * x.ndim
    where[axis] = slice(start, stop, step)
    return x[tuple(where)]


def _infer_concat(call: Call, *tensors: Tensor, axis: int) -> Value:
    if not tensors:
        call.fail("nothing to concatenate", "at least one tensor")
    first = tensors[0]
    dtype = call.same_dtype(*tensors, among=tuple(DTYPES))
    axis = call.axis(axis, first.rank)
    total: IntLike = 0
    for tensor in tensors:
        others = list(tensor.shape)
        if tensor.rank != first.rank or any(others[i] != first.shape[i] for i in range(-first.rank, 0) if i != axis):
            call.fail(
                f"the shapes {shapes.text(first.shape)} and {shapes.text(tensor.shape)} differ outside axis {axis}",
                "shapes that are equal on every other axis",
            )
        total = total + tensor.shape[axis]
    call.attributes["axis"] = axis
    sizes = list(first.shape)
    sizes[axis] = total
    return tuple(sizes), dtype


def _run_concat(xp: Any, *arrays: Any, axis: int) -> Any:
    sizes = list(arrays[0].shape)
    sizes[axis] = sum(a.shape[axis] for a in arrays)
    out = xp.empty(sizes, arrays[0].dtype)
    at = 0
    for array in arrays:
        where = [slice(None)] * array.ndim
        where[axis] = slice(at, at + array.shape[axis])
        out[tuple(where)] = array
        at += array.shape[axis]
    return out


declare(
    Primitive("reshape", ("x",), _infer_reshape, lambda xp, x, shape: x.reshape(shape), {"shape": REQUIRED}, "bits"),
    Primitive("permute", ("x",), _infer_permute, lambda xp, x, axes: x.transpose(axes), {"axes": REQUIRED}, "bits"),
    Primitive(
        "expand", ("x",), _infer_expand, lambda xp, x, shape: xp.broadcast_to(x, shape), {"shape": REQUIRED}, "bits"
    ),
    Primitive(
        "slice",
        ("x",),
        _infer_slice,
        _run_slice,
        {"axis": REQUIRED, "start": 0, "stop": None, "step": 1},
        "bits",
    ),
    Primitive("concat", ("*tensors",), _infer_concat, _run_concat, {"axis": -1}, "bits"),
)
