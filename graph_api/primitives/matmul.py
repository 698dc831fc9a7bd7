"""Matrix product."""

from __future__ import annotations

from typing import Any

import numpy as np

from trtforge.graph_api import shapes
from trtforge.graph_api.primitive import FLOATS, Call, Primitive, Value, declare
from trtforge.graph_api.tensor import Tensor


def _infer(call: Call, a: Tensor, b: Tensor, *, transpose_a: bool, transpose_b: bool) -> Value:
    dtype = call.same_dtype(a, b, among=FLOATS)
    if a.rank < 2 or b.rank < 2:
        call.fail(f"the ranks are {a.rank} and {b.rank}", "rank 2 or more for both; use .unsqueeze(...) on a vector")
    m, k = a.shape[-2:] if not transpose_a else a.shape[:-3:-1]
    kb, n = b.shape[-2:] if not transpose_b else b.shape[:-3:-1]
    if k != kb:
        layout_a = "[..., K, M]" if transpose_a else "[..., M, K]"
        layout_b = "[..., N, K]" if transpose_b else "[..., K, N]"
        call.fail(f"the inner dimensions {k} and {kb} differ", f"a {layout_a} and b {layout_b} with equal K")
    batch = shapes.broadcast(a.shape[:-2], b.shape[:-2])
    if batch is None:
        call.fail(
            f"the batch dimensions {shapes.text(a.shape[:-2])} and {shapes.text(b.shape[:-2])} do not broadcast",
            "from the last on, dimensions that are equal, or 1",
        )
    return (*batch, m, n), dtype


def _run(xp: Any, a: Any, b: Any, *, transpose_a: bool, transpose_b: bool) -> Any:
    left = xp.swapaxes(a, -1, -2) if transpose_a else a
    right = xp.swapaxes(b, -1, -2) if transpose_b else b
    if right.ndim == 2 and left.ndim > 2:  # one product over all rows instead of one per batch entry
        rows = np.prod(left.shape[:-1], dtype=int)
        return xp.matmul(left.reshape(rows, left.shape[-1]), right).reshape(*left.shape[:-1], right.shape[-1])
    return xp.matmul(left, right)


declare(Primitive("matmul", ("a", "b"), _infer, _run, {"transpose_a": False, "transpose_b": False}))
