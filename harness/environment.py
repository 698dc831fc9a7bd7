"""What a measurement was made with: machine, versions, date. Every committed result carries it."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
from typing import Any

from trtforge.bindings import device
from trtforge.bindings.errors import MissingDependencyError
from trtforge.bindings.nvrtc import version as nvrtc_version

_PACKAGES = ("trtforge", "numpy", "triton", "cupy-cuda12x", "cupy-cuda13x", "torch", "cuda-bindings")


def about() -> dict[str, Any]:
    """The GPU (or why there is none), driver, compilers, packages, Python and date (UTC), as plain data."""
    found: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "gpu": None,
        "python": platform.python_version(),
    }
    if device.has_gpu():
        gpu = device.current_device()
        found["gpu"] = gpu.name
        found["architecture"] = gpu.architecture.name
        found["driver_cuda"] = int(device.checked(device.driver().cuDriverGetVersion()))
    else:
        found["no_gpu"] = device.why_no_gpu()
    try:
        found["nvrtc"] = nvrtc_version()
    except MissingDependencyError:
        found["nvrtc"] = None
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
