"""Which kernels, cases and tactics ``check --device emulate`` runs, and how one job is run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from trtforge.bindings.architectures import INSPECTED, Architecture, architecture
from trtforge.bindings.errors import UsageError
from trtforge.harness.emulate.emulator import run
from trtforge.harness.emulate.toolchain import SANITIZERS
from trtforge.harness.jobs import EMULATED, Job
from trtforge.kernels.binding import Binding
from trtforge.kernels.contract import Case
from trtforge.kernels.op import Kernel, Op

#: The GPU that is imitated where the kernel serves it and nothing else is asked for.
_IMITATED = "sm_90a"


def mode_of(sanitize: str | None) -> str:
    """The job mode of a sanitizer. Raises UsageError for an unknown one."""
    if sanitize is None:
        return EMULATED
    if sanitize not in SANITIZERS:
        raise UsageError(f"sanitize is {sanitize!r}; accepted: {', '.join(SANITIZERS)}")
    return f"{EMULATED}-{sanitize}"


#: Multiprocessors of the emulated GPU: so few that persistent kernels have several tiles of the small cases to do.
EMULATED_SMS = 2


def _emulated(name: str) -> Architecture:
    return replace(architecture(name), sms=EMULATED_SMS)


def _targets(kernel: Kernel, architectures: Sequence[str]) -> list[str]:
    served = [name for name in architectures if kernel.serves(architecture(name))]
    if tuple(architectures) != INSPECTED:
        return served
    return [_IMITATED] if _IMITATED in served else served[:1]


def plan(
    op: Op,
    kernels: Sequence[Kernel],
    mode: str,
    architectures: Sequence[str],
    every_tactic: bool,
    seeds: tuple[int, ...],
) -> Iterator[tuple[Job, Kernel, Case, str]]:
    """Jobs over the small cases, each with the reason why it is skipped, or "".

    Each case runs with one tactic, a different one from case to case, or with every tactic. Triton kernels have an
    interpreter of their own and are left out, unless such a kernel is the only one that was asked for.
    """
    for index, case in enumerate(op.cases):
        if case.tags:
            continue
        for dtypes in op.dtype_combinations(case):
            binding = op.bind_case(case, dtypes)
            for kernel in kernels:
                if kernel.language != "cuda":
                    if len(kernels) == 1:
                        job = Job(mode, op.name, kernel.name, 0, index, dtypes, _IMITATED, seeds)
                        yield job, kernel, case, f"{kernel.name} is written in Triton; --device cpu interprets it"
                    continue
                for arch in _targets(kernel, architectures):
                    yield from _tactics(op, kernel, case, index, dtypes, binding, mode, arch, every_tactic, seeds)


def _tactics(
    op: Op,
    kernel: Kernel,
    case: Case,
    index: int,
    dtypes: dict[str, str],
    binding: Binding,
    mode: str,
    arch: str,
    every_tactic: bool,
    seeds: tuple[int, ...],
) -> Iterator[tuple[Job, Kernel, Case, str]]:
    refusals = {t: kernel.refusal(binding, t, _emulated(arch)) or "" for t in range(len(kernel.tactics))}
    served = [t for t, refusal in refusals.items() if not refusal]
    if every_tactic:
        chosen = list(refusals)
    else:
        chosen = [served[index % len(served)]] if served else [0]
    for tactic in chosen:
        job = Job(mode, op.name, kernel.name, tactic, index, dtypes, arch, seeds)
        yield job, kernel, case, f"{kernel.name} {refusals[tactic]}" if refusals[tactic] else ""


def carry_out(job: Job, kernel: Kernel, binding: Binding, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Run the kernel of a job; see :func:`trtforge.harness.emulate.emulator.run`."""
    sanitize = job.mode.partition("-")[2] or None
    return run(kernel, binding, job.tactic, inputs, _emulated(job.arch), sanitize, seed=job.case)
