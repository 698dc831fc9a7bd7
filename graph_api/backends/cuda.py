"""The cuda backend: registered kernels, cuBLAS and CuPy on one stream, replayed as CUDA graphs.

    host arrays -> static input buffers -> graph (kernels | cuBLAS | elementwise) -> outputs -> host arrays
                                              |  states stay on the device  |

The first call with a set of dimensions runs node by node, which compiles and loads what is needed; the second one is
captured into a CUDA graph, and from then on a call is one launch. Memory comes from a pool of the executable's own:
what a graph was captured with is never given back while it lives, and one stream keeps its reuse in order.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from trtforge.bindings.device import current_ordinal, require_gpu
from trtforge.bindings.dtypes import DTYPES
from trtforge.bindings.errors import DeviceError, ForgeError
from trtforge.bindings.optional import require
from trtforge.graph_api.backends import cuda_primitives as on_cuda
from trtforge.graph_api.backends.cublas import WORKSPACE_BYTES, Gemm
from trtforge.graph_api.executable import Executable
from trtforge.graph_api.network import Network
from trtforge.graph_api.primitive import PRIMITIVES
from trtforge.graph_api.shapes import resolve
from trtforge.graph_api.tensor import Node
from trtforge.kernels import registry
from trtforge.kernels.plan import Plan, plan

GRAPHS_KEPT = 32  # captured graphs; the one used longest ago goes first
_BEST_ALIGNMENT = 256

Key = tuple[tuple[str, int], ...]


@dataclass
class Captured:
    """A CUDA graph for one set of dimensions, with the buffers that it reads and writes."""

    graph: Any
    inputs: dict[str, Any]
    outputs: dict[str, Any]


class CudaExecutable(Executable):
    """Runs a network on the current GPU. ``graphs=False`` runs node by node always."""

    backend = "cuda"

    def __init__(self, network: Network, graphs: bool = True):
        super().__init__(network)
        require_gpu("the cuda backend")
        self._cp = cp = require("cupy", "the cuda backend")
        self._graphs = graphs
        current_ordinal()  # the primary context is current before the first allocation
        self._held: list[Any] = []
        self._pool = cp.cuda.MemoryPool(self._allocate)
        self._stream = cp.cuda.Stream(non_blocking=True)
        self._captured: OrderedDict[Key, Captured] = OrderedDict()
        self._seen: set[Key] = set()
        self._plans: dict[Any, Plan] = {}
        with self._scope():
            self._weights = {name: self._upload(self.weights[name]) for name in network.parameters}
            self._constants = {name: self._upload(t.value) for name, t in network.constants.items()}
            self._states = {
                name: cp.zeros([int(d) for d in t.shape], on_cuda.storage_name(t.dtype))
                for name, t in network.states.items()
            }
            self._workspace = cp.empty(WORKSPACE_BYTES, "uint8")
            self._gemm = Gemm(self._stream.ptr, self._workspace.data.ptr)
        self._stream.synchronize()
        kept = {id(t) for t in network.outputs.values()}
        last = {id(t): node for node in network.nodes for t in (*node.tensors, *node.outputs) if t.kind == "value"}
        self._drop: dict[Node, list[int]] = {node: [] for node in network.nodes}
        for key, node in last.items():
            if key not in kept:
                self._drop[node].append(key)

    def __call__(self, **inputs: Any) -> dict[str, np.ndarray]:
        host = {name: np.asarray(value) for name, value in inputs.items()}
        dims = self.bind_inputs(host)
        key = tuple(sorted(dims.items()))
        try:
            with self._scope():
                captured = key in self._captured
                outputs = self._replay(key, host) if captured else self._first_calls(key, host, dims)
                results = {name: self._download(outputs[name], t.dtype) for name, t in self.network.outputs.items()}
                self._stream.synchronize()
        except ForgeError:
            raise
        except (self._cp.cuda.runtime.CUDARuntimeError, self._cp.cuda.memory.OutOfMemoryError) as error:
            raise DeviceError(f"network {self.network.name!r} on the GPU: {error}") from error
        return results

    def reset(self) -> None:
        with self._scope():
            for array in self._states.values():
                array.fill(0)
        self._stream.synchronize()

    def _refitted(self, changed: Mapping[str, np.ndarray]) -> None:
        with self._scope():
            for name, array in changed.items():  # in place: captured graphs hold the addresses
                self._weights[name].set(_storage(array), stream=self._stream)
        self._stream.synchronize()

    # --- running -------------------------------------------------------------------------------------------------

    def _first_calls(self, key: Key, host: Mapping[str, np.ndarray], dims: Mapping[str, int]) -> dict[str, Any]:
        """Node by node, or captured when these dimensions come for the second time."""
        static = {name: self._upload(host[name]) for name in self.network.inputs}
        if not self._graphs or key not in self._seen:
            self._seen.add(key)
            return self._run(static, dims)
        self._stream.begin_capture()
        try:
            outputs = self._run(static, dims)
        finally:
            graph = self._stream.end_capture()
        while len(self._captured) >= GRAPHS_KEPT:
            self._captured.popitem(last=False)
        self._captured[key] = Captured(graph, static, outputs)
        graph.launch(self._stream)
        return outputs

    def _replay(self, key: Key, host: Mapping[str, np.ndarray]) -> dict[str, Any]:
        captured = self._captured[key]
        self._captured.move_to_end(key)
        for name, buffer in captured.inputs.items():
            buffer.set(_storage(host[name]), stream=self._stream)
        captured.graph.launch(self._stream)
        return captured.outputs

    def _run(self, inputs: Mapping[str, Any], dims: Mapping[str, int]) -> dict[str, Any]:
        network = self.network
        values: dict[int, Any] = {}
        for tensors, arrays in (
            (network.inputs, inputs),
            (network.parameters, self._weights),
            (network.constants, self._constants),
            (network.states, self._states),
        ):
            values.update((id(tensor), arrays[name]) for name, tensor in tensors.items())
        for node in network.nodes:
            arrays_in = [None if t is None else values[id(t)] for t in node.inputs]
            attributes = {k: resolve(v, dims) for k, v in node.attributes.items()}
            sizes = [resolve(t.shape, dims) for t in node.outputs]
            try:
                if node.op in PRIMITIVES:
                    results = [self._primitive(node, arrays_in, attributes, sizes[0])]
                else:
                    results = self._registered(node, arrays_in, attributes, sizes)
            except ForgeError as error:
                raise type(error)(f"{node.name}: {error}") from error
            values.update((id(tensor), array) for tensor, array in zip(node.outputs, results))
            for dropped in self._drop[node]:
                values.pop(dropped, None)
        return {name: self._cp.ascontiguousarray(values[id(t)]) for name, t in network.outputs.items()}

    def _primitive(self, node: Node, arrays: list[Any], attributes: dict[str, Any], shape: tuple[int, ...]) -> Any:
        cp, primitive, output = self._cp, PRIMITIVES[node.op], node.outputs[0].dtype
        dtypes = [None if t is None else t.dtype for t in node.inputs]
        if node.op == "matmul":
            self.placement[node.name] = "cuBLAS"
            a, b = arrays
            return on_cuda.run_matmul(cp, self._gemm, a, b, output, shape, **attributes)
        if node.op == "kv_cache_update":
            self.placement[node.name] = "CuPy kernel, in place"
            return on_cuda.run_kv_cache_update(cp, *arrays)
        if node.op == "rope":
            self.placement[node.name] = "CuPy kernel"
            x, cos, sin = arrays
            return on_cuda.run_rope(cp, x, cos, sin, output)
        if primitive.expression is not None:
            self.placement[node.name] = "CuPy kernel"
            return on_cuda.run_elementwise(cp, primitive, arrays, _present(dtypes), attributes, shape, output)
        self.placement[node.name] = "CuPy, copies or views" if primitive.compute == "bits" else "CuPy, in float32"
        return on_cuda.run_generic(cp, primitive, arrays, dtypes, attributes, output)

    def _registered(
        self, node: Node, arrays: list[Any], attributes: dict[str, Any], sizes: list[tuple[int, ...]]
    ) -> list[Any]:
        cp = self._cp
        present = {n: cp.ascontiguousarray(a) for n, a in zip(node.input_names, arrays) if a is not None}
        outputs = [cp.empty(size, on_cuda.storage_name(t.dtype)) for size, t in zip(sizes, node.outputs)]
        pointers = [a.data.ptr for a in (*present.values(), *outputs)]
        low_bits = 0
        for pointer in pointers:
            low_bits |= pointer
        alignment = min(_BEST_ALIGNMENT, low_bits & -low_bits) if low_bits else _BEST_ALIGNMENT
        shapes_in = {name: a.shape for name, a in present.items()}
        key = (node.name, tuple(shapes_in.values()), alignment)
        if key not in self._plans:
            dtypes = {name: t.dtype for name, t in node.named_inputs().items()}
            self._plans[key] = plan(registry.get(node.op), shapes_in, dtypes, attributes, alignment=alignment)
        self.placement[node.name] = self._plans[key].label
        self._plans[key].launch(pointers, self._stream.ptr)
        return outputs

    # --- memory --------------------------------------------------------------------------------------------------

    @contextmanager
    def _scope(self) -> Iterator[None]:
        """The executable's stream and memory pool, made current."""
        with self._stream, self._cp.cuda.using_allocator(self._pool.malloc):
            yield

    def _allocate(self, size: int) -> Any:
        """Device memory for the pool, held here until the executable goes.

        Without this a pool that runs out of memory gives free blocks back to the driver, and captured graphs still
        use them.
        """
        pointer = self._cp.cuda.MemoryPointer(self._cp.cuda.Memory(size), 0)
        self._held.append(pointer)
        return pointer

    def _upload(self, array: np.ndarray | None) -> Any:
        assert array is not None
        buffer = self._cp.empty(array.shape, _storage(array).dtype)
        buffer.set(_storage(array), stream=self._stream)
        return buffer

    def _download(self, array: Any, dtype: str) -> np.ndarray:
        host = array.get(stream=self._stream)
        return host.view(DTYPES[dtype].numpy)


def _storage(array: np.ndarray) -> np.ndarray:
    """The same bytes as a type that CuPy knows, contiguous."""
    contiguous = np.ascontiguousarray(array)
    row = next(d for d in DTYPES.values() if d.numpy == array.dtype)
    return contiguous.view(row.storage).reshape(array.shape)


def _present(dtypes: list[str | None]) -> list[str]:
    return [d for d in dtypes if d is not None]


def build(network: Network, graphs: bool = True) -> Executable:
    """Build for the current GPU. Raises DeviceError without one, MissingDependencyError without CuPy or cuBLAS."""
    return CudaExecutable(network, graphs)
