"""The reference backend: NumPy, one op at a time, needing nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from trtforge.bindings import ranges
from trtforge.bindings.dtypes import DTYPES
from trtforge.bindings.errors import ForgeError, GraphError
from trtforge.graph_api.executable import Executable
from trtforge.graph_api.network import Network
from trtforge.graph_api.primitive import PRIMITIVES, Primitive
from trtforge.graph_api.shapes import resolve
from trtforge.graph_api.tensor import Node
from trtforge.kernels import registry

HALF_TYPES = (DTYPES["float16"].numpy, DTYPES["bfloat16"].numpy)


#: A node, its attributes and the shapes of its outputs in numbers.
Step = tuple[Node, dict[str, Any], list[tuple[int, ...]]]


def widen(array: np.ndarray) -> np.ndarray:
    """Half precision as float32; anything else as it is."""
    return array.astype(np.float32) if array.dtype in HALF_TYPES else array


def run_primitive(
    primitive: Primitive, arrays: list[np.ndarray | None], attributes: Mapping[str, Any], dtypes: list[str]
) -> list[np.ndarray]:
    """Compute a primitive in NumPy: half precision in float32, each result rounded once to its dtype."""
    if primitive.compute == "float":
        arrays = [None if a is None else widen(a) for a in arrays]
    with np.errstate(all="ignore"):
        raw = primitive.run(np, *arrays, **attributes)
        results = raw if isinstance(raw, (list, tuple)) else [raw]
        return [np.asarray(r).astype(DTYPES[d].numpy, copy=False) for r, d in zip(results, dtypes)]


class ReferenceExecutable(Executable):
    """Runs the nodes in order; an array is dropped after its last use."""

    backend = "reference"

    def __init__(self, network: Network):
        super().__init__(network)
        self.states = {
            name: np.zeros([int(d) for d in t.shape], DTYPES[t.dtype].numpy) for name, t in network.states.items()
        }
        self._steps = list(network.nodes)
        self._sized: tuple[dict[str, int], list[Step]] | None = None
        self.placement = {
            node.name: "NumPy" if node.op in PRIMITIVES else f"NumPy reference of {node.op}" for node in network.nodes
        }
        kept = {id(t) for t in network.outputs.values()}
        last: dict[int, int] = {}
        for i, node in enumerate(network.nodes):
            for tensor in (*node.tensors, *node.outputs):
                if tensor.kind == "value" and id(tensor) not in kept:
                    last[id(tensor)] = i
        self._drop: list[list[int]] = [[] for _ in network.nodes]
        for key, i in last.items():
            self._drop[i].append(key)

    def reset(self) -> None:
        for array in self.states.values():
            array.fill(0)

    def _refitted(self, changed: Mapping[str, np.ndarray]) -> None:
        """Nothing to do: every call reads ``self.weights``."""

    def __call__(self, **inputs: Any) -> dict[str, np.ndarray]:
        dims = self.bind_inputs(inputs)
        network = self.network
        values: dict[int, np.ndarray] = {}
        for name, tensor in network.inputs.items():
            array = np.asarray(inputs[name])
            values[id(tensor)] = array.copy() if tensor.overwritten_by is not None else array
        for tensors, arrays in (
            (network.parameters, self.weights),
            (network.states, self.states),
            (network.constants, {n: np.asarray(t.value) for n, t in network.constants.items()}),
        ):
            for name, tensor in tensors.items():
                values[id(tensor)] = arrays[name]
        for (node, attributes, sizes), dropped in zip(self._at(dims), self._drop):
            with ranges.node(node.name, node.op):
                self._run(node, attributes, sizes, values)
            for key in dropped:
                del values[key]
        return {name: self._result(values[id(t)]) for name, t in network.outputs.items()}

    def _at(self, dims: dict[str, int]) -> list[Step]:
        """The nodes with attributes and output shapes in numbers; kept for the next call with the same dimensions."""
        if self._sized is None or self._sized[0] != dims:
            steps: list[Step] = [
                (
                    node,
                    {name: resolve(value, dims) for name, value in node.attributes.items()},
                    [resolve(t.shape, dims) for t in node.outputs],
                )
                for node in self._steps
            ]
            self._sized = dims, steps
        return self._sized[1]

    def _result(self, array: np.ndarray) -> np.ndarray:
        """Contiguous, and no window into a state that the next call overwrites."""
        if any(np.may_share_memory(array, state) for state in self.states.values()):
            return array.copy()
        return np.ascontiguousarray(array).reshape(array.shape)  # which would make a scalar an array of one

    def _run(
        self, node: Node, attributes: Mapping[str, Any], sizes: list[tuple[int, ...]], values: dict[int, np.ndarray]
    ) -> None:
        arrays = [None if t is None else values[id(t)] for t in node.inputs]
        primitive = PRIMITIVES.get(node.op)
        try:
            if primitive is not None:
                results = run_primitive(primitive, arrays, attributes, [t.dtype for t in node.outputs])
            else:
                given = {n: np.ascontiguousarray(a) for n, a in zip(node.input_names, arrays) if a is not None}
                results = list(registry.get(node.op).run_reference(given, attributes).values())
                for i, position in node.updates.items():
                    updated = arrays[position]
                    assert updated is not None
                    updated[...] = results[i]
                    results[i] = updated
        except ForgeError as error:
            raise type(error)(f"{node.name}: {error}{_made_at(node)}") from error
        for tensor, array, expected in zip(node.outputs, results, sizes):
            if array.shape != expected:
                raise GraphError(
                    f"{node.name}: {node.op} gave shape {list(array.shape)}, but {tensor} is {list(expected)} for "
                    f"these inputs; their dynamic dimensions do not fit the graph{_made_at(node)}"
                )
            values[id(tensor)] = array


def _made_at(node: Node) -> str:
    return f"\n  at {node.location}" if node.location else ""


def build(network: Network) -> Executable:
    """Build for NumPy."""
    return ReferenceExecutable(network)
