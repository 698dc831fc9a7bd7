"""Triton to machine code for an explicit target, on any machine."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from trtforge.bindings import cache as kernel_cache
from trtforge.bindings.binary import Binary, Parameter, entry_parameters, report_resources
from trtforge.bindings.errors import CompileError, DeclarationError, FileError, ForgeError
from trtforge.bindings.optional import require

#: Tactic parameters that are options of Triton's compiler and not constants of the kernel.
OPTIONS = frozenset({"num_warps", "num_stages", "num_ctas", "maxnreg", "enable_fp_fusion"})

_WARP_SIZE = 32


@cache
def version() -> str:
    return str(require("triton", "compiling Triton kernels").__version__)


def tool(name: str) -> Path:
    """A CUDA tool that ships in Triton's wheel: cuobjdump, nvdisasm, ptxas, ptxas-blackwell."""
    triton = require("triton", f"running {name}, which ships with Triton,")
    return Path(str(triton.__file__)).parent / "backends" / "nvidia" / "bin" / name


def compile_triton(
    fn: Any,
    signature: Mapping[str, str],
    constants: Mapping[str, Any],
    arch: str,
    aligned: tuple[str, ...] = (),
    options: Mapping[str, Any] | None = None,
) -> Binary:
    """Compile a ``@triton.jit`` function for ``arch``.

    ``signature``: run-time parameters in order, such as ``{"x_ptr": "*fp16", "M": "i32"}``; ``constants``: values of
    the ``tl.constexpr`` parameters; ``aligned``: pointers promised to be multiples of 16 bytes. Raises CompileError.
    """
    require("triton", "compiling Triton kernels")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.compiler import compile as triton_compile
    from triton.runtime.jit import JITFunction

    if not isinstance(fn, JITFunction):
        raise DeclarationError(
            f"{getattr(fn, '__name__', fn)!r} is not a compiled @triton.jit function (it is {type(fn).__name__}); "
            "decorate it with @triton.jit, and do not set TRITON_INTERPRET when kernels are to be compiled"
        )
    capability = int(re.sub(r"\D", "", arch))
    names = list(fn.arg_names)
    order = [name for name in names if name in signature]
    if order != list(signature):
        raise DeclarationError(
            f"{fn.__name__}: run-time parameters must come in the order {list(signature)} (inputs, int32 scalars, "
            f"outputs), but the function has {order}"
        )
    unknown = [name for name in names if name not in signature and name not in constants]
    if unknown:
        raise DeclarationError(
            f"{fn.__name__}: no value for {', '.join(unknown)}; known constants: {', '.join(constants) or 'none'}"
        )
    constexprs = {name: constants[name] for name in names if name in constants}
    full = {name: signature.get(name, "constexpr") for name in names}
    attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in aligned}
    chosen = dict(options or {})
    key = kernel_cache.key_of(
        {
            "language": "triton",
            "compiler": version(),
            "arch": arch,
            "source": fn.cache_key,
            "signature": full,
            "constants": {k: repr(v) for k, v in constexprs.items()},
            "aligned": aligned,
            "options": chosen,
        }
    )
    cached = kernel_cache.load(key)
    if cached is not None:
        return cached
    try:
        source = ASTSource(fn=fn, signature=full, constexprs=constexprs, attrs=attributes)
        compiled = triton_compile(source, target=GPUTarget("cuda", capability, _WARP_SIZE), options=chosen)
    except ForgeError:
        raise
    except OSError as error:
        raise FileError(
            f"Triton cannot keep files while it compiles ({error}); set TRITON_CACHE_DIR, or HOME, to a writable folder"
        ) from error
    except Exception as error:  # Triton raises its own, LLVM's and MLIR's kinds; all mean the same here
        place = f"{fn.fn.__code__.co_filename}:{fn.fn.__code__.co_firstlineno}"
        raise CompileError(f"{place}: {fn.__name__} did not compile for {arch}:\n{_told(error)}") from error
    ptx = compiled.asm["ptx"]
    metadata = compiled.metadata
    entry = metadata.name
    log = ptxas_report(ptx, capability)
    parameters = entry_parameters(ptx, entry)
    binary = Binary(
        language="triton",
        entry=entry,
        arch=arch,
        cubin=compiled.asm["cubin"],
        ptx=ptx,
        log=log,
        parameters=parameters,
        resources=report_resources(log, entry),
        key=key,
        compiler=f"Triton {version()}",
        metadata={
            "shared": metadata.shared,
            "num_warps": metadata.num_warps,
            "num_ctas": metadata.num_ctas,
            "global_scratch_size": getattr(metadata, "global_scratch_size", 0),
            "profile_scratch_size": getattr(metadata, "profile_scratch_size", 0),
            "scratch_parameters": _scratch_parameters(parameters, len(signature)),
        },
    )
    kernel_cache.store(binary)
    return binary


def _told(error: BaseException) -> str:
    """Triton's own text down to the cause: of a function that another calls, the outer error shows the call only."""
    told = str(error)
    while error.__cause__ is not None:
        error = error.__cause__
        told += f"\n{error}" if str(error) not in told else ""
    return told


def _scratch_parameters(parameters: tuple[Parameter, ...], declared: int) -> int:
    extra = parameters[declared:]
    if any(p.kind != "pointer" for p in extra):
        raise CompileError(f"Triton added parameters of an unknown kind: {extra}")
    return len(extra)


def ptxas_report(ptx: str, capability: int) -> str:
    """The ``-v`` report of the ptxas that Triton uses for this compute capability. Raises CompileError."""
    from triton import knobs

    chosen = knobs.nvidia.ptxas_blackwell if capability >= 100 else knobs.nvidia.ptxas  # the one that Triton used
    program = Path(chosen.path)
    target = re.search(r"^\.target\s+(\w+)", ptx, re.M)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(ptx)
        command = [str(program), "-v", f"--gpu-name={target[1] if target else f'sm_{capability}'}", str(source)]
        done = subprocess.run([*command, "-o", str(Path(folder) / "out")], capture_output=True, text=True, check=False)
    if done.returncode:
        raise CompileError(f"{program.name} refused Triton's PTX:\n{done.stderr}")
    return done.stderr
