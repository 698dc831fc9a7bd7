"""Symbolic values and the nodes that make them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from trtforge.bindings.errors import GraphError
from trtforge.graph_api import shapes
from trtforge.graph_api.shapes import Shape
from trtforge.kernels.dims import IntLike

if TYPE_CHECKING:
    from trtforge.graph_api.network import Network


@dataclass(frozen=True)
class Location:
    """A line of the user's source."""

    file: str
    line: int
    function: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line} in {self.function}"


class Node:
    """One operation of a network.

    ``op`` is the name of a primitive (``matmul``) or of a registered op (``trtforge::fused_gemm``); ``inputs`` holds
    one entry per declared input, None where an optional one is absent; ``attributes`` are complete. ``updates``: the
    outputs that are inputs updated in place, as positions among the outputs and among the inputs.
    """

    def __init__(
        self,
        network: Network,
        op: str,
        name: str,
        input_names: tuple[str, ...],
        inputs: tuple[Tensor | None, ...],
        attributes: Mapping[str, Any],
        location: Location | None,
        updates: Mapping[int, int] | None = None,
    ):
        self.network = network
        self.op = op
        self.name = name
        self.input_names = input_names
        self.inputs = inputs
        self.attributes = dict(attributes)
        self.location = location
        self.updates = dict(updates or {})
        self.outputs: tuple[Tensor, ...] = ()

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The inputs that are present."""
        return tuple(t for t in self.inputs if t is not None)

    @property
    def predecessors(self) -> tuple[Node, ...]:
        """The nodes that this one reads, without repetition."""
        return tuple(dict.fromkeys(t.producer for t in self.tensors if t.producer is not None))

    @property
    def successors(self) -> tuple[Node, ...]:
        """The nodes that read this one, without repetition."""
        return tuple(dict.fromkeys(n for t in self.outputs for n in t.consumers))

    @property
    def updated(self) -> dict[Tensor, Tensor]:
        """The outputs that are inputs updated in place, with these inputs."""
        found = {}
        for output, position in self.updates.items():
            tensor = self.inputs[position]
            assert tensor is not None
            found[self.outputs[output]] = tensor
        return found

    def named_inputs(self) -> dict[str, Tensor]:
        """Present inputs by declared name."""
        return {name: t for name, t in zip(self.input_names, self.inputs) if t is not None}

    def __repr__(self) -> str:
        outputs = ", ".join(f"{t.dtype}{shapes.text(t.shape)}" for t in self.outputs)
        return f"<Node {self.name}: {self.op} -> {outputs}>"


class Tensor:
    """A symbolic value: a shape of ints and dimension expressions, and a dtype.

    ``kind``: ``input``, ``state`` (a buffer that stays in the executable between calls), ``parameter``,
    ``constant`` (with its array in ``value``) or ``value`` (made by ``producer``). Arithmetic, comparison (<, <=, >,
    >=; equality is :meth:`eq`, because ``==`` is identity), indexing and ``@`` add nodes to the network.
    """

    # NumPy must leave `array * tensor` to Tensor.__rmul__.
    __array_ufunc__ = None

    def __init__(
        self,
        network: Network,
        name: str,
        shape: Shape,
        dtype: str,
        kind: str = "value",
        producer: Node | None = None,
        value: np.ndarray | None = None,
    ):
        self.network = network
        self.name = name
        self.shape = shape
        self.dtype = dtype
        self.kind = kind
        self.producer = producer
        self.value = value
        self._users: list[tuple[Node, int]] = []
        #: The node that overwrites this value in place; nothing else may read it.
        self.overwritten_by: Node | None = None

    @property
    def rank(self) -> int:
        return len(self.shape)

    ndim = rank

    @property
    def size(self) -> IntLike:
        return shapes.volume(self.shape)

    @property
    def users(self) -> tuple[tuple[Node, int], ...]:
        """Every use of this value: (node, position among its inputs)."""
        return tuple(self._users)

    @property
    def consumers(self) -> tuple[Node, ...]:
        """The nodes that read this value, without repetition."""
        return tuple(dict.fromkeys(node for node, _ in self._users))

    @property
    def is_output(self) -> bool:
        return any(t is self for t in self.network.outputs.values())

    @property
    def scalar(self) -> bool | int | float | None:
        """The Python value of a constant of rank 0, else None."""
        if self.kind == "constant" and self.value is not None and self.value.ndim == 0:
            return self.value.astype(np.float32).item() if self.dtype == "bfloat16" else self.value.item()
        return None

    def __str__(self) -> str:
        value = self.scalar
        return f"{self.name if value is None else value} {self.dtype}{shapes.text(self.shape)}"

    def __repr__(self) -> str:
        return f"<Tensor {self}>"

    def __len__(self) -> NoReturn:
        raise GraphError(f"{self} has no Python length; use .shape[0]")

    def __iter__(self) -> NoReturn:
        raise GraphError(f"{self} cannot be iterated over; use functional.split or index it")

    def __bool__(self) -> NoReturn:
        raise GraphError(f"the truth of {self} is not known while the graph is built; use functional.where")

    def __add__(self, other: Any) -> Tensor:
        return _f().add(self, other)

    def __radd__(self, other: Any) -> Tensor:
        return _f().add(other, self)

    def __sub__(self, other: Any) -> Tensor:
        return _f().sub(self, other)

    def __rsub__(self, other: Any) -> Tensor:
        return _f().sub(other, self)

    def __mul__(self, other: Any) -> Tensor:
        return _f().mul(self, other)

    def __rmul__(self, other: Any) -> Tensor:
        return _f().mul(other, self)

    def __truediv__(self, other: Any) -> Tensor:
        return _f().div(self, other)

    def __rtruediv__(self, other: Any) -> Tensor:
        return _f().div(other, self)

    def __floordiv__(self, other: Any) -> Tensor:
        return _f().floor_div(self, other)

    def __mod__(self, other: Any) -> Tensor:
        return _f().mod(self, other)

    def __pow__(self, other: Any) -> Tensor:
        return _f().pow(self, other)

    def __matmul__(self, other: Any) -> Tensor:
        return _f().matmul(self, other)

    def __neg__(self) -> Tensor:
        return _f().neg(self)

    def __lt__(self, other: Any) -> Tensor:
        return _f().lt(self, other)

    def __le__(self, other: Any) -> Tensor:
        return _f().le(self, other)

    def __gt__(self, other: Any) -> Tensor:
        return _f().gt(self, other)

    def __ge__(self, other: Any) -> Tensor:
        return _f().ge(self, other)

    def __and__(self, other: Any) -> Tensor:
        return _f().logical_and(self, other)

    def __or__(self, other: Any) -> Tensor:
        return _f().logical_or(self, other)

    def __invert__(self) -> Tensor:
        return _f().logical_not(self)

    def __getitem__(self, index: Any) -> Tensor:
        return _f().index(self, index)

    def eq(self, other: Any) -> Tensor:
        return _f().eq(self, other)

    def ne(self, other: Any) -> Tensor:
        return _f().ne(self, other)

    def cast(self, dtype: str) -> Tensor:
        return _f().cast(self, dtype)

    def reshape(self, *shape: Any) -> Tensor:
        return _f().reshape(self, shape[0] if len(shape) == 1 and isinstance(shape[0], (tuple, list)) else shape)

    view = reshape

    def transpose(self, axis0: int, axis1: int) -> Tensor:
        return _f().transpose(self, axis0, axis1)

    def permute(self, *axes: Any) -> Tensor:
        return _f().permute(self, axes[0] if len(axes) == 1 and isinstance(axes[0], (tuple, list)) else axes)

    def unsqueeze(self, axis: int) -> Tensor:
        return _f().unsqueeze(self, axis)

    def squeeze(self, axis: int) -> Tensor:
        return _f().squeeze(self, axis)

    def expand(self, *shape: Any) -> Tensor:
        return _f().expand(self, shape[0] if len(shape) == 1 and isinstance(shape[0], (tuple, list)) else shape)

    def mean(self, axis: Any = -1, keepdims: bool = False) -> Tensor:
        return _f().mean(self, axis, keepdims)

    def sum(self, axis: Any = -1, keepdims: bool = False) -> Tensor:
        return _f().sum(self, axis, keepdims)

    def max(self, axis: Any = -1, keepdims: bool = False) -> Tensor:
        return _f().max(self, axis, keepdims)


def _f() -> Any:
    from trtforge.graph_api import functional

    return functional
