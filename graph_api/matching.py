"""Finding a pattern in a graph: unification with backtracking, over the ways in which a function can be written."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from trtforge.bindings.errors import DeclarationError
from trtforge.graph_api.pattern import ANYTHING, EQUIVALENTS, Later, P, Tracer, settle
from trtforge.graph_api.primitive import FLOATS, PRIMITIVES
from trtforge.graph_api.tensor import Node, Tensor
from trtforge.kernels.dims import IntLike
from trtforge.kernels.op import Pattern

#: How far a written constant may be from the pattern's number, by the dtype that rounded it.
NUMBER_TOLERANCE = {"float32": 1e-5, "float16": 2e-3, "bfloat16": 1e-2}
#: Ops that only rearrange or convert; a value that one of them makes of a pattern's inputs may have other readers.
VIEWS = ("cast", "reshape", "permute", "expand")


@dataclass(frozen=True)
class Match:
    """A pattern laid over the graph, possibly still growing.

    ``values``: the tensor of each pattern value; ``captures``: numbers by name; ``nodes``: what the pattern covers;
    ``pending``: attributes (pattern's, node's) to compare once shapes are known.
    """

    values: dict[P, Tensor] = field(default_factory=dict)
    captures: dict[str, float] = field(default_factory=dict)
    nodes: tuple[Node, ...] = ()
    pending: tuple[tuple[Any, Any], ...] = ()

    def bind(self, p: P, tensor: Tensor) -> Match:
        return replace(self, values={**self.values, p: tensor})

    def cover(self, node: Node) -> Match:
        return self if node in self.nodes else replace(self, nodes=(*self.nodes, node))

    def capture(self, p: P, number: float, dtype: str) -> Match | None:
        """Bind a capture, or check a number; None when it does not agree."""
        tolerance = NUMBER_TOLERANCE.get(dtype, 0.0)
        if isinstance(p.number, Later):
            return replace(self, pending=(*self.pending, (p.number, number)))
        if p.kind == "number":
            return self if _close(p.number, number, tolerance) else None
        if p.accepts is not None and not p.accepts(number):
            return None
        known = self.captures.get(p.name)
        if known is not None:
            return self if _close(known, number, tolerance) else None
        return replace(self, captures={**self.captures, p.name: number})

    def shape_of(self, p: P) -> tuple[IntLike, ...]:
        return self.values[p].shape

    @property
    def settled(self) -> bool:
        """Whether the attributes that follow from shapes agree too."""
        return all(_equal(settle(wanted, self.shape_of), found) for wanted, found in self.pending)


def _close(a: float, b: float, tolerance: float) -> bool:
    return a == b or math.isclose(a, b, rel_tol=max(tolerance, 1e-9))


def _equal(wanted: Any, found: Any) -> bool:
    if wanted is ANYTHING:
        return True
    if isinstance(wanted, (tuple, list)):
        return isinstance(found, tuple) and len(wanted) == len(found) and all(map(_equal, wanted, found))
    if isinstance(wanted, float) and isinstance(found, float):
        return _close(wanted, found, 1e-6)
    return bool(wanted == found)


class Matcher:
    """Lays one pattern over a graph. ``results`` are the traced values that the op's outputs replace, in order (None:
    the subgraph has no such value); ``root`` is the first one. ``apart``: results that the root is not made of (the
    values that go into a cache beside the keys), each with a value that it reads and the root is made of."""

    def __init__(self, pattern: Pattern):
        self.pattern = pattern
        self.tracer = Tracer()
        self.inputs = {name: self.tracer.input(name) for name in pattern.inputs}
        traced = pattern.fn(self.tracer, *self.inputs.values())
        results = traced if isinstance(traced, tuple) else (traced,)
        root = results[0]
        if not isinstance(root, P) or root.kind != "node" or len(results) != len(pattern.op.outputs):
            raise DeclarationError(
                f"the pattern {pattern.name!r} of {pattern.op.name} must return one traced value for each output "
                f"({', '.join(pattern.op.outputs)}), a node first, None where the subgraph has no such value"
            )
        self.root = root
        self.results: tuple[P | None, ...] = results
        self.apart = self._apart()
        self._forms: dict[P, list[P]] = {}
        self._derived: set[P] = set()

    def matches(self, tensor: Tensor, position: Mapping[Node, int]) -> Iterator[Match]:
        """Every way to lay the pattern so that its root is ``tensor``; results apart are looked for nearest first, by
        the nodes' ``position`` in the network."""
        for start in self._match(self.root, tensor, Match()):
            for match in self._beside(self.apart, start, position):
                if match.settled and all(p in match.values for p in self.inputs.values()):
                    yield match

    def _apart(self) -> tuple[tuple[P, P], ...]:
        found = []
        reached = _reached(self.root)
        for p in self.results:
            if p is None or p in reached or p.kind == "output":
                continue
            shared = next((q for q in p.inputs if q in reached), None)
            if p.kind != "node" or shared is None:
                raise DeclarationError(
                    f"the pattern {self.pattern.name!r} of {self.pattern.op.name} returns values that have nothing to "
                    "do with each other; each must read something that the first one is made of"
                )
            found.append((p, shared))
            reached |= _reached(p)
        return tuple(found)

    def _beside(self, apart: tuple[tuple[P, P], ...], match: Match, position: Mapping[Node, int]) -> Iterator[Match]:
        if not apart:
            yield match
            return
        (p, shared), rest = apart[0], apart[1:]
        assert match.nodes  # the root is a node
        here = position[match.nodes[0]]
        readers = [n for n in match.values[shared].consumers if n.op == p.op and n not in match.nodes]
        for node in sorted(readers, key=lambda n: abs(position[n] - here)):
            for found in self._match(p, node.outputs[0], match):
                yield from self._beside(rest, found, position)

    def replaced(self, match: Match, tensor: Tensor) -> tuple[Tensor | None, ...]:
        """The tensors that the outputs of the op replace: ``tensor``, where the match was found (its root, or a cast
        of it), and the other results."""
        return (tensor, *(None if p is None else self._tensor(p, match) for p in self.results[1:]))

    def _tensor(self, p: P, match: Match) -> Tensor:
        if p.kind != "output":
            return match.values[p]
        (first,) = p.inputs
        assert first is not None
        producer = match.values[first].producer
        assert producer is not None
        return producer.outputs[p.attributes["index"]]

    def _match(self, p: P, tensor: Tensor, match: Match) -> Iterator[Match]:
        if p in match.values:
            if match.values[p] is tensor:
                yield match
            elif p.kind == "input":
                yield from self._through_cast(p, tensor, match)
            return
        if p.kind in ("capture", "number"):
            number = tensor.scalar
            if number is not None and not isinstance(number, bool):
                bound = match.capture(p, float(number), tensor.dtype)
                if bound is not None:
                    yield bound
            return
        if p.kind == "either":
            for choice in p.inputs:
                assert choice is not None
                for found in self._match(choice, tensor, match):
                    yield found.bind(p, tensor)
            return
        if p.kind == "equal":
            (value,) = p.inputs
            assert value is not None
            gap = (p.attributes["left"] - p.attributes["right"], 0)
            yield from self._match(value, tensor, replace(match, pending=(*match.pending, gap)))
            return
        if p.kind == "input":
            yield match.bind(p, tensor)
        else:
            for form in (p, *self._alternatives(p)):
                for found in self._node(form, tensor, match):
                    yield found if form is p else found.bind(p, tensor)
        yield from self._through_cast(p, tensor, match)

    def _through_cast(self, p: P, tensor: Tensor, match: Match) -> Iterator[Match]:
        """The ops replaced accumulate in float32 and round once, so casts between floats inside do not matter."""
        node = tensor.producer
        if node is None or node.op != "cast" or tensor.dtype not in FLOATS:
            return
        (source,) = node.tensors
        if source.dtype in FLOATS:
            yield from self._match(p, source, match.cover(node))

    def _alternatives(self, p: P) -> list[P]:
        if p.op not in EQUIVALENTS or p in self._derived:
            return []
        if p not in self._forms:
            self._forms[p] = EQUIVALENTS[p.op](self.tracer, *p.inputs, **p.attributes)
            self._derived.update(self._forms[p])
        return self._forms[p]

    def _node(self, p: P, tensor: Tensor, match: Match) -> Iterator[Match]:
        node = tensor.producer
        if node is None or tensor is not node.outputs[0]:
            return
        if node.op != p.op:
            yield from self._scaled(p, node, match)
            return
        inputs = list(node.inputs)
        wanted = dict(p.attributes)
        start = match.cover(node)
        if p.op == "matmul" and wanted["transpose_b"] is True and node.attributes["transpose_b"] is False:
            source = _swapped(inputs[1])
            if source is None:
                return
            assert inputs[1] is not None and inputs[1].producer is not None
            start = start.cover(inputs[1].producer)
            inputs[1], wanted["transpose_b"] = source, False
        compared = self._attributes(wanted, node, start)
        if compared is None or len(p.inputs) > len(inputs):
            return
        parts = (*p.inputs, *(None,) * (len(inputs) - len(p.inputs)))
        primitive = PRIMITIVES.get(p.op)
        orders = [inputs, inputs[::-1]] if primitive is not None and primitive.commutative else [inputs]
        for order in orders:
            for found in self._all(parts, order, compared):
                yield found.bind(p, tensor)

    def _all(self, parts: tuple[P | None, ...], tensors: list[Tensor | None], match: Match) -> Iterator[Match]:
        if not parts:
            yield match
            return
        p, tensor = parts[0], tensors[0]
        if p is None or tensor is None:
            if p is None and tensor is None:
                yield from self._all(parts[1:], tensors[1:], match)
            return
        for found in self._match(p, tensor, match):
            yield from self._all(parts[1:], tensors[1:], found)

    def _attributes(self, wanted: dict[str, Any], node: Node, match: Match) -> Match | None:
        current: Match | None = match
        for name, value in wanted.items():
            found = node.attributes.get(name)
            if isinstance(found, tuple) and isinstance(value, int) and not isinstance(value, bool):
                value = (value,)
            assert current is not None
            if isinstance(value, P):
                current = current.capture(value, float(found), "float32") if isinstance(found, (int, float)) else None
            elif isinstance(value, (Later, tuple, list)):
                current = replace(current, pending=(*current.pending, (value, found)))
            elif not _equal(value, found):
                current = None
            if current is None:
                return None
        return current

    def _scaled(self, p: P, node: Node, match: Match) -> Iterator[Match]:
        """x * c where the pattern says x / d, and the other way round, for constants c and d = 1 / c."""
        if {p.op, node.op} != {"mul", "div"} or len(p.inputs) != 2:
            return
        pairs = [(p.inputs[0], p.inputs[1])]
        if p.op == "mul":
            pairs.append((p.inputs[1], p.inputs[0]))
        sides = [(node.inputs[0], node.inputs[1])]
        if node.op == "mul":
            sides.append((node.inputs[1], node.inputs[0]))
        for rest, hole in pairs:
            for value, factor in sides:
                if rest is None or hole is None or value is None or factor is None:
                    continue
                number = factor.scalar
                if hole.kind not in ("capture", "number") or not number or isinstance(number, bool):
                    continue
                bound = match.cover(node).capture(hole, 1.0 / number, factor.dtype)
                if bound is not None:
                    for found in self._match(rest, value, bound):
                        yield found.bind(p, node.outputs[0])


