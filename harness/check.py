"""``trtforge check``: every kernel, tactic, case and dtype against the op's reference.

On a GPU every combination is launched, outputs poisoned before, guard bands around. On a CPU Triton kernels run in
Triton's interpreter and CUDA kernels are compiled for every architecture they name and verified statically:
parameters against the declaration, spills, shared memory, occupancy. With ``device="emulate"`` CUDA kernels are
compiled for the CPU and run there (:mod:`trtforge.harness.emulate.emulator`), under a sanitizer if one is named.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from trtforge.bindings import device as gpu
from trtforge.bindings.architectures import INSPECTED, architecture
from trtforge.bindings.errors import UsageError
from trtforge.bindings.optional import available, require
from trtforge.bindings.triton_compiler import OPTIONS as TRITON_OPTIONS
from trtforge.harness import plugin_check, pool
from trtforge.harness.emulate import planning as emulation
from trtforge.harness.environment import about
from trtforge.harness.jobs import Job, Row, row_of
from trtforge.kernels import registry
from trtforge.kernels.compile import constants_of
from trtforge.kernels.contract import Case
from trtforge.kernels.op import Kernel, Op

#: The target that the interpreter imitates where a declaration asks for the device's size.
_IMITATED = "sm_90a"
#: Processes that share the GPU; most of their time goes into references and comparisons.
_GPU_PROCESSES = 8


@dataclass(frozen=True)
class Planned:
    """A job to run, or a row that is already known to be skipped."""

    job: Job | None
    row: Row | None = None


def _selected_ops(op: str | None, loads: Sequence[str]) -> list[Op]:
    registry.load_builtin()
    for target in loads:
        registry.load(target)
    return [registry.get(op)] if op else registry.ops()


def _kernels(op: Op, kernel: str | None) -> list[Kernel]:
    return [op.kernel_named(kernel)] if kernel else op.kernels


def _skipped(job: Job, op: Op, kernel: Kernel, case: Case, reason: str) -> Planned:
    row = row_of(job, op, kernel, case)
    row.status, row.reason = "skipped", reason
    return Planned(None, row)


def plan_device(op: Op, kernels: Sequence[Kernel], seeds: tuple[int, ...], tags: frozenset[str]) -> Iterator[Planned]:
    """Jobs for the GPU at hand: the whole product, cases outermost so that a reference is computed once."""
    target = gpu.current_device().architecture
    for index, case in enumerate(op.cases):
        if set(case.tags) - tags:
            continue
        for dtypes in op.dtype_combinations(case):
            binding = op.bind_case(case, dtypes)
            for kernel in kernels:
                for tactic in range(len(kernel.tactics)):
                    job = Job("cuda", op.name, kernel.name, tactic, index, dtypes, target.name, seeds)
                    reason = kernel.refusal(binding, tactic, target)
                    if reason:
                        yield _skipped(job, op, kernel, case, f"{kernel.name} {reason}")
                    else:
                        yield Planned(job)


def plan_interpreter(op: Op, kernels: Sequence[Kernel], seeds: tuple[int, ...]) -> Iterator[Planned]:
    """Jobs for Triton's interpreter: small cases, tactics that differ in more than compiler options."""
    target = architecture(_IMITATED)
    for index, case in enumerate(op.cases):
        if case.tags:
            continue
        for dtypes in op.dtype_combinations(case):
            binding = op.bind_case(case, dtypes)
            for kernel in kernels:
                if kernel.language != "triton":
                    continue
                seen = set()
                for tactic, parameters in enumerate(kernel.tactics):
                    shape = tuple((k, v) for k, v in parameters.items() if k not in TRITON_OPTIONS)
                    if shape in seen:
                        continue
                    seen.add(shape)
                    job = Job("interpret", op.name, kernel.name, tactic, index, dtypes, _IMITATED, seeds)
                    reason = kernel.refusal(binding, tactic, target)
                    if reason:
                        yield _skipped(job, op, kernel, case, f"{kernel.name} {reason}")
                    else:
                        yield Planned(job)


