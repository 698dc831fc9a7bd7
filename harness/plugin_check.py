"""``trtforge check --as-plugin``: every kernel and tactic as TensorRT would run it inside an engine.

The plugin host (:mod:`trtforge.plugins.host`) drives the generated plugin through NVIDIA's Python layer. Then, on any
machine, what the plugin answered is held against the declaration for many shapes: output shapes against the contract,
launch parameters and scalars against the geometry of a direct launch, the embedded code and its parameter list against
the compiled kernel and against what TensorRT passes, attributes against what comes back from serialization. On a GPU
the embedded code is launched in TensorRT's argument order (AOT), or ``enqueue`` is called (JIT), with poisoned outputs
between guard bands, and compared with the reference.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np

from trtforge.bindings.architectures import Architecture, architecture
from trtforge.bindings.binary import Binary, Parameter, entry_parameters, report_resources
from trtforge.bindings.device import current_device
from trtforge.bindings.errors import ContractError, DeclarationError
from trtforge.harness.jobs import Job, beyond
from trtforge.kernels.binding import Binding
from trtforge.kernels.compile import compile_kernel
from trtforge.kernels.contract import Case
from trtforge.kernels.embedded import launch_of
from trtforge.kernels.op import Choice, Kernel, Op
from trtforge.kernels.plan import geometry
from trtforge.plugins import tactics
from trtforge.plugins.embed import embed
from trtforge.plugins.host import EngineKernel, Hosted, Profile, build, create
from trtforge.plugins.schema import unavailable

#: How many shapes the launch parameters are compared for, at most, and how many draws that may take.
SHAPES, _DRAWS = 24, 400
#: What plugins are driven for where there is no GPU, if the kernel serves it.
_USUAL = "sm_90a"

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Sizes:
    """Values of the named dimensions; ``leading`` the shape of the leading run."""

    dims: Mapping[str, int]
    leading: tuple[int, ...] | None

    def shapes(self, op: Op, present: Sequence[str]) -> dict[str, tuple[int, ...]]:
        dims = dict(self.dims)
        if self.leading is not None:
            dims.update({spec.run: math.prod(self.leading) for spec in op.inputs.values() if spec.run})
        raw = {name: op.contract.shape_of(op.inputs[name], dims, self.leading) for name in present}
        return {name: tuple(int(size) for size in shape) for name, shape in raw.items()}


@dataclass(frozen=True)
class Driven:
    """A plugin that has passed what can be checked without a GPU; ``note`` says what that was."""

    hosted: Hosted
    tactic: int
    code: EngineKernel | None
    note: str
    details: dict[str, Any] = field(default_factory=dict)


# ---- which combinations ------------------------------------------------------------------------------------


def plan(
    op: Op,
    kernels: Sequence[Kernel],
    mode: str,
    device: Architecture | None,
    architectures: Sequence[str],
    tags: frozenset[str],
    seeds: tuple[int, ...],
) -> Iterator[tuple[Job, Kernel, Case, str | None]]:
    """Jobs with the reason why they are skipped, or None.

    For every kernel, tactic and dtypes, one case per set of optional inputs and ranks; on a GPU (``device``) a small
    and a large one. That the kernel computes the right thing in every case is the matter of a check without plugins.
    """
    order = [i for i, case in enumerate(op.cases) if not set(case.tags) - tags]
    order.sort(key=lambda i: bool(op.cases[i].tags))
    for kernel in kernels:
        target = device or _imitated(kernel, architectures)
        if target is None:
            continue
        for tactic in range(len(kernel.tactics)):
            done: set[Any] = set()
            refused: dict[Any, tuple[Job, Kernel, Case, str]] = {}
            for index in order:
                case = op.cases[index]
                for dtypes in op.dtype_combinations(case):
                    binding = op.bind_case(case, dtypes)
                    ranks = tuple(len(shape) for shape in binding.inputs.values())
                    key: Any = (tuple(binding.dtypes.items()), tuple(binding.inputs), ranks)
                    if device is not None:
                        key = (*key, bool(case.tags))
                    if key in done:
                        continue
                    job = Job(mode, op.name, kernel.name, tactic, index, dtypes, target.name, seeds)
                    reason = _refusal(Choice(kernel, tactic), binding, target, mode.startswith("aot"))
                    if reason is None:
                        done.add(key)
                        yield job, kernel, case, None
                    elif key not in refused or tactics.NOT_EMBEDDED in reason:
                        refused[key] = (job, kernel, case, reason)  # a reason that no other shape removes is told
            yield from (entry for key, entry in refused.items() if key not in done)


def _imitated(kernel: Kernel, architectures: Sequence[str]) -> Architecture | None:
    usual = [name for name in architectures if name == _USUAL]
    return next((architecture(a) for a in (*usual, *architectures) if kernel.serves(architecture(a))), None)


def _refusal(choice: Choice, binding: Binding, target: Architecture, aot: bool) -> str | None:
    reason = unavailable(binding.dtypes)
    if reason:
        return reason
    reason = tactics.refusal(choice, binding, {}, target, aot)
    return f"{choice.kernel.name} {reason}" if reason else None


# ---- driving one -------------------------------------------------------------------------------------------


def drive(job: Job, kernel: Kernel, case: Case, binding: Binding) -> Driven:
    """Put the kernel's plugin through the host and hold its answers against the declaration.

    Raises DeclarationError where they differ, and whatever the plugin or NVIDIA's layer raises.
    """
    aot, op = job.mode.startswith("aot"), kernel.op
    target = current_device().architecture if job.mode.endswith("cuda") else architecture(job.arch)
    choice = Choice(kernel, job.tactic)
    fixed = tactics.static_for(choice, binding, target, aot)
    sizes = Sizes(case.dims, case.leading)
    profile, samples = profile_and_samples(op, binding, sizes, fixed)
    hosted = build(op, profile, {n: binding.dtypes[n] for n in binding.inputs}, binding.attributes, target, aot=aot)
    tactic = tactics.identity(kernel, job.tactic)
    if tactic not in hosted.tactics:
        raise DeclarationError(
            f"{kernel}: the plugin offers {[tactics.label(op, t) for t in hosted.tactics]} for the profile "
            f"{profile.smallest} to {profile.largest}, not tactic {tactic}"
        )
    _expect(kernel, "output dtypes", hosted.output_dtypes, tuple(binding.dtypes[n] for n in binding.outputs))
    for shapes in samples:
        bound = _bound(binding, op, shapes)
        _expect(kernel, f"output shapes for {shapes}", hosted.output_shapes(shapes), list(bound.outputs.values()))
    version = hosted.layer.version
    moving = sum(not e.is_constant() for name in binding.inputs for e in profile.expressions(name))
    details = {"shapes": len(samples), "dynamic_axes": moving, "tactics": len(hosted.tactics)}
    if not aot:
        hosted.reloaded()
        note = f"driven by the plugin host over NVIDIA's layer {version}; output shapes equal for {len(samples)} shapes"
        return Driven(hosted, tactic, None, f"{note}; attributes survive serialization", details)
    if hasattr(create(hosted.layer, hosted.spec, binding.attributes, "PREFER_AOT"), "impl_function"):
        raise DeclarationError(f"{kernel}: PREFER_AOT gave a JIT plugin")
    code = hosted.engine_kernel(tactic)
    _check_code(kernel, job.tactic, binding, target, code)
    binary = compile_kernel(kernel, binding, job.tactic, target, embedded=True)
    for shapes in samples:
        bound = _bound(binding, op, shapes)
        direct = geometry(kernel, bound, launch_of(kernel.launch(bound, job.tactic, target), target), binary)
        _expect(kernel, f"launch parameters for {shapes}", code.geometry(shapes), direct)
        threads, shared = math.prod(direct["block"]), direct["shared"] + binary.resources.static_shared
        if faults := beyond(target, threads, shared):
            raise DeclarationError(f"{kernel} as a plugin: {'; '.join(faults)}")
    note = f"driven by the plugin host over NVIDIA's layer {version}; launch parameters equal for {len(samples)} shapes"
    return Driven(hosted, tactic, code, note, {**details, "code_bytes": len(code.code)})


def _bound(binding: Binding, op: Op, shapes: Shapes) -> Binding:
    return op.bind(shapes, {n: binding.dtypes[n] for n in binding.inputs}, binding.attributes)


def _expect(kernel: Kernel, what: str, found: Any, wanted: Any) -> None:
    if found != wanted:
        raise DeclarationError(f"{kernel} as a plugin: {what} are {found}, the declaration gives {wanted}")


def _check_code(kernel: Kernel, tactic: int, binding: Binding, target: Architecture, code: EngineKernel) -> None:
    """The embedded code is the direct launch's, or its form for engines, and takes what TensorRT passes."""
    binary = compile_kernel(kernel, binding, tactic, target, embedded=True)
    direct = embed(str(kernel), binary)
    text = code.code.decode()
    if (code.entry, text) != (direct.entry, direct.ptx):
        raise DeclarationError(f"{kernel} as a plugin: the embedded code is not the code of the declared kernel")
    wanted = [Parameter("pointer", 8)] * len(binding.inputs)
    wanted += [Parameter("int32", 4)] * len(code.scalars)
    wanted += [Parameter("pointer", 8)] * len(binding.outputs)
    _expect(kernel, "the embedded code's parameters", entry_parameters(text, code.entry), tuple(wanted))
    if binary.metadata.get("scratch_parameters"):
        _expect(kernel, "registers without scratch parameters", _registers(text, code.entry, target), _used(binary))


