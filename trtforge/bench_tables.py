"""The tables of ``trtforge bench``."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from trtforge.harness.measurement import Measurement, Run, chosen_of
from trtforge.harness.regressions import ratios

#: More problems than this are told in one line each.
WHOLE_TABLES = 12
#: Cases that --verbose names as the slowest to measure.
_SLOWEST = 10
_DIGITS_FROM = 100.0


def tables(out: Console, found: Run) -> None:
    """A table per problem; of many problems a table per op with one line each; then the ceilings and absent peers."""
    whole = len(found.problems()) <= WHOLE_TABLES
    for name in dict.fromkeys(row.op for row in found.rows):
        op_tables(out, found, name, whole)
    closing(out, found, whole)


def op_tables(out: Console, found: Run, name: str, whole: bool) -> None:
    """The tables of one op: one per problem when ``whole``, else a line each."""
    problems = [rows for rows in found.problems().values() if rows[0].op == name]
    if whole:
        for rows in problems:
            out.print(_whole(rows))
    elif problems:
        out.print(_summary(name, problems))


def closing(out: Console, found: Run, whole: bool) -> None:
    """What is said once: ceilings, where the time went, and unless it has been told ``whole`` who has no time."""
    if not whole:
        _missing(out, found)
    told = "  ".join(f"{name} {value:g}" for name, value in found.ceilings.items())
    out.print(f"ceilings of this run: {told or 'not measured'}", markup=False)
    out.print("ratio: the contender's time over that of the kernel that a plain call runs; above 1 ours is faster")


def seconds(out: Console, found: Run) -> None:
    """Where the time of the run went, by phase, and the cases that took longest."""
    spent = dict(found.about.get("seconds") or {})
    cases = spent.pop("cases", [])
    out.print("seconds: " + "  ".join(f"{name} {value:.1f}" for name, value in spent.items()), markup=False)
    phases = [({k: v for k, v in one.items() if isinstance(v, float)}, one["case"]) for one in cases]
    for parts, name in sorted(phases, key=lambda item: -sum(item[0].values()))[:_SLOWEST]:
        told = "  ".join(f"{k} {v:.2f}" for k, v in sorted(parts.items(), key=lambda item: -item[1]))
        out.print(f"  {sum(parts.values()):.1f} s  {name}: {told}", markup=False)


def _whole(rows: Sequence[Measurement]) -> Table:
    first = rows[0]
    title = f"{first.op} · {first.case} · {first.dtype} · {first.launch}"
    made = Table(title=escape(title), title_justify="left", header_style="bold")
    for name in ("contender", "median µs", "spread", first.unit, "of roofline", "ratio", "error", "note"):
        made.add_column(name, justify="left" if name in ("contender", "note") else "right", overflow="fold")
    ours = chosen_of(rows)
    for row in rows:
        ratio = ""
        if row.microseconds and ours is not None and ours.microseconds and row is not ours:
            ratio = f"{row.microseconds / ours.microseconds:.2f}×"
        style = (
            "bold" if row is ours else "red" if row.note.startswith("wrong") else "dim" if not row.microseconds else ""
        )
        made.add_row(escape(row.contender), *_cells(row), ratio, _error(row), escape(row.note), style=style)
    return made


def _cells(row: Measurement) -> tuple[str, str, str, str]:
    return (
        _number(row.microseconds),
        "-" if row.spread is None else f"{row.spread:.1%}",
        _number(row.rate),
        "-" if row.roofline is None else f"{row.roofline:.0%}",
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}" if value >= _DIGITS_FROM else f"{value:.2f}"


def _error(row: Measurement) -> str:
    return "-" if row.error is None else f"{row.error:.1e}"


def _summary(op: str, problems: Sequence[Sequence[Measurement]]) -> Table:
    made = Table(title=escape(op), title_justify="left", header_style="bold")
    columns = (
        "case",
        "dtype",
        "launch",
        "kernel",
        "median µs",
        "spread",
        "rate",
        "of roofline",
        "peers: their time over ours",
    )
    for name in columns:
        right = name in ("median µs", "spread", "rate", "of roofline")
        made.add_column(name, justify="right" if right else "left", overflow="fold")
    for rows in problems:
        ours = chosen_of(rows)
        where = (escape(rows[0].case), rows[0].dtype, rows[0].launch)
        if ours is None:
            note = next((r.note for r in rows if r.ours), "none of ours")
            made.add_row(*where, "-", "-", "-", "-", "-", escape(note))
            continue
        median, spread, rate, roofline = _cells(ours)
        told = ", ".join(f"{name} {ratio:.2f}×" for name, ratio in ratios(rows).items())
        kernel = escape(f"{ours.kernel} [{ours.tactic}]")
        made.add_row(*where, kernel, median, spread, f"{rate} {ours.unit}", roofline, escape(told))
    return made


def _missing(out: Console, found: Run) -> None:
    """Everything without a time, gathered by what is said of it."""
    notes: dict[tuple[str, str], int] = {}
    for row in found.rows:
        if not row.microseconds:
            key = (row.contender if not row.ours else f"{row.op}/{row.kernel or 'ours'}", row.note)
            notes[key] = notes.get(key, 0) + 1
    for (who, note), count in notes.items():
        out.print(f"{count} × {who}: {note}", style="yellow", markup=False)
