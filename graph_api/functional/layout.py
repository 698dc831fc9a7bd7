"""Layout and indexing: reshape, permute, expand, slices, gathers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from trtforge.bindings.errors import GraphError
from trtforge.graph_api import shapes
from trtforge.graph_api.functional.basic import _emit, as_tensor, dim_value, network_of
from trtforge.graph_api.primitive import Call
from trtforge.graph_api.shapes import DimLike
from trtforge.graph_api.tensor import Tensor
from trtforge.kernels.dims import Expr, IntLike


def _dims(op: str, values: Any) -> tuple[IntLike, ...]:
    if not isinstance(values, (tuple, list)):
        raise GraphError(f"{op}: a sequence of dimensions is needed, got {values!r}")
    return tuple(shapes.dim(v) for v in values)


def reshape(x: Tensor, shape: Sequence[DimLike]) -> Tensor:
    """The same elements in another shape; one dimension may be -1. Symbolic sizes must be provably equal."""
    return _emit("reshape", (x,), shape=_dims("reshape", shape))


view = reshape


def permute(x: Tensor, axes: Sequence[int]) -> Tensor:
    """Reorder the axes: result axis i is x's axis ``axes[i]``."""
    return _emit("permute", (x,), axes=tuple(axes))


def transpose(x: Tensor, axis0: int = -2, axis1: int = -1) -> Tensor:
    """Swap two axes."""
    call = Call("transpose", ("x",), (x,), {"axis0": axis0, "axis1": axis1})
    order = list(range(x.rank))
    i, j = call.axis(axis0, x.rank), call.axis(axis1, x.rank)
    order[i], order[j] = order[j], order[i]
    return permute(x, order)


def unsqueeze(x: Tensor, axis: int) -> Tensor:
    """Insert a dimension of 1 at ``axis`` of the result."""
    at = Call("unsqueeze", ("x",), (x,), {"axis": axis}).axis(axis, x.rank + 1) + x.rank + 1
    return reshape(x, (*x.shape[:at], 1, *x.shape[at:]))


def squeeze(x: Tensor, axis: int) -> Tensor:
    """Remove a dimension of 1."""
    call = Call("squeeze", ("x",), (x,), {"axis": axis})
    at = call.axis(axis, x.rank) + x.rank
    if x.shape[at] != 1:
        call.fail(f"axis {axis} has size {x.shape[at]}", "an axis of size 1")
    return reshape(x, (*x.shape[:at], *x.shape[at + 1 :]))


def expand(x: Tensor, shape: Sequence[DimLike]) -> Tensor:
    """Repeat along axes of size 1 (and new leading axes) to ``shape``; -1 keeps an axis."""
    return _emit("expand", (x,), shape=_dims("expand", shape))


broadcast = expand


def repeat_interleave(x: Tensor, repeats: int, axis: int) -> Tensor:
    """Each slice along ``axis`` repeated ``repeats`` times in place: [a, b] -> [a, a, b, b]."""
    at = Call("repeat_interleave", ("x",), (x,), {"axis": axis}).axis(axis, x.rank) + x.rank
    split = unsqueeze(x, at + 1)
    wide = expand(split, (*x.shape[: at + 1], repeats, *x.shape[at + 1 :]))
    return reshape(wide, (*x.shape[:at], x.shape[at] * repeats, *x.shape[at + 1 :]))


def concat(tensors: Sequence[Tensor], axis: int = -1) -> Tensor:
    """Join along an axis."""
    return _emit("concat", tuple(tensors), axis=axis)


def slice(x: Tensor, axis: int, start: DimLike = 0, stop: DimLike | None = None, step: int = 1) -> Tensor:
    """x[start:stop:step] along one axis, bounds as NumPy reads them; they may be dimension expressions."""
    end = None if stop is None else shapes.dim(stop)
    return _emit("slice", (x,), axis=axis, start=shapes.dim(start), stop=end, step=step)