def _used(binary: Binary) -> tuple[int, int, int]:
    found = binary.resources
    return found.registers, found.static_shared, found.spill_stores


@lru_cache(maxsize=512)
def _registers(ptx: str, entry: str, target: Architecture) -> tuple[int, int, int]:
    """What ptxas makes of rewritten PTX. Raises CompileError when it refuses it."""
    from trtforge.bindings.triton_compiler import ptxas_report

    found = report_resources(ptxas_report(ptx, target.cc), entry)
    return found.registers, found.static_shared, found.spill_stores


# ---- shapes ------------------------------------------------------------------------------------------------


def profile_and_samples(op: Op, binding: Binding, at: Sizes, fixed: set[str]) -> tuple[Profile, list[Shapes]]:
    """A profile around a case with every dimension dynamic that need not be ``fixed``, and shapes inside it."""
    present = tuple(binding.inputs)
    runs = {spec.run for spec in op.inputs.values() if spec.run}
    names = {str(s) for n in present for s in op.inputs[n].fixed_dims if isinstance(s, str)}
    flat_runs = {run for run in runs if run in at.dims and at.leading is None}
    free = sorted((names | flat_runs) - fixed)
    loose = at.leading is not None and not runs & fixed

    def scaled(change: Callable[[int], int]) -> Sizes:
        dims = {name: change(size) if name in free else size for name, size in at.dims.items()}
        leading = tuple(map(change, at.leading)) if at.leading is not None and loose else at.leading
        return Sizes(dims, leading)

    def fits(sizes: Sizes) -> bool:
        try:
            _bound(binding, op, sizes.shapes(op, present))
        except ContractError:
            return False
        return True

    low = next(s for s in (scaled(lambda n: 1), at) if fits(s))
    high = next(s for s in (scaled(lambda n: 2 * n + 3), scaled(lambda n: 2 * n), at) if fits(s))
    rng = np.random.default_rng(0)
    found = [low, at, high]
    for _ in range(_DRAWS):
        if len(found) == SHAPES:
            break
        dims = {n: int(rng.integers(low.dims[n], high.dims[n] + 1)) for n in at.dims}
        leading = at.leading
        if low.leading is not None and high.leading is not None:
            leading = tuple(int(rng.integers(a, b + 1)) for a, b in zip(low.leading, high.leading))
        drawn = Sizes(dims, leading)
        if drawn not in found and fits(drawn):
            found.append(drawn)
    low_shapes, shapes, high_shapes = (s.shapes(op, present) for s in (low, at, high))
    unique = {tuple(s.items()): s for s in (sizes.shapes(op, present) for sizes in found)}
    return Profile(low_shapes, shapes, high_shapes), list(unique.values())


# ---- launching ---------------------------------------------------------------------------------------------


def launcher(driven: Driven, binding: Binding) -> Callable[[Sequence[int], int], None]:
    """A function of (pointers, stream) that launches as the engine's runtime does. Needs a GPU."""
    shapes = {name: tuple(int(size) for size in shape) for name, shape in binding.inputs.items()}
    hosted, code = driven.hosted, driven.code
    if code is None:
        return hosted.enqueuer(driven.tactic, shapes)
    from trtforge.bindings.cache import key_of
    from trtforge.bindings.launch import Launcher

    choice = tactics.entry(hosted.spec.op, driven.tactic)
    direct = compile_kernel(choice.kernel, binding, choice.tactic, hosted.target, embedded=True)
    image = code.code if code.code.endswith(b"\0") else code.code + b"\0"  # the driver reads PTX as a C string
    embedded = replace(direct, cubin=image, entry=code.entry, metadata={}, key=key_of({"embedded": code.code.hex()}))
    return Launcher(embedded, inputs=len(binding.inputs), outputs=len(binding.outputs), **code.geometry(shapes))
