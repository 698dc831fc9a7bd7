"""Primitives that combine the elements of an axis: sums, means, extrema, softmax and normalizations."""

from __future__ import annotations

from typing import Any

import numpy as np

from trtforge.graph_api import shapes
from trtforge.graph_api.primitive import FLOATS, NUMBERS, Call, Primitive, Value, declare
from trtforge.graph_api.shapes import Shape
from trtforge.graph_api.tensor import Tensor


def _axes(call: Call, x: Tensor, axis: Any) -> tuple[int, ...]:
    given = axis if isinstance(axis, (tuple, list)) else (axis,)
    axes = tuple(sorted(call.axis(a, x.rank) for a in given))
    if not axes or len(set(axes)) != len(axes):
        call.fail(f"the axes {axis} are empty or repeated", "each axis at most once, at least one")
    call.attributes["axis"] = axes
    return axes


def _reduced(x: Tensor, axes: tuple[int, ...], keepdims: bool) -> Shape:
    kept = [(i, d) for i, d in zip(range(-x.rank, 0), x.shape)]
    if keepdims:
        return tuple(1 if i in axes else d for i, d in kept)
    return tuple(d for i, d in kept if i not in axes)


def _reduction(name: str, among: tuple[str, ...], run: Any) -> Primitive:
    def infer(call: Call, x: Tensor, *, axis: Any, keepdims: bool) -> Value:
        dtype = call.same_dtype(x, among=among)
        return _reduced(x, _axes(call, x, axis), keepdims), dtype

    return Primitive(name, ("x",), infer, run, {"axis": -1, "keepdims": False})


def _infer_argmax(call: Call, x: Tensor, *, axis: int, keepdims: bool) -> Value:
    call.same_dtype(x, among=NUMBERS)
    axis = call.axis(axis, x.rank)
    call.attributes["axis"] = axis
    return _reduced(x, (axis,), keepdims), "int32"


def _run_argmax(xp: Any, x: Any, *, axis: int, keepdims: bool) -> Any:
    best = xp.argmax(x, axis=axis).astype(xp.int32)
    return xp.expand_dims(best, axis) if keepdims else best


def _infer_softmax(call: Call, x: Tensor, *, axis: int) -> Value:
    call.attributes["axis"] = call.axis(axis, x.rank)
    return x.shape, call.same_dtype(x, among=FLOATS)


def _run_softmax(xp: Any, x: Any, *, axis: int) -> Any:
    shifted = xp.exp(x - xp.max(x, axis=axis, keepdims=True))
    return shifted / xp.sum(shifted, axis=axis, keepdims=True)


def _infer_norm(call: Call, x: Tensor, weight: Tensor | None, *more: Tensor | None, eps: float) -> Value:
    scales = [t for t in (weight, *more) if t is not None]
    dtype = call.same_dtype(x, *scales, among=FLOATS)
    if x.rank < 1:
        call.fail("a scalar has no axis to normalize", "rank 1 or more")
    for scale in scales:
        if scale.shape != x.shape[-1:]:
            call.fail(
                f"the scale {scale.name!r} has shape {shapes.text(scale.shape)}",
                f"the last dimension of x: {shapes.text(x.shape[-1:])}",
            )
    if not eps >= 0:
        call.fail(f"eps is {eps}", "a number of at least 0")
    call.attributes["eps"] = float(eps)
    return x.shape, dtype


def _run_rms_norm(xp: Any, x: Any, weight: Any, *, eps: float) -> Any:
    y = x / xp.sqrt(xp.mean(x * x, axis=-1, keepdims=True) + np.float32(eps))
    return y if weight is None else y * weight


def _run_layer_norm(xp: Any, x: Any, weight: Any, bias: Any, *, eps: float) -> Any:
    centered = x - xp.mean(x, axis=-1, keepdims=True)
    y = centered / xp.sqrt(xp.mean(centered * centered, axis=-1, keepdims=True) + np.float32(eps))
    if weight is not None:
        y = y * weight
    return y if bias is None else y + bias


declare(
    _reduction("sum", NUMBERS, lambda xp, x, axis, keepdims: xp.sum(x, axis=axis, keepdims=keepdims, dtype=x.dtype)),
    _reduction("mean", FLOATS, lambda xp, x, axis, keepdims: xp.mean(x, axis=axis, keepdims=keepdims)),
    _reduction("max", NUMBERS, lambda xp, x, axis, keepdims: xp.max(x, axis=axis, keepdims=keepdims)),
    Primitive("argmax", ("x",), _infer_argmax, _run_argmax, {"axis": -1, "keepdims": False}),
    Primitive("softmax", ("x",), _infer_softmax, _run_softmax, {"axis": -1}),
    Primitive("rms_norm", ("x", "weight?"), _infer_norm, _run_rms_norm, {"eps": 1e-6}),
    Primitive("layer_norm", ("x", "weight?", "bias?"), _infer_norm, _run_layer_norm, {"eps": 1e-5}),
)
