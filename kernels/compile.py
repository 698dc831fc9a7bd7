"""From a declared kernel and a bound call to verified machine code.

Constants reach CUDA as macros and Triton as ``tl.constexpr`` parameters of the same names; see :func:`constants_of`.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np

from trtforge.bindings.architectures import Architecture
from trtforge.bindings.binary import Binary
from trtforge.bindings.dtypes import dtype
from trtforge.bindings.errors import DeclarationError
from trtforge.bindings.nvrtc import compile_cuda
from trtforge.bindings.optional import require
from trtforge.bindings.triton_compiler import OPTIONS as TRITON_OPTIONS
from trtforge.bindings.triton_compiler import compile_triton
from trtforge.kernels.binding import Binding
from trtforge.kernels.contract import Launch
from trtforge.kernels.dims import constant_value
from trtforge.kernels.embedded import Form, form_of, launch_of, needed
from trtforge.kernels.op import Kernel
from trtforge.kernels.registry import import_file

KERNELS = Path(__file__).parent
TENSOR_MAP_BYTES = 128
WARPGROUP_THREADS = 128
_SETMAXNREG = re.compile(r"setmaxnreg\.(inc|dec)\.sync\.aligned\.u32\s+(\d+)")


def constants_of(kernel: Kernel, binding: Binding, tactic: int, launch: Launch) -> dict[str, Any]:
    """Every compile-time constant by name: tactic parameters, launch constants, attributes, HAS_<optional>."""
    op = kernel.op
    groups = [
        {k: v for k, v in kernel.tactics[tactic].items() if k not in TRITON_OPTIONS},
        dict(launch.constants),
        {name.upper(): value for name, value in binding.attributes.items()},
        {f"HAS_{name.upper()}": int(present) for name, present in binding.has.items()},
    ]
    constants: dict[str, Any] = {}
    for group in groups:
        for name, value in group.items():
            if name in constants:
                raise DeclarationError(f"{op.name}/{kernel.name}: two constants are called {name!r}; rename one")
            if not isinstance(value, (bool, float, str)):
                known = constant_value(value)
                if known is None:
                    raise DeclarationError(
                        f"{op.name}/{kernel.name}: the constant {name} = {value} depends on a dimension that is not "
                        "known here; it must be static where this kernel is compiled"
                    )
                value = known
            constants[name] = value
    return constants


def _macro(value: Any) -> str:
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, float):
        return f"({_float_literal(value)})"
    return str(value)


def _float_literal(value: float) -> str:
    if value in (float("inf"), float("-inf")):
        return f"{'-' if value < 0 else ''}__int_as_float(0x7f800000)"
    return f"{float(np.float32(value)).hex()}f"


def defines_of(kernel: Kernel, binding: Binding, constants: dict[str, Any]) -> dict[str, str]:
    """The macros of a CUDA kernel, element types among them."""
    op = kernel.op
    defines = {f"{name}_t": dtype(kind).cpp for name, kind in binding.dtypes.items()}
    for name, value in constants.items():
        if isinstance(value, str):
            choices = next((a.choices for n, a in op.attributes.items() if n.upper() == name), None)
            if choices is None:
                raise DeclarationError(
                    f"{op.name}/{kernel.name}: the string constant {name} = {value!r} reaches CUDA only as an "
                    "attribute with choices; use a number"
                )
            for index, choice in enumerate(choices):
                defines[f"{name}_{choice.upper()}"] = str(index)
            defines[name] = f"{name}_{value.upper()}"
        else:
            defines[name] = _macro(value)
    return defines


def compile_kernel(
    kernel: Kernel, binding: Binding, tactic: int, target: Architecture, *, embedded: bool = False
) -> Binary:
    """Compile one kernel for one call and target, and hold its parameter list against the declaration.

    ``embedded``: in the form that an engine can keep (:mod:`trtforge.kernels.embedded`), which is the kernel as it
    stands unless it takes tensor maps or is launched in clusters. Raises CompileError (the compiler's lines) or
    DeclarationError (parameters that do not match).
    """
    launch = kernel.launch(binding, tactic, target)
    constants = constants_of(kernel, binding, tactic, launch)
    if kernel.language == "cuda":
        form = embedded_form(kernel, binding, launch) if embedded else None
        binary = compile_cuda(
            kernel.source.path if form is None else embedded_path(kernel),
            kernel.source.entry if form is None else form.entry,
            target.name,
            defines_of(kernel, binding, constants),
            include=(KERNELS,),
            text=None if form is None else form.text,
        )
        launch = launch_of(launch, target) if embedded else launch
    else:
        binary = _compile_triton(kernel, binding, tactic, target, launch, constants)
    verify_parameters(kernel, binding, launch, binary)
    verify_register_shares(kernel, launch, binary)
    return binary


def embedded_form(kernel: Kernel, binding: Binding, launch: Launch) -> Form | None:
    """The generated source of a kernel that an engine cannot keep as it stands, else None."""
    return form_of(kernel, binding, launch) if needed(launch) else None


def embedded_path(kernel: Kernel) -> Path:
    """Where the generated source would lie if it were a file: beside the kernel."""
    return kernel.source.path.with_name(f"{kernel.source.path.stem}_embedded.cu")


def _module_at(path: Path) -> Any:
    """The module of a file: the one already loaded from it (a declaration may hold its kernel), else loaded now."""
    for module in list(sys.modules.values()):
        if getattr(module, "__file__", None) == str(path):
            return module
    return import_file(path)


def triton_function(kernel: Kernel) -> Any:
    """The ``@triton.jit`` function of a Triton kernel."""
    require("triton", f"the kernel {kernel}")
    fn = getattr(_module_at(kernel.source.path), kernel.source.entry, None)
    if fn is None:
        raise DeclarationError(f"{kernel.source.path} has no function {kernel.source.entry!r} for {kernel}")
    return fn


def triton_arguments(
    kernel: Kernel, arg_names: list[str], binding: Binding, launch: Launch, constants: dict[str, Any]
) -> tuple[dict[str, str], dict[str, Any]]:
    """Sort a Triton kernel's parameters into (run-time parameter -> what it carries, constexpr -> value).

    Run-time parameters carry ``"*<tensor name>"`` or ``"i32"``. Parameters that are not constants are taken in the
    order inputs, scalars, outputs; an absent optional input becomes the constant None.
    """
    op = kernel.op
    constexprs = {name: constants[name] for name in arg_names if name in constants}
    rest = [name for name in arg_names if name not in constants]
    slots = [*op.inputs, *(None for _ in launch.scalars), *op.outputs]
    if len(rest) != len(slots):
        raise DeclarationError(
            f"{kernel}: the function has {len(rest)} parameters that are not constants ({', '.join(rest)}), but the "
            f"declaration gives {len(op.inputs)} inputs, {len(launch.scalars)} scalars and {len(op.outputs)} outputs"
        )
    runtime: dict[str, str] = {}
    for name, slot in zip(rest, slots):
        if slot is None:
            runtime[name] = "i32"
        elif slot in binding.dtypes:
            runtime[name] = f"*{slot}"
        else:
            constexprs[name] = None
    return runtime, constexprs


def _compile_triton(
    kernel: Kernel, binding: Binding, tactic: int, target: Architecture, launch: Launch, constants: dict[str, Any]
) -> Binary:
    fn = triton_function(kernel)
    runtime, constexprs = triton_arguments(kernel, list(fn.arg_names), binding, launch, constants)
    signature = {
        name: carries if carries == "i32" else f"*{dtype(binding.dtypes[carries[1:]]).triton}"
        for name, carries in runtime.items()
    }
    aligned = tuple(n for n, carries in runtime.items() if carries != "i32") if kernel.align % 16 == 0 else ()
    options = {k: v for k, v in kernel.tactics[tactic].items() if k in TRITON_OPTIONS}
    return compile_triton(fn, signature, constexprs, target.name, aligned, options)


def verify_parameters(kernel: Kernel, binding: Binding, launch: Launch, binary: Binary) -> None:
    """Hold the compiled entry's parameters against the declaration. Raises DeclarationError."""
    expected = [("pointer", 8, name) for name in binding.inputs]
    expected += [("int32", 4, f"scalar {i}") for i in range(len(launch.scalars))]
    expected += [("pointer", 8, name) for name in binding.outputs]
    expected += [("bytes", TENSOR_MAP_BYTES, f"tensor map of {m.tensor}") for m in launch.tensor_maps]
    expected += [("pointer", 8, "Triton scratch")] * binary.metadata.get("scratch_parameters", 0)
    found = binary.parameters
    wrong = [
        f"parameter {i} ({name}) must be {kind} of {size} bytes, the kernel has {found[i].kind} of {found[i].size}"
        for i, (kind, size, name) in enumerate(expected)
        if i < len(found) and (found[i].kind, found[i].size) != (kind, size)
    ]
    if len(found) != len(expected):
        wrong.append(f"the kernel has {len(found)} parameters, the declaration gives {len(expected)}")
    if wrong:
        order = ", ".join(name for _, _, name in expected)
        raise DeclarationError(f"{kernel}: {'; '.join(wrong)}. The order is: {order}")


def verify_register_shares(kernel: Kernel, launch: Launch, binary: Binary) -> None:
    """Hold what warpgroups ask for with setmaxnreg (PTX ISA) against what the launch has. Raises DeclarationError.

    One warpgroup gives up registers, all others take more: what is not there is waited for, for ever.
    """
    asked = {kind: int(count) for kind, count in _SETMAXNREG.findall(binary.ptx)}
    x, y, z = (constant_value(size) for size in Launch.triple(launch.block))
    if asked.keys() != {"inc", "dec"} or x is None or y is None or z is None:
        return
    takers = x * y * z // WARPGROUP_THREADS - 1
    wanted, there = takers * asked["inc"] + asked["dec"], (takers + 1) * binary.resources.registers
    if wanted > there:
        raise DeclarationError(
            f"{kernel}: setmaxnreg shares out {takers} x {asked['inc']} + {asked['dec']} = {wanted} registers, but the "
            f"{takers + 1} warpgroups have {there}, {binary.resources.registers} each: the last one would wait for "
            "ever; ask for less"
        )
