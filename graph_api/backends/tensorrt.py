"""The backends of TensorRT and TensorRT for RTX: one implementation, in ``trtforge.graph_api.engines``.

``tensorrt`` hosts registered ops as plugins, so that a network is one engine wherever the library has a layer for each
primitive; ``tensorrt-rtx`` takes no plugins from Python, so registered kernels run between its engines.
"""

from __future__ import annotations

from typing import Any

from trtforge.graph_api.engines.build import build
from trtforge.graph_api.executable import Executable
from trtforge.graph_api.network import Network


def build_tensorrt(network: Network, **options: Any) -> Executable:
    """Build with TensorRT; options of :func:`trtforge.graph_api.engines.build.build`."""
    return build(network, "tensorrt", **options)


def build_tensorrt_rtx(network: Network, **options: Any) -> Executable:
    """Build with TensorRT for RTX; options of :func:`trtforge.graph_api.engines.build.build`."""
    return build(network, "tensorrt-rtx", **options)
