"""A session as one HTML page: sections, summary tiles and pictures, laid out by ``page.html.j2``."""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
from dataclasses import dataclass, field
from pathlib import Path

import jinja2
from markupsafe import Markup

from trtforge.bindings.errors import MissingDependencyError
from trtforge.harness import plots
from trtforge.harness.measurement import Run
from trtforge.harness.report import bench_tables, tables
from trtforge.harness.report.pictures import inline
from trtforge.harness.report.profile_group import facts_of, tables_of, timeline_table
from trtforge.harness.report.session import Session
from trtforge.harness.report.sources import named
from trtforge.harness.report.tables import Table

_FOLDER = Path(__file__).parent
_TEMPLATE = "page.html.j2"


@dataclass(frozen=True)
class Tile:
    """One figure of the summary."""

    figure: str
    label: str
    detail: str = ""
    kind: str = ""


@dataclass(frozen=True)
class Picture:
    svg: Markup
    caption: str


@dataclass
class Group:
    """What one source gave: a heading, facts about it, findings, pictures and tables."""

    title: str = ""
    facts: list[tuple[str, str]] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)


@dataclass
class Section:
    """A part of the page; ``empty`` says why it has nothing to show."""

    id: str
    title: str
    groups: list[Group] = field(default_factory=list)
    empty: str = ""

    @property
    def links(self) -> list[tuple[str, str]]:
        """What a long part holds, op by op: the anchor and the op of its first table."""
        found: dict[str, str] = {}
        for table in (t for group in self.groups for t in group.tables):
            op, colon, _ = table.title.partition(": ")
            if colon:
                found.setdefault(op, f"title-{table.name}")
        return [(anchor, op.removeprefix("trtforge::")) for op, anchor in found.items()] if len(found) > 2 else []


