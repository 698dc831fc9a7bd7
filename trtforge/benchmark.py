"""``trtforge bench``: the command line around :func:`trtforge.harness.bench.bench`."""

from __future__ import annotations

import argparse
import contextlib
import json
import shlex
import signal
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtforge.bindings.errors import DeviceError, FileError, UsageError

if TYPE_CHECKING:
    from trtforge.harness.measurement import Measurement, Run


def add_options(sub: argparse.ArgumentParser) -> None:
    """The arguments of ``trtforge bench``."""
    sub.add_argument("ops", nargs="*", metavar="OP", help="ops (default: all that have benchmark cases)")
    sub.add_argument("--case", default="", metavar="TEXT", help="only cases whose label contains this text")
    sub.add_argument("--dtype", help="dtype of the first input (default: the first that the case allows)")
    sub.add_argument("--kernel", help="one of our kernels (default: all)")
    sub.add_argument("--vs", action="append", metavar="PEER", help="only this peer (may be repeated); none: no peers")
    sub.add_argument("--launch", choices=("eager", "graph", "both"), default="graph", help="how calls are launched")
    sub.add_argument(
        "--tactics", choices=("best", "all"), default="best", help="all: every tactic, and write the tuning tables"
    )
    sub.add_argument("--no-tables", action="store_true", help="with --tactics all: leave the tuning tables alone")
    sub.add_argument("--forms", default="direct", metavar="direct,jit,aot", help="also as TensorRT plugins")
    sub.add_argument("--seconds", type=float, default=0.05, help="device time per contender and case (default 0.05)")
    sub.add_argument("--workers", type=int, help="processes that compile (default: one per core)")
    sub.add_argument(
        "--time-limit", type=float, metavar="SECONDS", help="begin no case after this; the run is marked as stopped"
    )
    sub.add_argument("--merge", nargs="+", metavar="RUN.json", help="measure nothing: put runs of one GPU together")
    sub.add_argument("-v", "--verbose", action="store_true", help="print where the time of the run went")
    sub.add_argument("--plot", metavar="FILE", help="draw the run (.svg or .png)")
    sub.add_argument("--against", metavar="STORED.json", help="a stored run to compare with")
    sub.add_argument(
        "--fail-below",
        type=float,
        metavar="RATIO",
        help="exit with 1 where a peer's time (with --against: the stored time) over ours is below this",
    )


def run(arguments: argparse.Namespace) -> int:
    """Measure, print, write.

    1 when a row falls below ``--fail-below`` or the GPU failed, 130 and 143 after Ctrl-C and SIGTERM.
    """
    from trtforge import show
    from trtforge.harness import measurement

    stored = measurement.read(arguments.against) if arguments.against else None
    _refuse_early(arguments)
    if arguments.merge:
        pieces = {str(path): measurement.read(path) for path in arguments.merge}
        session = _Session(arguments)
        session.finish(measurement.merge(pieces))
        return _verdict(session.found, stored, arguments)
    session = _Session(arguments)
    with show.progress(show.console(stderr=True)) as bar, _ended_by_signals() as ended:
        task = bar.add_task("measuring", total=None)

        def on_start(cases: Mapping[str, int]) -> None:
            session.start(cases)
            bar.update(task, total=sum(cases.values()))

        def on_case(found: Run, rows: list[Measurement]) -> None:
            session.case(found, rows)
            bar.update(task, advance=1, description=f"{rows[0].op} [{rows[0].case}]" if rows else "")

        found = _measure(
            arguments,
            case=arguments.case,
            dtype=arguments.dtype,
            kernel=arguments.kernel,
            vs=[] if arguments.vs == ["none"] else arguments.vs,
            launch=arguments.launch,
            tactics=arguments.tactics,
            forms=[form.strip() for form in arguments.forms.split(",") if form.strip()],
            seconds=arguments.seconds,
            loads=arguments.load,
            workers=arguments.workers,
            time_limit=arguments.time_limit,
            on_start=on_start,
            on_case=on_case,
        )
    session.finish(found)
    status = _verdict(found, stored, arguments)
    if ended:
        return 128 + ended[0]
    return max(1, status) if session.refused else status


