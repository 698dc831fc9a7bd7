"""Building a network with one of the two libraries: cut it, build the pieces, make the executable."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from trtforge.bindings.device import require_gpu
from trtforge.bindings.errors import ForgeError
from trtforge.graph_api.engines.builder import BuildOptions, BuiltPiece, build_piece
from trtforge.graph_api.engines.executable import EngineExecutable
from trtforge.graph_api.engines.library import FLAVORS, open_library
from trtforge.graph_api.engines.lowering import refusal
from trtforge.graph_api.engines.partition import Partition, Piece, partition
from trtforge.graph_api.engines.runtime import Runtime
from trtforge.graph_api.network import Network
from trtforge.graph_api.primitive import PRIMITIVES
from trtforge.graph_api.tensor import Node
from trtforge.kernels import registry


@dataclass(frozen=True)
class BuiltNetwork:
    """Engines for the pieces of a network, not loaded yet."""

    partition: Partition
    pieces: tuple[BuiltPiece, ...]

    @property
    def engines(self) -> dict[str, bytes]:
        return {b.piece.name: b.engine for b in self.pieces}


def host_refusal(backend: str, options: BuildOptions, node: Node) -> str | None:
    """Why an engine of this backend cannot host the node, or None."""
    trt = open_library(backend)
    if node.op in PRIMITIVES:
        return refusal(node, trt)
    if backend == "tensorrt-rtx":
        return "a registered op, and TensorRT for RTX takes no plugins from Python"
    return _plugin_refusal(node, trt)


def _plugin_refusal(node: Node, trt: Any) -> str | None:
    from trtforge.plugins.eligibility import ALIASING
    from trtforge.plugins.schema import specs_of, unavailable

    if node.updates and not hasattr(getattr(trt, "PreviewFeature", None), ALIASING):
        updated = ", ".join(t.name for t in node.updated.values())
        return f"updates {updated} in place, and {trt.__name__} {trt.__version__} has no preview feature {ALIASING}"
    try:
        specs_of(registry.get(node.op))
    except ForgeError as error:
        return str(error)
    return unavailable({t.name: t.dtype for t in (*node.tensors, *node.outputs)})


def cut(network: Network, backend: str, options: BuildOptions | None = None) -> Partition:
    """Partition a network for a backend. Raises MissingDependencyError without its library."""
    chosen = options or BuildOptions()
    open_library(backend)
    return partition(network, lambda node: host_refusal(backend, chosen, node), FLAVORS[backend].title)


def build_engines(
    network: Network, backend: str, options: BuildOptions | None = None, progress: Any = None
) -> BuiltNetwork:
    """Cut a network and build every piece. Needs the library, and no GPU. Raises CompileError."""
    chosen = options or BuildOptions()
    trt = open_library(backend)
    cuts = cut(network, backend, chosen)
    task = None if progress is None else progress.add_task(f"building {network.name}", total=len(cuts.pieces))
    built = []
    for piece in cuts.pieces:
        built.append(build_piece(trt, network, piece, network.weights, chosen, progress))
        if task is not None:
            progress.advance(task)
    return BuiltNetwork(cuts, tuple(built))


def executable_of(
    network: Network,
    cuts: Partition,
    engines: Mapping[str, bytes | memoryview],
    backend: str,
    options: BuildOptions,
    graphs: bool = True,
    runtime_cache: str = "",
) -> EngineExecutable:
    """Load engines and make them callable. Raises DeviceError without a GPU."""
    trt = open_library(backend)

    def rebuild(piece: Piece, weights: Mapping[str, np.ndarray]) -> bytes:
        return build_piece(trt, network, piece, weights, options).engine

    return EngineExecutable(network, cuts, engines, Runtime(trt, runtime_cache), backend, rebuild, graphs)


def build(
    network: Network,
    backend: str,
    graphs: bool = True,
    options: BuildOptions | None = None,
    progress: Any = None,
    runtime_cache: str = "",
) -> EngineExecutable:
    """Build for the GPU at hand; ``runtime_cache``: a file for kernels that TensorRT for RTX compiles at run time.

    Raises DeviceError without a GPU (building alone needs none: see :func:`build_engines` and plan files),
    MissingDependencyError without the library, CompileError where it refuses a piece.
    """
    open_library(backend)
    require_gpu(f"running an engine ({backend} backend)")
    chosen = options or BuildOptions()
    built = build_engines(network, backend, chosen, progress)
    return executable_of(network, built.partition, built.engines, backend, chosen, graphs, runtime_cache)