def render(session: Session) -> str:
    """The page as text. It loads nothing: style, script and pictures are inside, and its policy forbids the rest."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    content = [_checks(session), _inspection(session), _benchmarks(session), _profiles(session), _ops(session)]
    script = (_FOLDER / "page.js").read_text(encoding="utf-8")
    return environment.get_template(_TEMPLATE).render(
        session=session,
        version=importlib.metadata.version("trtforge"),
        about=tables.versions(session.about),
        sections=[(s.id, s.title) for s in content],
        content=content,
        tiles=tiles(session),
        style=Markup((_FOLDER / "page.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def tiles(session: Session) -> list[Tile]:
    """The summary: one tile per thing that was done."""
    found = [Tile(f"{len(session.ops):,}", "ops", f"{len(session.kernels):,} kernels")]
    if session.checks:
        passed, failed, skipped = (
            sum(c.summary[name] for c in session.checks) for name in ("passed", "failed", "skipped")
        )
        found.append(Tile(f"{passed:,}", "checks passed", f"{skipped:,} skipped", "good"))
        found.append(Tile(f"{failed:,}", "checks failed", "", "bad" if failed else "good"))
    if session.inspections:
        spilling = sum(1 for i in session.inspections if i.spills)
        found.append(Tile(f"{len(session.inspections):,}", "compilations inspected", "", ""))
        found.append(Tile(f"{spilling:,}", "of them spill registers", "", "bad" if spilling else "good"))
    runs = [run for _, run in session.runs]
    if runs:
        timed = sum(1 for run in runs for row in run.rows if row.microseconds)
        found.append(Tile(f"{timed:,}", "contenders timed", f"{sum(len(r.problems()) for r in runs):,} cases"))
        ratio = bench_tables.median_ratio(runs)
        if ratio is not None:
            found.append(Tile(f"{ratio:.2f}×", "fastest peer's time over ours", "median over the cases"))
    if session.profiles:
        functions = sum(len(profiles) for _, profiles in session.profiles)
        found.append(Tile(f"{len(session.profiles):,}", "profiles", f"{functions:,} GPU functions"))
    return found


def _checks(session: Session) -> Section:
    section = Section("checks", "Checks")
    for index, checks in enumerate(session.checks):
        group = Group(named(checks.source), tables.versions(checks.about))
        count = checks.summary
        group.notes.append(
            f"{count['passed']:,} passed, {count['failed']:,} failed, {count['skipped']:,} skipped. One count is a "
            "kernel × tactic × case × dtype; skipped are combinations that a kernel refuses."
        )
        if any(k["how"].startswith("compiled") for k in checks.kernels):
            group.notes.append("Where a row says compiled, the kernel was verified statically and not run.")
        group.tables.append(tables.check_table(checks, f"checks-{index}"))
        if checks.failed:
            group.tables.append(tables.failure_table(checks, f"failures-{index}"))
        section.groups.append(group)
    if not section.groups:
        section.empty = "No check was given. Name ops to have them checked, or a file: --checks check.json."
    return section


def _inspection(session: Session) -> Section:
    section = Section("inspection", "Inspection")
    for op in dict.fromkeys(i.op for i in session.inspections):
        found = [i for i in session.inspections if i.op == op]
        name = f"inspection-{op.replace('::', '-')}"
        shown = [tables.resource_table(op, found, name), tables.mix_table(op, found, f"{name}-mix")]
        warnings = [f"{i.kernel} {i.arch}: {w}" for i in found for w in i.warnings]
        section.groups.append(Group(notes=list(dict.fromkeys(warnings)), tables=shown))
    if session.uninspected:
        section.groups.append(Group(tables=[tables.uninspected_table(session.uninspected)]))
    if not section.groups:
        section.empty = "No kernel of these ops is built for the architectures asked for."
    return section


def _benchmarks(session: Session) -> Section:
    section = Section("benchmarks", "Benchmarks")
    for index, (source, run) in enumerate(session.runs):
        group = Group(named(source), tables.versions(run.about))
        pictures, note = _pictures(run, index)
        group.pictures = pictures
        if note:
            group.notes.append(note)
        group.tables.append(bench_tables.standing_table(run, f"standings-{index}"))
        for op in dict.fromkeys(row.op for row in run.rows):
            name = f"contenders-{index}-{op.replace('::', '-')}"
            group.tables.append(bench_tables.contender_table(run, op, name))
        if run.ceilings:
            group.tables.append(bench_tables.ceiling_table(run, f"ceilings-{index}"))
        section.groups.append(group)
    if not section.groups:
        section.empty = (
            "No benchmark was given. On a machine with a GPU: trtforge bench OP --json bench.json, "
            "then --bench bench.json."
        )
    return section


def _pictures(run: Run, index: int) -> tuple[list[Picture], str]:
    """The plots of a run; or none, and why."""
    try:
        drawn = plots.figures(run)
    except MissingDependencyError as error:
        return [], f"There are no plots here: {error}."
    return [
        Picture(Markup(inline(svg, f"p{index}-{number}-", Path(name).stem.replace("_", " "))), _caption(name))
        for number, (name, svg) in enumerate(drawn.items())
    ], ""


def _caption(name: str) -> str:
    return Path(name).stem.replace("_", " ").capitalize()


def _profiles(session: Session) -> Section:
    section = Section("profiles", "Profiles")
    for index, (file, profiles) in enumerate(session.profiles):
        name, source = f"profile-{index}", named(file)
        if any(p.tool == "nsys" for p in profiles):
            title = " ".join(part for part in (profiles[0].op, profiles[0].case) if part) or source
            facts = [("tool", "nsys"), ("from", source)]
            section.groups.append(Group(title, facts, tables=[timeline_table(profiles, name)]))
            continue
        for place, one in enumerate(profiles):
            title = f"{one.op}/{one.kernel}" if one.op else one.kernel
            findings = [str(finding) for finding in one.findings]
            group = Group(title, facts_of(source, one), findings, tables=tables_of(one, f"{name}-{place}"))
            section.groups.append(group)
    if not section.groups:
        section.empty = (
            "No profile was given. On a machine with a GPU: trtforge profile OP -o NAME, then --profile NAME.json."
        )
    return section


def _ops(session: Session) -> Section:
    shown = [tables.op_table(session.ops), tables.kernel_table(session.kernels)]
    return Section("list", "Ops and kernels", [Group(tables=shown)])
