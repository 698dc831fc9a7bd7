"""What the backends on a GPU share: one stream, buffers, states, and CUDA graphs captured and replayed.

    host arrays -> static input buffers -> graph (whatever the backend runs) -> outputs -> host arrays
                                              |  states stay on the device  |

The first call with a set of dimensions runs step by step, which compiles and loads what is needed; the second one is
captured into a CUDA graph, and from then on a call is one launch. Memory comes from a pool of the executable's own:
what a graph was captured with is never given back while it lives, and one stream keeps its reuse in order.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from trtforge.bindings import ranges
from trtforge.bindings.device import current_ordinal, no_collection, require_gpu
from trtforge.bindings.dtypes import DTYPES
from trtforge.bindings.errors import DeviceError, ForgeError
from trtforge.bindings.optional import require
from trtforge.graph_api.backends.cuda_primitives import storage_name
from trtforge.graph_api.executable import Executable
from trtforge.graph_api.network import Network
from trtforge.graph_api.shapes import resolve

GRAPHS_KEPT = 32  # captured graphs; the one used longest ago goes first

Key = tuple[tuple[str, int], ...]


@dataclass
class Captured:
    """A CUDA graph for one set of dimensions, with the buffers that it reads and writes."""

    graph: Any
    inputs: Mapping[str, Any]
    outputs: Mapping[str, Any]


class OnDevice(Executable):
    """Runs a network on the current GPU. ``graphs=False`` runs step by step always.

    Subclasses say what a run is (:meth:`_run`); ``uploaded`` names the parameters that they need on the device.
    """

    graphs_kept = GRAPHS_KEPT

    def __init__(self, network: Network, graphs: bool, uploaded: Iterable[str], needed: Iterable[str] | None = None):
        super().__init__(network, needed)
        require_gpu(f"the {self.backend} backend")
        self._cp = cp = require("cupy", f"the {self.backend} backend")
        self._graphs = graphs
        current_ordinal()  # the primary context is current before the first allocation
        self._held: list[Any] = []
        self._pool = cp.cuda.MemoryPool(partial(_allocate, cp, self._held))
        self._stream = cp.cuda.Stream(non_blocking=True)
        self._captured: OrderedDict[Key, Captured] = OrderedDict()
        self._seen: set[Key] = set()
        with self._scope(), ranges.phase("upload"):
            self._weights = {name: self._upload(self.weights[name]) for name in uploaded}
            self._constants = {name: self._upload(t.value) for name, t in network.constants.items()}
            self._states = {
                name: cp.zeros([int(d) for d in t.shape], storage_name(t.dtype)) for name, t in network.states.items()
            }
        self._stream.synchronize()

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
                if name in self._weights:
                    self._weights[name].set(storage(array), stream=self._stream)
        self._stream.synchronize()

    # --- running -------------------------------------------------------------------------------------------------

    @abstractmethod
    def _run(self, inputs: Mapping[str, Any], dims: Mapping[str, int]) -> dict[str, Any]:
        """Put everything on the stream, from the input buffers to the outputs by name."""

    def _buffers(self, key: Key, dims: Mapping[str, int], capture: bool) -> dict[str, Any]:
        """The input buffers of a run that is not a replay; ``capture``: of one that becomes a graph."""
        return {
            name: self._cp.empty(resolve(t.shape, dims), storage_name(t.dtype))
            for name, t in self.network.inputs.items()
        }

    def _before_capture(self, static: Mapping[str, Any], dims: Mapping[str, int]) -> bool:
        """Do what must be done on the stream before it is captured; False where it cannot be captured after all."""
        return True

    def _forget(self, key: Key) -> None:
        """A captured graph went."""

    def _first_calls(self, key: Key, host: Mapping[str, np.ndarray], dims: Mapping[str, int]) -> Mapping[str, Any]:
        """Step by step, or captured when these dimensions come for the second time."""
        capture = self._graphs and key in self._seen
        self._seen.add(key)
        static = self._buffers(key, dims, capture)
        for name, buffer in static.items():
            buffer.set(storage(host[name]), stream=self._stream)
        if not capture or not self._before_capture(static, dims):
            return self._run(static, dims)
        with no_collection(), ranges.phase("capture", key):
            self._stream.begin_capture()
            try:
                outputs = self._run(static, dims)
            finally:
                graph = self._stream.end_capture()
        while len(self._captured) >= self.graphs_kept:
            self._forget(self._captured.popitem(last=False)[0])
        self._captured[key] = Captured(graph, static, outputs)
        with ranges.phase("replay", key):
            graph.launch(self._stream)
        return outputs

    def _replay(self, key: Key, host: Mapping[str, np.ndarray]) -> Mapping[str, Any]:
        captured = self._captured[key]
        self._captured.move_to_end(key)
        for name, buffer in captured.inputs.items():
            buffer.set(storage(host[name]), stream=self._stream)
        with ranges.phase("replay", key):
            captured.graph.launch(self._stream)
        return captured.outputs

    # --- memory --------------------------------------------------------------------------------------------------

    @contextmanager
    def _scope(self) -> Iterator[None]:
        """The executable's stream and memory pool, made current."""
        with self._stream, self._cp.cuda.using_allocator(self._pool.malloc):
            yield

    def _upload(self, array: np.ndarray | None) -> Any:
        assert array is not None
        buffer = self._cp.empty(array.shape, storage(array).dtype)
        buffer.set(storage(array), stream=self._stream)
        return buffer

    def _download(self, array: Any, dtype: str) -> np.ndarray:
        host = array.get(stream=self._stream)
        return host.view(DTYPES[dtype].numpy)


def _allocate(cupy: Any, held: list[Any], size: int) -> Any:
    """Device memory for an executable's pool, held until the executable goes.

    Without this a pool that runs out of memory gives free blocks back to the driver, and captured graphs still use
    them. A function, not a method: an executable that its own pool refers to would live until the next collection.
    """
    pointer = cupy.cuda.MemoryPointer(cupy.cuda.Memory(size), 0)
    held.append(pointer)
    return pointer


def storage(array: np.ndarray) -> np.ndarray:
    """The same bytes as a type that CuPy knows, contiguous."""
    contiguous = np.ascontiguousarray(array)
    row = next(d for d in DTYPES.values() if d.numpy == array.dtype)
    return contiguous.view(row.storage).reshape(array.shape)
