"""The cuda backend: registered kernels, cuBLAS and CuPy on one stream, replayed as CUDA graphs (see ``on_device``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trtforge.bindings.errors import ForgeError
from trtforge.graph_api.backends.nodes import NodeRunner
from trtforge.graph_api.backends.on_device import OnDevice
from trtforge.graph_api.executable import Executable
from trtforge.graph_api.network import Network
from trtforge.graph_api.tensor import Node


class CudaExecutable(OnDevice):
    """Runs a network on the current GPU, node by node or as captured graphs."""

    backend = "cuda"

    def __init__(self, network: Network, graphs: bool = True):
        super().__init__(network, graphs, uploaded=network.parameters)
        self._nodes = NodeRunner(self._cp, self._stream, self.placement)
        with self._scope():
            _ = self._nodes.gemm  # a handle cannot be made while the stream is being captured
        kept = {id(t) for t in network.outputs.values()}
        last = {id(t): node for node in network.nodes for t in (*node.tensors, *node.outputs) if t.kind == "value"}
        self._drop: dict[Node, list[int]] = {node: [] for node in network.nodes}
        for key, node in last.items():
            if key not in kept:
                self._drop[node].append(key)

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
            try:
                results = self._nodes.run(node, arrays_in, dims)
            except ForgeError as error:
                raise type(error)(f"{node.name}: {error}") from error
            values.update((id(tensor), array) for tensor, array in zip(node.outputs, results))
            for dropped in self._drop[node]:
                values.pop(dropped, None)
        found = {name: values[id(t)] for name, t in network.outputs.items()}
        return {name: self._cp.ascontiguousarray(array).reshape(array.shape) for name, array in found.items()}


def build(network: Network, graphs: bool = True) -> Executable:
    """Build for the current GPU. Raises DeviceError without one, MissingDependencyError without CuPy or cuBLAS."""
    return CudaExecutable(network, graphs)
