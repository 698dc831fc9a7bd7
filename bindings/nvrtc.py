"""CUDA C++ to machine code with NVRTC, on any machine.

One compilation for a real architecture yields the cubin, its PTX and the ptxas report. No driver is needed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from trtforge.bindings import cache as kernel_cache
from trtforge.bindings.binary import Binary, entry_parameters, report_resources
from trtforge.bindings.errors import CompileError, MissingDependencyError
from trtforge.bindings.optional import require

_QUOTED_INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*"([^"]+)"', re.M)
_SYSTEM_HEADERS = {"cudart": "cuda_fp16.h", "cccl": "cuda/std/cstdint", "nvcc": "crt/host_defines.h"}
# NVRTC keeps a cache of its own since 12.9, and a hit there has no ptxas report.
OPTIONS = ("-std=c++17", "-lineinfo", "-default-device", "--ptxas-options=-v", "--diag-suppress=177", "--no-cache")


def _nvrtc() -> Any:
    return require("cuda.bindings.nvrtc", "compiling CUDA C++")


@cache
def version() -> str:
    """The NVRTC version, for example "12.9"."""
    try:
        _, major, minor = _nvrtc().nvrtcVersion()
    except MissingDependencyError:
        raise
    except Exception as error:  # the binding raises RuntimeError or DynamicLibNotFoundError without its library
        raise MissingDependencyError(
            f"compiling CUDA C++ needs the NVRTC library ({error}); pip install 'trtforge[cuda12]'"
        ) from error
    return f"{major}.{minor}"


@cache
def system_include_directories() -> tuple[str, ...]:
    """Folders of CUDA's own headers: from wheels, from the toolkit, or from CUDA_PATH."""
    roots = [os.environ.get(name) for name in ("CUDA_HOME", "CUDA_PATH")] + ["/usr/local/cuda"]
    toolkit = [Path(root) / "include" for root in roots if root]
    found: list[str] = []
    for component, probe in _SYSTEM_HEADERS.items():
        candidates = [_packaged_headers(component), *map(str, toolkit), *(str(f / "cccl") for f in toolkit)]
        for candidate in candidates:
            if candidate and (Path(candidate) / probe).is_file():
                if str(candidate) not in found:
                    found.append(str(candidate))
                break
    if not any((Path(folder) / _SYSTEM_HEADERS["cudart"]).is_file() for folder in found):
        raise MissingDependencyError(
            "CUDA's headers (cuda_fp16.h) were not found; pip install nvidia-cuda-runtime-cu12 nvidia-cuda-cccl-cu12 "
            "nvidia-cuda-nvcc-cu12, or set CUDA_HOME to a CUDA toolkit"
        )
    return tuple(found)


def _packaged_headers(component: str) -> str | None:
    """The header folder of an installed wheel or conda package, or None."""
    pathfinder = require("cuda.pathfinder", "finding CUDA's headers")
    try:
        return pathfinder.find_nvidia_header_directory(component)
    except RuntimeError:  # this version of pathfinder does not know the component
        return None


def included_files(path: Path, search: Sequence[Path], text: str | None = None) -> dict[Path, str]:
    """The file and every header that it includes in quotes, recursively, with their text.

    ``text``: the file's content where there is no such file.
    """
    files: dict[Path, str] = {}
    pending = [path.resolve()]
    while pending:
        current = pending.pop()
        if current in files:
            continue
        files[current] = text if text is not None and not files else current.read_text()
        for name in _QUOTED_INCLUDE.findall(files[current]):
            for folder in (current.parent, *search):
                candidate = (folder / name).resolve()
                if candidate.is_file():
                    pending.append(candidate)
                    break
    return files


def compile_cuda(
    path: str | Path,
    entry: str,
    arch: str,
    defines: Mapping[str, str] | None = None,
    include: Sequence[str | Path] = (),
    text: str | None = None,
) -> Binary:
    """Compile one kernel of a CUDA C++ file.

    ``arch``: "sm_90a" …; ``defines``: macros; ``include``: folders searched before CUDA's own; ``text``: generated
    source instead of a file's, as if it lay at ``path``. The result comes from the cache when source, headers, flags,
    architecture and compiler are unchanged. Raises CompileError with the compiler's lines, each naming the file and
    line.
    """
    path = Path(path).resolve()
    folders = [path.parent, *(Path(folder).resolve() for folder in include)]
    try:
        files = included_files(path, folders, text)
    except OSError as error:
        raise CompileError(f"cannot read {path}: {error}") from error
    options = [
        f"--gpu-architecture={arch}",
        *OPTIONS,
        *(f"-D{name}={value}" for name, value in (defines or {}).items()),
    ]
    common = Path(os.path.commonpath([str(file.parent) for file in files]))
    key = kernel_cache.key_of(
        {
            "language": "cuda",
            "compiler": version(),
            "options": options,
            "entry": entry,
            "sources": {str(file.relative_to(common)): text for file, text in files.items()},
        }
    )
    cached = kernel_cache.load(key)
    if cached is not None:
        return cached
    options += [f"-I{folder}" for folder in (*folders, *system_include_directories())]
    log, ptx, cubin = _run(path, files[path], options)
    binary = Binary(
        language="cuda",
        entry=entry,
        arch=arch,
        cubin=cubin,
        ptx=ptx,
        log=log,
        parameters=entry_parameters(ptx, entry),
        resources=report_resources(log, entry),
        key=key,
        compiler=f"NVRTC {version()}",
    )
    kernel_cache.store(binary)
    return binary


def _run(path: Path, text: str, options: Sequence[str]) -> tuple[str, str, bytes]:
    nvrtc = _nvrtc()

    def checked(result: tuple[Any, ...]) -> Any:
        status, *values = result
        if int(status) != 0:
            raise CompileError(f"NVRTC failed with {status.name} for {path}")
        return values[0] if len(values) == 1 else values

    def text_of(size_call: str, get_call: str) -> bytes:
        size = checked(getattr(nvrtc, size_call)(program))
        buffer = bytearray(size)
        checked(getattr(nvrtc, get_call)(program, buffer))
        return bytes(buffer)

    program = checked(nvrtc.nvrtcCreateProgram(text.encode(), str(path).encode(), 0, [], []))
    try:
        encoded = [option.encode() for option in options]
        (status,) = nvrtc.nvrtcCompileProgram(program, len(encoded), encoded)
        log = text_of("nvrtcGetProgramLogSize", "nvrtcGetProgramLog").decode(errors="replace").strip("\0\n ")
        if int(status) != 0:
            shown = [option for option in options if option.startswith(("-D", "--gpu"))]
            raise CompileError(f"{path} did not compile ({' '.join(shown)}):\n{log}")
        ptx = text_of("nvrtcGetPTXSize", "nvrtcGetPTX").decode().rstrip("\0")
        cubin = text_of("nvrtcGetCUBINSize", "nvrtcGetCUBIN")
    finally:
        nvrtc.nvrtcDestroyProgram(program)
    return log, ptx, cubin
