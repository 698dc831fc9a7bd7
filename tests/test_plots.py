"""Plots and the pages made of benchmark runs: the right numbers, drawn the same each time, and known to be current."""

from __future__ import annotations

import json
import re
import shutil
import statistics
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trtforge.bindings.errors import FileError, MissingDependencyError, UsageError
from trtforge.harness import measurement, plot_data, plots
from trtforge.harness.measurement import COPY, Measurement, Run
from trtforge.harness.plot_data import OURS, TRITON
from trtforge.kernels import registry

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
NORM, GEMM = "trtforge::rms_norm", "trtforge::fused_gemm"
ABOUT = {"gpu": "NVIDIA Test", "date": "2026-01-02", "cuda": "13.0", "torch": "2.0", "before": {"watts": 1.0}}


def _generator() -> tuple[ModuleType, ModuleType]:
    """docs/generate.py and docs/performance.py as modules."""
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        import generate
        import performance
    finally:
        sys.path.remove(str(ROOT / "docs"))
    return generate, performance


generate, performance = _generator()


def _ours(case: str, us: float | None, kernel: str = "cuda", op: str = NORM, **more: Any) -> Measurement:
    row = Measurement(op, case, "bfloat16", f"ours: {kernel}", True, kernel, "-", "direct", "graph", us, 0.01, 9, 100.0)
    return replace(row, chosen=kernel == "cuda", **more)


def _peer(case: str, us: float | None, name: str = "PyTorch eager", op: str = NORM, **more: Any) -> Measurement:
    row = Measurement(op, case, "bfloat16", name, microseconds=us, rate=50.0, error=1e-3)
    return replace(row, **more)


def _labels(op: str) -> list[str]:
    return [c.label for c in registry.get(op).cases if "bench" in c.tags]


def a_run(**more: Any) -> Run:
    """Two families, three sizes of M, an absent peer, one that does less, and ceilings."""
    rows = []
    for at, case in enumerate(_labels(NORM)[:3]):
        time = 10.0 * (at + 1)
        rows += [_ours(case, time), _ours(case, 1.5 * time, "triton"), _peer(case, 2 * time)]
        rows += [_peer(case, 3 * time, "torch.compile"), _peer(case, None, "FlashInfer", note="absent: not installed")]
    for at, case in enumerate(_labels(GEMM)[:3]):
        time = 20.0 * (at + 1)
        tflops = {"op": GEMM, "unit": "TFLOP/s", "rate": 400.0 / (at + 1)}
        rows += [_ours(case, time, **tflops), _peer(case, 0.9 * time, "cuBLASLt <epilogue> & co", **tflops)]
        rows.append(_peer(case, 0.5 * time, "cuBLAS", **tflops, note="the bare product"))
        rows[-1].error = None
    return replace(Run(dict(ABOUT), {COPY: 4000.0, "bfloat16 TFLOP/s": 700.0}, rows), **more)


# ---- what is compared ------------------------------------------------------------------------------------------------


def test_ratios_are_the_others_time_over_ours() -> None:
    (figure,) = [f for f in plot_data.figures(a_run()) if f.name == "ratios_rms_norm"]
    (panel,) = figure.panels
    assert [row["label"] for row in panel["rows"]] == [plot_data.merged(label) for label in _labels(NORM)[:3]]
    for row in panel["rows"]:
        assert row["ratios"] == pytest.approx({TRITON: 1.5, "PyTorch eager": 2.0, "torch.compile": 3.0})
        assert row["fastest"] == "PyTorch eager" and row["partial"] == []
    assert "NVIDIA Test · 2026-01-02 · CUDA 13.0 · PyTorch 2.0" in figure.caption
    assert "CUDA graphs" in figure.caption


def test_a_peer_that_does_less_is_shown_and_is_not_the_fastest() -> None:
    figure = next(f for f in plot_data.figures(a_run()) if f.name == "ratios_fused_gemm")
    for row in figure.panels[0]["rows"]:
        assert row["fastest"] == "cuBLASLt <epilogue> & co" and row["partial"] == ["cuBLAS"]
        assert row["ratios"]["cuBLAS"] == pytest.approx(0.5)


def test_graphs_count_where_both_ways_of_launching_were_timed() -> None:
    case = _labels(NORM)[0]
    eager = [_ours(case, 50.0, launch="eager"), _peer(case, 50.0, launch="eager")]
    graphs = [_ours(case, 5.0), _peer(case, 10.0)]
    for rows in (eager + graphs, graphs + eager):
        (contest,) = plot_data.contests(Run(ABOUT, {}, rows))
        assert contest.ours.launch == "graph" and contest.ratio("PyTorch eager") == 2.0
    (contest,) = plot_data.contests(Run(ABOUT, {}, [*eager, _ours(case, None)]))
    assert contest.ours.launch == "eager"


