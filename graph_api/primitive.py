"""How a primitive op of the graph is declared: once, in one entry.

A :class:`Primitive` names its inputs and attributes, infers the outputs' shapes and dtypes, and computes them over an
array library ``xp`` (NumPy for the reference; CuPy runs the same function). Elementwise primitives add their value
as one C expression, so that a GPU backend runs them as one kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from trtforge.bindings.errors import GraphError
from trtforge.graph_api import shapes
from trtforge.graph_api.shapes import Shape
from trtforge.graph_api.tensor import Tensor

FLOATS = ("float32", "float16", "bfloat16")
INTS = ("int64", "int32", "int8", "uint8")
NUMBERS = FLOATS + INTS

Value = tuple[Shape, str]


class Required:
    """Marks an attribute without a default."""

    def __repr__(self) -> str:
        return "required"


REQUIRED = Required()


@dataclass(frozen=True)
class Primitive:
    """One primitive op.

    ``inputs``: names; a trailing ``?`` marks an optional one, a leading ``*`` any number of them.
    ``infer(call, *inputs, **attributes)`` returns (shape, dtype), or a list of them for several outputs; it may put
    the normal form of an attribute into ``call.attributes``.
    ``run(xp, *arrays, **attributes)`` computes. With ``compute="float"`` float16 and bfloat16 inputs reach it widened
    to float32 and its results are rounded once to the inferred dtypes; with ``compute="bits"`` it moves elements
    without looking at them. ``expression``: the result in CUDA C over the input names, for elementwise ops; a mapping
    holds one per choice of the op's only attribute.
    ``in_place``: the input (by position) that the output overwrites.
    """

    name: str
    inputs: tuple[str, ...]
    infer: Callable[..., Value | list[Value]]
    run: Callable[..., Any]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    compute: str = "float"
    expression: str | Mapping[str, str] | None = None
    commutative: bool = False
    in_place: int | None = None
    doc: str = ""

    @property
    def variadic(self) -> bool:
        return bool(self.inputs) and self.inputs[0].startswith("*")

    def input_names(self, count: int) -> tuple[str, ...]:
        """The declared name of each of ``count`` inputs."""
        if self.variadic:
            return tuple(f"{self.inputs[0][1:]}[{i}]" for i in range(count))
        return tuple(name.rstrip("?") for name in self.inputs)

    def complete(self, attributes: Mapping[str, Any]) -> dict[str, Any]:
        """``attributes`` with the defaults filled in; raises GraphError for unknown or missing ones."""
        unknown = [name for name in attributes if name not in self.attributes]
        missing = [n for n, default in self.attributes.items() if default is REQUIRED and n not in attributes]
        if unknown or missing:
            problem = f"has no attribute {unknown}" if unknown else f"needs the attribute {missing}"
            raise GraphError(f"{self.name} {problem}; attributes: {', '.join(self.attributes) or 'none'}")
        return {name: attributes.get(name, default) for name, default in self.attributes.items()}


PRIMITIVES: dict[str, Primitive] = {}


def declare(*primitives: Primitive) -> None:
    """Add primitives to the table; a name can be declared once."""
    for primitive in primitives:
        if primitive.name in PRIMITIVES:
            raise GraphError(f"the primitive {primitive.name!r} is declared twice")
        PRIMITIVES[primitive.name] = primitive


@dataclass(frozen=True)
class Call:
    """A call that is being checked; :meth:`fail` raises the error that names everything about it."""

    op: str
    names: tuple[str, ...]
    tensors: Sequence[Tensor | None]
    attributes: dict[str, Any]
    where: str = ""

    def __str__(self) -> str:
        inputs = [f"{n}={t}" for n, t in zip(self.names, self.tensors) if t is not None]
        attributes = [f"{n}={_attribute_text(v)}" for n, v in self.attributes.items() if v is not None]
        return f"{self.op}({', '.join(inputs + attributes)})"

    def fail(self, rule: str, accepted: str = "") -> NoReturn:
        """Raise GraphError: the call, the rule that it breaks, and what is accepted."""
        message = f"{self}: {rule}"
        if accepted:
            message += f"; accepted: {accepted}"
        raise GraphError(message + (f"\n  at {self.where}" if self.where else ""))

    def same_dtype(self, *tensors: Tensor, among: tuple[str, ...] = NUMBERS) -> str:
        """The one dtype of all the tensors; fails on a mixture, or on one that is not ``among``."""
        first = tensors[0].dtype
        for tensor in tensors[1:]:
            if tensor.dtype != first:
                self.fail(
                    f"the dtypes {first} and {tensor.dtype} differ, and nothing is promoted silently; "
                    f"write .cast({first!r}) or .cast({tensor.dtype!r}) on one of them",
                    "inputs of one dtype",
                )
        if first not in among:
            self.fail(f"{first} is not served", f"{' | '.join(among)}; write .cast(...)")
        return first

    def axis(self, axis: Any, rank: int) -> int:
        """The axis counted from the end, the form that nodes keep (-rank..-1)."""
        if isinstance(axis, bool) or not hasattr(axis, "__index__"):
            self.fail(f"the axis must be an int, got {axis!r}")
        value = axis.__index__()
        if not -rank <= value < rank:
            self.fail(f"the axis {value} is out of range for rank {rank}", f"{-rank}..{rank - 1}")
        return value if value < 0 else value - rank

    def broadcast(self, *tensors: Tensor) -> Shape:
        """The broadcast shape of all the tensors."""
        result: Shape = ()
        for tensor in tensors:
            merged = shapes.broadcast(result, tensor.shape)
            if merged is None:
                self.fail(
                    f"the shapes {shapes.text(result)} and {shapes.text(tensor.shape)} do not broadcast",
                    "from the last axis on, dimensions that are equal, or 1",
                )
            result = merged
        return result


def _attribute_text(value: Any) -> str:
    return shapes.text(value) if isinstance(value, tuple) else repr(value) if isinstance(value, str) else str(value)
