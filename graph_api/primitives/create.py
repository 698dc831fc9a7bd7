"""Primitives without inputs: index ranges and the values of dimensions."""

from __future__ import annotations

from typing import Any

from trtforge.bindings.dtypes import DTYPES
from trtforge.graph_api.primitive import REQUIRED, Call, Primitive, Value, declare
from trtforge.kernels.dims import IntLike, constant_value

INDEX = ("int32", "int64")


def _check_dtype(call: Call, dtype: str) -> str:
    if dtype not in INDEX:
        call.fail(f"dtype is {dtype!r}", " | ".join(INDEX) + "; cast the result")
    return dtype


def _infer_arange(call: Call, *, size: IntLike, dtype: str) -> Value:
    known = constant_value(size)
    if known is not None and known < 1:
        call.fail(f"the size is {known}", "at least 1")
    return (size,), _check_dtype(call, dtype)


def _infer_dim_value(call: Call, *, value: IntLike, dtype: str) -> Value:
    return (), _check_dtype(call, dtype)


def _run_dim_value(xp: Any, *, value: int, dtype: str) -> Any:
    return xp.full((), value, DTYPES[dtype].numpy)


declare(
    Primitive(
        "arange",
        (),
        _infer_arange,
        lambda xp, size, dtype: xp.arange(size, dtype=DTYPES[dtype].numpy),
        {"size": REQUIRED, "dtype": "int32"},
        "bits",
        doc="0, 1, ..., size - 1",
    ),
    Primitive(
        "dim_value",
        (),
        _infer_dim_value,
        _run_dim_value,
        {"value": REQUIRED, "dtype": "int32"},
        "bits",
        doc="a dimension expression as a scalar",
    ),
)