def test_who_has_no_time_takes_no_part() -> None:
    case = _labels(NORM)[0]
    assert plot_data.contests(Run(ABOUT, {}, [_ours(case, None), _peer(case, 1.0)])) == []
    (contest,) = plot_data.contests(Run(ABOUT, {}, [_ours(case, 1.0), _peer(case, None)]))
    assert contest.others == {} and contest.fastest is None
    assert plot_data.figures(Run(ABOUT, {}, [])) == []


def test_forms_other_than_direct_are_no_contenders_of_the_plots() -> None:
    case = _labels(NORM)[0]
    (contest,) = plot_data.contests(Run(ABOUT, {}, [_ours(case, 2.0), _ours(case, 1.0, form="aot"), _peer(case, 3.0)]))
    assert contest.ours.form == "direct" and list(contest.others) == ["PyTorch eager"]


TIMES = st.floats(0.5, 1e5)


@settings(deadline=None, max_examples=50, derandomize=True)
@given(TIMES, st.dictionaries(st.text("abcXYZ ,", min_size=1), st.tuples(TIMES, st.booleans()), max_size=5), TIMES)
def test_the_fastest_peer_is_the_fastest_that_does_the_whole_op(
    ours: float, peers: dict[str, tuple[float, bool]], triton: float
) -> None:
    case = _labels(NORM)[0]
    rows = [_peer(case, us, name, error=1e-3 if whole else None) for name, (us, whole) in peers.items()]
    (contest,) = plot_data.contests(Run(ABOUT, {}, [*rows, _ours(case, triton, "triton"), _ours(case, ours)]))
    whole = {name: us for name, (us, does) in peers.items() if does}
    assert contest.ours.microseconds == ours and contest.ratio(TRITON) == triton / ours
    if whole:
        assert contest.fastest is not None and contest.ratio(contest.fastest) == min(whole.values()) / ours
    else:
        assert contest.fastest is None


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("B8 Hq32 Hkv32 Sq2048 Sk2048 D64 causal", "B8 H32 S2048 D64 causal"),
        ("B8 Hq64 Hkv8 Sq2048 Sk2048 D128", "B8 Hq64 Hkv8 S2048 D128"),
        ("B16 Hq32 Hkv8 Sq1 Sk4096 D128", "B16 Hq32 Hkv8 Sq1 Sk4096 D128"),
        ("B1 Hq2 Hkv2 Sq64 Sk640", "B1 H2 Sq64 Sk640"),
        ("M16 N4096 K4096 activation=silu +bias", "M16 N4096 K4096 activation=silu +bias"),
    ],
)
def test_equal_sizes_are_written_once(label: str, expected: str) -> None:
    assert plot_data.merged(label) == expected


def test_words_that_all_labels_have_are_told_once() -> None:
    assert plot_data.shortened(["M1 K4 +bias", "M2 K4 +bias"]) == (["M1", "M2"], "K4 +bias")
    assert plot_data.shortened(["M1 K4"]) == (["M1 K4"], "")
    assert plot_data.shortened(["M1", "M1"]) == (["M1", "M1"], "M1")


def test_scaling_lines_hold_everything_else_fixed() -> None:
    figure = next(f for f in plot_data.figures(a_run()) if f.name == "scaling_fused_gemm")
    (panel,) = figure.panels
    assert (panel["axis"], panel["unit"]) == ("M", "TFLOP/s")
    assert [size for size, _ in panel["lines"][OURS]] == [16, 256, 4096]
    assert [rate for _, rate in panel["lines"][OURS]] == [400.0, 200.0, pytest.approx(400 / 3)]


def test_scaling_over_lengths_of_equally_many_tokens() -> None:
    op = "trtforge::flash_attention"
    rows = [_ours(c, 9.0, "sm90", op, unit="TFLOP/s") for c in _labels(op) if c.endswith("D128 causal")]
    figure = plot_data.scaling(Run(ABOUT, {}, rows), plot_data.contests(Run(ABOUT, {}, rows)), "flash_attention")
    assert figure is not None
    assert [(p["axis"], [x for x, _ in p["lines"][OURS]]) for p in figure.panels] == [
        ("S", [512, 2048, 4096, 8192, 16384])
    ]
    assert "16384 tokens" in figure.panels[0]["title"] and "causal" in figure.panels[0]["title"]


