"""Patterns: subgraphs with holes, traced from the functions that op declarations give.

A pattern function gets ``f``, a namespace with the names of :mod:`trtforge.graph_api.functional`, and one value per
named input. What it calls is recorded as :class:`P` values. Shapes are unknown while tracing: ``x.shape[-2]`` and
attributes that follow from shapes are :class:`Later` values, computed and compared once a match has bound the inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from trtforge.bindings.errors import DeclarationError
from trtforge.graph_api.functional.attending import compose_mask
from trtforge.graph_api.primitive import PRIMITIVES
from trtforge.kernels.dims import IntLike

ShapeOf = Callable[["P"], tuple[IntLike, ...]]


class Anything:
    """Matches any attribute value."""

    def __repr__(self) -> str:
        return "anything"


ANYTHING = Anything()


@dataclass(frozen=True, eq=False)
class Later:
    """An attribute or a dimension that follows from the shapes of matched values."""

    compute: Callable[[ShapeOf], Any]

    def _with(self, other: Any, combine: Callable[[Any, Any], Any]) -> Later:
        return Later(lambda shape_of: combine(settle(self, shape_of), settle(other, shape_of)))

    def __add__(self, other: Any) -> Later:
        return self._with(other, lambda a, b: a + b)

    def __sub__(self, other: Any) -> Later:
        return self._with(other, lambda a, b: a - b)

    def __mul__(self, other: Any) -> Later:
        return self._with(other, lambda a, b: a * b)

    def __floordiv__(self, other: Any) -> Later:
        return self._with(other, lambda a, b: a // b)


def settle(value: Any, shape_of: ShapeOf) -> Any:
    """The value of an attribute once shapes are known."""
    if isinstance(value, Later):
        return value.compute(shape_of)
    return tuple(settle(v, shape_of) for v in value) if isinstance(value, (tuple, list)) else value


@dataclass(frozen=True, eq=False)
class PatternShape:
    """The shape of a value that is not known yet."""

    of: P

    def __getitem__(self, axis: int) -> Later:
        return Later(lambda shape_of: shape_of(self.of)[axis])


@dataclass(frozen=True, eq=False)
class P:
    """A value of a pattern. ``kind``: node, input, capture (a scalar constant to bind), number, either (a choice
    among ``inputs``), equal (its input, if ``attributes["left"]`` and ``["right"]`` turn out equal), or output (another
    output of the node that makes its input, the one of index ``attributes["index"]``)."""

    kind: str
    op: str = ""
    inputs: tuple[P | None, ...] = ()
    attributes: dict[str, Any] = field(default_factory=dict)
    name: str = ""
    number: float | Later = 0.0
    accepts: Callable[[float], bool] | None = None

    @property
    def shape(self) -> PatternShape:
        return PatternShape(self)


@dataclass(frozen=True)
class Requirement:
    """A condition on a finished match: ``holds(shape_of, captures, at_most)``; ``message`` when it does not."""

    holds: Callable[..., bool]
    message: str


class Tracer:
    """The ``f`` of a pattern function. Every primitive is a method; what is composed of several is defined here."""

    def __init__(self) -> None:
        self.captures: dict[str, P] = {}
        self.requirements: list[Requirement] = []

    def __getattr__(self, name: str) -> Callable[..., P]:
        if name.startswith("_") or name not in PRIMITIVES:
            raise DeclarationError(f"a pattern cannot use f.{name}; primitives: {', '.join(sorted(PRIMITIVES))}")
        return lambda *args, **attributes: self._node(name, args, attributes)

    def _node(self, op: str, args: Sequence[Any], attributes: dict[str, Any]) -> P:
        primitive = PRIMITIVES[op]
        arity = len(args) if primitive.variadic else len(primitive.inputs)
        inputs, rest = list(args[:arity]), args[arity:]
        if not primitive.variadic:
            for name in primitive.input_names(len(primitive.inputs))[len(inputs) :]:
                inputs.append(attributes.pop(name, None))
        given = {**dict(zip(primitive.attributes, rest)), **attributes}
        values = tuple(None if v is None else self._value(v) for v in inputs)
        return P("node", op, values, primitive.complete(given))

    def _value(self, value: Any) -> P:
        if isinstance(value, P):
            return value
        if isinstance(value, (int, float)):
            return P("number", number=float(value))
        raise DeclarationError(f"a pattern value or a number is needed, got {value!r}")

    # --- holes ---------------------------------------------------------------------------------------------------

    def input(self, name: str) -> P:
        """A named input of the pattern: matches any value."""
        return P("input", name=name)

    def capture(self, name: str, accepts: Callable[[float], bool] | None = None) -> P:
        """A scalar constant; where the op has an attribute of that name, it is bound to the value."""
        if name not in self.captures:
            self.captures[name] = P("capture", name=name, accepts=accepts)
        return self.captures[name]

    def masked(self) -> P:
        """The score of a key that is not seen: minus infinity, or a number of at most -10000."""
        return self.capture("masked", lambda value: value <= -1e4)

    def either(self, *forms: P) -> P:
        """The first of these forms that fits; captures of the others stay unbound."""
        return P("either", inputs=forms)

    def any(self) -> Anything:
        """An attribute value that does not matter."""
        return ANYTHING

    def require(self, holds: Callable[..., bool], message: str) -> None:
        """Refuse a match unless ``holds(shape_of, captures, at_most)``; the message says why."""
        self.requirements.append(Requirement(holds, message))

    # --- composed ------------------------------------------------------------------------------------------------

    def linear(self, x: P, weight: P, bias: P | None = None) -> P:
        y = self._node("matmul", (x, weight), {"transpose_b": True})
        return y if bias is None else self._node("add", (y, bias), {})

    def activation(self, x: P, kind: str) -> P:
        if kind == "none":
            return x
        if kind == "gelu_tanh":
            return self._node("gelu", (x,), {"approximate": "tanh"})
        return self._node(kind, (x,), {})

    def call(self, op: str, *inputs: P | None, **attributes: Any) -> P:
        """A registered op; attributes that are not given match any value."""
        return P("node", op, inputs, attributes)

    def outputs(self, node: P, count: int) -> tuple[P, ...]:
        """All outputs of an op that has ``count`` of them, ``node`` (what :meth:`call` gave) being the first. They can
        be what the pattern returns, not what it computes with."""
        return (node, *(P("output", inputs=(node,), attributes={"index": i}) for i in range(1, count)))

    def concat(self, tensors: Sequence[P], axis: int = -1) -> P:
        return self._node("concat", tuple(tensors), {"axis": axis})

    def embedding(self, indices: P, weight: P) -> P:
        return self._node("gather", (weight, indices), {"axis": Later(lambda shape_of: -len(shape_of(weight)))})

    def transpose(self, x: P, axis0: int = -2, axis1: int = -1) -> P:
        def axes(shape_of: ShapeOf) -> tuple[int, ...]:
            order = list(range(len(shape_of(x))))
            order[axis0], order[axis1] = order[axis1], order[axis0]
            return tuple(order)

        return self._node("permute", (x,), {"axes": Later(axes)})

    def reshape(self, x: P, shape: Any) -> P:
        return self._node("reshape", (x,), {"shape": shape})

    def unsqueeze(self, x: P, axis: int) -> P:
        def shape(shape_of: ShapeOf) -> tuple[Any, ...]:
            sizes = list(shape_of(x))
            sizes.insert(axis if axis >= 0 else len(sizes) + 1 + axis, 1)
            return tuple(sizes)

        return self.reshape(x, Later(shape))

    def squeeze(self, x: P, axis: int) -> P:
        def shape(shape_of: ShapeOf) -> tuple[Any, ...]:
            sizes = list(shape_of(x))
            del sizes[axis]
            return tuple(sizes)

        return self.reshape(x, Later(shape))

    def repeat_interleave(self, x: P, repeats: Any, axis: int) -> P:
        """``repeats`` may be ``f.any()``."""

        def split(shape_of: ShapeOf) -> tuple[Any, ...]:
            sizes = list(shape_of(x))
            sizes.insert(axis % len(sizes) + 1, 1)
            return tuple(sizes)

        def wide(shape_of: ShapeOf) -> tuple[Any, ...]:
            sizes = list(split(shape_of))
            sizes[axis % (len(sizes) - 1) + 1] = repeats
            return tuple(sizes)

        def joined(shape_of: ShapeOf) -> tuple[Any, ...]:
            sizes = list(shape_of(x))
            sizes[axis] = ANYTHING if repeats is ANYTHING else sizes[axis] * repeats
            return tuple(sizes)

        parts = self._node("expand", (self.reshape(x, Later(split)),), {"shape": Later(wide)})
        return self.reshape(parts, Later(joined))

    def attention_mask(
        self, queries: Any, keys: Any, *, causal: bool = False, window: Any = -1, k_lengths: P | None = None
    ) -> P:
        """``window`` may be a capture. Without lengths, the offset of the diagonal may be written as a number, or
        left out where there are as many queries as keys.
        """
        mask = compose_mask(self, queries, keys, causal, window, k_lengths)
        if k_lengths is not None:
            return mask
        rows = self.unsqueeze(self.arange(queries), -1)
        square = P("equal", inputs=(rows,), attributes={"left": queries, "right": keys})
        shifted = self.add(rows, P("number", number=keys - queries))
        others = [compose_mask(self, queries, keys, causal, window, None, diagonal=d) for d in (square, shifted)]
        return self.either(mask, *others)

    def causal_mask(self, q: P, k: P) -> P:
        return self.attention_mask(q.shape[-2], k.shape[-2], causal=True)


# --- other ways to write the same function ---------------------------------------------------------------------


def _gelu_forms(f: Tracer, x: P, inner: P) -> list[P]:
    """0.5 x (1 + inner) in the orders in which it is written."""
    one = f.add(inner, 1.0)
    return [f.mul(f.mul(x, 0.5), one), f.mul(f.mul(x, one), 0.5), f.mul(x, f.mul(one, 0.5))]


def _gelu(f: Tracer, x: P, *, approximate: Any) -> list[P]:
    if approximate == "none":
        return _gelu_forms(f, x, f.erf(f.mul(x, 0.5**0.5)))
    cubes = [f.pow(x, 3.0), f.mul(f.mul(x, x), x)]
    root = (2 / 3.141592653589793) ** 0.5
    return [form for cube in cubes for form in _gelu_forms(f, x, f.tanh(f.mul(f.add(x, f.mul(cube, 0.044715)), root)))]


def _reciprocal_norms(f: Tracer, x: P, eps: Any) -> list[P]:
    """x / sqrt(mean(x^2) + eps), as it is written."""
    forms = []
    for square in (f.mul(x, x), f.pow(x, 2.0)):
        total = f.add(f.mean(square, axis=(-1,), keepdims=True), eps)
        forms += [f.mul(x, f.rsqrt(total)), f.div(x, f.sqrt(total))]
    return forms


def _rms_norm(f: Tracer, x: P, weight: P | None, *, eps: Any) -> list[P]:
    forms = _reciprocal_norms(f, x, eps)
    return forms if weight is None else [f.mul(form, weight) for form in forms]


def _layer_norm(f: Tracer, x: P, weight: P | None, bias: P | None, *, eps: Any) -> list[P]:
    forms = _reciprocal_norms(f, f.sub(x, f.mean(x, axis=(-1,), keepdims=True)), eps)
    if weight is not None:
        forms = [f.mul(form, weight) for form in forms]
    return forms if bias is None else [f.add(form, bias) for form in forms]


_OPPOSITE = {"le": "gt", "gt": "le", "lt": "ge", "ge": "lt"}
_MIRRORED = {"le": "ge", "ge": "le", "lt": "gt", "gt": "lt"}


def _negated(f: Tracer, condition: P) -> P | None:
    """The comparison that holds where ``condition`` does not."""
    if condition.op in _OPPOSITE:
        return getattr(f, _OPPOSITE[condition.op])(*condition.inputs)
    if condition.kind == "either":
        forms = [_negated(f, form) for form in condition.inputs if form is not None]
        return f.either(*(form for form in forms if form is not None))
    return None


def _where(f: Tracer, condition: P, a: P, b: P) -> list[P]:
    forms = []
    negated = _negated(f, condition)
    if negated is not None:
        forms.append(f.where(negated, b, a))
    if b.kind == "capture" and b.name == "masked":  # scores + a mask of 0 and minus infinity
        forms.append(f.add(a, f.where(condition, 0.0, b)))
    return forms


def _mirror(op: str) -> Callable[..., list[P]]:
    return lambda f, a, b: [P("node", _MIRRORED[op], (b, a), {})]


#: For an op of a pattern: other subgraphs that compute the same, tried after the op itself.
EQUIVALENTS: dict[str, Callable[..., list[P]]] = {
    "relu": lambda f, x: [f.maximum(x, 0.0)],
    "sigmoid": lambda f, x: [f.div(1.0, f.add(f.exp(f.neg(x)), 1.0))],
    "silu": lambda f, x: [f.mul(x, f.sigmoid(x)), f.div(x, f.add(f.exp(f.neg(x)), 1.0))],
    "gelu": _gelu,
    "rms_norm": _rms_norm,
    "layer_norm": _layer_norm,
    "where": _where,
    **{op: _mirror(op) for op in _MIRRORED},
}
