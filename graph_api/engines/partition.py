"""Cutting a network into engines and what runs between them.

Let H be the nodes that an engine hosts and N the others. The *level* of a node counts the engines that must have run
before it on any path:

    level(h in H) = max over inputs p of  level(p)      if p in H
                                          level(p) + 1  if p in N       (0 without inputs)
    level(n in N) = max over inputs p of  level(p)                      (-1 without inputs)

All H of one level are one engine, E_k. The pieces in the order N_-1, E_0, N_0, E_1, N_1, ... (N_k: the others of level
k, in graph order) never wait for a later one, because along an edge the level never falls, N to H raises it, and
N_k comes after E_k. So the graph of pieces has no cycle and each engine is convex.

No cut has fewer engines: the highest level + 1 is the largest number of runs of H on a path, two runs on one path are
separated by an N and cannot share a convex piece. Sinking a node to a later engine that alone reads it keeps both
properties (its level stays between those of its producers and its readers), and is done where fewer bytes then cross.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from trtforge.bindings.dtypes import DTYPES
from trtforge.bindings.errors import GraphError
from trtforge.graph_api import shapes
from trtforge.graph_api.network import Network
from trtforge.graph_api.primitive import PRIMITIVES
from trtforge.graph_api.tensor import Node, Tensor
from trtforge.kernels.dims import evaluate, free_symbols

_CONE = 16  # how far back the search for something small to carry goes
#: Where a node can run besides an engine.
KERNEL, VIEW, PRIMITIVE = "kernel", "view", "primitive"


@dataclass(frozen=True, eq=False)
class Piece:
    """Nodes that are one engine.

    ``carriers``: network inputs that the piece reads for their shape alone. ``aliases``: outputs by name that are
    written into an input's buffer, with that input's name (a KV cache). ``parameters``: weights that it holds.
    """

    name: str
    nodes: tuple[Node, ...]
    inputs: tuple[Tensor, ...]
    carriers: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    aliases: Mapping[str, str]
    parameters: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Single:
    """A node outside of the engines. ``kind``: a registered ``kernel``, a ``view`` of its input, or a ``primitive``."""

    node: Node
    kind: str


Step = Piece | Single


@dataclass(frozen=True)
class Placed:
    """Where one node went, and why."""

    node: str
    op: str
    where: str
    why: str


@dataclass(frozen=True, eq=False)
class Partition:
    """The steps in execution order, and the report."""

    network: str
    steps: tuple[Step, ...]
    placed: tuple[Placed, ...]
    host: str = field(default="")

    @property
    def pieces(self) -> tuple[Piece, ...]:
        return tuple(s for s in self.steps if isinstance(s, Piece))

    @property
    def singles(self) -> tuple[Single, ...]:
        return tuple(s for s in self.steps if isinstance(s, Single))

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return {
            "host": self.host,
            "pieces": [
                {
                    "name": p.name,
                    "nodes": len(p.nodes),
                    "inputs": [str(t) for t in (*p.inputs, *p.carriers)],
                    "outputs": [str(t) for t in p.outputs],
                    "in_place": dict(p.aliases),
                }
                for p in self.pieces
            ],
            "nodes": [vars(p) for p in self.placed],
        }

    def __str__(self) -> str:
        inside = sum(len(p.nodes) for p in self.pieces)
        lines = [
            f"{self.network}: {len(self.pieces)} engines ({self.host}) with {inside} nodes, "
            f"{len(self.singles)} nodes between them"
        ]
        for step in self.steps:
            if isinstance(step, Piece):
                arrays = f"{len(step.inputs)} in, {len(step.outputs)} out"
                lines.append(f"  {step.name:<10} {len(step.nodes)} nodes, {arrays}")
            else:
                why = next(p.why for p in self.placed if p.node == step.node.name)
                lines.append(f"  {step.kind:<10} {step.node.name} = {step.node.op}: {why}")
        return "\n".join(lines)


def partition(network: Network, refusal: Callable[[Node], str | None], host: str = "engine") -> Partition:
    """Cut ``network`` where ``refusal(node)`` gives a reason (None: an engine hosts the node)."""
    reasons = {node: refusal(node) for node in network.nodes}
    views = _views(network, reasons)
    outside = {node for node, reason in reasons.items() if reason is not None} | views
    levels = _levels(network.nodes, outside)
    _sink(network, levels, outside)
    occupied = sorted({levels[n] for n in network.nodes if n not in outside})
    names = {level: f"engine_{i}" for i, level in enumerate(occupied)}
    steps: list[Step] = []
    for level in range(-1, max(levels.values(), default=-1) + 1):
        nodes = tuple(n for n in network.nodes if n not in outside and levels[n] == level)
        if nodes:
            steps.append(make_piece(network, names[level], nodes))
        steps += [Single(n, _kind(n, views)) for n in network.nodes if n in outside and levels[n] == level]
    check_order(network, steps)
    return Partition(network.name, tuple(steps), _report(network, reasons, views, levels, names), host)


def make_piece(network: Network, name: str, nodes: tuple[Node, ...]) -> Piece:
    """The engine of some nodes, with what goes in and out of it."""
    inside = set(nodes)
    read = dict.fromkeys(t for n in nodes for t in n.tensors)
    inputs = tuple(
        t for t in read if t.kind in ("input", "state") or (t.producer is not None and t.producer not in inside)
    )
    kept = {id(t) for t in network.outputs.values()}
    aliases: dict[str, str] = {}
    outputs: list[Tensor] = []
    for node in nodes:
        updated = node.updated
        aliases.update((tensor.name, overwritten.name) for tensor, overwritten in updated.items())
        for tensor in node.outputs:
            read_outside = any(n not in inside for n in tensor.consumers)
            if read_outside or id(tensor) in kept or tensor in updated:
                outputs.append(tensor)
    parameters = tuple(t.name for t in read if t.kind == "parameter")
    return Piece(name, nodes, inputs, _carriers(network, nodes, inputs), tuple(outputs), aliases, parameters)


def check_order(network: Network, steps: Iterable[Step]) -> None:
    """Raise GraphError unless every node is there once and runs after everything that it reads."""
    done: set[Node] = set()
    for step in steps:
        nodes = step.nodes if isinstance(step, Piece) else (step.node,)
        for node in nodes:
            late = [p.name for p in node.predecessors if p not in done]
            if late or node in done:
                raise GraphError(f"{node.name} runs twice, or before {', '.join(late) or 'itself'}")
            done.add(node)
    missing = [n.name for n in network.nodes if n not in done]
    if missing:
        raise GraphError(f"nothing runs {', '.join(missing[:5])} of network {network.name!r}")


def _kind(node: Node, views: set[Node]) -> str:
    if node in views:
        return VIEW
    return PRIMITIVE if node.op in PRIMITIVES else KERNEL


def _views(network: Network, reasons: Mapping[Node, str | None]) -> set[Node]:
    """Reshapes that stand between hosted-nowhere nodes: the same buffer under another shape, not worth an engine."""
    views = {n for n in network.nodes if n.op == "reshape"}

    def elsewhere(node: Node | None) -> bool:
        return node is None or node in views or reasons[node] is not None

    while True:
        wrong = {n for n in views if not (elsewhere(n.tensors[0].producer) and all(elsewhere(c) for c in n.successors))}
        if not wrong:
            return views
        views -= wrong


def _levels(nodes: Iterable[Node], outside: set[Node]) -> dict[Node, int]:
    levels: dict[Node, int] = {}
    for node in nodes:
        if node in outside:
            levels[node] = max((levels[p] for p in node.predecessors), default=-1)
        else:
            levels[node] = max((levels[p] + (p in outside) for p in node.predecessors), default=0)
            levels[node] = max(levels[node], 0)
    return levels


def _bytes(network: Network, tensor: Tensor) -> int:
    sizes = {name: d.tuned for name, d in network.dims.items()}
    return evaluate(shapes.volume(tensor.shape), sizes) * DTYPES[tensor.dtype].itemsize


def _sink(network: Network, levels: dict[Node, int], outside: set[Node]) -> None:
    """Move nodes to a later engine that alone reads them, where no more bytes then cross between pieces."""
    kept = {id(t) for t in network.outputs.values()}

    def carried(tensor: Tensor, target: int, cone: set[Node]) -> int:
        """Bytes that must cross for an engine at ``target`` to read the tensor: its own, or those of what it is made of
        where its producer can sink as well, being read by the nodes of ``cone`` alone."""
        producer = tensor.producer
        if producer is None or producer in outside or levels[producer] == target:
            return 0  # whatever an engine reads from outside is there already
        own = _bytes(network, tensor)
        readers = [c for c in producer.successors if c not in cone and levels[c] != target]
        if any(c in outside or levels[c] > levels[producer] for c in tensor.consumers if c not in cone):
            return 0  # it crosses already
        if readers or len(cone) > _CONE or any(id(t) in kept for t in producer.outputs):
            return own
        return min(own, sum(carried(t, target, cone | {producer}) for t in dict.fromkeys(producer.tensors)))

    for node in reversed(network.nodes):
        readers = node.successors
        if node in outside or not readers or node.updates:
            continue
        if any(id(t) in kept for t in node.outputs):
            continue
        target = min(levels[r] for r in readers)
        if target <= levels[node] or any(r in outside or levels[r] != target for r in readers):
            continue
        saved = sum(_bytes(network, t) for t in node.outputs)
        if sum(carried(t, target, {node}) for t in dict.fromkeys(node.tensors)) <= saved:
            levels[node] = target


def _carriers(network: Network, nodes: Iterable[Node], inputs: Iterable[Tensor]) -> tuple[Tensor, ...]:
    """Network inputs that give the dimensions which the piece needs and its own inputs do not tell."""
    known = {shapes.symbol_name(d) for t in inputs for d in t.shape}
    needed: set[str] = set()
    for node in nodes:
        sizes = [d for t in (*node.tensors, *node.outputs) for d in t.shape]
        for value in node.attributes.values():
            sizes += value if isinstance(value, tuple) else [value]
        needed |= {name for size in sizes for name in free_symbols(size)}
    carriers: list[Tensor] = []
    for name in sorted(needed):
        if name in known:
            continue
        carrier = next(
            (t for t in network.inputs.values() if any(shapes.symbol_name(d) == name for d in t.shape)), None
        )
        if carrier is None:
            raise GraphError(f"the dimension {name} of network {network.name!r} follows from no input")
        carriers.append(carrier)
        known |= {shapes.symbol_name(d) for d in carrier.shape}
    return tuple(carriers)


def _report(
    network: Network,
    reasons: Mapping[Node, str | None],
    views: set[Node],
    levels: Mapping[Node, int],
    names: Mapping[int, str],
) -> tuple[Placed, ...]:
    placed = []
    for node in network.nodes:
        reason = reasons[node]
        if node in views:
            row = Placed(node.name, node.op, VIEW, "the same memory under another shape; nothing beside it is hosted")
        elif reason is not None:
            row = Placed(node.name, node.op, _kind(node, views), reason)
        else:
            waits = [p.name for p in node.predecessors if reasons[p] is not None and levels[p] + 1 == levels[node]]
            why = f"waits for {', '.join(waits)}" if waits else "hosted"
            row = Placed(node.name, node.op, names[levels[node]], why)
        placed.append(row)
    return tuple(placed)
