"""TensorRT's symbolic integers as Python values: what the plugin host hands to NVIDIA's plugin layer.

A builder's ``IDimensionExpr`` lives inside libnvinfer. Here it is a value over :mod:`trtforge.kernels.dims`, with the
same methods, so that shapes and launch parameters can be evaluated for any sizes afterwards.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from trtforge.bindings.errors import DeclarationError
from trtforge.kernels.dims import IntLike, cdiv, constant_value, evaluate, maximum, minimum

_OPERATIONS = {
    "SUM": lambda a, b: a + b,
    "SUB": lambda a, b: a - b,
    "PROD": lambda a, b: a * b,
    "FLOOR_DIV": lambda a, b: a // b,
    "CEIL_DIV": cdiv,
    "MAX": maximum,
    "MIN": minimum,
}


class DimensionExpr:
    """``IDimensionExpr``: a symbolic integer."""

    def __init__(self, value: IntLike):
        self.value = value

    def is_constant(self) -> bool:
        return constant_value(self.value) is not None

    def get_constant_value(self) -> int:
        known = constant_value(self.value)
        return -(2**63) if known is None else known  # what TensorRT returns for an expression that is not constant

    def is_size_tensor(self) -> bool:
        return False

    def at(self, sizes: Mapping[str, int]) -> int:
        """The integer for these symbol values."""
        return evaluate(self.value, sizes)

    def __repr__(self) -> str:
        return f"DimensionExpr({self.value})"


class DimsExprs:
    """``DimsExprs``: the symbolic shape of one tensor, made from a rank or from expressions."""

    def __init__(self, content: int | Iterable[DimensionExpr]):
        self._items: list[Any] = [None] * content if isinstance(content, int) else list(content)

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Any:
        return self._items[index]

    def __setitem__(self, index: int, value: Any) -> None:
        self._items[index] = value

    def __iter__(self) -> Iterator[Any]:
        return iter(self._items)


class SymExpr:
    """``ISymExpr``: a typed symbolic kernel argument; NVIDIA's layer subclasses it and sets type, dtype and expr."""

    type: Any = None
    dtype: Any = None
    expr: Any = None


class SymExprs:
    """``ISymExprs``: the list of extra kernel arguments that an AOT plugin fills in."""

    def __init__(self) -> None:
        self._items: list[Any] = []

    @property
    def nbSymExprs(self) -> int:
        return len(self._items)

    @nbSymExprs.setter
    def nbSymExprs(self, count: int) -> None:
        self._items = [None] * count

    def __setitem__(self, index: int, value: Any) -> None:
        self._items[index] = value

    def __iter__(self) -> Iterator[Any]:
        return iter(self._items)


class LaunchParams:
    """``IKernelLaunchParams``: seven symbolic integers that an AOT plugin fills in."""

    grid_x: Any
    grid_y: Any
    grid_z: Any
    block_x: Any
    block_y: Any
    block_z: Any
    shared_mem: Any


class ExprBuilder:
    """``IExprBuilder``: constants and the operations of ``DimensionOperation``."""

    def constant(self, value: int) -> DimensionExpr:
        return DimensionExpr(value)

    def operation(self, op: Any, first: DimensionExpr, second: DimensionExpr) -> DimensionExpr:
        if op.name not in _OPERATIONS:
            raise DeclarationError(f"the plugin host has no symbolic {op.name}; it has: {', '.join(_OPERATIONS)}")
        return DimensionExpr(_OPERATIONS[op.name](first.value, second.value))


class Registry:
    """``IPluginRegistry`` for the host: creators by name, version and namespace."""

    def __init__(self) -> None:
        self._creators: dict[tuple[str, str, str], Any] = {}

    def register_creator(self, creator: Any, namespace: str = "") -> bool:
        key = (creator.name, creator.plugin_version, namespace)
        if key in self._creators:
            return False
        self._creators[key] = creator
        return True

    def get_creator(self, name: str, version: str, namespace: str = "") -> Any:
        return self._creators.get((name, version, namespace))
