"""One CUDA kernel on the CPU: its source compiled for this machine, its threads as fibers in a hostile order.

Every output is poisoned, every tensor lies between guard bytes, shared memory starts with a pattern. Without a
sanitizer the grid runs three times: in a shuffled order, the same with another pattern in shared memory, and in another
order with copies that land as early as they may. Results that differ are a fault, whatever the reference says.
"""

from __future__ import annotations

import math
import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from trtforge.bindings.architectures import Architecture
from trtforge.bindings.dtypes import dtype
from trtforge.bindings.errors import UsageError
from trtforge.harness.emulate.reports import KernelFault, fault
from trtforge.harness.emulate.toolchain import SANITIZERS, Program, build
from trtforge.harness.emulate.translate import NotEmulated
from trtforge.harness.jobs import beyond
from trtforge.kernels.binding import Binding
from trtforge.kernels.compile import KERNELS, constants_of, defines_of, embedded_form, embedded_path
from trtforge.kernels.contract import Launch
from trtforge.kernels.dims import evaluate
from trtforge.kernels.embedded import launch_of
from trtforge.kernels.op import Kernel
from trtforge.kernels.plan import tensor_map_specs

#: Seconds that one program may take.
TIME_LIMIT = 240.0
_OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0:exitcode=77",
    "TSAN_OPTIONS": "halt_on_error=1:exitcode=77:report_signal_unsafe=0:history_size=4",
    "UBSAN_OPTIONS": "halt_on_error=1:exitcode=77",
}


@dataclass(frozen=True)
class Round:
    """One run of the grid. ``order``: shuffled or ranked; ``timing`` of copies: late or early; ``pattern``: a byte."""

    order: str
    timing: str
    pattern: int
    seed: int


def rounds_of(seed: int, sanitize: str | None) -> tuple[Round, ...]:
    """Three rounds, or the two orders where a sanitizer watches."""
    first = Round("shuffled", "late", 0xFF, seed)
    other = Round("ranked", "early", 0xFF, seed + 1)
    if sanitize is not None:
        return (first, other)
    return (first, Round("shuffled", "late", 0x4B, seed), other)


def _triple(value: object) -> tuple[int, int, int]:
    x, y, z = (evaluate(v, {}) for v in Launch.triple(value))
    return x, y, z


def program_of(
    kernel: Kernel,
    binding: Binding,
    tactic: int,
    target: Architecture,
    sanitize: str | None = None,
    embedded: bool = False,
) -> Program:
    """The kernel compiled for this machine, or taken from the cache; see :func:`.toolchain.build`.

    ``embedded``: in the form that an engine keeps (:mod:`trtforge.kernels.embedded`).
    """
    if sanitize is not None and sanitize not in SANITIZERS:
        raise UsageError(f"sanitize is {sanitize!r}; accepted: None, {', '.join(SANITIZERS)}")
    if kernel.language != "cuda":
        raise NotEmulated(f"{kernel} is written in {kernel.language}; only CUDA C++ is emulated")
    launch = kernel.launch(binding, tactic, target)
    defines = defines_of(kernel, binding, constants_of(kernel, binding, tactic, launch))
    source = kernel.source
    form = embedded_form(kernel, binding, launch) if embedded else None
    if form is None:
        return build(source.path, source.entry, defines, (KERNELS,), target.cc * 10, sanitize)
    path = embedded_path(kernel)
    return build(path, form.entry, defines, (KERNELS,), target.cc * 10, sanitize, form.text)


def _job(
    binding: Binding, launch: Launch, program: Program, sizes: Mapping[str, int], rounds: Sequence[Round]
) -> list[str]:
    """The lines of job.txt; see cpp/runtime/job.h."""
    lines = [
        "grid {} {} {}".format(*_triple(launch.grid)),
        "block {} {} {}".format(*_triple(launch.block)),
        "cluster {} {} {}".format(*_triple(launch.cluster or 1)),
        f"shared {evaluate(launch.shared, {})} {program.dynamic_alignment}",
    ]
    lines += [f"round {r.order} {r.timing} {r.pattern} {r.seed}" for r in rounds]
    lines += [f"input {name}" for name in binding.inputs]
    lines += [f"integer {evaluate(scalar, {})}" for scalar in launch.scalars]
    inputs = list(binding.inputs)
    lines += [
        f"update {name} {inputs.index(binding.aliases[name])}" if name in binding.aliases else f"output {name} {size}"
        for name, size in sizes.items()
    ]
    for spec in tensor_map_specs(binding, launch):
        numbers = [spec.slot, spec.dtype.itemsize, spec.swizzle, len(spec.shape), *spec.shape, *spec.strides, *spec.box]
        lines.append("map " + " ".join(map(str, numbers)))
    return lines


