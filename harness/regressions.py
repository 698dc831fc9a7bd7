"""Ratios between contenders, and the rows that fall below one: ``trtforge bench --fail-below``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from trtforge.bindings.errors import UsageError
from trtforge.harness.measurement import Measurement, Run, chosen_of


def ratios(rows: Iterable[Measurement]) -> dict[str, float]:
    """Time of each peer over the time of the kernel that a plain call runs, by the peer's name; above 1 ours is faster.

    ``rows``: those of one problem. Empty where ours has no time.
    """
    rows = list(rows)
    ours = chosen_of(rows)
    if ours is None or not ours.microseconds:
        return {}
    return {r.contender: r.microseconds / ours.microseconds for r in rows if not r.ours and r.microseconds}


def below_peers(run: Run, least: float, vs: Sequence[str] | None = None) -> list[str]:
    """One line for every peer that computes the same and whose time over ours is below ``least``; [] when all is well.

    ``vs``: only these peers. A problem where ours has no time is a line too. Raises UsageError without any ratio.
    """
    lines, seen = [], 0
    wanted = None if vs is None else {name.casefold() for name in vs}
    for rows in run.problems().values():
        peers = [r for r in rows if not r.ours and r.microseconds and r.error is not None]
        peers = [r for r in peers if wanted is None or r.contender.casefold() in wanted]
        ours = chosen_of(rows)
        if ours is None or not ours.microseconds:
            lines += [f"{r.name}: no time ({r.note})" for r in rows if r.ours][:1]
            continue
        seen += len(peers)
        for peer in peers:
            ratio = (peer.microseconds or 0.0) / ours.microseconds
            if ratio < least:
                lines.append(f"{ours.name}: {ratio:.3f} of {peer.contender}, below {least:g}")
    if not seen and not lines:
        raise UsageError("--fail-below has nothing to compare with: no peer has a time; give --against STORED.json")
    return lines


def below_stored(run: Run, stored: Run, least: float) -> list[str]:
    """One line for every kernel of ours whose stored time over its time now is below ``least``.

    What a plain call runs is compared with what it ran then, whichever kernel that was; other kernels and tactics with
    themselves. A row that had a time and has none now is a line too, if its problem was measured. Raises UsageError
    when the runs have no row in common.
    """
    known = {_identity(r): r for r in stored.rows if r.ours and r.microseconds}
    lines, seen = [], 0
    for row in run.rows:
        before = known.get(_identity(row))
        if not row.ours or before is None or not before.microseconds:
            continue
        seen += 1
        if not row.microseconds:
            lines.append(f"{row.name}: {before.microseconds:.1f} µs in the stored run, no time now ({row.note})")
        elif before.microseconds / row.microseconds < least:
            ratio = before.microseconds / row.microseconds
            times = f"{before.microseconds:.1f} µs then, {row.microseconds:.1f} µs now"
            lines.append(f"{row.name}: {ratio:.3f} of the stored run ({times}), below {least:g}")
    if not seen:
        raise UsageError("the stored run has no row in common with this one: other ops, cases, dtypes or launches")
    return lines


def _identity(row: Measurement) -> tuple[object, ...]:
    which = ("chosen",) if row.chosen else (row.kernel, row.tactic)
    return (*row.problem, row.form, *which)
