"""Backends: functions from a network to an executable, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from trtforge.bindings import ranges
from trtforge.bindings.errors import GraphError

if TYPE_CHECKING:
    from trtforge.graph_api.executable import Executable
    from trtforge.graph_api.network import Network

Backend = Callable[..., "Executable"]


def _reference(network: Network, **options: Any) -> Executable:
    from trtforge.graph_api.backends.reference import build

    return build(network, **options)


def _cuda(network: Network, **options: Any) -> Executable:
    from trtforge.graph_api.backends.cuda import build

    return build(network, **options)


def _tensorrt(network: Network, **options: Any) -> Executable:
    from trtforge.graph_api.backends.tensorrt import build_tensorrt

    return build_tensorrt(network, **options)


def _tensorrt_rtx(network: Network, **options: Any) -> Executable:
    from trtforge.graph_api.backends.tensorrt import build_tensorrt_rtx

    return build_tensorrt_rtx(network, **options)


BACKENDS: dict[str, Backend] = {
    "reference": _reference,
    "cuda": _cuda,
    "tensorrt": _tensorrt,
    "tensorrt-rtx": _tensorrt_rtx,
}


def default_fusion(backend: str) -> str | tuple[str, ...]:
    """What ``Network.fuse`` takes for a backend unless the caller says otherwise.

    Every registered op that TensorRT for RTX cannot host splits an engine: attention is worth it, and what the library
    fuses well by itself (products with their epilogues, normalizations) is left to it. So is the write into a 16-bit
    cache, which it has a layer for; what an 8-bit cache needs runs between engines in any case, and in one launch.
    """
    return ("flash_attention", "rope_quantize_into_cache") if backend == "tensorrt-rtx" else "all"


def build(network: Network, backend: str, **options: Any) -> Executable:
    """Build with the backend of that name; raises GraphError for an unknown one."""
    if backend not in BACKENDS:
        raise GraphError(f"there is no backend {backend!r}; accepted: {', '.join(BACKENDS)}")
    with ranges.phase("build"):
        return BACKENDS[backend](network, **options)
