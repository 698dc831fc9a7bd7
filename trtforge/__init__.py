"""TRTForge: write a GPU kernel once; have it checked, inspected, benchmarked and shipped as a TensorRT plugin.

The public names are imported when first used, so ``import trtforge`` is quick and needs no GPU.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_PUBLIC = {
    "trtforge.bindings.arrays": ("Array",),
    "trtforge.bindings.errors": (
        "CheckpointError",
        "CompileError",
        "ContractError",
        "DeclarationError",
        "DeviceError",
        "FileError",
        "ForgeError",
        "GraphError",
        "MissingDependencyError",
        "PlanError",
        "ProfileError",
        "UnknownNameError",
        "UsageError",
    ),
    "trtforge.kernels": (
        "Attr",
        "Case",
        "Cost",
        "Launch",
        "Op",
        "Tensor",
        "TensorMap",
        "Tolerance",
        "attr",
        "cuda",
        "grid",
        "triton",
    ),
    "trtforge.kernels.registry": ("get", "load", "ops"),
    "trtforge.harness.bench": ("bench",),
    "trtforge.harness.check": ("check",),
    "trtforge.harness.inspection": ("inspect",),
    "trtforge.harness.listing": ("list_kernels",),
    "trtforge.harness.new": ("new",),
    "trtforge.harness.profile": ("profile",),
    "trtforge.harness.report": ("report",),
    "trtforge.graph_api": ("Dim", "Network", "functional"),
    "trtforge.graph_api.fusion": ("fuse",),
    "trtforge.graph_api.engines.builder": ("BuildOptions",),
    "trtforge.graph_api.engines.commands": ("build_plan", "inspect_plan", "run_plan"),
    "trtforge.graph_api.engines.plan": ("load_plan",),
    "trtforge.graph_api.llm": ("generate",),
    "trtforge.graph_api.quantization": ("quantize_network", "save_quantized"),
}
_HOME = {name: module for module, names in _PUBLIC.items() for name in names}

__all__ = ["__version__", *sorted(_HOME)]

if TYPE_CHECKING:
    from trtforge.bindings.arrays import Array as Array
    from trtforge.bindings.errors import ForgeError as ForgeError
    from trtforge.harness.bench import bench as bench
    from trtforge.harness.check import check as check
    from trtforge.harness.inspection import inspect as inspect
    from trtforge.harness.listing import list_kernels as list_kernels


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'trtforge' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
