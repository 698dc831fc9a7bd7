"""Tables and progress for people: ``rich`` on a terminal, plain text when piped, ``NO_COLOR`` respected."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.markup import escape
from rich.padding import Padding
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from trtforge.harness.check import summary
from trtforge.harness.inspection import Inspection
from trtforge.harness.jobs import Row
from trtforge.harness.listing import Entry

_PIPED_WIDTH = 200
FAILURES_SHOWN = 20
_OPTIONS_TOLD = re.compile(r" \(--gpu-architecture[^)]*\)")
_NUMBERS = re.compile(r"[-+]?(\d[\d.]*(e[-+]?\d+)?|\binf\b|\bnan\b)(, )?")
_COLORS = {"passed": "green", "failed": "bold red", "skipped": "yellow"}


def console(stderr: bool = False) -> Console:
    """A console that is wide enough for tables when its output goes to a file or pipe."""
    made = Console(stderr=stderr, highlight=False, soft_wrap=False)
    return made if made.is_terminal else Console(stderr=stderr, highlight=False, width=_PIPED_WIDTH)


def progress(out: Console) -> Progress:
    """A progress bar; silent when the output is no terminal."""
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=out,
        transient=True,
        disable=not out.is_terminal,
    )


class _Fitting(Table):
    """A table; where the terminal is too narrow for its longest words, two lines or more per row instead."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if self.__rich_measure__(console, options).minimum <= options.max_width:
            yield from super().__rich_console__(console, options)
            return
        if self.title:
            yield self.title
        names = [str(column.header) for column in self.columns]
        for row in zip(*(column.cells for column in self.columns)):
            first, second, *rest = (str(cell) for cell in row) if len(row) > 1 else (str(row[0]), "")
            yield f"[bold]{first}[/] {second}"
            told = " · ".join(f"[dim]{name}[/] {cell}" for name, cell in zip(names[2:], rest) if cell)
            if told:
                yield Padding(told, (0, 0, 0, 4))


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Table:
    made = _Fitting(title=title, title_justify="left", header_style="bold", expand=False)
    for name in columns:
        right = bool(rows) and all(isinstance(r[columns.index(name)], (int, float)) for r in rows)
        made.add_column(name, justify="right" if right else "left", overflow="fold")
    for row in rows:
        made.add_row(*(str(cell) for cell in row))
    return made


def listing(entries: Sequence[Entry]) -> Table:
    rows: list[tuple[Any, ...]] = []
    for e in entries:
        aot = "yes" + (f" ({', '.join(e.static)} static)" if e.static else "") if e.aot else "no"
        aot += f": {e.reason}" if e.reason else ""
        rows.append((e.op, e.kernel, e.language, e.architectures, e.dtypes, e.tactics, escape(aot)))
    columns: tuple[str, ...] = ("op", "kernel", "language", "architectures", "dtypes", "tactics", "AOT plugin")
    if any(e.tuned for e in entries):
        columns, rows = (*columns, "tuned"), [(*row, escape(e.tuned)) for row, e in zip(rows, entries)]
    return table(f"{len(entries)} kernel{'' if len(entries) == 1 else 's'}", columns, rows)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2e}"


def check_rows(out: Console, rows: Sequence[Row], every: bool) -> None:
    """Print one line per kernel and way of checking (or each row), every kind of failure, and why rows were skipped."""
    out.print(_every_row(rows) if every else _by_kernel(rows))
    if not every:
        skips = Counter(f"{r.op}: {r.reason}" for r in rows if r.status == "skipped")
        for reason, times in skips.items():
            out.print(f"[yellow]skipped[/] {times} × {escape(reason)}", soft_wrap=True)
    failures: dict[tuple[str, str, str], list[Row]] = {}
    for r in rows:
        if r.status == "failed":
            failures.setdefault((r.op, r.kernel, _kind(r)), []).append(r)
    for (op, kernel, _), members in list(failures.items())[:FAILURES_SHOWN]:
        r = members[0]
        more = f" (and {len(members) - 1} more rows)" if len(members) > 1 else ""
        where = f"{op}/{kernel} [{r.tactic}] case {r.case} {r.dtype} {r.how}{more}"
        out.print(f"[bold red]FAILED[/] {escape(where)}: {escape(r.reason)}", soft_wrap=True)
    if len(failures) > FAILURES_SHOWN:
        out.print(f"{len(failures) - FAILURES_SHOWN} other kinds of failure are not shown; --json has every row")
    if any(r.language == "cuda" and r.how.startswith("compiled") for r in rows):
        out.print("CUDA kernels were compiled and verified statically (parameters, spills, shared memory), not run.")
        out.print("To run them on this CPU, held against the reference: the same command with --device emulate")
    count = summary(rows)
    color = "red" if count["failed"] else "green"
    out.print(f"[{color}]{count['passed']} passed, {count['failed']} failed, {count['skipped']} skipped[/]")


