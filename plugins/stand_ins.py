"""Stand-ins for TensorRT's libraries: NVIDIA's Python bindings import over them where libnvinfer is absent.

The native module of the ``tensorrt-cu12-bindings`` wheel links to ``libnvinfer.so.N`` and two more libraries and
names a handful of their functions. A stand-in is a shared object of that name whose functions return null: enough for
the module to load, and for nothing else. Names are read from the wheel, so they follow its version. The files are
written directly (about 1 KiB each; :mod:`trtforge.plugins.elf`), because a machine that only runs tests has no
compiler, and a compiler from PyPI would be a download of 100 MB for three functions' worth of code.

Stand-ins are loaded only after the real libraries could not be.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import os
import tempfile
from pathlib import Path

from trtforge.bindings import cache
from trtforge.bindings.errors import ForgeError, MissingDependencyError
from trtforge.plugins.elf import Links, links, null_library

BINDINGS = "tensorrt_bindings"
WHEEL = "tensorrt-cu12-bindings (or tensorrt-cu13-bindings)"

#: Handles of loaded stand-ins by library name; they stay loaded.
_loaded: dict[str, ctypes.CDLL] = {}


def native_module() -> Path:
    """The native module of NVIDIA's bindings. Raises MissingDependencyError when the wheel is not installed."""
    spec = importlib.util.find_spec(BINDINGS)
    places = list(spec.submodule_search_locations or ()) if spec else []
    for place in places:
        for candidate in sorted(Path(place).glob("tensorrt*.so")):
            return candidate
    raise MissingDependencyError(
        f"NVIDIA's TensorRT bindings ({BINDINGS}) are not installed; pip install {WHEEL}"
        if not places
        else f"{places[0]} holds no tensorrt.so; stand-ins exist for Linux only"
    )


def absent_libraries(found: Links) -> list[str]:
    """Those of the needed libraries that the loader does not find."""
    missing = []
    for name in found.needed:
        try:
            ctypes.CDLL(name)
        except OSError:
            missing.append(name)
    return missing


def unresolved_functions(found: Links) -> list[str]:
    """Undefined names that nothing in this process (Python, libc) defines: those of the absent libraries."""
    process = ctypes.CDLL(None)
    return [name for name in found.undefined if not hasattr(process, name)]


def build(native: Path, found: Links, missing: list[str]) -> list[Path]:
    """Write the stand-ins into the kernel cache, once per version of the wheel. Raises ForgeError."""
    functions = unresolved_functions(found)
    digest = hashlib.sha256(repr((2, found.machine, missing, functions)).encode()).hexdigest()[:16]
    folder = cache.directory() / "stand_ins" / digest
    paths = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for index, name in enumerate(missing):
            path = folder / name
            image = null_library(found.machine, name, functions if index == 0 else ())
            if not path.is_file() or path.read_bytes() != image:
                handle, staging = tempfile.mkstemp(dir=folder, prefix=".new-")
                with os.fdopen(handle, "wb") as file:
                    file.write(image)
                os.replace(staging, path)
            paths.append(path)
    except OSError as error:
        raise ForgeError(
            f"stand-ins for {native.name}'s libraries cannot be written to {folder} ({error}); set TRTFORGE_CACHE_DIR "
            "to a writable folder"
        ) from error
    return paths


def load() -> list[str]:
    """Load stand-ins for the libraries that NVIDIA's bindings miss here; returns their names, [] when none is missing.

    Raises MissingDependencyError (no bindings), ForgeError (no Linux, no place to write, not loadable).
    """
    native = native_module()
    found = links(native)
    missing = [name for name in absent_libraries(found) if name not in _loaded]
    for path in build(native, found, missing):
        try:
            _loaded[path.name] = ctypes.CDLL(str(path), mode=ctypes.RTLD_LOCAL)
        except OSError as error:
            raise ForgeError(f"the stand-in {path} cannot be loaded: {error}") from error
    return sorted(_loaded)