def run(
    kernel: Kernel,
    binding: Binding,
    tactic: int,
    inputs: Mapping[str, np.ndarray],
    target: Architecture,
    sanitize: str | None = None,
    seed: int = 0,
    embedded: bool = False,
) -> dict[str, np.ndarray]:
    """Run one CUDA kernel on the CPU as ``target`` would; returns its outputs.

    ``sanitize``: None, "address", "undefined" or "thread"; ``embedded``: the form that an engine keeps. Raises
    NotEmulated for a kernel with a construct that the emulation does not have, MissingDependencyError without a
    compiler, KernelFault for what was found.
    """
    launch = kernel.launch(binding, tactic, target)
    if faults := beyond(target, math.prod(_triple(launch.block)), evaluate(launch.shared, {})):
        raise KernelFault(f"{kernel}: {'; '.join(faults)}")
    program = program_of(kernel, binding, tactic, target, sanitize, embedded)
    if embedded:  # clusters are an attribute of the code then, which is no matter of the emulated launch
        launch = replace(launch_of(launch, target), cluster=launch.cluster)
    shapes = {name: tuple(int(s) for s in shape) for name, shape in binding.outputs.items()}
    kinds = {name: dtype(binding.dtypes[name]) for name in shapes}
    sizes = {name: int(np.prod(shape)) * kinds[name].itemsize for name, shape in shapes.items()}
    rounds = rounds_of(seed, sanitize)
    with tempfile.TemporaryDirectory(prefix="trtforge-emulate-") as text:
        folder = Path(text)
        for name in binding.inputs:
            (folder / name).write_bytes(np.ascontiguousarray(inputs[name]).reshape(-1).view(np.uint8).tobytes())
        (folder / "job.txt").write_text("\n".join(_job(binding, launch, program, sizes, rounds)) + "\n")
        printed = _execute(program, folder)
        results = [{name: (folder / f"{name}.{i}").read_bytes() for name in shapes} for i in range(len(rounds))]
    if "atomics" not in printed:
        _compare_rounds(kernel, rounds, results)
    return {
        name: np.frombuffer(results[0][name], np.uint8).view(kinds[name].numpy).reshape(shapes[name]) for name in shapes
    }


def _execute(program: Program, folder: Path) -> str:
    environment = {**os.environ, **_OPTIONS}
    try:
        done = subprocess.run(
            [str(program.path)], cwd=folder, env=environment, capture_output=True, timeout=TIME_LIMIT, check=False
        )
    except subprocess.TimeoutExpired:
        raise KernelFault(
            f"the emulated kernel did not end within {TIME_LIMIT:g} s (a thread that waits for another in a loop of "
            "its own, without a barrier, waits forever)"
        ) from None
    if done.returncode:
        raise fault(done.returncode, done.stderr.decode(errors="replace"))
    return done.stdout.decode(errors="replace")


def _compare_rounds(kernel: Kernel, rounds: Sequence[Round], results: Sequence[Mapping[str, bytes]]) -> None:
    """Without atomics a kernel's result depends on nothing but its inputs. Raises KernelFault."""
    for other, result in zip(rounds[1:], results[1:]):
        for name, content in result.items():
            if content == results[0][name]:
                continue
            if other.pattern != rounds[0].pattern:
                raise KernelFault(
                    f"{kernel}: the output {name!r} depends on what shared memory held before the kernel began: a "
                    "thread reads shared memory that nobody has written yet (a barrier or an initialization is missing)"
                )
            raise KernelFault(
                f"{kernel}: the output {name!r} depends on the order in which threads and copies happen to run: a "
                "barrier or a wait is missing"
            )