def _reached(p: P) -> set[P]:
    """The values that ``p`` is made of, and itself."""
    found: set[P] = set()
    waiting = [p]
    while waiting:
        one = waiting.pop()
        if one not in found:
            found.add(one)
            waiting += [q for q in one.inputs if q is not None]
    return found


def _swapped(tensor: Tensor | None) -> Tensor | None:
    """The tensor whose last two axes ``tensor`` swaps, if it does."""
    node = tensor.producer if tensor is not None else None
    if node is None or node.op != "permute":
        return None
    axes = node.attributes["axes"]
    rank = len(axes)
    return node.inputs[0] if axes == (*range(rank - 2), rank - 1, rank - 2) else None


def interior(nodes: Sequence[Node], root: Tensor) -> list[Node]:
    """Those of the covered nodes that must disappear, because what they compute would be computed twice.

    The others make integers and bools (masks, positions) by primitives or only rearrange or convert the pattern's own
    inputs; they may have other readers. What is updated in place is updated once: such nodes disappear.
    """
    covered = set(nodes)
    shareable: dict[Node, bool] = {}

    def may_stay(node: Node) -> bool:
        if node not in shareable:
            cheap = node.op in VIEWS or (node.op in PRIMITIVES and node.outputs[0].dtype not in FLOATS)
            replaced = node is root.producer or node.updates
            shareable[node] = not replaced and cheap and all(n not in covered or may_stay(n) for n in node.predecessors)
        return shareable[node]

    return [n for n in nodes if not may_stay(n)]
