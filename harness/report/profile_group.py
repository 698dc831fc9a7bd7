"""What a report shows of profiles: where they were made, metrics, stall reasons, the roofline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trtforge.harness.profile import Profile
from trtforge.harness.report.tables import Cell, Table, number, share, text

_GROUPED_FROM = 1000.0


def facts_of(source: str, profile: Profile) -> list[tuple[str, str]]:
    """Names and values of what is known about the launch; what is not known is left out."""
    known: list[tuple[str, Any]] = [
        ("case", profile.case),
        ("dtype", profile.dtype),
        ("tactic", profile.tactic),
        ("GPU function", profile.function),
        ("tool", profile.tool),
        ("time", "" if profile.microseconds is None else f"{profile.microseconds:,.2f} µs"),
        ("occupancy limited by", profile.occupancy_limiter),
        ("bound by", profile.bound),
        ("from", source),
        ("tool's report", profile.report),
    ]
    return [(name, str(value)) for name, value in known if value]


def tables_of(profile: Profile, name: str) -> list[Table]:
    """Metrics, stall reasons, roofline: those that the profile has."""
    metrics = Table(f"{name}-metrics", "Metrics", ("metric", "value"))
    metrics.rows = [[text(metric), figure(value)] for metric, value in profile.metrics.items()]
    stalls = Table(f"{name}-stalls", "Stall reasons", ("reason", "of the warps' time"))
    stalls.rows = [[text(reason), share(part, 1, bar=True)] for reason, part in profile.stalls]
    roofline = Table(f"{name}-roofline", "Beside the roofline of the declared cost", ("figure", "value"))
    roofline.rows = [[text(what), figure(value)] for what, value in profile.roofline.items()]
    return [table for table in (metrics, stalls, roofline) if table.rows]


def timeline_table(profiles: Sequence[Profile], name: str) -> Table:
    """The GPU functions of a timeline (nsys)."""
    metrics = list(dict.fromkeys(metric for p in profiles for metric in p.metrics))
    table = Table(name, "GPU functions", ("GPU function", "median µs", *metrics))
    for p in profiles:
        cells = [figure(p.metrics.get(metric)) for metric in metrics]
        table.rows.append([text(p.function or p.kernel, "words"), figure(p.microseconds), *cells])
    return table


def figure(value: Any) -> Cell:
    """A number with four digits at least, or the text that stands in its place."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return text("" if value is None else value)
    return number(value, "{:,.0f}" if abs(value) >= _GROUPED_FROM or isinstance(value, int) else "{:.4g}")
