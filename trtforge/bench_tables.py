"""The tables of ``trtforge bench``."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from trtforge.harness.measurement import Measurement, Run, chosen_of
from trtforge.harness.regressions import ratios

#: More problems than this are told in one line each.
_WHOLE_TABLES = 12
_DIGITS_FROM = 100.0


def tables(out: Console, found: Run) -> None:
    """A table per problem; of many problems a table per op with one line each; then the ceilings and absent peers."""
    problems = list(found.problems().values())
    if len(problems) <= _WHOLE_TABLES:
        for rows in problems:
            out.print(_whole(rows))
    else:
        for name in dict.fromkeys(rows[0].op for rows in problems):
            out.print(_summary(name, [rows for rows in problems if rows[0].op == name]))
        _missing(out, found)
    told = "  ".join(f"{name} {value:g}" for name, value in found.ceilings.items())
    out.print(f"ceilings of this run: {told or 'not measured'}", markup=False)
    out.print("ratio: the contender's time over that of the kernel that a plain call runs; above 1 ours is faster")


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
