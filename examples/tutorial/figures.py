"""The figures of docs/tutorial.md, from a committed benchmark run.

``python examples/tutorial/figures.py`` writes the table between the page's two marks; ``fill`` gives the text, for a
generator that writes several pages.
"""

from __future__ import annotations

from pathlib import Path

from trtforge.harness import measurement
from trtforge.harness.measurement import COPY, Measurement, Run

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "tutorial.md"
RESULTS = ROOT / "benchmarks" / "results" / "nvidia_h200" / "tutorial.json"
BEGIN = "<!-- generated: tutorial -->"
END = "<!-- end of generated: tutorial -->"
STEPS = ("step1", "step2", "step3", "step4", "step5")
OUTSTANDING = (
    "*Not measured yet.* The table appears here with `benchmarks/results/nvidia_h200/tutorial.json`, made on an H200 "
    "by `trtforge bench add_rms_norm_fp8 --load examples/tutorial/add_rms_norm_fp8.py --tactics all --json FILE`."
)


def _fastest(rows: list[Measurement]) -> Measurement | None:
    """The row with the least time: CUDA-graph launches where there are any, for they leave the host out."""
    timed = [r for r in rows if r.microseconds]
    graph = [r for r in timed if r.launch == "graph"] or timed
    return min(graph, key=lambda r: r.microseconds or 0.0, default=None)


def _line(name: str, row: Measurement | None, first: float | None, copy: float | None) -> str:
    if row is None or not row.microseconds:
        return f"| {name} | - | - | - | - |"
    rate = f"{row.rate:,.0f}" if row.rate else "-"
    share = f"{row.rate / copy:.0%}" if row.rate and copy and row.unit == "GB/s" else "-"
    ratio = f"{first / row.microseconds:.2f}×" if first else "-"
    return f"| {name} | {row.microseconds:,.1f} | {rate} | {share} | {ratio} |"


def table(run: Run) -> str:
    """One Markdown table per case: time, rate, share of the copy rate of the same run, and how often step 1 fits."""
    copy = run.ceilings.get(COPY)
    ours = [r for r in run.rows if r.op.endswith("::add_rms_norm_fp8")]
    where = ", ".join(str(run.about[k]) for k in ("gpu", "date") if run.about.get(k))
    parts = [f"From `{RESULTS.relative_to(ROOT)}`" + (f": {where}." if where else ".")]
    for case in dict.fromkeys(r.case for r in ours):
        rows = [r for r in ours if r.case == case]
        steps = {s: _fastest([r for r in rows if r.ours and r.kernel == s and r.form in ("", "direct")]) for s in STEPS}
        peers = {n: _fastest([r for r in rows if not r.ours and r.contender == n]) for n in _peers(rows)}
        start = steps["step1"].microseconds if steps["step1"] else None
        lines = [f"| {case} | µs | GB/s | of the copy rate | faster than step 1 |", "|---|---|---|---|---|"]
        lines += [_line(name, row, start, copy) for name, row in {**steps, **peers}.items()]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _peers(rows: list[Measurement]) -> list[str]:
    return list(dict.fromkeys(r.contender for r in rows if not r.ours))


def fill(text: str, results: Path = RESULTS) -> str:
    """The page with its table, or with the statement that the run is outstanding. Raises FileError."""
    body = table(measurement.read(results)) if results.is_file() else OUTSTANDING
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{body}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(fill(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
