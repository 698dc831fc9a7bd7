"""A worker process: reads jobs as JSON lines, writes rows as JSON lines.

Kernels run here and not in the caller's process: a kernel that crashes, hangs or poisons the CUDA context costs one
row. Started by :mod:`trtforge.harness.pool`.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict
from functools import lru_cache

import numpy as np

from trtforge.bindings.architectures import architecture
from trtforge.bindings.errors import DeviceError, ForgeError, MissingDependencyError
from trtforge.harness.compare import Comparison, compare, tolerance_of
from trtforge.harness.emulate.translate import NotEmulated
from trtforge.harness.jobs import EMULATED, PLUGIN_MODES, Job, Row, beyond, plain, row_of
from trtforge.kernels import registry
from trtforge.kernels.binding import Binding
from trtforge.kernels.op import Kernel, Op


@lru_cache(maxsize=4)
def _problem(
    op_name: str, case: int, dtypes: tuple[tuple[str, str], ...], seed: int
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Inputs and reference outputs; kept while the kernels and tactics of one case are run."""
    op = registry.get(op_name)
    inputs = op.sample_inputs(op.cases[case], dict(dtypes), seed)
    return inputs, op.run_reference(inputs, op.cases[case].attributes)


def _worst(op: Op, binding: Binding, outputs: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> Comparison:
    results = []
    for name, reference in expected.items():
        found = compare(outputs[name], reference, tolerance_of(op, binding.dtypes[name]))
        if not found.passed and len(expected) > 1:
            found = Comparison(False, found.error, found.tolerance, f"output {name!r}: {found.reason}")
        results.append(found)
    return max(results, key=lambda c: (not c.passed, c.error))


def run_job(job: Job) -> Row:
    """Carry out one job; failures of the kernel become the row's status, other errors too."""
    op = registry.get(job.op)
    kernel = op.kernel_named(job.kernel)
    case = op.cases[job.case]
    row = row_of(job, op, kernel, case)
    started = time.perf_counter()
    try:
        binding = op.bind_case(case, job.dtypes)
        if job.mode == "compile":
            _compile(job, kernel, binding, row)
        elif job.mode in PLUGIN_MODES:
            _plugin(job, op, kernel, binding, row)
        else:
            _compute(job, op, kernel, binding, row)
    except MissingDependencyError as error:
        row.status, row.reason = "skipped", str(error)
    except NotEmulated as error:
        _not_emulated(job, op, kernel, error, row)
    except ForgeError as error:
        row.status, row.reason = "failed", f"{type(error).__name__}: {error}"
        if isinstance(error, DeviceError):
            row.details["fatal"] = True
    except Exception as error:
        row.status = "failed"
        row.reason = f"{type(error).__name__}: {error}"
        row.details["traceback"] = traceback.format_exc(limit=-6)
    row.seconds = time.perf_counter() - started
    return row


def _not_emulated(job: Job, op: Op, kernel: Kernel, error: NotEmulated, row: Row) -> None:
    """A construct that the emulation does not have is no fault of the kernel, unless no compiler takes it either."""
    from trtforge.kernels.compile import compile_kernel

    row.status, row.reason = "skipped", f"{kernel.name} cannot be emulated: it uses {error}"
    try:
        compile_kernel(kernel, op.bind_case(op.cases[job.case], job.dtypes), job.tactic, architecture(job.arch))
    except MissingDependencyError:
        pass
    except ForgeError as refused:
        row.status, row.reason = "failed", f"{type(refused).__name__}: {refused}"


def _compile(job: Job, kernel: Kernel, binding: Binding, row: Row) -> None:
    from trtforge.kernels.compile import compile_kernel
    from trtforge.kernels.plan import geometry, tensor_map_specs

    target = architecture(job.arch)
    binary = compile_kernel(kernel, binding, job.tactic, target)
    launch = kernel.launch(binding, job.tactic, target)
    shape = geometry(kernel, binding, launch, binary)
    tensor_map_specs(binding, launch)
    threads = shape["block"][0] * shape["block"][1] * shape["block"][2]
    shared = shape["shared"] + binary.resources.static_shared
    resident, limiter = target.occupancy(max(threads, 1), binary.resources.registers, shared)
    row.details = {"registers": binary.resources.registers, "shared": shared, "blocks_per_sm": resident}
    faults = beyond(target, threads, shared)
    if binary.resources.spill_stores or binary.resources.spill_loads:
        faults.append(
            f"spills {binary.resources.spill_stores} bytes of stores, {binary.resources.spill_loads} of loads"
        )
    if not beyond(target, threads, shared) and resident < 1:
        faults.append(f"no block fits a multiprocessor of {target.name}: limited by {limiter}")
    faults += [w for w in binary.resources.warnings if "wgmma" in w.lower() or "setmaxnreg" in w.lower()]
    if faults:
        row.status, row.reason = "failed", "; ".join(faults)
    else:
        row.reason = f"verified statically, not run: {binary.resources.registers} registers, {shared} B shared"


def _compute(job: Job, op: Op, kernel: Kernel, binding: Binding, row: Row) -> None:
    if job.mode == "interpret":
        from trtforge.harness import interpreter

        target = architecture(job.arch)

        def execute(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            return interpreter.run(kernel, binding, job.tactic, inputs, target)

        note = "bfloat16 computed as float32" if "bfloat16" in binding.dtypes.values() else ""
    elif job.mode.startswith(EMULATED):
        from trtforge.harness.emulate.planning import carry_out

        def execute(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            return carry_out(job, kernel, binding, inputs)

        note = f"as on {job.arch}"
    else:
        from trtforge.harness import on_device

        def execute(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            return on_device.run(kernel, binding, job.tactic, inputs)

        note = ""
    _compare(job, op, binding, row, execute, note)


def _plugin(job: Job, op: Op, kernel: Kernel, binding: Binding, row: Row) -> None:
    from trtforge.bindings import device
    from trtforge.harness import on_device, plugin_check

    driven = plugin_check.drive(job, kernel, op.cases[job.case], binding)
    row.details = driven.details
    if not job.mode.endswith("cuda"):
        why = "no GPU" if device.why_no_gpu() else "device is cpu"
        row.reason = f"{driven.note}; not launched: {why}"
        return
    launch = plugin_check.launcher(driven, binding)
    label = f"{kernel} as a plugin"
    _compare(job, op, binding, row, lambda inputs: on_device.run_with(label, binding, inputs, launch), driven.note)


def _compare(
    job: Job,
    op: Op,
    binding: Binding,
    row: Row,
    execute: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]],
    note: str,
) -> None:
    worst: Comparison | None = None
    for seed in job.seeds:
        inputs, expected = _problem(op.name, job.case, tuple(sorted(job.dtypes.items())), seed)
        found = _worst(op, binding, execute(inputs), expected)
        if worst is None or (not found.passed, found.error) > (not worst.passed, worst.error):
            worst = found
    assert worst is not None
    row.error, row.tolerance = worst.error, worst.tolerance
    row.status = "passed" if worst.passed else "failed"
    row.reason = note if worst.passed else worst.reason


def _end_with_parent(parent: int, poll: float = 1.0) -> None:
    """End this process when the one that started it has gone: a kernel that hangs would outlive it otherwise."""
    while os.getppid() == parent:
        time.sleep(poll)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(poll)
    os._exit(1)


def main() -> None:
    """Serve jobs until standard input ends."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # ends the programs it runs, too
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    for target in json.loads(sys.argv[1]) if len(sys.argv) > 1 else []:
        registry.load(target)
    replies.write(json.dumps({"ready": True}) + "\n")
    for line in sys.stdin:
        row = run_job(Job.from_json(json.loads(line)))
        replies.write(json.dumps(plain(asdict(row))) + "\n")
        if row.details.get("fatal"):
            return


if __name__ == "__main__":
    main()