def split(x: Tensor, sizes: int | Sequence[DimLike], axis: int = -1) -> tuple[Tensor, ...]:
    """Cut into ``sizes`` (or into that many equal parts) along an axis."""
    call = Call("split", ("x",), (x,), {"sizes": sizes, "axis": axis})
    total = x.shape[call.axis(axis, x.rank)]
    if isinstance(sizes, int):
        if sizes < 1 or (total // sizes) * sizes != total:
            call.fail(f"{total} is not provably divisible into {sizes} parts", "a divisor of the size")
        parts: list[IntLike] = [total // sizes] * sizes
    else:
        parts = [shapes.dim(s) for s in sizes]
    at: IntLike = 0
    bounds = [(at, at := at + part) for part in parts]
    if at != total:
        call.fail(f"the sizes add up to {at}, not to {total}", "sizes that cover the axis")
    return tuple(slice(x, axis, first, last) for first, last in bounds)


def index(x: Tensor, key: Any) -> Tensor:
    """x[key] with ints, slices, None and Ellipsis, or one integer tensor (a gather along axis 0)."""
    if isinstance(key, Tensor):
        return gather(x, key, 0)
    keys = list(key) if isinstance(key, tuple) else [key]
    used = len([k for k in keys if k is not None and k is not Ellipsis])
    call = Call("index", ("x",), (x,), {"key": str(key)})
    if used > x.rank or len([k for k in keys if k is Ellipsis]) > 1:
        call.fail(f"{used} indices for rank {x.rank}", "at most one index per axis, and one Ellipsis")
    at = next((i for i, k in enumerate(keys) if k is Ellipsis), len(keys))
    keys[at : at + 1] = [_ALL] * (x.rank - used)
    y, axis = x, 0
    shape: list[shapes.IntLike] = []
    for k in keys:
        if k is None:
            shape.append(1)
            continue
        if isinstance(k, _ALL.__class__):
            if k != _ALL:
                y = slice(y, axis, 0 if k.start is None else k.start, k.stop, 1 if k.step is None else k.step)
            shape.append(y.shape[axis])
        elif shapes.is_dim(k):
            start = _position(call, shapes.dim(k), x.shape[axis])
            y = slice(y, axis, start, start + 1)
        else:
            call.fail(f"the index {k!r} is not understood", "ints, slices, None, Ellipsis or one integer tensor")
        axis += 1
    return y if tuple(shape) == y.shape else reshape(y, shape)


_ALL = np.s_[:]


def _position(call: Call, at: IntLike, size: IntLike) -> IntLike:
    if isinstance(at, Expr):
        return at
    if not isinstance(size, Expr) and not -size <= at < size:
        call.fail(f"the index {at} is out of range for size {size}", f"{-size}..{size - 1}")
    return size + at if at < 0 else at


def gather(x: Tensor, indices: Tensor, axis: int = 0) -> Tensor:
    """Slices of ``x`` picked along an axis: result shape x[:axis] + indices.shape + x[axis+1:]."""
    return _emit("gather", (x, indices), axis=axis)


def embedding(indices: Tensor, weight: Any) -> Tensor:
    """Rows of weight [V, N] by int32 or int64 indices [...]: [..., N]."""
    network = network_of(indices, weight)
    table = as_tensor(weight, network, None, "embedding")
    return network.emit("gather", (table, as_tensor(indices, network, None, "embedding")), {"axis": 0})[0]


def shape(x: Tensor, dtype: str = "int32") -> Tensor:
    """The shape of ``x`` as a tensor [rank]."""
    with x.network:
        return concat([reshape(dim_value(d, dtype), (1,)) for d in x.shape], 0)


__all__ = [
    "broadcast",
    "concat",
    "embedding",
    "expand",
    "gather",
    "index",
    "permute",
    "repeat_interleave",
    "reshape",
    "shape",
    "slice",
    "split",
    "squeeze",
    "transpose",
    "unsqueeze",
    "view",
]
