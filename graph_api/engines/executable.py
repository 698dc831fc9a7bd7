"""Engines, and what a library cannot host between them, on one stream, captured as one CUDA graph.

    inputs ──▶ engine_0 ──▶ kernel ──▶ engine_1 ──▶ ... ──▶ outputs
                  │  one arena: values, inputs, outputs, and each engine's scratch memory  │

Memory is planned for each set of dimensions: inputs and outputs live through the run, every other value from the step
that makes it to the last one that reads it, an engine's scratch memory during its own step. The blocks share one arena
that all sets of dimensions use. A set that needs a larger arena gets one; graphs that were captured with the old one
are then captured anew.

A captured graph depends on its contexts' state, so each graph has contexts of its own; all other calls share a second
set. What is updated in place (KV caches) is one buffer under the name of the engine's input and of its output.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from trtforge.bindings import ranges
from trtforge.bindings.dtypes import DTYPES
from trtforge.bindings.errors import ForgeError, GraphError
from trtforge.graph_api.backends.cuda_primitives import storage_name
from trtforge.graph_api.backends.nodes import NodeRunner
from trtforge.graph_api.backends.on_device import Captured, Key, OnDevice
from trtforge.graph_api.engines.library import LOGGER
from trtforge.graph_api.engines.memory import Arena, Block, plan_arena
from trtforge.graph_api.engines.partition import VIEW, Partition, Piece, Single
from trtforge.graph_api.engines.runtime import Context, Engine, Runtime
from trtforge.graph_api.network import Network
from trtforge.graph_api.primitive import PRIMITIVES
from trtforge.graph_api.shapes import resolve
from trtforge.graph_api.tensor import Tensor
from trtforge.kernels.dims import evaluate, product

LAYOUTS_KEPT = 64

Contexts = dict[str, Context]


class Bound(dict[str, Any]):
    """The input buffers of a run, with the contexts and the memory that the run uses."""

    def __init__(self, buffers: Mapping[str, Any], contexts: Contexts, arena: Arena, memory: Any):
        super().__init__(buffers)
        self.contexts = contexts
        self.arena = arena
        self.memory = memory


@dataclass(frozen=True)
class Lifetimes:
    """Which buffer each tensor lives in, and from which step to which it is needed."""

    roots: Mapping[Tensor, Tensor]
    first: Mapping[Tensor, int]
    last: Mapping[Tensor, int]

    def blocks(self, dims: Mapping[str, int]) -> list[Block]:
        """The buffers of the arena for these dimensions."""
        return [
            Block(t.name, evaluate(product(t.shape), dims) * DTYPES[t.dtype].itemsize, self.first[t], self.last[t])
            for t in self.first
        ]


def lifetimes(network: Network, partition: Partition) -> Lifetimes:
    """Find the buffers; weights, constants and states have their own and are not in ``first`` and ``last``."""
    roots: dict[Tensor, Tensor] = {}
    first: dict[Tensor, int] = {}
    last: dict[Tensor, int] = {}

    def root(tensor: Tensor) -> Tensor:
        return roots.get(tensor, tensor)

    def used(tensor: Tensor, step: int) -> None:
        if root(tensor) in last:
            last[root(tensor)] = step

    def made(tensor: Tensor, step: int, inside: Tensor | None = None) -> None:
        if inside is not None:
            roots[tensor] = root(inside)
        else:
            first[tensor] = last[tensor] = step

    for tensor in network.inputs.values():
        made(tensor, -1)
    for index, step in enumerate(partition.steps):
        if isinstance(step, Piece):
            by_name = {t.name: t for t in step.inputs}
            for tensor in step.outputs:
                alias = step.aliases.get(tensor.name)
                made(tensor, index, None if alias is None else by_name[alias])
            read: tuple[Tensor, ...] = (*step.inputs, *step.carriers)
        else:
            node = step.node
            inside = _inside(step)
            for tensor in node.outputs:
                made(tensor, index, inside.get(tensor))
            read = node.tensors
        for tensor in read:
            used(tensor, index)
    # Inputs stay too: a run that is captured comes after one that is not, on the same buffers.
    for tensor in (*network.inputs.values(), *network.outputs.values()):
        used(tensor, len(partition.steps))
    return Lifetimes(roots, first, last)


def _inside(step: Single) -> dict[Tensor, Tensor]:
    """The outputs of the node that lie in the buffer of another tensor, with that tensor."""
    node = step.node
    return {node.outputs[0]: node.tensors[0]} if step.kind == VIEW else node.updated


class EngineExecutable(OnDevice):
    """A partitioned network on the GPU. ``rebuild(piece, weights)`` gives a piece's engine anew, for refit."""

    graphs_kept = 16  # each has contexts of its own

    def __init__(
        self,
        network: Network,
        partition: Partition,
        engines: Mapping[str, bytes | memoryview],
        runtime: Runtime,
        backend: str,
        rebuild: Callable[[Piece, Mapping[str, np.ndarray]], bytes],
        graphs: bool = True,
    ):
        self.backend = backend
        self.partition = partition
        outside = {t.name: None for s in partition.singles for t in s.node.tensors if t.kind == "parameter"}
        outside |= {t.name: None for t in network.outputs.values() if t.kind == "parameter"}
        super().__init__(network, graphs, uploaded=outside, needed=outside)
        self._nodes = NodeRunner(self._cp, self._stream, self.placement)
        self._runtime, self._rebuild = runtime, rebuild
        self._lifetimes = lifetimes(network, partition)
        self._pieces = partition.pieces
        self._arenas: OrderedDict[tuple[Key, tuple[int, ...]], Arena] = OrderedDict()
        self._memory = self._reserve(0)
        self._engines = {p.name: Engine(runtime, p, engines[p.name]) for p in self._pieces}
        self._shared = self._contexts("NONE" if graphs else "LAZY")
        self._own: dict[Key, Contexts] = {}
        for piece in self._pieces:
            self.placement.update((n.name, f"{piece.name} ({partition.host})") for n in piece.nodes)
        for single in partition.singles:
            if single.kind == VIEW:
                self.placement[single.node.name] = "a view"
            elif single.node.op == "matmul":
                with self._scope():
                    _ = self._nodes.gemm

    @property
    def memory_size(self) -> int:
        """Bytes of the arena: values, inputs, outputs and scratch memory."""
        return int(self._memory.nbytes)

    def captured(self, **dims: int) -> Captured:
        """The CUDA graph for these dimensions with its buffers, for measurements. Raises GraphError without one."""
        found = self._captured.get(tuple(sorted(dims.items())))
        if found is None:
            raise GraphError(
                f"network {self.network.name!r} has no graph for {dims}; call it twice with that size first"
            )
        return found

    def save_runtime_cache(self) -> None:
        """Write the kernels compiled so far to the file that ``runtime_cache`` named (TensorRT for RTX)."""
        self._runtime.save_cache()

    # --- one run -------------------------------------------------------------------------------------------------

    def _buffers(self, key: Key, dims: Mapping[str, int], capture: bool) -> Bound:
        contexts = self._shared
        if capture:
            contexts = self._own[key] = self._contexts("EAGER")
        scratch = tuple(
            contexts[p.name].shape({t.name: resolve(t.shape, dims) for t in (*p.inputs, *p.carriers)}, self._stream.ptr)
            for p in self._pieces
        )
        arena = self._arena(key, dims, scratch)
        if arena.size > self._memory.nbytes:
            self._drop_graphs(keep=key)
            self._memory = None  # the old arena goes before the new one comes
            self._memory = self._reserve(arena.size)
        bound = Bound({}, contexts, arena, self._memory)
        bound.update((name, self._view(bound, t, dims)) for name, t in self.network.inputs.items())
        return bound

    def _before_capture(self, static: Mapping[str, Any], dims: Mapping[str, int]) -> bool:
        # A context settles its state for new shapes in the first run, which must not be captured. Updates in place
        # write the same rows again.
        self._run(static, dims)
        assert isinstance(static, Bound)
        stuck = [name for name, c in static.contexts.items() if not c.capturable(self._stream.ptr)]
        if stuck:
            LOGGER.warning("%s: %s cannot be captured; running step by step", self.network.name, ", ".join(stuck))
            self._graphs = False
            self._own.clear()
        return not stuck

    def _run(self, inputs: Mapping[str, Any], dims: Mapping[str, int]) -> dict[str, Any]:
        assert isinstance(inputs, Bound)
        network = self.network
        arrays: dict[Tensor, Any] = {network.inputs[name]: array for name, array in inputs.items()}
        for tensors, held in (
            (network.parameters, self._weights),
            (network.constants, self._constants),
            (network.states, self._states),
        ):
            arrays.update((tensor, held[name]) for name, tensor in tensors.items() if name in held)
        for step in self.partition.steps:
            outputs = step.outputs if isinstance(step, Piece) else step.node.outputs
            for tensor in outputs:
                root = self._lifetimes.roots.get(tensor)
                if root is None:
                    arrays[tensor] = self._view(inputs, tensor, dims)
                else:
                    arrays[tensor] = arrays[root].reshape(resolve(tensor.shape, dims))
            if isinstance(step, Piece):
                self._run_piece(step, inputs, arrays)
            elif step.kind != VIEW:
                self._run_single(step, arrays, dims)
        return {name: arrays[t] for name, t in network.outputs.items()}

    def _run_piece(self, piece: Piece, bound: Bound, arrays: Mapping[Tensor, Any]) -> None:
        scratch = bound.memory.data.ptr + bound.arena.offsets[f"scratch of {piece.name}"]
        tensors = (*piece.inputs, *piece.carriers, *piece.outputs)
        addresses = {t.name: arrays[t].data.ptr for t in tensors}
        with ranges.node(piece.name, "engine"):
            bound.contexts[piece.name].run(addresses, scratch, self._stream.ptr)

    def _run_single(self, single: Single, arrays: Mapping[Tensor, Any], dims: Mapping[str, int]) -> None:
        node = single.node
        given = [None if t is None else arrays[t] for t in node.inputs]
        places = [arrays[t] for t in node.outputs]
        try:
            results = self._nodes.run(node, given, dims, places)
        except ForgeError as error:
            raise type(error)(f"{node.name}: {error}") from error
        for place, result in zip(places, results):
            if node.op in PRIMITIVES and not node.updates:
                place[...] = result

    # --- memory --------------------------------------------------------------------------------------------------

    def _arena(self, key: Key, dims: Mapping[str, int], scratch: tuple[int, ...]) -> Arena:
        entry = key, scratch
        if entry not in self._arenas:
            index = {id(s): i for i, s in enumerate(self.partition.steps)}
            blocks = self._lifetimes.blocks(dims)
            for piece, size in zip(self._pieces, scratch):
                blocks.append(Block(f"scratch of {piece.name}", size, index[id(piece)], index[id(piece)]))
            self._arenas[entry] = plan_arena(blocks)
            while len(self._arenas) > LAYOUTS_KEPT:
                self._arenas.popitem(last=False)
        self._arenas.move_to_end(entry)
        return self._arenas[entry]

    def _view(self, bound: Bound, tensor: Tensor, dims: Mapping[str, int]) -> Any:
        sizes = resolve(tensor.shape, dims)
        count = evaluate(product(sizes), {}) * DTYPES[tensor.dtype].itemsize
        at = bound.arena.offsets[tensor.name]
        return bound.memory[at : at + count].view(storage_name(tensor.dtype)).reshape(sizes)

    def _reserve(self, size: int) -> Any:
        with self._scope(), self._cp.cuda.using_allocator(None):  # outside of the pool, so that it can be given back
            return self._cp.empty(max(size, 1), "uint8")

    def _contexts(self, specialization: str) -> Contexts:
        return {name: engine.context(specialization) for name, engine in self._engines.items()}

    def _forget(self, key: Key) -> None:
        self._own.pop(key, None)

    def _drop_graphs(self, keep: Key | None = None) -> None:
        self._stream.synchronize()
        self._captured.clear()
        self._own = {key: contexts for key, contexts in self._own.items() if key == keep}

    # --- weights -------------------------------------------------------------------------------------------------

    def _refitted(self, changed: Mapping[str, np.ndarray]) -> None:
        touched = [p for p in self._pieces if any(name in changed for name in p.parameters)]
        fresh: dict[str, Engine] = {}
        for piece in touched:
            mine = {name: self.weights[name] for name in piece.parameters}
            engine = self._engines[piece.name]
            in_place = self.backend == "tensorrt" and engine.refit(
                {n: a for n, a in mine.items() if n in changed}, mine
            )
            if not in_place:
                fresh[piece.name] = Engine(self._runtime, piece, self._rebuild(piece, self.weights))
        if touched:  # a graph may have the old weights' kernels and addresses in it
            self._drop_graphs()
            self._own.clear()
        if fresh:
            self._engines.update(fresh)
            self._shared = self._contexts("NONE" if self._graphs else "LAZY")
        super()._refitted(changed)
