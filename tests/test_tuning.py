"""Tuning tables: what they prefer, how they grow, and that a damaged one never reaches a call."""

from __future__ import annotations

import fnmatch
import json
import math
import sys
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trtforge.bindings.architectures import architecture
from trtforge.bindings.errors import ContractError, FileError, UsageError
from trtforge.harness.listing import list_kernels
from trtforge.harness.measurement import Measurement
from trtforge.kernels import Attr, Case, Launch, Op, Tensor, cuda, grid, registry, sources, triton, tuning
from trtforge.kernels.binding import Binding

GPU = "NVIDIA Test 9000"
DEVICE = replace(architecture("sm_90a"), gpu=GPU)
ROOT = Path(__file__).parent.parent
ABOUT = {"gpu": GPU, "date": "2026-01-02", "driver": "1.2"}
KERNEL = '#include "tile.cuh"\nextern "C" __global__ void work(const x_t* x, int n, y_t* y) {}\n'

SIZES = st.integers(1, 1 << 20)
PROPERTY = settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)


@pytest.fixture
def op(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Op]:
    """An op of a folder of its own, with a kernel that needs N to be even, one for any N, and a heuristic."""
    monkeypatch.delenv(tuning.VARIABLE, raising=False)
    folder = tmp_path / "work"
    folder.mkdir()
    for name, text in (("work.cu", KERNEL), ("tile.cuh", "// a tile\n"), ("work_triton.py", "def work(): ...\n")):
        (folder / name).write_text(text)
    made = Op(
        "test::work",
        inputs={"x": Tensor("M", "N", dtype=("float16", "bfloat16")), "bias": Tensor("N", dtype="x", optional=True)},
        outputs={"y": Tensor("M", "N", dtype="x")},
        attributes={
            "mode": Attr("a", choices=("a", "b")),
            "eps": Attr(1e-6, minimum=0.0),
            "scale": Attr(lambda d: d.N**-0.5),
        },
        cases=[Case({"M": 8, "N": 64}), Case({"M": 4096, "N": 4096}, tags=("bench",), dtypes={"x": "bfloat16"})],
    )
    made.file = folder / "op.py"
    even = (lambda d: d.N % 2 == 0, "needs N to be even")

    @made.kernel(cuda(folder / "work.cu"), tactics=grid(THREADS=(64, 128, 256)), requires=[even])
    def _(d: Any, t: Any) -> Launch:
        return Launch(grid=d.M, block=t.THREADS, scalars=(d.N,))

    @made.kernel(triton(folder / "work_triton.py"), tactics=({},))
    def _(d: Any) -> Launch:
        return Launch(grid=d.M, scalars=(d.N,))

    @made.heuristic
    def _() -> list[Any]:
        return [("cuda", {"THREADS": 256})]

    tuning.forget()
    yield made
    tuning.forget()
    registry._ops.pop("test::work")


def bound(op: Op, m: int = 4096, n: int = 4096, kind: str = "float16", bias: bool = False, **more: Any) -> Binding:
    shapes = {"x": (m, n), **({"bias": (n,)} if bias else {})}
    return op.bind(shapes, dict.fromkeys(shapes, kind), more)


def timed(op: Op, binding: Binding, *order: tuple[str, int]) -> tuning.Entry:
    """An entry that prefers kernels and tactics in the given order."""
    return tuning.entry(binding, [(op.kernel_named(k), i, 10.0 + at) for at, (k, i) in enumerate(order)])


def chosen(op: Op, binding: Binding, **more: Any) -> tuple[str, int]:
    choice = op.choose(binding, DEVICE, **more)
    return choice.kernel.name, choice.tactic


# ---- what a table prefers --------------------------------------------------------------------------------------------


def test_the_measured_order_comes_before_the_heuristic_on_that_gpu_only(op: Op) -> None:
    binding = bound(op)
    assert chosen(op, binding) == ("cuda", 2)
    path = tuning.write(op, GPU, [timed(op, binding, ("cuda", 1), ("triton", 0), ("cuda", 0))], ABOUT)
    assert path == op.file.parent / "tuned" / "nvidia_test_9000" / "test.work.json"
    assert chosen(op, binding) == ("cuda", 1)
    assert chosen(op, binding, kernel="triton") == ("triton", 0)
    assert chosen(op, binding, tuned=False) == ("cuda", 2)
    assert op.choose(binding, architecture("sm_90a")).tactic == 2
    assert op.choose(binding, replace(DEVICE, gpu="NVIDIA Test 9000 Ti")).tactic == 2


