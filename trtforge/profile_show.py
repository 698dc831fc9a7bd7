"""What ``trtforge profile`` prints: a reading, and two readings side by side."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape

from trtforge import show
from trtforge.harness.profile import Profile, metric_name, representative

_ABSENT = "not in this report"
_SHOWN = 12  # launches of a plan that get a line each
_STALLS_SHOWN = 5


def readings(out: Console, found: Sequence[Profile]) -> None:
    """Print what was found: a table of launches where there are several, and the longest one in full."""
    if found[0].tool == "nsys":
        columns = ("GPU function", "launches", "median µs", "least", "most", "share of GPU time")
        rows = [
            (
                escape(p.function),
                f"{p.metrics['launches']:.0f}",
                f"{p.microseconds or 0:.2f}",
                f"{p.metrics['least µs']:.2f}",
                f"{p.metrics['most µs']:.2f}",
                f"{p.metrics['share of GPU time %']:.1f}%",
            )
            for p in found
        ]
        out.print(show.table(escape(f"{found[0].op} {found[0].case}".strip()), columns, rows))
        out.print(f"timeline: {escape(found[0].report)}")
        return
    ordered = sorted(representative(found), key=lambda p: -(p.microseconds or 0.0))
    if len(found) > 1:
        heads = ("GPU function", "µs", "bound by")
        lines = [(escape(p.function), f"{p.microseconds or 0:.2f}", escape(p.bound)) for p in ordered[:_SHOWN]]
        out.print(show.table(f"{len(found)} launches of {len(ordered)} functions, the longest first", heads, lines))
    _reading(out, ordered[0])
    out.print(f"report: {escape(ordered[0].report)}")


def _reading(out: Console, one: Profile) -> None:
    rows = list(_rows(one).items())
    out.print(show.table(escape(one.name), ("quantity", "value"), [(name, escape(value)) for name, value in rows]))
    out.print(f"[bold]bound by[/] {escape(one.bound)}")
    for sentence in one.findings:
        out.print(f"- {escape(sentence)}")


def _rows(one: Profile) -> dict[str, str]:
    """What a reading shows, in order; a quantity that the report does not hold is said so."""

    def number(key: str) -> float | None:
        return one.metrics.get(metric_name(key))

    def percent(key: str) -> str:
        value = number(key)
        return _ABSENT if value is None else f"{value:.1f}%"

    def rate(speed: str, share: str) -> str:
        parts = []
        if (value := number(speed)) is not None:
            parts.append(f"{value:,.0f} GB/s")
        if (value := number(share)) is not None:
            parts.append(f"{value:.1f}% of peak")
        return ", ".join(parts) or _ABSENT

    def count(key: str, unit: str = "") -> str:
        value = number(key)
        return _ABSENT if value is None else f"{value:,.0f}{unit}"

    conflicts, wavefronts = number("bank_conflicts"), number("shared_wavefronts")
    share = f" ({conflicts / wavefronts:.1%} of the wavefronts)" if conflicts is not None and wavefronts else ""
    waves = number("waves")
    rows = {
        "time": _ABSENT if one.microseconds is None else f"{one.microseconds:,.2f} µs",
        "device memory": rate("dram_gb_s", "dram_pct"),
        "L2": rate("l2_gb_s", "l2_pct"),
        "L2 hits": percent("l2_hit_pct"),
        "L1 and shared memory": percent("l1_pct"),
        "tensor pipe": percent("tensor_pct"),
        "issue slots": percent("issue_pct"),
        "occupancy": f"{percent('occupancy_pct')} achieved, {percent('theoretical_pct')} possible",
        "occupancy limited by": one.occupancy_limiter or _ABSENT,
        "registers per thread": count("registers"),
        "shared memory per block": count("shared_bytes", " B"),
        "bank conflicts": count("bank_conflicts") + share,
        "waves": _ABSENT if waves is None else f"{waves:.2f}",
    }
    for place, (reason, part) in enumerate(one.stalls[:_STALLS_SHOWN]):
        rows["stalls" if place == 0 else " " * place] = f"{part:.0%} {reason}"
    if not one.stalls:
        rows["stalls"] = _ABSENT
    return rows | _roofline(one)


def _roofline(one: Profile) -> dict[str, str]:
    line = one.roofline
    if not line:
        return {}
    rows = {"declared work": f"{line['flops'] / 1e9:,.2f} GFLOP, {line['bytes'] / 1e6:,.2f} MB"}
    if "intensity" in line:
        rows["declared work"] += f", {line['intensity']:.1f} FLOP/B"
    if "ceiling" not in line:
        rows["roofline"] = f"{_ABSENT}: no peak is known for this GPU"
        return rows
    rows["roofline"] = (
        f"{line['ceiling']:,.0f} {line['unit']} ({line['bound']}), {line['least_us']:,.2f} µs at the least"
    )
    if "fraction" in line:
        rows["roofline"] += f"; reached {line['rate']:,.0f} {line['unit']}, {line['fraction']:.0%}"
    return rows


def longest(profiles: Sequence[Profile]) -> Profile:
    """The function that took longest, by the launch of median time."""
    return max(representative(profiles), key=lambda p: p.microseconds or 0.0)


Pairs = dict[str, tuple["float | None", "float | None"]]


def pairs_of(before: Profile, after: Profile) -> Pairs:
    """Every figure of two profiles by name; None where one of them does not have it."""
    pairs: Pairs = {"time µs": (before.microseconds, after.microseconds)}
    names = dict.fromkeys([*before.metrics, *after.metrics])
    pairs |= {name: (before.metrics.get(name), after.metrics.get(name)) for name in names}
    first, second = dict(before.stalls), dict(after.stalls)
    for reason in sorted({*first, *second}, key=lambda r: -max(first.get(r, 0.0), second.get(r, 0.0))):
        pairs[f"stall {reason} %"] = (100 * first.get(reason, 0.0), 100 * second.get(reason, 0.0))
    return pairs


def change(before: float | None, after: float | None) -> float | None:
    """The relative change, None where there is none to tell."""
    return None if before is None or after is None or before == 0 else after / before - 1


def comparison(out: Console, before: Profile, after: Profile, files: Sequence[str]) -> None:
    """Print two profiles side by side."""
    rows = []
    for name, (a, b) in pairs_of(before, after).items():
        relative = change(a, b)
        rows.append((escape(name), _figure(a), _figure(b), "" if relative is None else f"{relative:+.1%}"))
    for label, attribute in (("occupancy limited by", "occupancy_limiter"), ("bound by", "bound")):
        first, second = getattr(before, attribute), getattr(after, attribute)
        rows.append((label, escape(first or _ABSENT), escape(second or _ABSENT), "" if first == second else "changed"))
    title = f"A: {before.name} ({files[0]})\nB: {after.name} ({files[1]})"
    out.print(show.table(escape(title), ("quantity", "A", "B", "change"), rows))


def _figure(value: float | None) -> str:
    return _ABSENT if value is None else f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
