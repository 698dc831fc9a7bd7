"""Pages and blocks made from benchmarks/results: what was checked, how fast it was, against whom."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tables import table

from trtforge.harness import measurement, plugin_paths
from trtforge.harness.measurement import Measurement, Run
from trtforge.harness.plot_data import OURS, TRITON, Contest, Figure, contest_of, contests, does_less, merged, short
from trtforge.harness.plot_data import figures as all_figures

__all__ = ["FIGURES", "all_figures", "readme_block", "results_page", "runs", "tables_page", "with_block"]

FIGURES = "figures"
BENCH_COMMAND = "trtforge bench --json FILE"
NOTE = "<!-- Written by docs/generate.py from the JSON files; run it again when they change. -->\n"
BEGIN, END = "<!-- generated: performance -->", "<!-- end -->"
HOW = "Contenders alternate in one process; cold L2 cache, N(0, 1) inputs, medians; outputs checked in the same run."
BOUND = {"TFLOP/s": "arithmetic", "GB/s": "memory"}
_LEFT_OUT = ("gpu", "date", "remark", "architecture", "command", "clock", "stopped")
_FORMS = {"jit": "as JIT plugin", "aot": "as AOT plugin", "plan": "inside a plan"}
_NOTE_LETTERS = 140


def runs(results: Path) -> dict[Path, Run]:
    """The committed benchmark run of every GPU, by its folder."""
    return {path.parent: measurement.read(path) for path in sorted(results.glob("*/bench.json"))}


def with_block(text: str, block: str) -> str:
    """A page with everything between the two marks replaced."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"the page has no block {BEGIN} … {END}")
    return f"{before}{BEGIN}\n\n{block}\n{END}{after}"


# ---- README ----------------------------------------------------------------------------------------------------------


def readme_block(found: Mapping[Path, Run], root: Path) -> str:
    """The headline table and the plots of every GPU."""
    parts = []
    for folder, run in found.items():
        where = folder.relative_to(root).as_posix()
        parts.append(f"**{run.about['gpu']}, {run.about['date']}.** {HOW}{_remark(run)}\n")
        parts.append(headline(run))
        drawn = all_figures(run)
        parts += [_picture(f, where) for f in drawn if f.kind != "ratios"]
        bars = [_picture(f, where) for f in drawn if f.kind == "ratios"]
        if bars:
            parts.append("<details><summary>Case by case</summary>\n\n" + "\n".join(bars) + "\n</details>\n")
        parts.append(f"[Every figure]({where}/README.md) · [the raw file]({where}/bench.json)\n")
    return "\n".join(parts)


def headline(run: Run) -> str:
    """Per op and bound: how our kernel stands against the fastest peer, the worst case named."""
    groups: dict[tuple[str, str], list[Contest]] = {}
    for contest in contests(run):
        groups.setdefault((contest.ours.op, contest.ours.unit), []).append(contest)
    rows = []
    for (op, unit), members in groups.items():
        rated = [c for c in members if c.fastest]
        standing = {id(c): c.ratio(c.fastest or "") for c in rated}
        best = max((c.ours.rate or 0.0 for c in members), default=0.0)
        worst = min(rated, key=lambda c: standing[id(c)], default=None)
        rows.append(
            (
                short(op),
                BOUND.get(unit, unit),
                len(members),
                f"{best:,.0f} {unit}",
                f"**{statistics.median(standing.values()):.2f}×**" if standing else "-",
                f"{min(standing.values()):.2f}× – {max(standing.values()):.2f}×" if len(standing) > 1 else "",
                f"{merged(worst.ours.case)} ({worst.fastest})" if worst is not None else "",
                _median([c.ratio(TRITON) for c in members if TRITON in c.others]),
            )
        )
    columns = (
        "op",
        "bound by",
        "cases",
        "best rate",
        "fastest peer's time over ours, median",
        "least – most",
        "least at",
        "our Triton kernel's time over ours, median",
    )
    return table(columns, rows)


def _median(ratios: Sequence[float]) -> str:
    return f"{statistics.median(ratios):.2f}×" if ratios else "-"


def _picture(figure: Figure, where: str) -> str:
    return f"![{figure.title}]({where}/{FIGURES}/{figure.name}.svg)\n"


# ---- docs/results.md -------------------------------------------------------------------------------------------------


def results_page(found: Mapping[Path, Run], results: Path, docs: Path) -> str:
    """Every committed check, and per GPU the headline figures and plots of its benchmark run."""
    parts = ["# Results\n", NOTE]
    for folder, run in found.items():
        where = "../" + folder.relative_to(docs.parent).as_posix()
        parts.append(
            _heading(run.about, f"{where}/bench.json", run.about.get("command", BENCH_COMMAND), "Against peers")
        )
        parts.append(f"{HOW}{_ceilings(run)} [Every figure]({where}/README.md).\n")
        parts.append(headline(run))
        parts += [_picture(f, where) for f in all_figures(run)]
    for path in sorted(results.glob("*/plugin_paths.json")):
        run = measurement.read(path)
        where = "../" + path.relative_to(docs.parent).as_posix()
        parts.append(_heading(run.about, where, "python benchmarks/plugin_paths.py --json FILE", "Ways to launch"))
        parts.append(plugin_paths.table(run) + "\n")
    for path in sorted(results.glob("*/check*.json")):
        data = json.loads(path.read_text(encoding="utf-8"))
        where = "../" + path.relative_to(docs.parent).as_posix()
        form = path.stem.removeprefix("check").removeprefix("_plugins_")
        title = (
            f"Every kernel checked as {'an AOT' if form == 'aot' else 'a JIT'} plugin"
            if form
            else "Every kernel checked"
        )
        option = f"--as-plugin {form} " if form else ""
        parts.append(_heading(data["about"], where, f"trtforge check {option}--device cuda --report FILE", title))
        parts.append(
            "One row is a kernel × tactic × case × dtype, launched with poisoned outputs between guard bands and held "
            "against the NumPy reference; skipped are combinations that a kernel refuses.\n"
        )
        rows = [
            (k["op"], k["kernel"], k["passed"], k["failed"], k["skipped"], _share(k["worst_over_tolerance"]))
            for k in data["kernels"]
        ]
        parts.append(table(("op", "kernel", "passed", "failed", "skipped", "worst error, of the tolerance"), rows))
    return "\n".join(parts)


