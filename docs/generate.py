"""Write what is made from data: docs/ops/*.md from declarations; results, plots and README's figures from raw files.

``python docs/generate.py`` rewrites what is out of date; ``--check`` writes nothing and exits with 1 when something is.
A plot is current when it carries the digest of the numbers it should show (its bytes differ between versions of
fonts and of Matplotlib); ``--redraw`` draws all plots anew.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType

import performance
import quantized
from tables import table

from trtforge.bindings.errors import MissingDependencyError
from trtforge.bindings.files import replace_file
from trtforge.harness import plots
from trtforge.harness.compare import tolerance_of
from trtforge.harness.plot_data import Figure
from trtforge.kernels import Op, registry
from trtforge.kernels.contract import Attr, AttributeRef, Tensor
from trtforge.plugins.eligibility import aot_eligibility

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
RESULTS = ROOT / "benchmarks" / "results"
EXACT = 1e-20  # a relative error that no rounding is as small as
NAMES_SHOWN = 6
NOTE = "<!-- Written by docs/generate.py; change the declaration (or the result) and run it again. -->\n"


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


def pages(results: Path = RESULTS) -> dict[Path, str]:
    """Every generated page by its path."""
    ops = [op for op in registry.ops() if op.name.startswith("trtforge::")]
    found = {DOCS / "ops" / f"{op.name.split('::')[1]}.md": op_page(op) for op in ops}
    found[DOCS / "ops" / "README.md"] = index_page(ops)
    runs = performance.runs(results)
    found[DOCS / "results.md"] = performance.results_page(runs, results, DOCS)
    found[DOCS / "quantized_models.md"] = quantized.page(results)
    tutorial = DOCS / "tutorial.md"
    found[tutorial] = figures_of_the_tutorial().fill(tutorial.read_text(encoding="utf-8"))
    for folder, run in runs.items():
        found[folder / "README.md"] = performance.tables_page(run, folder)
    readme = ROOT / "README.md"
    found[readme] = performance.with_block(readme.read_text(encoding="utf-8"), performance.readme_block(runs, ROOT))
    return found


def figures_of_the_tutorial() -> ModuleType:
    """examples/tutorial/figures.py, which is no part of a package."""
    path = ROOT / "examples" / "tutorial" / "figures.py"
    spec = importlib.util.spec_from_file_location("tutorial_figures", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def figures(results: Path = RESULTS) -> dict[Path, Figure]:
    """Every plot by its path."""
    return {
        folder / performance.FIGURES / f"{figure.name}.svg": figure
        for folder, run in performance.runs(results).items()
        for figure in performance.all_figures(run)
    }


def out_of_date(texts: Mapping[Path, str], drawn: Mapping[Path, Figure], results: Path = RESULTS) -> list[Path]:
    """The pages and plots that differ from their data, and plots that no data asks for."""
    stale = [path for path, text in texts.items() if not path.is_file() or path.read_text(encoding="utf-8") != text]
    stale += [p for p, f in drawn.items() if not p.is_file() or plots.digest_in(p.read_text("utf-8")) != f.digest]
    return [*stale, *(p for p in sorted(results.glob(f"*/{performance.FIGURES}/*.svg")) if p not in drawn)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 when something is out of date")
    parser.add_argument("--redraw", action="store_true", help="draw every plot anew")
    arguments = parser.parse_args()
    texts, drawn = pages(), figures()
    stale = list(dict.fromkeys([*out_of_date(texts, drawn), *(drawn if arguments.redraw else ())]))
    for path in stale:
        if not arguments.check:
            try:
                _write(path, texts, drawn)
            except MissingDependencyError as error:
                print(f"{path.relative_to(ROOT)} is out of date: {error}", file=sys.stderr)
                return 1
        print(f"{'out of date' if arguments.check else 'wrote'} {path.relative_to(ROOT)}")
    return 1 if arguments.check and stale else 0


def _write(path: Path, texts: Mapping[Path, str], drawn: Mapping[Path, Figure]) -> None:
    if path in texts:
        replace_file(path, texts[path])
    elif path in drawn:
        replace_file(path, plots.svg(drawn[path]))
    else:
        path.unlink()


if __name__ == "__main__":
    sys.exit(main())