class _Session:
    """What is printed and written while a run grows: the file after every case, tables when an op is complete."""

    def __init__(self, arguments: argparse.Namespace):
        from trtforge import show

        self.arguments = arguments
        self.found: Run
        self.refused: list[str] = []
        self._quiet = arguments.json == "-"
        self._file = "" if self._quiet else arguments.json
        self._out, self._errors = show.console(), show.console(stderr=True)
        self._total = 0
        self._left: dict[str, int] = {}
        self._told: set[str] = set()
        self._tunes = arguments.tactics == "all" and not (arguments.no_tables or arguments.kernel)

    def start(self, cases: Mapping[str, int]) -> None:
        """``cases``: how many will be measured of each op."""
        self._left = dict(cases)
        self._total = sum(cases.values()) * (2 if self.arguments.launch == "both" else 1)

    def case(self, found: Run, rows: list[Measurement]) -> None:
        """A case is done, the last one of ``found``."""
        with contextlib.suppress(FileError):  # the run goes on; the last write says what is wrong
            self._write(found)
        for op in dict.fromkeys(row.op for row in rows):
            self._left[op] -= 1
            if not self._left[op]:
                self._complete(found, op)

    def finish(self, found: Run) -> None:
        """The run has ended, early or not."""
        self.found = found
        refused: FileError | None = None
        try:
            self._write(found)
        except FileError as error:
            refused = error
        if self._quiet:
            print(json.dumps(found.to_json(), indent=1, default=str))
        else:
            self._tell(found)
        if self.arguments.plot:
            from trtforge.harness import plots

            plots.write(found, self.arguments.plot)
        if refused is not None:
            raise refused

    def _tell(self, found: Run) -> None:
        from trtforge import bench_tables

        whole = max(self._total, len(found.problems())) <= bench_tables.WHOLE_TABLES
        for name in dict.fromkeys(row.op for row in found.rows):
            if name not in self._told:
                bench_tables.op_tables(self._out, found, name, whole)
        bench_tables.closing(self._out, found, whole)
        if self.arguments.verbose:
            bench_tables.seconds(self._out, found)

    def _complete(self, found: Run, op: str) -> None:
        """Every case of an op is measured. On a terminal its table waits until the bar is gone."""
        from trtforge import bench_tables

        if self._tunes:
            written, refused = tune(found, [op])
            self.refused += refused
            for line in (*(f"wrote {path}" for path in written), *refused):
                self._errors.print(line, markup=False)
            mark_chosen(found, op)
        if not self._quiet and not self._out.is_terminal:
            bench_tables.op_tables(self._out, found, op, self._total <= bench_tables.WHOLE_TABLES)
            self._told.add(op)

    def _write(self, found: Run) -> None:
        from trtforge.harness import measurement

        found.about["command"] = " ".join(["trtforge", *self.arguments.typed])
        if self._file:
            measurement.write(found, self._file)


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[list[int]]:
    """Ctrl-C and SIGTERM interrupt what runs inside; the list then holds the signal's number."""
    caught: list[int] = []

    def interrupt(number: int, frame: object) -> None:
        caught.append(number)
        raise KeyboardInterrupt(f"ended by {signal.Signals(number).name}")

    try:
        before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread, which alone gets signals
        yield caught
        return
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _measure(arguments: argparse.Namespace, **options: Any) -> Run:
    """:func:`bench`; where there is no GPU the error says what to type where there is one."""
    from trtforge.bindings import device
    from trtforge.harness.bench import bench

    try:
        return bench(*arguments.ops, **options)
    except DeviceError as error:
        if device.has_gpu():
            raise
        kept = arguments.json if arguments.json not in (None, "-") else "bench.json"
        words = [word for word in arguments.typed if word != "--json" or kept == arguments.json]
        typed = shlex.join(["trtforge", *words, *([] if kept == arguments.json else ["--json", kept])])
        page = shlex.join(["trtforge", "report", "-o", "report.html", "--bench", kept])
        raise DeviceError(f"{error}. Where there is one: {typed} ; {kept} is then read anywhere: {page}") from error


def _refuse_early(arguments: argparse.Namespace) -> None:
    """Raise UsageError for what would be noticed only after minutes of measuring."""
    if arguments.against and arguments.fail_below is None:
        raise UsageError("--against compares for --fail-below RATIO; give both")
    for name in ("json", "plot"):
        given = getattr(arguments, name)
        if given and given != "-" and not Path(given).resolve().parent.is_dir():
            raise UsageError(f"--{name} {given}: there is no folder {Path(given).resolve().parent}")
    if arguments.merge and not arguments.json:
        raise UsageError("--merge puts runs together into the file of --json; give both")
    if arguments.plot and Path(arguments.plot).suffix not in (".svg", ".png"):
        raise UsageError(f"--plot {arguments.plot}: a plot is written as .svg or .png")


def _verdict(found: Run, stored: Run | None, arguments: argparse.Namespace) -> int:
    from trtforge import show
    from trtforge.harness import regressions
    from trtforge.harness.bench import TIME_LIMIT

    errors = show.console(stderr=True)
    wrong = [row for row in found.rows if row.ours and row.note.startswith("wrong")]
    for row in wrong:
        errors.print(f"{row.name}: {row.note}", style="bold red", markup=False)
    stopped = str(found.about.get("stopped", ""))
    if stopped:
        errors.print(f"stopped: {stopped}", style="bold red", markup=False)
    lines: list[str] = []
    if arguments.fail_below is not None:
        if stored is not None:
            lines = regressions.below_stored(found, stored, arguments.fail_below)
        else:
            lines = regressions.below_peers(found, arguments.fail_below)
        for line in lines:
            errors.print(line, style="bold red", markup=False)
    failed = stopped and not stopped.startswith(TIME_LIMIT)
    return 1 if wrong or lines or failed else 0


def tune(found: Run, ops: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Write the tuning tables of ops of a run with all tactics; returns their files, and why an op has none."""
    from trtforge.bindings import device
    from trtforge.bindings.errors import ForgeError
    from trtforge.kernels import registry, tuning

    gpu = device.current_device().name
    written, refused = [], []
    about = {name: value for name, value in found.about.items() if name not in ("seconds", "stopped")}
    for name in ops:
        op = registry.get(name)
        try:
            entries = tuning.rows_from(op, found.rows)
            if entries:
                written.append(tuning.write(op, gpu, entries, about))
        except ForgeError as error:
            refused.append(f"no tuning table of {name}: {error}")
    return written, refused


def mark_chosen(found: Run, name: str) -> None:
    """Say anew which rows of an op are what a plain call runs, which a tuning table may have changed since.

    A problem keeps its mark where the table's choice was not timed in this run.
    """
    from trtforge.bindings import device
    from trtforge.harness.plot_data import binding_of
    from trtforge.kernels import registry

    op, target = registry.get(name), device.current_device().architecture
    for (of, case, dtype, _), rows in found.problems().items():
        binding = binding_of(of, case, dtype) if of == op.name else None
        if binding is None:
            continue
        choice = op.choose(binding, target)
        label = choice.kernel.tactic_label(choice.tactic)
        ours = [row for row in rows if row.ours and row.microseconds is not None]
        if any((row.kernel, row.tactic) == (choice.kernel.name, label) for row in ours):
            for row in ours:
                row.chosen = (row.kernel, row.tactic) == (choice.kernel.name, label)
