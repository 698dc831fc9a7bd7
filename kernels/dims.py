"""Integer expressions over named dimensions: the one place where geometry is written.

An :class:`Expr` is kept in a normal form, a sum of integer coefficients times products of atoms, so that two ways
of writing one shape compare equal (``S * 4 == 4 * S``, ``(S + S) // 2 == S``). An atom is a symbol or an operation
that does not distribute (``//``, ``%``, cdiv, minimum, maximum, next_power_of_2). Expressions evaluate to ``int``
(:func:`evaluate`) or are folded into any other integer algebra (:func:`lower`), such as the symbolic integers of a
TensorRT builder. Symbols stand for tensor dimensions, hence for integers >= 1 wherever a quotient cancels one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, Union

from trtforge.bindings.errors import DeclarationError, UnknownNameError

T = TypeVar("T")
IntLike = Union[int, "Expr"]
Monomial = tuple["Atom", ...]


@dataclass(frozen=True)
class Atom:
    """A symbol (``op == "sym"``, args = (name,)) or an irreducible operation over expressions."""

    op: str
    args: tuple[Any, ...]

    def __str__(self) -> str:
        if self.op == "sym":
            return str(self.args[0])
        if self.op in ("//", "%"):
            return f"({self.args[0]} {self.op} {self.args[1]})"
        return f"{self.op}({', '.join(map(str, self.args))})"


class Expr:
    """An integer expression in normal form; immutable, hashable, compared by structure."""

    __slots__ = ("_hash", "terms")

    def __init__(self, terms: Mapping[Monomial, int]):
        self.terms: tuple[tuple[Monomial, int], ...] = tuple(
            sorted(((m, c) for m, c in terms.items() if c), key=lambda item: str(item[0]))
        )
        self._hash = hash(self.terms)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        if isinstance(other, int):
            other = _expr(other)
        return isinstance(other, Expr) and self.terms == other.terms

    def __bool__(self) -> bool:
        raise DeclarationError(
            f"the truth of the symbolic dimension {self} was asked for; launch geometry must be one expression "
            "(use cdiv, minimum, maximum) because it is also lowered to symbolic integers"
        )

    def __index__(self) -> int:
        value = constant_value(self)
        if value is None:
            raise DeclarationError(f"the symbolic dimension {self} has no integer value here")
        return value

    __int__ = __index__

    def _compare(self, other: object) -> bool:
        raise DeclarationError(
            f"{self} was compared with {other}; a symbolic dimension has no order (use minimum, maximum)"
        )

    __lt__ = __le__ = __gt__ = __ge__ = _compare

    def __str__(self) -> str:
        parts = []
        for monomial, coefficient in self.terms:
            product = "*".join(map(str, monomial))
            if not monomial:
                parts.append(str(coefficient))
            elif coefficient == 1:
                parts.append(product)
            else:
                parts.append(f"{coefficient}*{product}")
        return " + ".join(parts).replace("+ -", "- ") or "0"

    __repr__ = __str__

    def __add__(self, other: IntLike) -> IntLike:
        terms = dict(self.terms)
        for monomial, coefficient in _expr(other).terms:
            terms[monomial] = terms.get(monomial, 0) + coefficient
        return _reduce(Expr(terms))

    __radd__ = __add__

    def __neg__(self) -> IntLike:
        return self * -1

    def __sub__(self, other: IntLike) -> IntLike:
        return self + -_expr(other)

    def __rsub__(self, other: IntLike) -> IntLike:
        return _expr(other) + -self

    def __mul__(self, other: IntLike) -> IntLike:
        terms: dict[Monomial, int] = {}
        for left, a in self.terms:
            for right, b in _expr(other).terms:
                monomial = tuple(sorted(left + right, key=str))
                terms[monomial] = terms.get(monomial, 0) + a * b
        return _reduce(Expr(terms))

    __rmul__ = __mul__

    def __floordiv__(self, other: IntLike) -> IntLike:
        return _divide("//", self, other)

    def __rfloordiv__(self, other: IntLike) -> IntLike:
        return _divide("//", other, self)

    def __mod__(self, other: IntLike) -> IntLike:
        return _modulo(self, other)

    def __rmod__(self, other: IntLike) -> IntLike:
        return _modulo(other, self)


def sym(name: str) -> Expr:
    """The symbol of that name."""
    return Expr({(Atom("sym", (name,)),): 1})


def _expr(value: IntLike) -> Expr:
    if isinstance(value, Expr):
        return value
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise DeclarationError(f"{value!r} is not an integer or a dimension expression")
    return Expr({(): value.__index__()})


def _reduce(expr: Expr) -> IntLike:
    value = constant_value(expr)
    return expr if value is None else value


def constant_value(value: IntLike) -> int | None:
    """The int that ``value`` always is, or None when it depends on a symbol."""
    if not isinstance(value, Expr):
        return int(value)
    if not value.terms:
        return 0
    if len(value.terms) == 1 and value.terms[0][0] == ():
        return value.terms[0][1]
    return None


def is_symbolic(value: IntLike) -> bool:
    return constant_value(value) is None


def _atom(op: str, *args: IntLike) -> Expr:
    return Expr({(Atom(op, tuple(args)),): 1})


def _exact_quotient(a: Expr, b: Expr) -> IntLike | None:
    """a / b where b is one monomial that divides every term of a, else None."""
    if len(b.terms) != 1:
        return None
    (divisor, factor) = b.terms[0]
    terms: dict[Monomial, int] = {}
    for monomial, coefficient in a.terms:
        rest = list(monomial)
        for atom in divisor:
            if atom not in rest:
                return None
            rest.remove(atom)
        if coefficient % factor:
            return None
        terms[tuple(rest)] = coefficient // factor
    return _reduce(Expr(terms))


def _divide(op: str, a: IntLike, b: IntLike) -> IntLike:
    x, y = constant_value(a), constant_value(b)
    if y == 0:
        raise DeclarationError(f"division of the dimension {a} by zero")
    if x is not None and y is not None:
        return x // y if op == "//" else -(-x // y)
    exact = _exact_quotient(_expr(a), _expr(b))
    return exact if exact is not None else _atom(op, a, b)


def _modulo(a: IntLike, b: IntLike) -> IntLike:
    x, y = constant_value(a), constant_value(b)
    if y == 0:
        raise DeclarationError(f"remainder of the dimension {a} by zero")
    if x is not None and y is not None:
        return x % y
    return 0 if _exact_quotient(_expr(a), _expr(b)) is not None else _atom("%", a, b)


def cdiv(a: IntLike, b: IntLike) -> IntLike:
    """Division rounded up."""
    return _divide("cdiv", a, b)


def _extremum(op: str, choose: Callable[[int, int], int], a: IntLike, b: IntLike) -> IntLike:
    x, y = constant_value(a), constant_value(b)
    if x is not None and y is not None:
        return choose(x, y)
    if _expr(a) == _expr(b):
        return a
    left, right = sorted((a, b), key=str)
    return _atom(op, left, right)


def minimum(a: IntLike, b: IntLike) -> IntLike:
    """The smaller of two expressions."""
    return _extremum("min", min, a, b)


def maximum(a: IntLike, b: IntLike) -> IntLike:
    """The larger of two expressions."""
    return _extremum("max", max, a, b)


def _power_of_2_at_least(n: int) -> int:
    return 1 << max(0, n - 1).bit_length()


def next_power_of_2(a: IntLike) -> IntLike:
    """The smallest power of two that is at least ``a`` (1 for a <= 1)."""
    value = constant_value(a)
    return _power_of_2_at_least(value) if value is not None else _atom("next_power_of_2", a)


def product(values: Iterable[IntLike]) -> IntLike:
    result: IntLike = 1
    for value in values:
        result = result * value
    return result


#: The operations that an integer algebra must offer to :func:`lower`; these are Python's own.
INTEGER_OPERATIONS: dict[str, Callable[..., Any]] = {
    "+": lambda a, b: a + b,
    "*": lambda a, b: a * b,
    "//": lambda a, b: a // b,
    "%": lambda a, b: a % b,
    "cdiv": lambda a, b: -(-a // b),
    "min": min,
    "max": max,
    "next_power_of_2": _power_of_2_at_least,
}


def lower(
    value: IntLike,
    symbols: Mapping[str, T],
    constant: Callable[[int], T],
    operations: Mapping[str, Callable[..., T]],
) -> T:
    """Fold an expression into another integer algebra.

    ``symbols`` gives the value of each name, ``constant`` lifts a Python int, ``operations`` holds one function per
    operation (see :data:`INTEGER_OPERATIONS`). A missing symbol or operation raises.
    """

    def operation(name: str) -> Callable[..., T]:
        if name not in operations:
            raise DeclarationError(f"the operation {name!r} in {value} cannot be expressed there; make it static")
        return operations[name]

    def atom(a: Atom) -> T:
        if a.op == "sym":
            if a.args[0] not in symbols:
                raise UnknownNameError(
                    f"the dimension {a.args[0]!r} in {value} is not bound; known: {', '.join(sorted(symbols))}"
                )
            return symbols[a.args[0]]
        return operation(a.op)(*(fold(arg) for arg in a.args))

    def fold(v: IntLike) -> T:
        known = constant_value(v)
        if known is not None:
            return constant(known)
        total: T | None = None
        for monomial, coefficient in _expr(v).terms:
            term: T | None = None
            for a in monomial:
                term = atom(a) if term is None else operation("*")(term, atom(a))
            if term is None:
                term = constant(coefficient)
            elif coefficient != 1:
                term = operation("*")(constant(coefficient), term)
            total = term if total is None else operation("+")(total, term)
        assert total is not None
        return total

    return fold(value)


def evaluate(value: IntLike, symbols: Mapping[str, int]) -> int:
    """The integer value of an expression, given its symbols."""
    known = constant_value(value)
    return known if known is not None else lower(value, symbols, int, INTEGER_OPERATIONS)


def substitute(value: IntLike, symbols: Mapping[str, IntLike]) -> IntLike:
    """Replace symbols by expressions; names that are not given stay."""
    if constant_value(value) is not None:
        return value
    names = {name: symbols.get(name, sym(name)) for name in free_symbols(value)}
    operations: dict[str, Callable[..., Any]] = {
        "+": lambda a, b: a + b,
        "*": lambda a, b: a * b,
        "//": lambda a, b: a // b,
        "%": lambda a, b: a % b,
        "cdiv": cdiv,
        "min": minimum,
        "max": maximum,
        "next_power_of_2": next_power_of_2,
    }
    return lower(value, names, lambda n: n, operations)


def free_symbols(value: IntLike) -> set[str]:
    """The names that an expression depends on."""
    if not isinstance(value, Expr):
        return set()
    names: set[str] = set()
    for monomial, _ in value.terms:
        for atom in monomial:
            if atom.op == "sym":
                names.add(atom.args[0])
            else:
                for arg in atom.args:
                    names |= free_symbols(arg)
    return names