def plan_compile(
    op: Op, kernels: Sequence[Kernel], architectures: Sequence[str], every_case: bool
) -> Iterator[Planned]:
    """Compile jobs: each kernel, tactic, dtype and architecture once, or each distinct specialization."""
    for kernel in kernels:
        for tactic in range(len(kernel.tactics)):
            for arch in architectures:
                target = architecture(arch)
                if not kernel.serves(target):
                    continue
                seen: set[object] = set()
                for index in sorted(range(len(op.cases)), key=lambda i: "bench" not in op.cases[i].tags):
                    case = op.cases[index]
                    for dtypes in op.dtype_combinations(case):
                        binding = op.bind_case(case, dtypes)
                        if kernel.refusal(binding, tactic, target):
                            continue
                        launch = kernel.launch(binding, tactic, target)
                        constants = constants_of(kernel, binding, tactic, launch) if every_case else {}
                        key = (tuple(binding.dtypes.items()), tuple(constants.items()))
                        if key in seen:
                            continue
                        seen.add(key)
                        yield Planned(Job("compile", op.name, kernel.name, tactic, index, dtypes, arch))


def plan_plugins(
    op: Op,
    kernels: Sequence[Kernel],
    as_plugin: str,
    on_gpu: bool,
    architectures: Sequence[str],
    seeds: tuple[int, ...],
    tags: frozenset[str],
) -> Iterator[Planned]:
    """Jobs for the plugin host; on a GPU they launch what the engine would launch."""
    target = gpu.current_device().architecture if on_gpu else None
    mode = f"{as_plugin}-cuda" if on_gpu else as_plugin
    wanted = tags if on_gpu else frozenset(("gpu", "bench"))
    for job, kernel, case, reason in plugin_check.plan(op, kernels, mode, target, architectures, wanted, seeds):
        yield _skipped(job, op, kernel, case, reason) if reason else Planned(job)


def plan_emulator(
    op: Op, kernels: Sequence[Kernel], mode: str, architectures: Sequence[str], every_case: bool, seeds: tuple[int, ...]
) -> Iterator[Planned]:
    """Jobs for the emulation: small cases of CUDA kernels, one tactic for each case or every tactic."""
    for job, kernel, case, reason in emulation.plan(op, kernels, mode, architectures, every_case, seeds):
        yield _skipped(job, op, kernel, case, reason) if reason else Planned(job)


def check(
    op: str | None = None,
    *,
    kernel: str | None = None,
    device: str = "auto",
    sanitize: str | None = None,
    as_plugin: str | None = None,
    loads: Sequence[str] = (),
    architectures: Sequence[str] = INSPECTED,
    every_case: bool = False,
    include: Sequence[str] = ("gpu",),
    seeds: Sequence[int] = (0, 1),
    workers: int | None = None,
    time_limit: float = pool.TIME_LIMIT,
    on_start: Callable[[int], None] | None = None,
    on_row: Callable[[Row], None] | None = None,
) -> list[Row]:
    """Check one op (or all) and return a row per combination.

    ``device``: "cuda", "cpu", "auto" (the GPU when there is one), or "emulate": CUDA kernels compiled for the CPU, with
    ``sanitize`` None, "address", "undefined" or "thread"; there ``every_case`` means every tactic. ``include``: tags of
    cases that also run on a GPU ("bench" adds the benchmark shapes). ``loads``: files or modules that declare further
    ops. ``time_limit``: seconds for one row. ``on_start`` is told the number of jobs, ``on_row`` each row.
    ``as_plugin``: "aot" or "jit" checks the generated TensorRT plugins instead (:mod:`trtforge.harness.plugin_check`).
    Raises UnknownNameError, UsageError, DeviceError, and MissingDependencyError where NVIDIA's bindings are needed and
    absent.
    """
    _refuse_early(device, sanitize, as_plugin)
    emulated = emulation.mode_of(sanitize)
    on_gpu = device == "cuda" or (device == "auto" and gpu.has_gpu())
    cores = workers or os.cpu_count() or 1
    planned: dict[str, list[Planned]] = {"cuda": [], "interpret": [], "compile": []}
    for one in _selected_ops(op, loads):
        chosen = _kernels(one, kernel)
        if as_plugin:
            mode = f"{as_plugin}-cuda" if on_gpu else as_plugin
            planned.setdefault(mode, []).extend(
                plan_plugins(one, chosen, as_plugin, on_gpu, architectures, tuple(seeds), frozenset(include))
            )
        elif device == "emulate":
            planned.setdefault(emulated, []).extend(
                plan_emulator(one, chosen, emulated, architectures, every_case, tuple(seeds[:1]))
            )
        elif on_gpu:
            planned["cuda"] += plan_device(one, chosen, tuple(seeds), frozenset(include))
        else:
            if available("triton"):
                planned["interpret"] += plan_interpreter(one, chosen, tuple(seeds[:1]))
            planned["compile"] += plan_compile(one, chosen, architectures, every_case)
    if on_start:
        on_start(sum(1 for items in planned.values() for item in items if item.job))
    if on_gpu:
        warm_cache([item.job for items in planned.values() for item in items if item.job], loads, cores)
    rows: list[Row] = []
    for mode, items in planned.items():
        jobs = [item.job for item in items if item.job]
        processes = min(cores, _GPU_PROCESSES) if mode.endswith("cuda") else cores
        done = iter(pool.run_jobs(mode, jobs, loads, processes, time_limit, on_row))
        rows += [item.row if item.row is not None else next(done) for item in items]
    return rows


