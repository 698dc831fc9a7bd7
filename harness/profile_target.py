"""The process that a profiling tool watches: ``python -m trtforge.harness.profile_target OP [options]``.

It prepares one call of an op, runs it a few times, and then makes the wanted launches between cuProfilerStart and
cuProfilerStop, inside the range that :mod:`trtforge.bindings.ranges` puts around every launch. ``--describe FILE``
writes what was launched, as JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from trtforge.bindings import device
from trtforge.bindings.architectures import Architecture
from trtforge.bindings.dtypes import dtype as dtype_of
from trtforge.bindings.errors import ContractError, ForgeError, UnknownNameError
from trtforge.bindings.files import replace_file
from trtforge.bindings.optional import require
from trtforge.harness.environment import about
from trtforge.harness.jobs import dtype_label
from trtforge.harness.profile_tools import add_selection
from trtforge.kernels import plan, registry
from trtforge.kernels.contract import Case
from trtforge.kernels.op import Choice, Op

SEED = 7


def candidates(op: Op, case: str | None, dtype: str | None) -> list[tuple[Case, dict[str, str]]]:
    """Cases and dtypes that the texts select, benchmark cases first. Raises UnknownNameError."""
    cases = [c for c in op.cases if case == c.label] or [c for c in op.cases if case is None or case in c.label]
    if not cases:
        raise UnknownNameError(f"{op.name} has no case like {case!r}; it has: {'; '.join(c.label for c in op.cases)}")
    pairs = [
        (one, dtypes)
        for one in sorted(cases, key=lambda c: "bench" not in c.tags)
        for dtypes in op.dtype_combinations(one)
    ]
    fitting = [(c, d) for c, d in pairs if dtype is None or dtype == dtype_label(op, d) or dtype in d.values()]
    if not fitting:
        known = ", ".join(dict.fromkeys(dtype_label(op, d) for _, d in pairs))
        raise UnknownNameError(f"{op.name}: the chosen cases have no dtype {dtype!r}; they have: {known}")
    return fitting


def select(
    op: Op, target: Architecture, case: str | None, dtype: str | None, kernel: str | None, tactic: int | None
) -> tuple[Case, dict[str, str], Choice]:
    """The first case and dtypes that a kernel serves, with the kernel and tactic. Raises ContractError."""
    refusal: ContractError | None = None
    for one, dtypes in candidates(op, case, dtype):
        try:
            return one, dtypes, op.choose(op.bind_case(one, dtypes), target, kernel=kernel, tactic=tactic)
        except ContractError as error:
            refusal = error
    raise refusal or ContractError(f"{op.name} declares no case")


@contextmanager
def profiled() -> Iterator[None]:
    """What the tool collects: everything that is launched in the block, finished."""
    cu = device.driver()
    device.synchronize()
    device.checked(cu.cuProfilerStart())
    try:
        yield
        device.synchronize()
    finally:
        device.checked(cu.cuProfilerStop())


def describe(path: str | None, facts: dict[str, Any]) -> None:
    """Write what is launched, with the machine and versions, where a path is given."""
    if path:
        replace_file(path, json.dumps({**facts, "about": about()}, indent=1, default=str) + "\n")


def _launch(arguments: argparse.Namespace) -> None:
    for target in arguments.load:
        registry.load(target)
    op = registry.get(arguments.op)
    device.require_gpu(f"profiling {op.name}")
    gpu = device.current_device()
    chosen = (arguments.case, arguments.dtype, arguments.kernel, arguments.tactic)
    case, dtypes, choice = select(op, gpu.architecture, *chosen)
    cupy = require("cupy", "profiling a kernel")
    binding = op.bind_case(case, dtypes)
    cost = op.cost_of(binding)
    ready = plan.make(choice.kernel, choice.tactic, binding)
    describe(
        arguments.describe,
        {
            "op": op.name,
            "kernel": choice.kernel.name,
            "tactic": choice.kernel.tactic_label(choice.tactic),
            "case": case.label,
            "dtype": dtype_label(op, dtypes),
            "input_dtype": next(iter(binding.dtypes.values())),
            "flops": int(cost.flops),
            "bytes": int(cost.bytes or 0),
            "cc": gpu.cc,
            "sms": gpu.architecture.sms,
        },
    )
    arrays = op.sample_inputs(case, dtypes, SEED)
    buffers = [cupy.asarray(array.reshape(-1).view(np.uint8)) for array in arrays.values()]
    for name, shape in binding.outputs.items():
        count = int(np.prod([int(n) for n in shape], dtype=np.int64))
        buffers.append(cupy.zeros(count * dtype_of(binding.dtypes[name]).itemsize, cupy.uint8))
    pointers = [buffer.data.ptr for buffer in buffers]
    for _ in range(arguments.warmup):
        ready.launch(pointers, 0)
    with profiled():
        for _ in range(arguments.launches):
            ready.launch(pointers, 0)
    print(f"{ready.label} case {case.label}: {arguments.launches} launches", flush=True)


def add_work(parser: argparse.ArgumentParser) -> None:
    """The options that every watched process has."""
    parser.add_argument("--warmup", type=int, default=3, help="runs that the tool does not see (default 3)")
    parser.add_argument("--launches", type=int, default=1, help="runs that it sees (default 1)")
    parser.add_argument("--load", action="append", default=[], metavar="FILE_OR_MODULE")
    parser.add_argument("--describe", metavar="FILE", help="write what was launched to this JSON file")


def main(argv: Sequence[str] | None = None) -> int:
    """Make the launches; returns 0, or 2 with one line on standard error."""
    parser = argparse.ArgumentParser(prog="trtforge.harness.profile_target", description=_launch.__doc__)
    parser.add_argument("op")
    add_selection(parser)
    add_work(parser)
    return finish(lambda: _launch(parser.parse_args(argv)))


def finish(work: Any) -> int:
    """Run ``work``; a ForgeError becomes one line and status 2."""
    try:
        work()
    except ForgeError as error:
        print(f"trtforge: {type(error).__name__}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
