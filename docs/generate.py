"""Write the pages that are made from data: docs/ops/*.md from declarations, docs/results.md from committed results.

``python docs/generate.py`` rewrites them; ``--check`` exits with 1 when a page differs from what would be written.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from trtforge.harness.compare import tolerance_of
from trtforge.kernels import Op, registry
from trtforge.kernels.contract import Attr, AttributeRef, Tensor
from trtforge.plugins.eligibility import aot_eligibility

DOCS = Path(__file__).parent
RESULTS = DOCS.parent / "benchmarks" / "results"
EXACT = 1e-20  # a relative error that no rounding is as small as
NAMES_SHOWN = 6
NOTE = "<!-- Written by docs/generate.py; change the declaration (or the result) and run it again. -->\n"


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _dtype(spec: Tensor) -> str:
    if isinstance(spec.dtype, AttributeRef):
        return f"as attribute `{spec.dtype.name}`"
    if isinstance(spec.dtype, tuple):
        return ", ".join(spec.dtype)
    return spec.dtype


def _default(attribute: Attr) -> str:
    return "computed from the dimensions" if callable(attribute.default) else f"`{attribute.default!r}`"


def _accepted(attribute: Attr) -> str:
    if attribute.choices:
        return ", ".join(f"`{c}`" for c in attribute.choices)
    bounds = [f">= {attribute.minimum:g}"] if attribute.minimum is not None else []
    bounds += [f"<= {attribute.maximum:g}"] if attribute.maximum is not None else []
    return ", ".join([attribute.kind.__name__, *bounds])


def op_page(op: Op) -> str:
    """The page of one op."""
    parts = [f"# {op.name}\n", NOTE, op.doc + "\n", "## Contract\n"]
    rows = [
        (f"`{n}`", "input" + (", optional" if s.optional else ""), f"`{s}`", _dtype(s), s.doc)
        for n, s in op.inputs.items()
    ]
    rows += [(f"`{n}`", "output", f"`{s}`", _dtype(s), s.doc) for n, s in op.outputs.items()]
    parts.append(table(("name", "", "dimensions", "dtype", "what"), rows))
    if op.attributes:
        rows = [(f"`{n}`", _default(a), _accepted(a), a.doc) for n, a in op.attributes.items()]
        parts.append(table(("attribute", "default", "accepted", "what"), rows))
    if op.rules:
        parts.append("Refused otherwise:\n\n" + "".join(f"- {message}\n" for _, message in op.rules))
    parts.append("## Kernels\n")
    rows = []
    for k in op.kernels:
        found = aot_eligibility(k)
        aot = (
            "yes" + (f", with {', '.join(found.static)} static" if found.static else "")
            if found.aot
            else f"no: {found.reason}"
        )
        arch = k.arch if isinstance(k.arch, str) else ", ".join(k.arch)
        where = "; ".join(message for _, message in k.requires)
        rows.append((f"`{k.name}`", k.language, f"`{k.source.path.name}`", arch, len(k.tactics), where, aot))
    parts.append(table(("kernel", "language", "source", "architectures", "tactics", "asks for", "AOT plugin"), rows))
    kinds = dict.fromkeys(
        op.bind_case(c, dtypes).dtypes[name]
        for c in op.cases
        for dtypes in op.dtype_combinations(c)
        for name in op.outputs
    )
    rows = []
    for kind in kinds:
        t = tolerance_of(op, kind)
        exact = t.l2 <= EXACT and not (t.steps or t.fraction)
        bound = "bit for bit" if exact else f"{t.l2:g}" if t.l2 else f"{t.steps} step in {t.fraction:g} of the elements"
        elementwise = "" if t.rtol is None or exact else f"{t.atol:g} · rms(r) + {t.rtol:g} · |r|"
        rows.append((kind, bound, elementwise))
    parts.append("## What `check` holds it to\n")
    parts.append(table(("output dtype", "relative L2 error", "elementwise bound"), rows))
    small = sum(1 for c in op.cases if not c.tags)
    parts.append(f"{len(op.cases)} cases, {small} of them small enough for an interpreter.\n")
    if op.patterns:
        names = ", ".join(f"`{p.name}`" for p in op.patterns[:NAMES_SHOWN])
        more = f" and {len(op.patterns) - NAMES_SHOWN} more" if len(op.patterns) > NAMES_SHOWN else ""
        parts.append(f"## Fusion\n\nReplaces the subgraphs {names}{more}, written in `{op.file.parent.name}/`.\n")
    return "\n".join(parts)


def index_page(ops: Sequence[Op]) -> str:
    """The list of ops."""
    rows = []
    for op in ops:
        first_sentence = re.split(r"(?<!al)\.\s|\n\n", op.doc)[0].replace("\n", " ").rstrip(".")
        page = op.name.split("::")[1]
        rows.append((f"[{op.name}]({page}.md)", first_sentence, ", ".join(f"`{k.name}`" for k in op.kernels)))
    return "\n".join(["# Ops\n", NOTE, table(("op", "what it computes", "kernels"), rows)])


def results_page() -> str:
    """Every committed run: kernels against their references, then against the libraries."""
    parts = ["# Results\n", NOTE]
    for path in sorted(RESULTS.glob("*/check.json")):
        data = json.loads(path.read_text())
        parts.append(
            _heading(data["about"], path, "trtforge check --device cuda --report FILE", "Every kernel checked")
        )
        parts.append(
            "One row is a kernel × tactic × case × dtype, launched with poisoned outputs between guard bands and held "
            "against the NumPy reference; skipped are combinations that a kernel refuses.\n"
        )
        rows = [
            (k["op"], k["kernel"], k["passed"], k["failed"], k["skipped"], _share(k["worst_over_tolerance"]))
            for k in data["kernels"]
        ]
        parts.append(table(("op", "kernel", "passed", "failed", "skipped", "worst error, of the tolerance"), rows))
    for path in sorted(RESULTS.glob("*/libraries.json")):
        data = json.loads(path.read_text())
        parts.append(_heading(data["about"], path, "python benchmarks/against_libraries.py --json FILE", "Libraries"))
        parts.append(
            "Contenders alternate in one process, cold L2, N(0, 1) inputs, medians; each output was checked in the "
            "same run.\n"
        )
        for op in dict.fromkeys(r["op"] for r in data["results"]):
            parts.append(f"### {op}\n\n" + _comparison([r for r in data["results"] if r["op"] == op]))
    return "\n".join(parts)


def _share(worst: float | None) -> str:
    return "-" if worst is None else f"{worst:.0%}"


def _heading(about: dict[str, Any], path: Path, command: str, title: str) -> str:
    skipped = ("gpu", "date", "remark", "architecture")
    versions = ", ".join(f"{k} {v}" for k, v in about.items() if k not in skipped)
    remark = f" {about['remark'][0].upper()}{about['remark'][1:]}." if "remark" in about else ""
    source = path.relative_to(DOCS.parent)
    return f"## {title}: {about['gpu']}, {about['date']}\n\nFrom `{source}`, made by `{command}`. {versions}.{remark}\n"


def _comparison(results: list[dict[str, Any]]) -> str:
    rows = []
    for case in dict.fromkeys(r["case"] for r in results):
        members = [r for r in results if r["case"] == case and r["microseconds"]]
        ours = next((r for r in members if r["contender"].startswith("ours") and "triton" not in r["contender"]), None)
        if ours is None:
            continue
        others = [
            f"{r['contender'].removeprefix('ours: ')} {r['rate']:g} ({r['microseconds'] / ours['microseconds']:.2f}×)"
            for r in members
            if r is not ours
        ]
        kernel = ours["contender"].removeprefix("ours: ").split(" [")[0]
        rows.append((case, f"{ours['rate']:g} {ours['unit']} ({kernel})", "<br>".join(others)))
    return table(("case", "ours", "others: rate (their time over ours)"), rows)


def pages() -> dict[Path, str]:
    """Every generated page by its path."""
    ops = [op for op in registry.ops() if op.name.startswith("trtforge::")]
    found = {DOCS / "ops" / f"{op.name.split('::')[1]}.md": op_page(op) for op in ops}
    found[DOCS / "ops" / "README.md"] = index_page(ops)
    found[DOCS / "results.md"] = results_page()
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 when a page is out of date")
    check = parser.parse_args().check
    stale = [path for path, text in pages().items() if not path.is_file() or path.read_text() != text]
    for path in stale:
        if not check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(pages()[path])
        print(f"{'out of date' if check else 'wrote'} {path.relative_to(DOCS.parent)}")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
