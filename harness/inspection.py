"""``trtforge inspect``: what a kernel compiles to, on any machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trtforge.bindings.architectures import INSPECTED, Architecture, architecture
from trtforge.bindings.disassemble import instruction_mix, sass
from trtforge.bindings.errors import DeclarationError, UnknownNameError, UsageError
from trtforge.kernels import registry
from trtforge.kernels.binding import Binding
from trtforge.kernels.compile import compile_kernel, constants_of
from trtforge.kernels.contract import Case, Launch
from trtforge.kernels.op import Kernel, Op
from trtforge.kernels.plan import geometry


@dataclass
class Inspection:
    """One compiled specialization. Sizes in bytes; ``occupancy`` is resident warps over the architecture's most."""

    op: str
    kernel: str
    language: str
    arch: str
    tactic: str
    case: str
    dtype: str
    registers: int
    spills: int
    stack: int
    static_shared: int
    dynamic_shared: int
    threads: int
    grid: tuple[int, ...]
    blocks_per_sm: int
    occupancy: float
    limiter: str
    cubin_bytes: int
    compiler: str
    instructions: dict[str, int]
    parameters: list[str]
    constants: dict[str, Any]
    warnings: list[str]


def representative(
    op: Op, kernel: Kernel, tactic: int, target: Architecture, label: str | None
) -> tuple[Case, dict[str, str]] | str:
    """The case to compile, a benchmark case first, with its dtypes; or the reason why no case is served."""
    cases = sorted(op.cases, key=lambda c: "bench" not in c.tags)
    if label is not None:
        cases = [c for c in cases if label in c.label]
        if not cases:
            known = "; ".join(c.label for c in op.cases)
            raise UnknownNameError(f"{op.name} has no case like {label!r}; it has: {known}")
    reason = "it declares no case"
    for case in cases:
        for dtypes in op.dtype_combinations(case):
            refusal = kernel.refusal(op.bind_case(case, dtypes), tactic, target)
            if refusal is None:
                return case, dtypes
            reason = refusal
    return reason


def inspect_kernel(
    kernel: Kernel, tactic: int, target: Architecture, case: Case, dtypes: Mapping[str, str]
) -> Inspection:
    """Compile one tactic of a kernel for one case and architecture, and read the result. Raises CompileError."""
    op = kernel.op
    binding = op.bind_case(case, dtypes)
    binary = compile_kernel(kernel, binding, tactic, target)
    launch = kernel.launch(binding, tactic, target)
    shape = geometry(kernel, binding, launch, binary)
    threads = shape["block"][0] * shape["block"][1] * shape["block"][2]
    resources = binary.resources
    resident, limiter = target.occupancy(threads, resources.registers, shape["shared"] + resources.static_shared)
    names = [f"{name}: {binding.dtypes[name]}*" for name in binding.inputs]
    names += [f"{expression}: int32" for expression in _scalar_expressions(kernel, binding, tactic, target, launch)]
    names += [f"{name}: {binding.dtypes[name]}*" for name in binding.outputs]
    names += [f"tensor map of {m.tensor}" for m in launch.tensor_maps]
    names += ["Triton scratch (null)"] * binary.metadata.get("scratch_parameters", 0)
    return Inspection(
        op=op.name,
        kernel=kernel.name,
        language=kernel.language,
        arch=target.name,
        tactic=kernel.tactic_label(tactic),
        case=case.label,
        dtype=" ".join(sorted(set(binding.dtypes.values()))),
        registers=resources.registers,
        spills=resources.spill_stores + resources.spill_loads,
        stack=resources.stack,
        static_shared=resources.static_shared,
        dynamic_shared=shape["shared"],
        threads=threads,
        grid=shape["grid"],
        blocks_per_sm=resident,
        occupancy=resident * -(-threads // 32) / target.warps_per_sm,
        limiter=limiter,
        cubin_bytes=len(binary.cubin),
        compiler=binary.compiler,
        instructions=instruction_mix(sass(binary)),
        parameters=names,
        constants=constants_of(kernel, binding, tactic, launch),
        warnings=list(resources.warnings),
    )


def _scalar_expressions(
    kernel: Kernel, binding: Binding, tactic: int, target: Architecture, launch: Launch
) -> tuple[object, ...]:
    """The scalars over the named dimensions; their values where the geometry needs numbers."""
    try:
        return kernel.launch(binding.symbolic(), tactic, target).scalars
    except DeclarationError:
        return launch.scalars


def inspect(
    target: str,
    *,
    arch: str | None = None,
    tactic: int | None = None,
    case: str | None = None,
    loads: Sequence[str] = (),
) -> list[Inspection]:
    """Inspect ``OP`` or ``OP/KERNEL`` for one architecture, or for each of the usual ones that a kernel serves.

    Raises UnknownNameError for an op, kernel or case that does not exist, UsageError for an architecture that no
    kernel serves.
    """
    registry.load_builtin()
    for one in loads:
        registry.load(one)
    name, _, kernel_name = target.partition("/")
    op = registry.get(name)
    kernels = [op.kernel_named(kernel_name)] if kernel_name else op.kernels
    architectures = [architecture(arch).name] if arch else list(INSPECTED)
    found, reasons = [], []
    for kernel in kernels:
        for built_for in map(architecture, architectures):
            if not kernel.serves(built_for):
                continue
            for index in range(len(kernel.tactics)) if tactic is None else [op.tactic_index(kernel, tactic)]:
                chosen = representative(op, kernel, index, built_for, case)
                if isinstance(chosen, str):
                    reasons.append(f"{kernel.name} [{kernel.tactic_label(index)}] {chosen}")
                else:
                    found.append(inspect_kernel(kernel, index, built_for, *chosen))
    if not found:
        why = "; ".join(dict.fromkeys(reasons)) or "no kernel is built for that"
        raise UsageError(f"{target} cannot be inspected for {', '.join(architectures)}: {why}")
    return found
