"""What the plots of a benchmark run show, as plain data: no plotting library is needed to know whether one is current.

A :class:`Figure` holds every number that is drawn, and its digest is kept in the drawn file. Comparisons are made per
problem (op, case, dtype); where a run timed both CUDA graphs and eager calls, the graphs count, since they hold the
device's time alone.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from trtforge.bindings.errors import UnknownNameError
from trtforge.harness.measurement import COPY, Measurement, Run, chosen_of
from trtforge.kernels import registry
from trtforge.kernels.binding import Binding
from trtforge.kernels.tuning import calls_of

OURS = "TRTForge"
TRITON = "TRTForge in Triton"
#: A line needs this many sizes to show how something scales.
FEWEST_POINTS = 3
MOST_PANELS = 9
#: Dimensions that scaling is drawn over, the likeliest first; others follow.
AXES = ("S", "Sk", "Sq", "M", "B")
TOKENS = "tokens"
_PACKAGES = {"cuda": "CUDA", "torch": "PyTorch", "cudnn": "cuDNN", "triton": "Triton"}
_DIGITS = 6


@dataclass(frozen=True)
class Figure:
    """One picture: ``kind`` "ratios", "roofline" or "scaling", with panels as the functions below make them."""

    name: str
    kind: str
    title: str
    caption: str
    panels: list[dict[str, Any]] = field(default_factory=list)

    @property
    def digest(self) -> str:
        """Of everything that is drawn, numbers to six digits."""
        text = json.dumps(_rounded(asdict(self)), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}")
    if isinstance(value, dict):
        return {k: _rounded(v) for k, v in value.items()}
    return [_rounded(v) for v in value] if isinstance(value, (list, tuple)) else value


# ---- contests --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Contest:
    """One problem: our kernel, and by display name everyone else who has a time, our Triton kernel first."""

    ours: Measurement
    others: dict[str, Measurement]

    @property
    def fastest(self) -> str | None:
        """The fastest peer that computes the whole op."""
        whole = {n: r.microseconds or 0.0 for n, r in self.others.items() if not r.ours and not does_less(r)}
        return min(whole, key=lambda name: whole[name], default=None)

    def ratio(self, name: str) -> float:
        """The other's time over ours: above 1 ours is faster."""
        return (self.others[name].microseconds or 0.0) / (self.ours.microseconds or 1.0)


def contests(run: Run, ops: Iterable[str] | None = None) -> list[Contest]:
    """One for every problem in which a kernel of ours has a time, CUDA graphs before eager calls."""
    wanted = None if ops is None else set(ops)
    problems: dict[tuple[str, str, str], dict[str, list[Measurement]]] = {}
    for (op, case, kind, launch), rows in run.problems().items():
        if wanted is None or op in wanted:
            problems.setdefault((op, case, kind), {})[launch] = rows
    found = []
    for launches in problems.values():
        for launch in sorted(launches, key=lambda name: name != "graph"):
            contest = contest_of(launches[launch])
            if contest is not None:
                found.append(contest)
                break
    return found


def contest_of(rows: Sequence[Measurement]) -> Contest | None:
    """The contest of one problem's rows; None where no kernel of ours has a time."""
    ours = chosen_of(rows)
    if ours is None:
        return None
    twins = [r for r in rows if r is not ours and r.ours and r.microseconds and r.form == ours.form and is_triton(r)]
    twin = next((r for r in twins if r.chosen), min(twins, key=lambda r: r.microseconds or 0.0, default=None))
    others = {TRITON: twin} if twin is not None and not is_triton(ours) else {}
    return Contest(ours, {**others, **{r.contender: r for r in rows if not r.ours and r.microseconds}})


def does_less(row: Measurement) -> bool:
    """Whether a row is a mark on the scale: a peer that computes less than the op and is held against no oracle."""
    return not row.ours and row.error is None


def is_triton(row: Measurement) -> bool:
    """Whether a row of ours is a Triton kernel's."""
    try:
        return registry.get(row.op).kernel_named(row.kernel or "").language == "triton"
    except UnknownNameError:
        return "triton" in (row.kernel or row.contender)


def family(op: str) -> str:
    """The folder of the op's declaration; the op's short name where it is not registered here."""
    try:
        return registry.get(op).file.parent.name
    except UnknownNameError:
        return short(op)


def short(op: str) -> str:
    return op.rpartition("::")[2]


