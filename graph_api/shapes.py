"""Shapes of the graph: ints and expressions over named dynamic dimensions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Union

from trtforge.bindings.errors import GraphError
from trtforge.kernels.dims import Expr, IntLike, constant_value, evaluate, product, sym

Shape = tuple[IntLike, ...]
#: What a user may write where a dimension is expected.
DimLike = Union[int, Expr, "Dim"]


@dataclass(frozen=True)
class Dim:
    """A dynamic dimension: a name and the range of its values (``opt``: the size to tune for; default ``max``).

    Arithmetic gives an expression: ``Dim("S", max=64) + 1``.
    """

    name: str
    min: int = 1
    opt: int | None = None
    max: int = 1 << 20

    def __post_init__(self) -> None:
        if not self.name.isidentifier():
            raise GraphError(f"Dim name {self.name!r} must be an identifier, such as 'S'")
        low, best, high = self.min, self.opt if self.opt is not None else self.max, self.max
        if not 1 <= low <= best <= high:
            raise GraphError(
                f"Dim({self.name!r}): 1 <= min <= opt <= max must hold, got min={low}, opt={best}, max={high}"
            )

    @property
    def expr(self) -> Expr:
        return sym(self.name)

    @property
    def tuned(self) -> int:
        """The size that a backend tunes for."""
        return self.max if self.opt is None else self.opt

    def __str__(self) -> str:
        return self.name

    def __add__(self, other: DimLike) -> IntLike:
        return self.expr + dim(other)

    __radd__ = __add__

    def __sub__(self, other: DimLike) -> IntLike:
        return self.expr - dim(other)

    def __rsub__(self, other: DimLike) -> IntLike:
        return dim(other) - self.expr

    def __mul__(self, other: DimLike) -> IntLike:
        return self.expr * dim(other)

    __rmul__ = __mul__

    def __floordiv__(self, other: DimLike) -> IntLike:
        return self.expr // dim(other)

    def __mod__(self, other: DimLike) -> IntLike:
        return self.expr % dim(other)


def dim(value: Any) -> IntLike:
    """An int or an expression from what a user wrote; raises GraphError for anything else."""
    if isinstance(value, Dim):
        return value.expr
    if isinstance(value, Expr):
        known = constant_value(value)
        return value if known is None else known
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise GraphError(f"a dimension must be an int, a Dim or a dimension expression, got {value!r}")
    return value.__index__()


def is_dim(value: Any) -> bool:
    """Whether ``value`` can stand for a dimension (bool and floats cannot)."""
    return isinstance(value, (Dim, Expr)) or (hasattr(value, "__index__") and not isinstance(value, bool))


def volume(shape: Iterable[IntLike]) -> IntLike:
    """The number of elements of a shape."""
    return product(shape)


def text(shape: Sequence[IntLike]) -> str:
    return "[" + ", ".join(map(str, shape)) + "]"


def broadcast(a: Sequence[IntLike], b: Sequence[IntLike]) -> Shape | None:
    """NumPy broadcasting of two shapes, or None where they cannot be proved compatible."""
    rank = max(len(a), len(b))
    left = (*(1,) * (rank - len(a)), *a)
    right = (*(1,) * (rank - len(b)), *b)
    out: list[IntLike] = []
    for x, y in zip(left, right):
        if x == y or y == 1:
            out.append(x)
        elif x == 1:
            out.append(y)
        else:
            return None
    return tuple(out)


def resolve(value: Any, dims: Mapping[str, int]) -> Any:
    """Replace every dimension expression inside an attribute value by its integer."""
    if isinstance(value, Expr):
        return evaluate(value, dims)
    if isinstance(value, tuple):
        return tuple(resolve(v, dims) for v in value)
    return value


def infer_missing(shape: Sequence[IntLike], total: IntLike) -> Shape | None:
    """``shape`` with its one -1 replaced so that the volume is ``total``; None when that is not exact."""
    holes = [i for i, s in enumerate(shape) if s == -1]
    if not holes:
        return tuple(shape)
    rest = volume(s for s in shape if s != -1)
    if len(holes) > 1 or rest == 0:
        return None
    size = total // rest
    if size * rest != total:
        return None
    return tuple(size if i == holes[0] else s for i, s in enumerate(shape))


def unify(declared: IntLike, size: int, dims: dict[str, int]) -> bool:
    """Bind a plain symbol to ``size`` (into ``dims``), or check that an expression already has that value.

    Returns False on a contradiction. Expressions over names that are not bound yet count as fitting; call again
    once every symbol is known.
    """
    known = constant_value(declared)
    if known is not None:
        return known == size
    name = symbol_name(declared)
    if name is not None:
        return dims.setdefault(name, size) == size
    assert isinstance(declared, Expr)
    try:
        return evaluate(declared, dims) == size
    except LookupError:
        return True


def at_most(a: IntLike, b: IntLike, ranges: Mapping[str, Dim]) -> bool:
    """Whether a <= b follows from the ranges of the dimensions."""
    gap = b - a
    if not isinstance(gap, Expr):
        return gap >= 0
    lowest = 0
    for monomial, coefficient in gap.terms:
        for atom in monomial:
            if atom.op != "sym" or atom.args[0] not in ranges:
                return False
            limits = ranges[atom.args[0]]
            coefficient *= limits.min if coefficient > 0 else limits.max
        lowest += coefficient
    return lowest >= 0


def symbol_name(value: IntLike) -> str | None:
    """The name of an expression that is one bare symbol."""
    if isinstance(value, Expr) and len(value.terms) == 1:
        monomial, coefficient = value.terms[0]
        if coefficient == 1 and len(monomial) == 1 and monomial[0].op == "sym":
            return monomial[0].args[0]
    return None
