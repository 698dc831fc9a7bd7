"""What a report holds: gathered from result files, and run on the spot where no file is given."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trtforge.bindings.architectures import INSPECTED, architecture
from trtforge.bindings.errors import FileError, ForgeError, MissingDependencyError, UsageError
from trtforge.bindings.optional import available, require
from trtforge.harness import check as checking
from trtforge.harness import measurement, pool
from trtforge.harness import profile as profiling
from trtforge.harness.environment import about
from trtforge.harness.inspection import Inspection, inspect_kernel, representative
from trtforge.harness.jobs import Job
from trtforge.harness.listing import Entry, list_kernels
from trtforge.harness.report.sources import Checks, committed, hold_types, read_checks
from trtforge.kernels import registry
from trtforge.kernels.contract import Case
from trtforge.kernels.op import Kernel, Op

#: Told the stage and how many steps it has (0 first), then the stage for every step that is done.
Start = Callable[[str, int], None]
Step = Callable[[str], None]


@dataclass
class Session:
    """Everything that one page shows. ``uninspected``: (kernel, architecture, why) of what could not be inspected."""

    title: str
    about: dict[str, Any]
    ops: list[Op]
    kernels: list[Entry]
    checks: list[Checks] = field(default_factory=list)
    inspections: list[Inspection] = field(default_factory=list)
    uninspected: list[tuple[str, str, str]] = field(default_factory=list)
    runs: list[tuple[str, measurement.Run]] = field(default_factory=list)
    profiles: list[tuple[str, list[profiling.Profile]]] = field(default_factory=list)


@dataclass(frozen=True)
class _Wanted:
    kernel: Kernel
    job: Job
    case: Case


def gather(
    ops: Sequence[str] = (),
    *,
    checks: Sequence[str | Path] = (),
    bench: Sequence[str | Path] = (),
    profiles: Sequence[str | Path] = (),
    title: str | None = None,
    architectures: Sequence[str] = INSPECTED,
    device: str = "auto",
    loads: Sequence[str] = (),
    workers: int | None = None,
    on_start: Start = lambda stage, total: None,
    on_step: Step = lambda stage: None,
) -> Session:
    """Read the files and run the rest.

    With ``ops``, checks and benchmarks are narrowed to them; they are checked where no ``checks`` are given, and every
    tactic of theirs is inspected. Without, checks and benchmarks that are not given are the committed ones, and the
    first tactic of every kernel is inspected. Files are read before any work. Raises FileError, UnknownNameError,
    UsageError, DeviceError.
    """
    registry.load_builtin()
    for one in loads:
        registry.load(one)
    chosen = list({op.name: op for op in map(registry.get, ops)}.values()) if ops else registry.ops()
    targets = [architecture(name).name for name in architectures]
    names = {op.name for op in chosen}
    session = Session(
        title or "TRTForge session report",
        about(),
        chosen,
        [entry for op in chosen for entry in list_kernels(op.name)],
        [read_checks(file) for file in checks or ([] if ops else committed("check.json"))],
        runs=[(str(file), _run(file)) for file in bench or committed("bench.json")],
        profiles=[(str(file), _profiles(file)) for file in profiles],
    )
    if ops:
        _narrow(session, names)
        if not checks:
            session.checks = [_checked(chosen, targets, device, loads, workers, on_start, on_step)]
    _inspect(session, targets, bool(ops), loads, workers, on_start, on_step)
    return session


def _run(file: str | Path) -> measurement.Run:
    run = measurement.read(file)
    for row in run.rows:
        hold_types(file, row)
    return run


def _profiles(file: str | Path) -> list[profiling.Profile]:
    found = profiling.read(file)
    for one in found:
        hold_types(file, one)
    if not found:
        raise FileError(f"{file} holds no profile; make one with 'trtforge profile OP'")
    return profiling.representative(found)


def _narrow(session: Session, names: set[str]) -> None:
    session.checks = [kept for kept in (c.only(names) for c in session.checks) if kept.kernels]
    for _, run in session.runs:
        run.rows = [row for row in run.rows if row.op in names]
    session.runs = [(source, run) for source, run in session.runs if run.rows]


def _checked(
    ops: Sequence[Op],
    architectures: Sequence[str],
    device: str,
    loads: Sequence[str],
    workers: int | None,
    on_start: Start,
    on_step: Step,
) -> Checks:
    rows = []
    for op in ops:
        rows += checking.check(
            op.name,
            device=device,
            loads=loads,
            architectures=architectures,
            workers=workers,
            on_start=lambda total, name=op.name: on_start(f"checking {name}", total),  # type: ignore[misc]
            on_row=lambda row: on_step(f"checking {row.op}"),
        )
    return Checks("run for this report", **checking.report(rows))


def _inspect(
    session: Session,
    architectures: Sequence[str],
    every_tactic: bool,
    loads: Sequence[str],
    workers: int | None,
    on_start: Start,
    on_step: Step,
) -> None:
    """Compile in worker processes, where a compiler that fails costs one row, then read the results in this one."""
    if not available("triton"):
        require("cuda.bindings.nvrtc", "inspection, which compiles kernels,")
    wanted: list[_Wanted] = []
    for op in session.ops:
        for kernel in op.kernels:
            for name in architectures:
                wanted += _of_kernel(session, op, kernel, name, every_tactic)
    on_start("compiling", len(wanted))
    rows = pool.run_jobs(
        "compile",
        [one.job for one in wanted],
        loads,
        workers or os.cpu_count() or 1,
        on_row=lambda row: on_step("compiling"),
    )
    on_start("inspecting", len(wanted))
    for one, row in zip(wanted, rows, strict=True):
        where = f"{row.op}/{row.kernel} [{row.tactic}]"
        on_step("inspecting")
        if not row.details:  # no binary came of it
            session.uninspected.append((where, one.job.arch, row.reason))
            continue
        try:
            target = architecture(one.job.arch)
            session.inspections.append(inspect_kernel(one.kernel, one.job.tactic, target, one.case, one.job.dtypes))
        except ForgeError as error:
            session.uninspected.append((where, one.job.arch, str(error)))


def _of_kernel(session: Session, op: Op, kernel: Kernel, name: str, every_tactic: bool) -> list[_Wanted]:
    target = architecture(name)
    if not kernel.serves(target):
        return []
    wanted = []
    for tactic in range(len(kernel.tactics)):
        found = representative(op, kernel, tactic, target, None)
        if isinstance(found, str):
            if every_tactic:
                session.uninspected.append((f"{op.name}/{kernel.name} [{kernel.tactic_label(tactic)}]", name, found))
            continue
        case, dtypes = found
        wanted.append(
            _Wanted(kernel, Job("compile", op.name, kernel.name, tactic, op.cases.index(case), dtypes, name), case)
        )
        if not every_tactic:
            break
    return wanted


def report(out: str | Path, ops: Sequence[str] = (), **options: Any) -> Session:
    """Gather (see :func:`gather` for the options) and write the page to ``out``, whole or not at all.

    Raises what :func:`gather` raises, MissingDependencyError without Jinja, and ForgeError where the file cannot be
    written; a file that was there before is then as it was.
    """
    from trtforge.bindings.files import replace_file

    path = Path(out)
    if path.is_dir():
        raise UsageError(f"{path} is a folder; name the HTML file to write")
    if not path.resolve().parent.is_dir():
        raise UsageError(f"{path} cannot be written: there is no folder {path.resolve().parent}")
    if not available("jinja2"):
        raise MissingDependencyError("report needs the Python module 'jinja2': pip install 'trtforge[report]'")
    from trtforge.harness.report.page import render

    session = gather(ops, **options)
    replace_file(path, render(session))
    return session