def binding_of(op: str, case: str, kind: str) -> Binding | None:
    """The call behind a row: of the declared case with that label; None where none is declared (any more)."""
    try:
        declared = registry.get(op)
    except UnknownNameError:
        return None
    return next(iter(calls_of(declared, case, kind)), None)


def work_of(row: Measurement) -> tuple[int, int] | None:
    """Floating-point operations and bytes of a row's case: as written in the run, else by the declaration of today."""
    if row.flops is not None and row.bytes is not None:
        return row.flops, row.bytes
    binding = binding_of(row.op, row.case, row.dtype)
    if binding is None:
        return None
    cost = registry.get(row.op).cost_of(binding)
    return cost.flops, cost.bytes or 0


# ---- labels ----------------------------------------------------------------------------------------------------------


def merged(label: str) -> str:
    """A case's label with equal query and key sizes written once: ``Sq64 Sk64`` is ``S64``."""
    label = re.sub(r"\b([A-Z])q(\d+) \1k(?:v)?\2\b", r"\1\2", label)
    return re.sub(r"\b([A-Z])q(\d+)((?: \S+)*?) \1kv?\2\b", r"\1\2\3", label)


def shortened(labels: Sequence[str]) -> tuple[list[str], str]:
    """Labels without the words that all of them have, and those words."""
    words = [merged(label).split() for label in labels]
    common = [w for w in words[0] if all(w in other for other in words)] if len(words) > 1 else []
    kept = [" ".join(w for w in one if w not in common) or " ".join(one) for one in words]
    return kept, " ".join(common)


def caption(run: Run, rows: Iterable[Measurement]) -> str:
    """Machine, date, versions, and how it was timed."""
    about = run.about
    launches = {row.launch for row in rows}
    how = {"graph": "CUDA graphs", "eager": "calls from Python"}
    timed = " and ".join(how[name] for name in how if name in launches)
    parts = [about.get("gpu"), about.get("date"), *(f"{n} {about[k]}" for k, n in _PACKAGES.items() if about.get(k))]
    return " · ".join(str(p) for p in (*parts, f"medians, cold L2, {timed}" if timed else "medians, cold L2") if p)


# ---- figures ---------------------------------------------------------------------------------------------------------


def figures(run: Run) -> list[Figure]:
    """Every figure that the run has data for: ratios and scaling per op family, and one roofline."""
    everything = contests(run)
    families: dict[str, list[Contest]] = {}
    for contest in everything:
        families.setdefault(family(contest.ours.op), []).append(contest)
    found = []
    for name, members in families.items():
        found += [f for f in (ratios(run, members, name), scaling(run, members, name)) if f is not None]
    over_all = roofline(run, everything)
    return [*found, *([over_all] if over_all else [])]


def ratios(run: Run, members: Sequence[Contest], name: str, title: str = "") -> Figure | None:
    """Per op a panel, per case a row: the time of every other contender over ours, and who is the fastest peer."""
    panels = []
    for op in dict.fromkeys(c.ours.op for c in members):
        rows = [c for c in members if c.ours.op == op and c.others]
        if not rows:
            continue
        several = len({c.ours.dtype for c in rows}) > 1
        labels, common = shortened([f"{c.ours.case} {c.ours.dtype}" if several else c.ours.case for c in rows])
        panels.append(
            {
                "op": short(op),
                "common": " ".join([common, *([] if several else [rows[0].ours.dtype])]).strip(),
                "rows": [
                    {
                        "label": label,
                        "fastest": c.fastest,
                        "ratios": {other: c.ratio(other) for other in c.others},
                        "partial": [n for n, r in c.others.items() if does_less(r)],
                    }
                    for label, c in zip(labels, rows)
                ],
            }
        )
    if not panels:
        return None
    heading = title or f"{name.replace('_', ' ')}: time of the others over ours"
    return Figure(f"ratios_{name}", "ratios", heading, caption(run, (c.ours for c in members)), panels)