def _refuse_early(device: str, sanitize: str | None, as_plugin: str | None) -> None:
    """Raise for arguments that contradict each other, and for what is missing, before any worker starts."""
    if device not in ("auto", "cpu", "cuda", "emulate"):
        raise UsageError(f"device is {device!r}; accepted: auto, cpu, cuda, emulate")
    if device != "emulate" and sanitize is not None:
        raise UsageError(f"sanitize={sanitize!r} is for device='emulate', not {device!r}; on a GPU: make sanitize")
    if as_plugin not in (None, "aot", "jit"):
        raise UsageError(f"as_plugin is {as_plugin!r}; accepted: aot, jit")
    if as_plugin and device == "emulate":
        raise UsageError("plugins are driven or launched, not emulated; check the kernels with device='emulate'")
    if as_plugin:
        from trtforge.plugins.nvidia import host_layer

        host_layer()
    if device == "cuda":
        gpu.require_gpu("check --device cuda")
    if device != "emulate" and not available("triton"):
        require("cuda.bindings.nvrtc", "check, which interprets or compiles kernels,")


def warm_cache(jobs: Sequence[Job], loads: Sequence[str], workers: int) -> None:
    """Compile everything in parallel before the one process that launches asks for it."""
    unique: dict[object, Job] = {}
    for job in jobs:
        op = registry.get(job.op)
        kernel = op.kernel_named(job.kernel)
        binding = op.bind_case(op.cases[job.case], job.dtypes)
        target = gpu.current_device().architecture
        launch = kernel.launch(binding, job.tactic, target)
        constants = constants_of(kernel, binding, job.tactic, launch)
        key = (job.op, job.kernel, job.tactic, tuple(binding.dtypes.items()), tuple(constants.items()))
        unique.setdefault(key, Job("compile", job.op, job.kernel, job.tactic, job.case, job.dtypes, target.name))
    pool.run_jobs("compile", list(unique.values()), loads, workers)


def report(rows: Sequence[Row]) -> dict[str, Any]:
    """Rows gathered per kernel and way of checking, every failed row whole, and what it was run with: for a file."""
    kernels: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        kernels.setdefault((row.op, row.kernel, row.how), []).append(row)
    gathered = []
    for (op, kernel, how), members in kernels.items():
        worst = max((m.error / m.tolerance for m in members if m.error is not None and m.tolerance), default=None)
        gathered.append({"op": op, "kernel": kernel, "how": how, **summary(members), "worst_over_tolerance": worst})
    failed = [asdict(row) for row in rows if row.status == "failed"]
    return {"about": about(), "summary": summary(rows), "kernels": gathered, "failed": failed}


def summary(rows: Sequence[Row]) -> dict[str, int]:
    """How many rows passed, failed and were skipped."""
    return {status: sum(1 for r in rows if r.status == status) for status in ("passed", "failed", "skipped")}