def _kind(row: Row) -> str:
    """The reason without what differs from row to row: one mistake fails with many options, sizes and values."""
    told = _OPTIONS_TOLD.sub("", row.reason)
    return told if row.error is None else _NUMBERS.sub("#", told)


def _share(worst: float | None) -> str:
    """The worst error in terms of the tolerance."""
    if worst is None:
        return "-"
    if not math.isfinite(worst):
        return "not finite"
    return f"{worst:.0%} of tolerance" if worst < 10 else f"{worst:,.0f} × tolerance"


def _every_row(rows: Sequence[Row]) -> Table:
    columns = ("op", "kernel", "tactic", "case", "dtype", "device", "how", "error", "tolerance", "status", "reason")
    shown = []
    for r in rows:
        named = [escape(str(getattr(r, name))) for name in columns[:7]]
        status = f"[{_COLORS[r.status]}]{r.status}[/]"
        shown.append((*named, _number(r.error), _number(r.tolerance), status, escape(r.reason)))
    return table("check", columns, shown)


def _by_kernel(rows: Sequence[Row]) -> Table:
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for r in rows:
        groups.setdefault((r.op, r.kernel, r.how.split(" for ")[0]), []).append(r)
    lines = []
    for (op, kernel, how), members in groups.items():
        count = summary(members)
        worst = max((m.error / m.tolerance for m in members if m.error and m.tolerance), default=None)
        targets = dict.fromkeys(m.how.partition(" for ")[2] for m in members)
        notes = dict.fromkeys(m.reason for m in members if how == "interpreted" and m.status == "passed" and m.reason)
        lines.append(
            (
                op,
                kernel,
                " ".join([how, *targets]).strip(),
                count["passed"],
                count["failed"],
                count["skipped"],
                _share(worst),
                "; ".join(notes),
            )
        )
    return table("check", ("op", "kernel", "how", "passed", "failed", "skipped", "worst error", "note"), lines)


def inspections(out: Console, found: Sequence[Inspection]) -> None:
    rows = [
        (
            i.kernel,
            i.arch,
            i.tactic,
            i.registers,
            i.spills,
            f"{i.static_shared}+{i.dynamic_shared}",
            i.threads,
            i.blocks_per_sm,
            f"{i.occupancy:.0%}",
            i.limiter,
            i.cubin_bytes,
        )
        for i in found
    ]
    first = found[0]
    columns = (
        "kernel",
        "arch",
        "tactic",
        "regs",
        "spills B",
        "shared B",
        "threads",
        "blocks/SM",
        "occupancy",
        "limited by",
        "cubin B",
    )
    out.print(table(f"{first.op} · case {first.case} · {first.dtype}", columns, rows))
    seen: set[tuple[str, str]] = set()
    for i in found:
        if (i.kernel, i.arch) in seen:
            continue
        seen.add((i.kernel, i.arch))
        mix = "  ".join(f"{name} {count}" for name, count in i.instructions.items())
        out.print(f"[bold]{i.kernel} {i.arch}[/] {escape(i.compiler)}: {mix}")
    for kernel in dict.fromkeys(i.kernel for i in found):
        one = next(i for i in found if i.kernel == kernel)
        out.print(f"[bold]{kernel}[/]({escape(', '.join(one.parameters))})")
    for i in found:
        for warning in i.warnings:
            out.print(f"[yellow]warning[/] {i.kernel} {i.arch}: {escape(warning)}")