def roofline(run: Run, members: Sequence[Contest]) -> Figure | None:
    """Ours and the fastest peer of every case, by intensity and rate, under the ceilings that the run measured."""
    points = []
    for contest in members:
        peer = contest.others.get(contest.fastest or "")
        for row in (contest.ours, *([peer] if peer is not None else [])):
            work = work_of(row)
            if work is None or not all(work) or not row.microseconds:
                continue
            flops, moved = work
            points.append(
                {
                    "op": short(row.op),
                    "family": family(row.op),
                    "ours": row.ours,
                    "intensity": flops / moved,
                    "tflops": flops / row.microseconds * 1e-6,
                }
            )
    if not points:
        return None
    panel = {
        "points": points,
        "copy": run.ceilings.get(COPY),
        "peaks": {k.removesuffix(" TFLOP/s"): v for k, v in run.ceilings.items() if k.endswith("TFLOP/s")},
    }
    title = "every case under the ceilings of the same run" if run.ceilings else "every case by intensity and rate"
    return Figure("roofline", "roofline", f"roofline: {title}", caption(run, (c.ours for c in members)), [panel])


def scaling(run: Run, members: Sequence[Contest], name: str) -> Figure | None:
    """Rates over one growing dimension, everything else the same: ours, our Triton kernel, peers."""
    panels: list[dict[str, Any]] = []
    for op in dict.fromkeys(c.ours.op for c in members):
        panels += _panels([c for c in members if c.ours.op == op])
    if not panels:
        return None
    heading = f"{name.replace('_', ' ')}: how rates scale"
    if len({p["op"] for p in panels}) == 1:
        titles, common = shortened([p["title"] for p in panels])
        panels = [{**panel, "title": title} for panel, title in zip(panels, titles)]
        heading += f" ({common})" if common and len(panels) > 1 else ""
    return Figure(f"scaling_{name}", "scaling", heading, caption(run, (c.ours for c in members)), panels)


def _panels(members: Sequence[Contest]) -> list[dict[str, Any]]:
    groups: dict[tuple[str, str], dict[int, Contest]] = {}
    for contest in members:
        row = contest.ours
        binding = binding_of(row.op, row.case, row.dtype)
        if binding is None:
            continue
        for sizes in _views({name: int(str(size)) for name, size in binding.dims.items()}):
            for axis, size in sizes.items():
                rest = " ".join(f"{v} {k}" if k == TOKENS else f"{k}{v}" for k, v in sizes.items() if k != axis)
                words = [w for w in row.case.split() if w not in {f"{k}{v}" for k, v in binding.dims.items()}]
                if axis != TOKENS:
                    groups.setdefault((axis, " ".join([rest, *words, row.dtype])), {})[size] = contest
    found: list[dict[str, Any]] = []
    seen: list[set[int]] = []
    for (axis, rest), by_size in sorted(groups.items(), key=lambda g: AXES.index(g[0][0]) if g[0][0] in AXES else 99):
        cases = {id(c) for c in by_size.values()}
        if len(by_size) >= FEWEST_POINTS and not any(cases <= other for other in seen):
            seen.append(cases)
            found.append(_panel(axis, rest, dict(sorted(by_size.items()))))
    return found[:MOST_PANELS]


def _views(dims: Mapping[str, int]) -> list[dict[str, int]]:
    """The dimensions of a call, and for equal query and key lengths with the batch as a number of tokens too."""
    sizes = dict(dims)
    for names, one in ((("Sq", "Sk"), "S"), (("Hq", "Hkv"), "H")):
        if all(n in sizes for n in names) and len({sizes[n] for n in names}) == 1:
            sizes[one] = sizes.pop(names[0])
            del sizes[names[1]]
    if "S" not in sizes or "B" not in sizes:
        return [sizes]
    tokens = {k: v for k, v in sizes.items() if k != "B"}
    return [sizes, {**tokens, TOKENS: sizes["B"] * sizes["S"]}]


def _panel(axis: str, rest: str, by_size: Mapping[int, Contest]) -> dict[str, Any]:
    rows = {size: {OURS: c.ours, **c.others} for size, c in by_size.items()}
    units = {row.unit for named in rows.values() for row in named.values()}
    unit = units.pop() if len(units) == 1 else "TFLOP/s"
    lines: dict[str, list[list[float]]] = {}
    for size, named in rows.items():
        for contender, row in named.items():
            rate = row.rate if row.unit == unit else _tflops(row)
            if rate:
                lines.setdefault(contender, []).append([size, rate])
    first = next(iter(by_size.values())).ours
    return {"op": short(first.op), "title": rest, "axis": axis, "unit": unit, "lines": lines}


def _tflops(row: Measurement) -> float | None:
    work = work_of(row)
    return work[0] / row.microseconds * 1e-6 if work and row.microseconds else None
