"""From a CUDA kernel to a program of this machine: preprocess, translate, compile, link; results are kept by content.

    kernel.cu + macros --cpp--> text --translate--> C++ --compile (sanitizer)--> object --+--> program
    cpp/runtime.cpp ---------------compile once, no sanitizer------------------> object --+

Programs lie in the kernel cache's folder, each in a folder of its own that appears by one rename.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from trtforge.bindings import cache as kernel_cache
from trtforge.bindings.errors import CompileError, ForgeError, MissingDependencyError
from trtforge.bindings.nvrtc import included_files
from trtforge.harness.emulate.translate import NotEmulated, translate

SOURCES = Path(__file__).parent / "cpp"
SANITIZERS = ("address", "undefined", "thread")
STANDARD = "-std=c++20"
#: Kernels reinterpret memory freely and each product and sum is rounded on its own.
_KERNEL_OPTIONS = ("-O1", "-g1", "-w", "-fno-strict-aliasing", "-ffp-contract=off", "-fno-omit-frame-pointer")
_RUNTIME_OPTIONS = ("-O1", "-ffp-contract=off")
#: Keeps the loops of cpp/runtime/unwatched.h from becoming calls of the functions that they implement.
_KEEP_LOOPS = {"gcc": "-fno-tree-loop-distribute-patterns", "clang": "-fno-builtin"}
_UNKNOWN_NAME = re.compile(
    r"^(.*?):(\d+):\d+: error: (?:.*?'([^']+)' (?:was not declared|has not been declared)"
    r"|use of undeclared identifier '([^']+)'|unknown type name '([^']+)')",
    re.M,
)
_UNKNOWN_HEADER = re.compile(r"fatal error: (\S+): No such file|fatal error: '([^']+)' file not found")
_ERROR = re.compile(r"^.*\berror:.*$", re.M)


@dataclass(frozen=True)
class Compiler:
    path: str
    version: str

    @property
    def family(self) -> str:
        return "clang" if "clang" in self.version.lower() else "gcc"

    @property
    def runtime_options(self) -> tuple[str, ...]:
        return (*_RUNTIME_OPTIONS, _KEEP_LOOPS[self.family])


@dataclass(frozen=True)
class Program:
    """A kernel as an executable, and the alignment of its dynamic shared memory."""

    path: Path
    dynamic_alignment: int


def find_compiler() -> Compiler:
    """``$CXX``, else g++ or clang++ on PATH. Raises MissingDependencyError when there is none."""
    return _compiler(os.environ.get("CXX", ""), os.environ.get("PATH", ""))


@cache
def _compiler(chosen: str, search: str) -> Compiler:
    for name in [chosen] if chosen else ["g++", "clang++"]:
        path = shutil.which(name, path=search)
        if path is not None:
            shown = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout
            return Compiler(path, shown.partition("\n")[0])
    raise MissingDependencyError(
        (f"CXX is {chosen!r}, which is no program here" if chosen else "neither g++ nor clang++ was found on PATH")
        + "; check --device emulate compiles kernels for the CPU and needs a C++20 compiler: install g++ 12 (or "
        "clang++ 16) or newer, or set CXX"
    )


def _run(command: Sequence[str | Path]) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "LC_ALL": "C"}
    return subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False, env=environment)


@cache
def _own_sources() -> str:
    """A digest of the emulation's C++ files."""
    digest = hashlib.sha256()
    for path in sorted(p for p in SOURCES.rglob("*") if p.is_file()):
        digest.update(str(path.relative_to(SOURCES)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _kept(key: str, make: Callable[[Path], None]) -> Path:
    """The folder of that key; when it is new, ``make`` fills it under a temporary name."""
    folder = kernel_cache.directory() / "emulate" / key[:2] / key
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=".new-", dir=folder.parent))
    except OSError as error:
        raise ForgeError(
            f"the kernel cache {kernel_cache.directory()} cannot be written ({error}); set TRTFORGE_CACHE_DIR to a "
            "writable folder"
        ) from error
    try:
        make(staging)
        try:
            staging.rename(folder)
        except OSError:  # another process was first
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return folder


def runtime_object() -> Path:
    """The runtime, compiled once for each compiler."""
    compiler = find_compiler()
    key = kernel_cache.key_of(
        {
            "emulate": "runtime",
            "sources": _own_sources(),
            "compiler": compiler.version,
            "options": compiler.runtime_options,
        }
    )

    def make(folder: Path) -> None:
        options = [STANDARD, *compiler.runtime_options]
        done = _run([compiler.path, *options, "-c", SOURCES / "runtime.cpp", "-o", folder / "runtime.o"])
        if done.returncode:
            raise MissingDependencyError(
                f"{compiler.path} ({compiler.version}) cannot compile the emulation's runtime, which is C++20; use "
                f"g++ 12 or clang++ 16 or newer (set CXX): {_first_errors(done.stderr)}"
            )

    return _kept(key, make) / "runtime.o"