def test_switched_off_by_the_environment(op: Op, monkeypatch: pytest.MonkeyPatch) -> None:
    tuning.write(op, GPU, [timed(op, bound(op), ("cuda", 1))], ABOUT)
    monkeypatch.setenv(tuning.VARIABLE, "off")
    assert chosen(op, bound(op)) == ("cuda", 2)
    with pytest.raises(UsageError, match="TRTFORGE_TUNING=off leaves no place"):
        tuning.write(op, GPU, [timed(op, bound(op), ("cuda", 1))], ABOUT)


def test_a_folder_of_ones_own_is_read_first_and_written_to(
    op: Op, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuning.write(op, GPU, [timed(op, bound(op), ("cuda", 1)), timed(op, bound(op, m=64), ("triton", 0))], ABOUT)
    monkeypatch.setenv(tuning.VARIABLE, str(tmp_path / "mine"))
    path = tuning.write(op, GPU, [timed(op, bound(op), ("cuda", 0))], ABOUT)
    assert path.is_relative_to(tmp_path / "mine")
    assert chosen(op, bound(op)) == ("cuda", 0)
    assert chosen(op, bound(op, m=64)) == ("triton", 0)


def test_what_cannot_serve_falls_through_to_the_next_and_then_to_the_heuristic(op: Op) -> None:
    tuning.write(op, GPU, [timed(op, bound(op), ("cuda", 1), ("triton", 0))], ABOUT)
    assert chosen(op, bound(op, n=4097)) == ("triton", 0)
    tuning.write(op, GPU, [timed(op, bound(op), ("cuda", 1))], ABOUT)
    assert chosen(op, bound(op, n=4097)) == ("triton", 0)
    with pytest.raises(ContractError, match="needs N to be even"):
        op.choose(bound(op, n=4097), DEVICE, kernel="cuda")


@pytest.mark.parametrize(
    ("more", "speaks"),
    [
        ({}, True),
        ({"m": 8192}, True),
        ({"m": 8193}, False),
        ({"m": 2048}, True),
        ({"m": 6000, "n": 6000}, True),
        ({"m": 8192, "n": 8192}, False),
        ({"eps": 1e-3}, True),
        ({"eps": 0.0}, False),
        ({"scale": 3.0}, True),
        ({"mode": "b"}, False),
        ({"kind": "bfloat16"}, False),
        ({"bias": True}, False),
    ],
)
def test_how_far_an_entry_speaks(op: Op, more: dict[str, Any], speaks: bool) -> None:
    tuning.write(op, GPU, [timed(op, bound(op), ("cuda", 0))], ABOUT)
    assert chosen(op, bound(op, **more)) == ("cuda", 0 if speaks else 2)


def test_equal_attributes_are_preferred_among_equally_near_entries(op: Op) -> None:
    entries = [timed(op, bound(op, eps=eps), ("cuda", tactic)) for eps, tactic in ((1e-3, 0), (1e-6, 1))]
    tuning.write(op, GPU, entries, ABOUT)
    assert chosen(op, bound(op)) == ("cuda", 1)
    assert chosen(op, bound(op, eps=1e-3)) == ("cuda", 0)


@PROPERTY
@given(st.lists(st.tuples(SIZES, SIZES), min_size=1, max_size=12, unique=True), SIZES, SIZES, st.randoms())
def test_the_nearest_entry_is_found_whatever_the_order(
    op: Op, sizes: list[tuple[int, int]], m: int, n: int, shuffled: Any
) -> None:
    entries = [timed(op, bound(op, *size), ("cuda", 0)) for size in sizes]
    query = bound(op, m, n)
    found = tuning.nearest(entries, query)
    away = {size: math.sqrt(sum(math.log2(a / b) ** 2 for a, b in zip(size, (m, n)))) for size in sizes}
    best = min(away.values())
    if (m, n) in sizes:
        assert found is not None and dict(found.dims) == {"M": m, "N": n}
    if best > tuning.MAX_DISTANCE + 1e-9:
        assert found is None
    elif best < tuning.MAX_DISTANCE - 1e-9:
        assert found is not None
        assert away[found.dims["M"], found.dims["N"]] == pytest.approx(best, abs=1e-9)
    shuffled.shuffle(entries)
    assert tuning.nearest(entries, query) == found


CHOICES = st.lists(
    st.tuples(st.sampled_from([("cuda", 0), ("cuda", 1), ("cuda", 2), ("triton", 0)]), st.floats(1e-3, 1e6)),
    min_size=1,
    max_size=6,
)


@PROPERTY
@given(CHOICES, st.integers(2, 100))
def test_the_choice_is_the_fastest_that_serves(op: Op, timings: list[Any], n: int) -> None:
    binding = bound(op, 3, n)
    entry = tuning.entry(binding, [(op.kernel_named(kernel), tactic, time) for (kernel, tactic), time in timings])
    tuning.write(op, GPU, [entry], ABOUT)
    able = [(time, pair) for pair, time in timings if n % 2 == 0 or pair[0] == "triton"]
    fallback = ("cuda", 2) if n % 2 == 0 else ("triton", 0)
    best = {pair for time, pair in able if round(time, 3) == min(round(t, 3) for t, _ in able)} or {fallback}
    assert chosen(op, binding) in best


# ---- how tables are written ------------------------------------------------------------------------------------------


def test_entries_merge_by_call_and_keep_the_run_they_came_from(op: Op) -> None:
    first = [timed(op, bound(op), ("cuda", 0)), timed(op, bound(op, m=1), ("cuda", 0))]
    tuning.write(op, GPU, first, ABOUT)
    path = tuning.write(op, GPU, [timed(op, bound(op), ("cuda", 1))], {**ABOUT, "date": "2026-02-03"})
    table = tuning.read(path, op.name, GPU)
    assert [(e.dims["M"], e.choices[0].tactic, table.runs[e.run]["date"]) for e in table.entries] == [
        (1, {"THREADS": 64}, "2026-01-02"),
        (4096, {"THREADS": 128}, "2026-02-03"),
    ]
    tuning.write(op, GPU, [timed(op, bound(op, m=1), ("triton", 0))], {**ABOUT, "date": "2026-02-03"})
    assert {run["date"] for run in tuning.read(path).runs} == {"2026-02-03"}
    assert [set(run["sources"]) for run in tuning.read(path).runs] == [{"cuda"}, {"triton"}]


def test_writing_twice_gives_the_same_bytes(op: Op) -> None:
    entries = [
        timed(op, bound(op, m=m, bias=bias), ("cuda", 0), ("triton", 0)) for m in (9, 1) for bias in (True, False)
    ]
    path = tuning.write(op, GPU, entries, ABOUT)
    before = path.read_bytes()
    assert tuning.write(op, GPU, entries[::-1], ABOUT).read_bytes() == before


def test_plans_of_the_process_are_forgotten(op: Op) -> None:
    op._plans["call"] = op._ready["call"] = None  # type: ignore[assignment]
    tuning.write(op, GPU, [timed(op, bound(op), ("cuda", 1))], ABOUT)
    assert not op._plans and not op._ready


def test_a_table_that_cannot_be_written_is_told(op: Op, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(FileError, match="cannot write"):
        tuning.write(op, GPU, [timed(op, bound(op), ("cuda", 1))], ABOUT, where=tmp_path / "taken")


def test_impossible_entries_are_refused(op: Op) -> None:
    with pytest.raises(UsageError, match="no timing"):
        tuning.entry(bound(op), [])
    for time in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(UsageError, match="a time is positive"):
            tuning.entry(bound(op), [(op.kernels[0], 0, time)])
    with pytest.raises(UsageError, match="known dimensions"):
        tuning.entry(bound(op).symbolic(), [(op.kernels[0], 0, 1.0)])
    with pytest.raises(UsageError, match="no tuning entries"):
        tuning.write(op, GPU, [], ABOUT)


def _row(kernel: str, tactic: str, us: float | None, **more: Any) -> Measurement:
    row = Measurement(
        "test::work", "M4096 N4096", "bfloat16", f"ours: {kernel}", True, kernel, tactic, "direct", "graph", us
    )
    return replace(row, **more)


def test_entries_from_the_rows_of_a_benchmark(op: Op) -> None:
    rows = [
        _row("cuda", "THREADS=64", 12.0),
        _row("cuda", "THREADS=64", 2.0, launch="eager"),
        _row("cuda", "THREADS=128", 11.0),
        _row("triton", "-", None, note="wrong: not timed"),
        _row("cuda", "THREADS=256", 1.0, form="aot"),
        _row("cuda", "THREADS=256", 1.0, op="test::other"),
        Measurement("test::work", "M4096 N4096", "bfloat16", "cuBLAS", microseconds=1.0),
    ]
    (entry,) = tuning.rows_from(op, rows)
    assert entry.dims == {"M": 4096, "N": 4096} and entry.dtypes["y"] == "bfloat16"
    assert [(t.kernel, t.tactic, t.microseconds) for t in entry.choices] == [
        ("cuda", {"THREADS": 128}, 11.0),
        ("cuda", {"THREADS": 64}, 12.0),
    ]
    with pytest.raises(UsageError, match="0 declared cases"):
        tuning.rows_from(op, [_row("triton", "-", 1.0, case="M5 N5")])
    with pytest.raises(UsageError, match="no tactic 'THREADS=99'"):
        tuning.rows_from(op, [_row("cuda", "THREADS=99", 1.0)])


# ---- what is damaged or out of date ----------------------------------------------------------------------------------


def _damage(path: Path, change: Any) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    tuning.forget()


DAMAGES = {
    "its format": lambda d: d.update(format="trtforge.tuning/9"),
    "it is of the op": lambda d: d.update(op="test::other"),
    "it is of the gpu": lambda d: d.update(gpu="NVIDIA Other"),
    "'gpu' is no text": lambda d: d.pop("gpu"),
    "'runs' is no list": lambda d: d.update(runs=None),
    "no digests": lambda d: d["runs"][0].pop("sources"),
    "'entries' is no list": lambda d: d.update(entries={}),
    "entry 0 is no object": lambda d: d.update(entries=[3]),
    "the dims of entry 0": lambda d: d["entries"][0].update(dims={"M": 0}),
    "the dims of entry 0 ": lambda d: d["entries"][0].update(dims={"M": 10**400, "N": True}),
    "the attributes of entry 0": lambda d: d["entries"][0].update(attributes={"mode": [1]}),
    "the dtypes of entry 0": lambda d: d["entries"][0].update(dtypes={"x": 1}),
    "entry 0 has no list": lambda d: d["entries"][0].update(optional="bias"),
    "is of the run": lambda d: d["entries"][0].update(run=1),
    "entry 0 has no choices": lambda d: d["entries"][0].update(choices=[]),
    "names no kernel": lambda d: d["entries"][0]["choices"].append({"us": 1.0}),
    "no tactic parameters": lambda d: d["entries"][0]["choices"][0].update(tactic=None),
    "took -1 us": lambda d: d["entries"][0]["choices"][0].update(us=-1),
    "took nan us": lambda d: d["entries"][0]["choices"][0].update(us=math.nan),
    "took True us": lambda d: d["entries"][0]["choices"][0].update(us=True),
}


@pytest.mark.parametrize("reason", DAMAGES)
def test_a_damaged_table_warns_once_and_leaves_the_heuristic(op: Op, reason: str) -> None:
    path = tuning.write(op, GPU, [timed(op, bound(op), ("cuda", 1))], ABOUT)
    _damage(path, DAMAGES[reason])
    with pytest.raises(FileError, match=reason.strip()) as caught:
        tuning.read(path, op.name, GPU)
    assert str(path) in str(caught.value)
    with pytest.warns(tuning.TuningWarning, match="is ignored") as told:
        assert [chosen(op, bound(op)) for _ in range(3)] == [("cuda", 2)] * 3
    assert len(told) == 1


@PROPERTY
@given(st.binary(max_size=200), st.floats(0, 1))
def test_no_bytes_in_the_file_break_a_call(op: Op, noise: bytes, where: float) -> None:
    path = tuning.write(op, GPU, [timed(op, bound(op), ("cuda", 1), ("triton", 0))], ABOUT)
    text = path.read_bytes()
    at = int(where * len(text))
    path.write_bytes(text[:at] + noise + text[at + len(noise) // 2 :])
    tuning.forget()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert chosen(op, bound(op)) in [("cuda", i) for i in range(3)] + [("triton", 0)]
        tuning.every(op)
        tuning.write(op, GPU, [timed(op, bound(op), ("cuda", 0))], ABOUT)
        assert chosen(op, bound(op)) == ("cuda", 0)


def test_deep_nesting_is_damage_too(op: Op) -> None:
    path = tuning.write(op, GPU, [timed(op, bound(op), ("cuda", 1))], ABOUT)
    path.write_text("[" * 200_000)
    tuning.forget()
    with pytest.warns(tuning.TuningWarning, match="no tuning table"):
        assert chosen(op, bound(op)) == ("cuda", 2)


def test_writing_over_a_damaged_table_replaces_it(op: Op) -> None:
    path = tuning.write(op, GPU, [timed(op, bound(op), ("cuda", 1))], ABOUT)
    path.write_text("{")
    with pytest.warns(tuning.TuningWarning, match="is replaced"):
        tuning.write(op, GPU, [timed(op, bound(op), ("cuda", 0))], ABOUT)
    assert chosen(op, bound(op)) == ("cuda", 0)


def _listed(op: Op) -> dict[str, str]:
    return {e.kernel: e.tuned for e in list_kernels(op.name)}


def test_a_changed_source_is_still_preferred_and_listed_as_stale(op: Op) -> None:
    tuning.write(op, GPU, [timed(op, bound(op), ("cuda", 1), ("triton", 0))], ABOUT)
    assert _listed(op)["cuda"] == f"{GPU}: fastest in 1 of 1 calls"
    (op.file.parent / "tile.cuh").write_text("// a better tile\n")
    assert chosen(op, bound(op)) == ("cuda", 1)
    assert _listed(op) == {
        "cuda": f"{GPU}: fastest in 1 of 1 calls (stale: it has changed since it was tuned)",
        "triton": f"{GPU}: fastest in 0 of 1 calls",
    }


def test_kernels_and_tactics_that_are_declared_no_more_are_passed_over(op: Op) -> None:
    path = tuning.write(op, GPU, [timed(op, bound(op), ("cuda", 1), ("cuda", 0), ("triton", 0))], ABOUT)
    _damage(path, lambda d: d["entries"][0]["choices"][0].update(kernel="gone"))
    assert chosen(op, bound(op)) == ("cuda", 0)
    _damage(path, lambda d: d["entries"][0]["choices"][1].update(tactic={"THREADS": 1000}))
    assert chosen(op, bound(op)) == ("triton", 0)
    (table,) = tuning.every(op)
    assert tuning.stale(op, table) == {"gone": "is declared no more", "cuda": "has no tactic THREADS=1000 any more"}


def test_a_digest_covers_imported_helpers_and_no_place(tmp_path: Path) -> None:
    source = registry.get("fused_gemm").kernel_named("triton").source.path
    files = [path for path, _ in sources.imported_files(source)]
    assert {sources.name_of(path, source.parent) for path in files} == {
        "fused_gemm_triton.py",
        "common/activation_triton.py",
        "common/gemm_triton.py",
        "common/tile_order_triton.py",
    }
    unfinished = tmp_path / "unfinished_triton.py"
    unfinished.write_text("def work(:\n")
    assert [path for path, _ in sources.imported_files(unfinished)] == [unfinished]


# ---- what is shipped -------------------------------------------------------------------------------------------------

SHIPPED = sorted((ROOT / "kernels").glob("*/tuned/*/*.json"))


def test_tables_are_part_of_the_package() -> None:
    if sys.version_info < (3, 11):
        pytest.skip("reads pyproject.toml with tomllib, which Python has from 3.11")
    import tomllib

    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["*"]
    assert any(fnmatch.fnmatch("tuned/nvidia_h200/trtforge.rms_norm.json", pattern) for pattern in patterns)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_shipped_tables_are_whole_and_where_they_are_looked_for(path: Path) -> None:
    table = tuning.read(path)
    op = registry.get(table.op)
    assert path in [tuning.file_of(op, table.gpu, folder) for folder in tuning.folders(op)]
    assert all(run["gpu"] == table.gpu and run["date"] for run in table.runs)