def _share(worst: float | None) -> str:
    return "-" if worst is None else f"{worst:.0%}"


def _heading(about: Mapping[str, Any], link: str, command: str, title: str) -> str:
    plain = {k: v for k, v in about.items() if k not in _LEFT_OUT and isinstance(v, (str, int, float))}
    versions = ", ".join(f"{k} {v}" for k, v in plain.items())
    remark = f" {about['remark'][0].upper()}{about['remark'][1:]}." if "remark" in about else ""
    source = f"From [{Path(link).name}]({link}), made by `{command}`."
    return f"## {title}: {about['gpu']}, {about['date']}\n\n{source} {versions}.{remark}\n"


def _remark(run: Run) -> str:
    remark = run.about.get("remark")
    return f" {remark[0].upper()}{remark[1:]}." if remark else ""


def _ceilings(run: Run) -> str:
    if not run.ceilings:
        return " Ceilings were not measured in this run."
    values = ", ".join(
        f"{name.rpartition(' ')[0]} {v:,.0f} {name.rpartition(' ')[2]}" for name, v in run.ceilings.items()
    )
    return f" Ceilings measured in the same run: {values}."


# ---- benchmarks/results/<gpu>/README.md ------------------------------------------------------------------------------


def tables_page(run: Run, folder: Path) -> str:
    """Every case of a run: ours, and what everyone else took."""
    command = run.about.get("command", BENCH_COMMAND)
    parts = [
        _heading(run.about, "bench.json", command, "Benchmarks").removeprefix("#"),
        NOTE,
        f"{HOW}{_ceilings(run)}\n",
    ]
    parts += [
        "A cell is a rate, and in brackets that contender's time over ours: above 1 ours is faster. "
        "In italics: contenders that do less than the op.\n"
    ]
    drawn = all_figures(run)
    parts += [_picture(f, ".") for f in drawn if f.kind == "roofline"]
    for op in dict.fromkeys(row.op for row in run.rows):
        parts.append(f"## {short(op)}\n")
        parts.append(_cases([rows for (name, *_), rows in run.problems().items() if name == op]))
        parts += _not_timed(row for row in run.rows if row.op == op)
    parts += [_picture(f, ".") for f in drawn if f.kind != "roofline"]
    return "\n".join(parts)


def _cases(problems: Sequence[Sequence[Measurement]]) -> str:
    """One row per problem, one column per contender."""
    found = [(rows, contest) for rows in problems if (contest := contest_of(rows)) is not None]
    others: dict[str, None] = {}
    lines = []
    for rows, contest in found:
        cells = {name: _cell(contest, row, does_less(row)) for name, row in contest.others.items()}
        plugins = {form: [r for r in rows if r.ours and r.form == form and r.microseconds] for form in _FORMS}
        for form, members in plugins.items():
            if members and contest.ours.form != form:
                cells[_FORMS[form]] = _cell(contest, min(members, key=lambda r: r.microseconds or 0.0), False)
        others.update(dict.fromkeys(cells))
        lines.append((contest.ours, cells))
    several = [name for name in ("dtype", "launch") if len({getattr(ours, name) for ours, _ in lines}) > 1]
    roofline = any(ours.roofline for ours, _ in lines)
    columns = ["case", *several, "kernel", OURS, "µs", *(["of the roofline"] if roofline else []), *others]
    rows = []
    for ours, cells in lines:
        rate = f"**{ours.rate:,.4g} {ours.unit}**" if ours.rate else "-"
        line = [merged(ours.case), *(getattr(ours, name) for name in several), f"`{ours.kernel}`", rate]
        line += [f"{ours.microseconds:,.1f}", *([_share(ours.roofline)] if roofline else [])]
        rows.append([*line, *(cells.get(name, "") for name in others)])
    return table(columns, rows) if rows else "Nothing of ours has a time.\n"


def _cell(contest: Contest, row: Measurement, partial: bool) -> str:
    ratio = (row.microseconds or 0.0) / (contest.ours.microseconds or 1.0)
    unit = "" if row.unit == contest.ours.unit else f" {row.unit}"
    text = f"{row.rate or 0:,.4g}{unit} ({ratio:.2f}×)"
    return f"*{text}*" if partial else text


def _not_timed(rows: Iterable[Measurement]) -> list[str]:
    """Who has no time, and why, once per reason."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if not row.microseconds:
            reason = row.note.strip().splitlines()[0][:_NOTE_LETTERS].rstrip(": ") if row.note.strip() else "no time"
            reasons.setdefault((row.contender, reason), []).append(row.case)
    if not reasons:
        return []
    lines = [
        f"- {contender}, {merged(cases[0])}{f' and {len(cases) - 1} more' if len(cases) > 1 else ''}: {reason}"
        for (contender, reason), cases in reasons.items()
    ]
    return ["Without a time:\n", "\n".join(lines) + "\n"]