def _first_errors(text: str) -> str:
    lines = _ERROR.findall(text) or text.strip().splitlines()[-3:]
    return " | ".join(line.strip() for line in lines[:3])


def build(
    path: Path,
    entry: str,
    defines: Mapping[str, str],
    include: Sequence[Path],
    compute: int,
    sanitize: str | None,
    text: str | None = None,
) -> Program:
    """The program of one kernel and one set of macros. ``compute``: what ``__CUDA_ARCH__`` says (900); ``text``:
    generated source instead of a file's, as if it lay at ``path``.

    Raises NotEmulated naming the construct that is missing, MissingDependencyError without a compiler or a sanitizer's
    library, CompileError for anything else the compiler says.
    """
    compiler = find_compiler()
    if sanitize == "thread" and compiler.family == "clang":
        raise MissingDependencyError(
            f"sanitize='thread' needs g++, the compiler is {compiler.version}: only g++ lets the runtime replace the "
            "memory functions that the sanitizer watches; set CXX=g++"
        )
    folders = [path.parent, *include]
    try:
        files = included_files(path, folders, text)
    except OSError as error:
        raise CompileError(f"cannot read {path}: {error}") from error
    key = kernel_cache.key_of(
        {
            "emulate": "program",
            "sources": _own_sources(),
            "compiler": compiler.version,
            "options": [*_KERNEL_OPTIONS, sanitize or "", *compiler.runtime_options],
            "entry": entry,
            "defines": dict(defines),
            "compute": compute,
            "files": {str(name): text for name, text in files.items()},
        }
    )

    def make(folder: Path) -> None:
        main = folder / "kernel.cpp"
        macros = {"__CUDA_ARCH__": f"{compute}", "__CUDACC__": "1", **defines}
        lines = ['#include "emulate.h"', *(f"#define {name} {value}" for name, value in macros.items())]
        kernel = f'#include "{path}"' if text is None else f'#line 1 "{path}"\n{text}'
        main.write_text("\n".join([*lines, kernel, f"EMULATE_MAIN({entry})", ""]))
        search = [f"-I{folder}" for folder in (SOURCES, *folders)]
        shown = _run([compiler.path, STANDARD, *_sanitizer_options(sanitize), "-E", *search, main])
        if shown.returncode:
            header = _UNKNOWN_HEADER.search(shown.stderr)
            if header is not None:
                raise NotEmulated(f"the header <{header[1] or header[2]}>")
            raise CompileError(f"{path} was not preprocessed: {_first_errors(shown.stderr)}")
        translated = translate(shown.stdout)
        (folder / "kernel.ii").write_text(translated.text)
        _compile(compiler, folder, path, sanitize)
        (folder / "program.json").write_text(json.dumps({"dynamic_alignment": translated.dynamic_alignment}))
        for name in ("kernel.cpp", "kernel.o", "kernel.ii"):
            (folder / name).unlink()

    folder = _kept(key, make)
    described = json.loads((folder / "program.json").read_text())
    return Program(folder / "program", described["dynamic_alignment"])


def _sanitizer_options(sanitize: str | None) -> list[str]:
    if sanitize is None:
        return []
    return [f"-fsanitize={sanitize}", *(["-fno-sanitize-recover=all"] if sanitize == "undefined" else [])]


def _compile(compiler: Compiler, folder: Path, path: Path, sanitize: str | None) -> None:
    runtime = runtime_object()
    options = [STANDARD, *_KERNEL_OPTIONS, *_sanitizer_options(sanitize)]
    source = ("-x", "c++-cpp-output", folder / "kernel.ii")
    done = _run([compiler.path, *options, *source, "-c", "-o", folder / "kernel.o"])
    if done.returncode:
        unknown = _UNKNOWN_NAME.search(done.stderr)
        if unknown is not None:
            name = unknown[3] or unknown[4] or unknown[5]
            raise NotEmulated(f"{name} ({unknown[1]}:{unknown[2]})")
        raise CompileError(f"{path} does not compile for the CPU: {_first_errors(done.stderr)}")
    objects = (folder / "kernel.o", runtime)
    options = _sanitizer_options(sanitize) or ["-s"]
    linked = _run([compiler.path, *options, *objects, "-o", folder / "program"])
    if linked.returncode:
        if sanitize is not None:
            raise MissingDependencyError(
                f"{compiler.path} cannot link with -fsanitize={sanitize}; install its sanitizer library: "
                f"{linked.stderr.strip().splitlines()[-1] if linked.stderr.strip() else 'no message'}"
            )
        raise CompileError(f"{path} does not link for the CPU: {_first_errors(linked.stderr)}")
