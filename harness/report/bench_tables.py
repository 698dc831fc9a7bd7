"""The tables of a benchmark run: ours against the fastest peer of every case, and every contender."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from trtforge.harness.measurement import Measurement, Run, chosen_of
from trtforge.harness.plot_data import contests
from trtforge.harness.report.tables import Table, number, share, text

_SLOWER = 0.97  # within the noise of two runs, a ratio below 1 is no loss


def median_ratio(runs: Sequence[Run]) -> float | None:
    """The median over all cases of the fastest peer's time over ours."""
    ratios = [c.ratio(c.fastest) for run in runs for c in contests(run) if c.fastest is not None]
    return statistics.median(ratios) if ratios else None


def _ratio_kind(ratio: float | None) -> str:
    return "" if ratio is None else "good" if ratio >= 1 else "bad" if ratio < _SLOWER else ""


def standing_table(run: Run, name: str) -> Table:
    columns = (
        "op",
        "case",
        "dtype",
        "launch",
        "our kernel",
        "µs",
        "rate",
        "unit",
        "of the roofline",
        "fastest peer",
        "its µs",
        "its time over ours",
    )
    table = Table(name, "Ours and the fastest peer", columns)
    table.note = (
        "Medians, of CUDA graphs where there are such rows. A ratio above 1 means that ours is faster. A peer that "
        "computes less than the op does is no fastest peer."
    )
    for contest in contests(run):
        ours = contest.ours
        name_of_peer = contest.fastest
        peer = contest.others[name_of_peer] if name_of_peer else None
        ratio = contest.ratio(name_of_peer) if name_of_peer else None
        table.rows.append(
            [
                text(ours.op, "name"),
                text(ours.case),
                text(ours.dtype),
                text(ours.launch),
                text(ours.kernel or ours.contender, "code"),
                number(ours.microseconds, "{:,.2f}"),
                number(ours.rate, "{:,.4g}"),
                text(ours.unit),
                share(ours.roofline, bar=True),
                text(name_of_peer or ""),
                number(peer.microseconds if peer else None, "{:,.2f}"),
                number(ratio, "{:.2f}×", _ratio_kind(ratio)),
            ]
        )
    return table


def contender_table(run: Run, op: str, name: str) -> Table:
    """Every row of one op, a contender without a time with the reason."""
    columns = (
        "case",
        "dtype",
        "launch",
        "contender",
        "µs",
        "spread",
        "repeats",
        "rate",
        "unit",
        "of the roofline",
        "error",
        "time over ours",
        "note",
    )
    table = Table(name, f"{op}: every contender", columns)
    for rows in run.problems().values():
        if rows[0].op != op:
            continue
        chosen = chosen_of(rows)
        least = chosen.microseconds if chosen else None
        for row in rows:
            over = row.microseconds / least if row.microseconds and least else None
            table.rows.append(
                [
                    text(row.case),
                    text(row.dtype),
                    text(row.launch),
                    text(_contender(row), "ours" if row.ours else ""),
                    number(row.microseconds, "{:,.2f}"),
                    share(row.spread, 1),
                    number(row.repeats or None),
                    number(row.rate, "{:,.4g}"),
                    text(row.unit),
                    share(row.roofline, bar=True),
                    number(row.error, "{:.2e}"),
                    number(over, "{:.2f}×"),
                    text(row.note, "words"),
                ]
            )
    return table


def _contender(row: Measurement) -> str:
    details = [
        part
        for part in (row.kernel, f"[{row.tactic}]" if row.tactic else "", row.form)
        if part and part not in row.contender
    ]
    return " ".join([row.contender, *details])


def ceiling_table(run: Run, name: str) -> Table:
    table = Table(name, "Ceilings measured in the same run", ("ceiling", "measured"))
    table.rows = [[text(what), number(value, "{:,.5g}")] for what, value in run.ceilings.items()]
    return table
