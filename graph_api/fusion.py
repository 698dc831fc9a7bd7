"""Fusion: registered ops put in place of the subgraphs that their patterns describe, with a report of each."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from trtforge.bindings import ranges
from trtforge.bindings.errors import ContractError, UnknownNameError
from trtforge.graph_api import shapes
from trtforge.graph_api.matching import Match, Matcher, interior
from trtforge.graph_api.network import Network, update_problem
from trtforge.graph_api.tensor import Node, Tensor
from trtforge.kernels import registry
from trtforge.kernels.contract import Attr
from trtforge.kernels.op import Op, Pattern

_TOO_EARLY = "one of its results is read before all of its inputs are there"


@dataclass(frozen=True)
class Replacement:
    """One subgraph that became one node."""

    op: str
    pattern: str
    node: str
    replaced: tuple[str, ...]
    inputs: tuple[str, ...]
    attributes: dict[str, Any]
    location: str


@dataclass(frozen=True)
class Refusal:
    """A subgraph that has a pattern's form but was left alone, and why."""

    op: str
    pattern: str
    node: str
    nodes: tuple[str, ...]
    reason: str


@dataclass(frozen=True)
class FusionReport:
    """What a fusion pass did to a network."""

    network: str
    nodes_before: int
    nodes_after: int
    replacements: tuple[Replacement, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    removed: tuple[str, ...] = field(default=())

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [
            f"fusion of {self.network}: {self.nodes_before} nodes -> {self.nodes_after}, "
            f"{len(self.replacements)} replacements"
        ]
        for r in self.replacements:
            lines.append(f"  {r.node} = {r.op} [{r.pattern}] replaces {', '.join(r.replaced)}")
        for nodes, refusal in self._refused():
            lines.append(f"  {nodes} not replaced by {refusal.op} [{refusal.pattern}]: {refusal.reason}")
        return "\n".join(lines)

    def _refused(self) -> list[tuple[str, Refusal]]:
        """Refusals for the same reason told once: (the nodes, the first of them)."""
        groups: dict[tuple[str, str, str], list[Refusal]] = {}
        for refusal in self.refusals:
            groups.setdefault((refusal.op, refusal.pattern, refusal.reason), []).append(refusal)
        return [
            (same[0].node + (f" and {len(same) - 1} more" if len(same) > 1 else ""), same[0])
            for same in groups.values()
        ]

    def __rich__(self) -> Any:
        from rich.table import Table

        table = Table(title=str(self).splitlines()[0])
        for title in ("node", "op", "pattern", "replaces, or why not"):
            table.add_column(title, overflow="fold")
        for r in self.replacements:
            table.add_row(r.node, r.op, r.pattern, ", ".join(r.replaced))
        for nodes, refusal in self._refused():
            table.add_row(nodes, f"[dim]{refusal.op}", refusal.pattern, f"[yellow]{refusal.reason}")
        return table


@dataclass(frozen=True)
class _Candidate:
    """A match that passed every check, with what is needed to apply it."""

    pattern: Pattern
    root: Tensor
    results: tuple[Tensor | None, ...]
    gone: tuple[Node, ...]
    covered: tuple[Node, ...]
    inputs: tuple[Tensor | None, ...]
    attributes: dict[str, Any]


def fuse(network: Network, patterns: str | Iterable[str] = "all") -> FusionReport:
    """Replace subgraphs by registered ops, in place.

    ``patterns``: "all", or names of ops (``trtforge::fused_gemm`` or ``fused_gemm``) and of single patterns. Larger
    matches go first, then earlier ones. A value inside a match that the op does not give must not be read elsewhere
    nor be an output; the op's contract is held against the shapes before anything changes, and what the op updates in
    place must be a buffer that nothing else reads. Nodes that nothing reads are removed.
    """
    with ranges.phase("fuse"):
        return _fuse(network, patterns)


def _fuse(network: Network, patterns: str | Iterable[str]) -> FusionReport:
    before = len(network.nodes)
    candidates: list[_Candidate] = []
    refusals: list[tuple[Tensor, Refusal]] = []
    position = {node: i for i, node in enumerate(network.nodes)}
    for matcher in [Matcher(p) for p in _selected(patterns)]:
        for node in network.nodes:
            found, refusal = _examine(matcher, node, position)
            if found is not None:
                candidates.append(found)
            elif refusal is not None:
                refusals.append((node.outputs[0], refusal))
    candidates.sort(key=lambda c: (-len(c.gone), position[_producer(c.root)]))  # stable: pattern order breaks ties
    used: set[Node] = set()
    moved: dict[Tensor, Tensor] = {}
    applied: list[tuple[_Candidate, Node, list[str]]] = []
    removed: dict[str, None] = {}
    for candidate in candidates:
        if not used.isdisjoint(candidate.gone):
            continue
        inputs = tuple(None if t is None else moved.get(t, t) for t in candidate.inputs)
        now = {node: i for i, node in enumerate(network.nodes)}
        place = _place(candidate.results, inputs, now, used.union(candidate.gone))
        if place is None:
            names = tuple(n.name for n in candidate.gone)
            pattern, at = candidate.pattern, _producer(candidate.root).name
            refusals.append((candidate.root, Refusal(pattern.op.name, pattern.name, at, names, _TOO_EARLY)))
            continue
        used.update(candidate.gone)
        removed.update((node.name, None) for node in candidate.gone if node.updates)
        node = _apply(network, candidate, inputs, moved, place)
        applied.append((candidate, node, [n.name for n in candidate.covered]))
    removed.update((node.name, None) for node in network.prune())
    final = {node: i for i, node in enumerate(network.nodes)}
    applied.sort(key=lambda entry: final[entry[1]])
    replacements = tuple(
        Replacement(
            candidate.pattern.op.name,
            candidate.pattern.name,
            node.name,
            tuple(name for name in names if name in removed),
            tuple(t.name for t in node.tensors),
            dict(node.attributes),
            str(node.location or ""),
        )
        for candidate, node, names in applied
    )
    left = {t for n in network.nodes for t in n.outputs}
    return FusionReport(
        network.name, before, len(network.nodes), replacements, _worth_telling(refusals, left), tuple(removed)
    )


def _selected(patterns: str | Iterable[str]) -> list[Pattern]:
    known = [pattern for op in registry.ops() for pattern in op.patterns]
    if patterns == "all":
        return known
    wanted = [patterns] if isinstance(patterns, str) else list(patterns)
    chosen: list[Pattern] = []
    for name in wanted:
        found = [p for p in known if name in (p.name, p.op.name, p.op.name.split("::")[1])]
        if not found:
            names = ", ".join(dict.fromkeys(p.op.name for p in known))
            raise UnknownNameError(f"no op or pattern is named {name!r}; ops with patterns: {names or 'none'}")
        chosen += [p for p in found if p not in chosen]
    return chosen


def _producer(tensor: Tensor) -> Node:
    assert tensor.producer is not None
    return tensor.producer


def _examine(matcher: Matcher, node: Node, position: Mapping[Node, int]) -> tuple[_Candidate | None, Refusal | None]:
    """The first match at this node that holds every condition, else why the one that holds most of them does not."""
    pattern, root = matcher.pattern, node.outputs[0]
    refusal: Refusal | None = None
    furthest = -1
    for match in matcher.matches(root, position):
        covered = sorted(match.nodes, key=position.__getitem__)
        gone = interior(covered, root)
        inputs = _op_inputs(matcher, match)
        attributes = _op_attributes(pattern, match)
        results = matcher.replaced(match, root)
        candidate = _Candidate(pattern, root, results, tuple(gone), tuple(covered), inputs, attributes)
        problems = enumerate(_problems(matcher, match, candidate, position))
        held, reason = next(((i, found) for i, found in problems if found is not None), (0, None))
        if reason is None:
            return candidate, None
        if held > furthest:
            furthest = held
            refusal = Refusal(pattern.op.name, pattern.name, node.name, tuple(n.name for n in gone), reason)
    return None, refusal


def _problems(
    matcher: Matcher, match: Match, candidate: _Candidate, position: Mapping[Node, int]
) -> Iterator[str | None]:
    """For each condition why the match does not hold it, None where it does."""
    op, gone, inputs, results = candidate.pattern.op, candidate.gone, candidate.inputs, candidate.results
    yield _escape(gone, results)
    yield _unmet(matcher, match, candidate.root)
    yield _contract(op, inputs, candidate.attributes, results)
    update = update_problem(op.name, list(op.inputs), inputs, gone)
    yield None if update is None else update[0]
    yield _TOO_EARLY if _place(results, inputs, position, gone) is None else None


def _op_inputs(matcher: Matcher, match: Match) -> tuple[Tensor | None, ...]:
    values = {name: match.values[p] for name, p in matcher.inputs.items()}
    return tuple(values.get(name) for name in matcher.pattern.op.inputs)


def _op_attributes(pattern: Pattern, match: Match) -> dict[str, Any]:
    attributes = dict(pattern.attributes)
    for name, number in match.captures.items():
        declared: Attr | None = pattern.op.attributes.get(name)
        if declared is not None:
            whole = declared.kind is int and float(number).is_integer()
            attributes[name] = int(number) if whole else number
    return attributes


def _escape(gone: tuple[Node, ...], results: tuple[Tensor | None, ...]) -> str | None:
    inside = set(gone)
    for node in gone:
        for tensor in node.outputs:
            if tensor in results:
                continue
            if tensor.is_output:
                return f"{tensor.name} inside it is an output of the network"
            others = [n.name for n in tensor.consumers if n not in inside]
            if others:
                return f"{tensor.name} inside it is also read by {', '.join(others)}"
    return None


def _unmet(matcher: Matcher, match: Match, root: Tensor) -> str | None:
    def at_most(a: Any, b: Any) -> bool:
        return shapes.at_most(a, b, root.network.dims)

    for requirement in matcher.tracer.requirements:
        if not requirement.holds(match.shape_of, match.captures, at_most):
            return requirement.message
    return None


def _contract(
    op: Op, inputs: tuple[Tensor | None, ...], attributes: dict[str, Any], results: tuple[Tensor | None, ...]
) -> str | None:
    present = {name: t for name, t in zip(op.inputs, inputs) if t is not None}
    try:
        binding = op.bind(
            {name: t.shape for name, t in present.items()}, {name: t.dtype for name, t in present.items()}, attributes
        )
    except ContractError as error:
        return str(error)
    for (name, shape), result in zip(binding.outputs.items(), results):
        kind = binding.dtypes[name]
        if result is not None and (tuple(shape) != tuple(result.shape) or kind != result.dtype):
            gives, wanted = f"{kind}{shapes.text(shape)}", f"{result.dtype}{shapes.text(result.shape)}"
            return f"{op.name} would give {gives} in place of {wanted}"
    return None


def _place(
    results: tuple[Tensor | None, ...],
    inputs: tuple[Tensor | None, ...],
    position: Mapping[Node, int],
    inside: Container[Node],
) -> int | None:
    """Where in the order of nodes the op can stand: where its first result was made, or, with several results, behind
    the last of its inputs. None when something that is not ``inside`` reads a result before that."""
    made = [t for t in results if t is not None]
    if len(made) == 1:
        return position[_producer(made[0])]
    place = max((position[t.producer] + 1 for t in inputs if t is not None and t.producer is not None), default=0)
    readers = [position[n] for t in made for n in t.consumers if n not in inside]
    return place if place <= min(readers, default=place) else None


def _apply(
    network: Network,
    candidate: _Candidate,
    inputs: tuple[Tensor | None, ...],
    moved: dict[Tensor, Tensor],
    place: int,
) -> Node:
    scope = _common_scope([n.name for n in candidate.gone])
    updating = [n for n in candidate.gone if n.updates]
    place -= sum(n in updating for n in network.nodes[:place])
    for old_node in updating:  # a buffer is updated once: the old nodes go before the new one comes
        network.remove(old_node)
    with network.scope(scope, absolute=True):
        fresh = network.emit(candidate.pattern.op.name, inputs, candidate.attributes)
    node = _producer(fresh[0])
    node.location = _producer(candidate.root).location
    network.nodes.remove(node)
    network.nodes.insert(place, node)
    for old, new in zip(candidate.results, fresh):
        if old is not None:
            network.redirect(old, new)
            moved[old] = new
    return node


def _common_scope(names: list[str]) -> str:
    """The longest module path that all the names share."""
    paths = [name.split(".")[:-1] for name in names]
    shared = []
    for parts in zip(*paths):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return ".".join(shared)


def _worth_telling(refusals: list[tuple[Tensor, Refusal]], left: set[Tensor]) -> tuple[Refusal, ...]:
    """One line per node that is still there: the refusal of the largest form."""
    best: dict[str, Refusal] = {}
    for root, refusal in refusals:
        if root not in left:
            continue
        known = best.get(refusal.node)
        if known is None or len(refusal.nodes) > len(known.nodes):
            best[refusal.node] = refusal
    return tuple(best.values())