def test_the_roofline_takes_work_from_the_run_and_else_from_the_declaration() -> None:
    case = "M4096 N4096"
    told = Run(ABOUT, {COPY: 4000.0}, [_ours(case, 10.0, flops=3_000_000, bytes=1_000_000)])
    figure = plot_data.roofline(told, plot_data.contests(told))
    assert figure is not None
    assert figure.panels[0]["points"][0]["intensity"] == 3.0 and figure.panels[0]["points"][0]["tflops"] == 0.3
    declared = Run(ABOUT, {}, [_ours(case, 10.0), _ours("no such case", 1.0)])
    figure = plot_data.roofline(declared, plot_data.contests(declared))
    assert figure is not None and len(figure.panels[0]["points"]) == 1
    flops, moved = 4 * 4096 * 4096, 2 * (2 * 4096 * 4096 + 4096)
    assert figure.panels[0]["points"][0]["intensity"] == pytest.approx(flops / moved)


def test_ops_that_are_not_registered_are_still_compared() -> None:
    rows = [_ours("M3", 1.0, op="other::thing"), _peer("M3", 2.0, op="other::thing")]
    (figure,) = plot_data.figures(Run(ABOUT, {}, rows))
    assert figure.name == "ratios_thing"


# ---- digests ---------------------------------------------------------------------------------------------------------


def _digests(run: Run) -> dict[str, str]:
    return {f.name: f.digest for f in plot_data.figures(run)}


def test_a_digest_changes_with_what_is_drawn_and_with_nothing_else() -> None:
    before = _digests(a_run())
    assert set(before) == {"ratios_rms_norm", "ratios_fused_gemm", "scaling_fused_gemm", "roofline"}
    same = a_run()
    for row in same.rows:
        row.spread, row.repeats, row.tactic = 0.5, 3, "other"
    assert _digests(same) == before
    slower = a_run()
    slower.rows[0].microseconds = 10.01
    assert {name for name in before if _digests(slower)[name] != before[name]} == {"ratios_rms_norm", "roofline"}
    rounded = a_run()
    rounded.rows[0].microseconds = 10.0 * (1 + 1e-12)
    assert _digests(rounded) == before
    assert all(_digests(a_run(about={**ABOUT, "date": "2026-01-03"}))[name] != before[name] for name in before)


# ---- drawings --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def drawn() -> dict[str, str]:
    pytest.importorskip("matplotlib", reason="plots need the extra 'plots'")
    return plots.figures(a_run())


def test_every_plot_is_whole_and_tells_what_it_shows(drawn: dict[str, str]) -> None:
    figures = {f"{f.name}.svg": f for f in plot_data.figures(a_run())}
    assert drawn.keys() == figures.keys()
    for name, text in drawn.items():
        root = ElementTree.fromstring(text)
        words = " ".join("".join(e.itertext()) for e in root.iter() if e.tag.endswith("}text"))
        title = figures[name].title
        assert title[0].upper() + title[1:] in words and "NVIDIA Test · 2026-01-02" in words
        assert plots.digest_in(text) == figures[name].digest
        assert "<dc:date>" not in text and "image" not in {e.tag.rpartition("}")[2] for e in root.iter()}
        assert float(root.attrib["viewBox"].split()[2]) == pytest.approx(72 * plots.WIDTH)


def test_plots_show_their_numbers(drawn: dict[str, str]) -> None:
    assert drawn["ratios_rms_norm.svg"].count("2.00×") == 3
    assert "cuBLAS (does less)" in drawn["ratios_fused_gemm.svg"]
    assert "cuBLASLt &lt;epilogue&gt; &amp; co" in drawn["ratios_fused_gemm.svg"]
    assert "copy 4,000 GB/s" in drawn["roofline.svg"] and "bfloat16 700 TFLOP/s" in drawn["roofline.svg"]
    assert "ceilings were not measured" in plots.svg(plot_data.figures(a_run(ceilings={}))[-1])


def test_drawing_twice_gives_the_same_bytes(drawn: dict[str, str]) -> None:
    assert plots.figures(a_run()) == drawn


@pytest.mark.parametrize("rows", [[_ours("M16 N4096", 5.0)], [_ours("M16 N4096", 5.0), _peer("M16 N4096", 5.0)]])
def test_the_smallest_runs_can_be_drawn(rows: list[Measurement]) -> None:
    pytest.importorskip("matplotlib", reason="plots need the extra 'plots'")
    ElementTree.fromstring(plots.svg(plots.one(Run({}, {}, rows))))


