"""One table of element types: the name that a contract uses, NumPy's type, C++'s and Triton's spelling.

``int4`` exists as a *format* only: two values in one byte, the even index in the low nibble, along the last
dimension. Ops that handle it declare the packed array as ``uint8``.
"""

from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes
import numpy as np

from trtforge.bindings.errors import ContractError


@dataclass(frozen=True)
class DType:
    """An element type. ``itemsize`` in bytes; ``cpp`` and ``triton`` are the spellings in kernel sources."""

    name: str
    numpy: np.dtype
    cpp: str
    triton: str
    floating: bool

    @property
    def itemsize(self) -> int:
        return self.numpy.itemsize

    @property
    def storage(self) -> np.dtype:
        """An unsigned (or NumPy-native) type of the same size, for libraries that do not know this one."""
        return self.numpy if self.numpy.isbuiltin == 1 else np.dtype(f"u{self.itemsize}")


def _row(name: str, numpy_type: object, cpp: str, triton: str, floating: bool) -> tuple[str, DType]:
    return name, DType(name, np.dtype(numpy_type), cpp, triton, floating)  # type: ignore[call-overload]


DTYPES: dict[str, DType] = dict(
    [
        _row("float64", np.float64, "double", "fp64", True),
        _row("float32", np.float32, "float", "fp32", True),
        _row("float16", np.float16, "__half", "fp16", True),
        _row("bfloat16", ml_dtypes.bfloat16, "__nv_bfloat16", "bf16", True),
        _row("float8_e4m3fn", ml_dtypes.float8_e4m3fn, "__nv_fp8_e4m3", "fp8e4nv", True),
        _row("float8_e5m2", ml_dtypes.float8_e5m2, "__nv_fp8_e5m2", "fp8e5", True),
        _row("int64", np.int64, "long long", "i64", False),
        _row("int32", np.int32, "int", "i32", False),
        _row("int8", np.int8, "signed char", "i8", False),
        _row("uint8", np.uint8, "unsigned char", "u8", False),
        _row("bool", np.bool_, "bool", "i1", False),
    ]
)

_BY_NUMPY = {d.numpy: d.name for d in DTYPES.values()}


def dtype(name: str) -> DType:
    """The row of that name; raises ContractError listing the accepted names."""
    try:
        return DTYPES[name]
    except (KeyError, TypeError):
        raise ContractError(f"unknown dtype {name!r}; accepted: {', '.join(DTYPES)}") from None


def name_of(numpy_dtype: object) -> str:
    """The contract name of a NumPy (or ml_dtypes) type."""
    key = np.dtype(numpy_dtype)  # type: ignore[call-overload]
    if key not in _BY_NUMPY:
        raise ContractError(f"arrays of type {key} are not accepted; convert to one of: {', '.join(DTYPES)}")
    return _BY_NUMPY[key]