def test_written_by_suffix(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="plots need the extra 'plots'")
    plots.write(a_run(), tmp_path / "run.svg")
    plots.write(a_run(), tmp_path / "run.PNG")
    assert (tmp_path / "run.svg").read_text().startswith("<?xml")
    assert (tmp_path / "run.PNG").read_bytes().startswith(b"\x89PNG")
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match="cannot write"):
        plots.write(a_run(), tmp_path / "file" / "run.svg")


def test_what_cannot_be_plotted_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"as \.svg or \.png, not as 'run\.gif'"):
        plots.write(a_run(), tmp_path / "run.gif")
    with pytest.raises(UsageError, match="nothing to plot"):
        plots.write(Run(ABOUT, {}, [_ours("M16 N4096", None)]), tmp_path / "run.svg")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingDependencyError, match=r"trtforge\[plots\]"):
        plots.write(a_run(), tmp_path / "run.svg")
    assert list(tmp_path.iterdir()) == []


# ---- pages -----------------------------------------------------------------------------------------------------------


def test_the_headline_names_the_worst_case() -> None:
    run = a_run()
    run.rows[2].microseconds = 5.0  # the peer of the first case halves our time
    text = performance.headline(run)
    (norm,) = [line for line in text.splitlines() if line.startswith("| rms_norm")]
    ratios = [0.5, 2.0, 2.0]
    assert f"**{statistics.median(ratios):.2f}×**" in norm and "0.50× – 2.00×" in norm
    assert plot_data.merged(_labels(NORM)[0]) in norm and "(PyTorch eager)" in norm


def test_tables_have_a_column_per_contender_and_name_the_absent() -> None:
    page = performance.tables_page(a_run(), RESULTS / "x")
    assert "| case | kernel | TRTForge | µs | TRTForge in Triton | PyTorch eager | torch.compile |" in page
    assert "*400 (0.50×)*" in page and "Ceilings measured in the same run: copy 4,000 GB/s" in page
    assert "- FlashInfer, M16 N4096 and 2 more: absent: not installed" in page
    both = a_run()
    both.rows += [replace(row, launch="eager", form=row.form and "aot") for row in both.rows if row.op == NORM]
    assert "| case | launch | kernel |" in performance.tables_page(both, RESULTS / "x")
    forms = a_run()
    forms.rows.append(_ours(_labels(NORM)[0], 11.0, form="aot"))
    assert "as AOT plugin" in performance.tables_page(forms, RESULTS / "x")


def test_a_block_is_replaced_between_its_marks() -> None:
    page = f"before\n{performance.BEGIN}\nold\n{performance.END}\nafter\n"
    once = performance.with_block(page, "new\n")
    assert once == f"before\n{performance.BEGIN}\n\nnew\n\n{performance.END}\nafter\n"
    assert performance.with_block(once, "new\n") == once
    with pytest.raises(ValueError, match="no block"):
        performance.with_block("nothing here", "new")


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    results = tmp_path / "benchmarks" / "results"
    shutil.copytree(RESULTS, results)
    return results


@pytest.mark.skipif(not list(RESULTS.glob("*/bench.json")), reason="no benchmark run is committed")
def test_plots_go_out_of_date_with_their_numbers(copied: Path) -> None:
    def stale() -> set[str]:
        return {path.name for path in generate.out_of_date({}, generate.figures(copied), copied)}

    assert stale() == set()
    bench = next(copied.glob("*/bench.json"))
    data = json.loads(bench.read_text())
    row = next(r for r in data["rows"] if r["op"] == NORM and r["chosen"] and r["microseconds"])
    row["microseconds"] *= 1.1
    bench.write_text(json.dumps(data))
    assert stale() == {"ratios_rms_norm.svg", "roofline.svg"} | {n for n in stale() if n == "scaling_rms_norm.svg"}
    measurement.write(Run({**measurement.read(bench).about}, {}, []), bench)
    assert stale() == {path.name for path in bench.parent.glob("figures/*.svg")}
    next(bench.parent.glob("figures/*.svg")).unlink()
    assert len(stale()) == len(list(bench.parent.glob("figures/*.svg")))


@pytest.mark.parametrize("page", sorted(RESULTS.glob("*/README.md")), ids=lambda p: p.parent.name)
def test_links_of_result_pages_lead_to_files(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)\)", page.read_text(encoding="utf-8"))
    assert targets and [t for t in targets if not (page.parent / t).exists()] == []
