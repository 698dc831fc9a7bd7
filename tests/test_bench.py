"""Benchmarks without a GPU: the clock is imitated, everything after it is the real thing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from bench_rows import H200, FakeClock, peer, row

from trtforge import cli
from trtforge.bindings.architectures import architecture
from trtforge.bindings.errors import DeclarationError, UnknownNameError, UsageError
from trtforge.harness import bench, ceilings, measurement, regressions, telemetry, timing
from trtforge.harness.contenders import Contender, Selection, choices
from trtforge.harness.measurement import Measurement, Run
from trtforge.harness.timing import time_alternating
from trtforge.kernels import Case, Cost, registry
from trtforge.kernels.op import Op

ROOT = Path(__file__).parent.parent


# ---- timing ----------------------------------------------------------------------------------------------------------


def test_medians_and_spreads_of_alternating_contenders() -> None:
    values = iter([1e-3, 2e-3, 3e-3] * 1000)
    found = time_alternating({"steady": lambda: 5e-4, "noisy": lambda: next(values)}, 0.1, FakeClock())
    assert found["steady"].median == 5e-4 and found["steady"].spread == 0.0
    assert found["noisy"].median == 2e-3 and 0.5 <= found["noisy"].spread <= 1.0
    assert found["steady"].repeats == len(found["steady"].times) == 120


def test_slow_contenders_are_called_less_often_over_the_whole_time() -> None:
    clock = FakeClock()
    found = time_alternating({"fast": lambda: 1e-4, "slow": lambda: 1.0}, 0.1, clock)
    assert found["fast"].repeats == 120 and found["slow"].repeats == 12
    at = [i for i, took in enumerate(clock.order) if took == 1.0][1:]  # the first is the warm-up
    assert np.diff(at).max() <= 2 * np.diff(at).min()


def test_the_order_turns_around() -> None:
    clock = FakeClock()
    time_alternating({"a": lambda: 0.03, "b": lambda: 0.04}, 0.1, clock)
    timed = clock.order[2:]
    assert timed[:4] == [0.03, 0.04, 0.04, 0.03]


def test_host_time_is_per_call() -> None:
    calls: list[int] = []
    took = timing.host_seconds(lambda: calls.append(1), wait=lambda: None)
    assert 0 < took < 1e-3 and len(calls) == 1 + timing._HOST_CALLS * timing._HOST_ROUNDS


# ---- one problem -----------------------------------------------------------------------------------------------------


def problem(right: float = 2.0, cost: Cost | None = None) -> Any:
    """A problem whose outputs are one number."""
    return SimpleNamespace(
        op=SimpleNamespace(name="a::op"),
        case=SimpleNamespace(label="M1"),
        dtype="bfloat16",
        cost=cost or Cost(1000, 4_000_000),
        written=2_000_000,
        answers=[],
        judge=lambda outputs: (abs(outputs - right), "" if outputs == right else "y has a relative L2 error of 1"),
    )


def contender(name: str, took: float, output: float = 2.0, **changes: Any) -> Contender:
    made = Contender(name, "graph", call=lambda: took, checked=[lambda: output])
    for field, value in changes.items():
        setattr(made, field, value)
    return made


LIMITS = {"copy GB/s": 4000.0, "bfloat16 TFLOP/s": 700.0}


def measured(contenders: list[Contender], one: Any = None, host: float = 0.0) -> dict[str, Measurement]:
    rows = bench.measure(one or problem(), contenders, LIMITS, 0.01, FakeClock(), host=lambda call: host)
    return {r.contender: r for r in rows}


def test_a_wrong_contender_has_no_time() -> None:
    rows = measured([contender("right", 2e-3), contender("wrong", 1e-3, output=3.0)])
    assert rows["right"].microseconds == pytest.approx(2000) and rows["right"].error == 0.0
    wrong = rows["wrong"]
    assert wrong.microseconds is None and wrong.rate is None and wrong.error == 1.0
    assert wrong.note == "wrong: y has a relative L2 error of 1"


def test_a_contender_that_is_wrong_on_the_second_copy_has_no_time() -> None:
    rows = measured([contender("a", 1e-3, checked=[lambda: 2.0, lambda: 9.0])])
    assert rows["a"].microseconds is None and rows["a"].note.startswith("wrong")


def test_what_cannot_run_says_why_and_the_others_go_on() -> None:
    def fails() -> None:
        raise RuntimeError("no such\n  algorithm")

    rows = measured(
        [
            contender("absent", 1e-3, call=None, note="absent: the Python module 'torch' is not installed"),
            contender("fails", 1e-3, checked=[fails]),
            contender("right", 1e-3),
        ]
    )
    assert rows["absent"].microseconds is None and "torch" in rows["absent"].note
    assert rows["fails"].note == "absent: RuntimeError: no such algorithm"
    assert rows["right"].microseconds


def test_a_failed_gpu_is_not_called_absent() -> None:
    def fails() -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(RuntimeError, match="illegal"):
        measured([contender("a", 1e-3, checked=[fails])])
    with pytest.raises(bench._Stopped, match="one case: RuntimeError: CUDA error"), bench._device_failures("one case"):
        fails()


def test_marks_on_the_scale_are_timed_without_an_oracle() -> None:
    rows = measured([contender("cuBLAS", 1e-3, output=7.0, marked=False, note="the bare product")])
    assert rows["cuBLAS"].microseconds and rows["cuBLAS"].error is None and rows["cuBLAS"].note == "the bare product"


def test_nothing_is_timed_where_the_oracle_cannot_be_had() -> None:
    class TooLarge(SimpleNamespace):
        @property
        def answers(self) -> Any:
            raise UsageError("declare a smaller problem inside it with @op.part")

    plain = {k: v for k, v in vars(problem()).items() if k != "answers"}
    rows = measured([contender("a", 1e-3)], TooLarge(**plain))
    assert rows["a"].microseconds is None and rows["a"].note.startswith("unchecked: declare")


def test_rates_and_rooflines() -> None:
    memory = measured([contender("a", 2e-3)])["a"]
    assert memory.unit == "GB/s" and memory.rate == pytest.approx(2.0)
    assert memory.roofline == pytest.approx(4_000_000 / 4000e9 / 2e-3)
    product = measured([contender("a", 2e-3)], problem(cost=Cost(int(7e11), 4_000_000)))["a"]
    assert product.unit == "TFLOP/s" and product.rate == pytest.approx(350) and product.roofline == pytest.approx(0.5)
    assert (product.flops, product.bytes) == (int(7e11), 4_000_000)
    assert ceilings.least_seconds(Cost(10**12, 1), "float32", LIMITS) is None  # its ceiling was not measured
    both = {"copy GB/s": 4000.0, "read GB/s": 5000.0}  # of 8 bytes 2 are written: 4 at the rate of a copy, 4 of reading
    assert ceilings.least_seconds(Cost(0, 8), "float32", both, written=2) == pytest.approx(4 / 4000e9 + 4 / 5000e9)
    assert ceilings.least_seconds(Cost(0, 8), "float32", both, written=6) == pytest.approx(8 / 4000e9)
    assert ceilings.name_of("float8_e5m2") == ceilings.name_of("float8_e4m3fn")


def test_eager_calls_count_with_the_host_where_it_is_slower() -> None:
    slow = measured([contender("a", 1e-5, launch="eager")], host=3e-5)["a"]
    assert slow.microseconds == pytest.approx(30) and slow.host == pytest.approx(30)
    assert slow.note == "host-bound: 10.0 µs on the device"
    fast = measured([contender("a", 1e-5, launch="eager")], host=3e-6)["a"]
    assert fast.microseconds == pytest.approx(10) and fast.host == pytest.approx(3) and not fast.note
    assert measured([contender("a", 1e-5)], host=3e-5)["a"].host is None


# ---- what is measured ------------------------------------------------------------------------------------------------


def test_benchmark_cases_and_the_largest_where_none_is_marked() -> None:
    op = registry.get("rms_norm")
    assert [c.label for c in bench.cases_of(op)] == ["M16 N4096", "M4096 N4096", "M16384 N8192"]
    assert [c.label for c in bench.cases_of(op, "M16384")] == ["M16384 N8192"]
    assert [c.label for c in bench.cases_of(op, "N32768")] == ["M64 N32768"]  # no benchmark case, still a case
    with pytest.raises(UnknownNameError, match=r"'zebra'; its benchmark cases: M16 N4096; M4096 N4096; M16384 N8192"):
        bench.cases_of(op, "zebra")
    unmarked = registry.get("rms_norm")
    stripped = SimpleNamespace(
        cases=[c for c in unmarked.cases if "bench" not in c.tags],
        dtype_combinations=unmarked.dtype_combinations,
        bind_case=unmarked.bind_case,
        cost_of=unmarked.cost_of,
    )
    assert [c.label for c in bench.cases_of(stripped)] == ["M64 N32768"]  # type: ignore[arg-type]


def test_dtypes_are_chosen_by_the_first_input() -> None:
    op = registry.get("scaled_gemm")
    both = bench.plan([op], "M4096")
    assert [next(iter(p.dtypes.values())) for p in both] == ["float8_e4m3fn", "int8"]
    assert [(p.case.label, p.dtypes["x"]) for p in bench.plan([op], "M4096", "int8")] == [(both[1].case.label, "int8")]
    with pytest.raises(UnknownNameError, match=r"'int4'; there are: float8_e4m3fn, int8"):
        bench.plan([op], "M4096", "int4")


@pytest.mark.parametrize("name", ["rms_norm", "fused_gemm"])
def test_contenders_of_ours(name: str) -> None:
    op = registry.get(name)
    binding = bench.plan([op], "M4096")[0].binding
    best = choices(op, binding, H200, Selection())
    assert best[0][1] and best[0][0] == op.choose(binding, H200) and not any(chosen for _, chosen in best[1:])
    assert len({c.kernel.name for c, _ in best}) == len(best) == len(op.kernels)
    every = choices(op, binding, H200, Selection(tactics="all"))
    serving = [(k.name, i) for k in op.kernels for i in range(len(k.tactics)) if not k.refusal(binding, i, H200)]
    assert sorted((c.kernel.name, c.tactic) for c, _ in every) == sorted(serving)
    assert [c.kernel.name for c, _ in choices(op, binding, H200, Selection(kernel="triton"))] == ["triton"]


def test_no_contender_where_no_kernel_serves() -> None:
    op = registry.get("rms_norm")
    binding = op.bind_case(Case({"M": 2, "N": 32768}), {"x": "float16", "weight": "float16"})
    assert choices(op, binding, architecture("sm_80"), Selection()) != []
    nobody = SimpleNamespace(**{"choose": op.choose, "kernels": []})
    with pytest.raises(UnknownNameError, match="no kernel 'x'"):
        choices(op, binding, H200, Selection(kernel="x"))
    assert choices(nobody, binding, H200, Selection()) == []  # type: ignore[arg-type]


def test_wrong_selections_are_refused() -> None:
    for wrong in ({"tactics": "some"}, {"forms": ("direct", "engine")}, {"launches": ("lazy",)}):
        with pytest.raises(UsageError, match="accepted"):
            Selection(**wrong)  # type: ignore[arg-type]
    ops = [registry.get("rms_norm")]
    Selection(vs=["pytorch EAGER", "none"]).check_peers(ops)
    with pytest.raises(UnknownNameError, match=r"'cuBLAS'; there are: torch.compile, PyTorch eager"):
        Selection(vs=["cuBLAS"]).check_peers(ops)
    assert [p.name for p in Selection(vs=["PYTORCH eager"]).peers(ops[0])] == ["PyTorch eager"]
    assert Selection(vs=[]).peers(ops[0]) == []


def test_peers_say_why_they_are_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    op = registry.get("flash_attention")
    case = next(c for c in op.cases if c.attributes.get("window", -1) > 0)
    context = op.bind_case(case, op.dtype_combinations(case)[0]).context(dev=H200)
    monkeypatch.setattr("trtforge.kernels.peer.available", lambda module: module != "torch")
    assert op.peers[0].refusal(context) == "the Python module 'torch' is not installed"
    monkeypatch.setattr("trtforge.kernels.peer.available", lambda module: True)
    assert op.peers[0].refusal(context) == "takes no window, soft cap or key lengths"
    with pytest.raises(DeclarationError, match="already has a peer named 'cuDNN'"):
        op.peer("cuDNN")


def test_every_benchmarked_op_has_a_peer_and_belongs_to_a_suite(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import suite

    registry.load_builtin()
    families = {family for names in suite.FAMILIES.values() for family in names}
    for op in registry.ops():
        if op.name.startswith("trtforge::") and any("bench" in c.tags for c in op.cases):
            assert op.peers, f"{op.name} has no peer"
            assert op.file.parent.name in families, f"{op.name} is in no suite of benchmarks/"


# ---- inputs ----------------------------------------------------------------------------------------------------------


def test_large_samples_are_drawn_for_some_rows() -> None:
    from trtforge.bindings.dtypes import dtype
    from trtforge.harness.problem import rows_drawn

    half, index = dtype("bfloat16"), dtype("int32")
    assert rows_drawn((4096, 4096), half) == 1024 and rows_drawn((1 << 20, 64), half) == 1 << 16
    assert rows_drawn((16384, 8192), dtype("int8")) == 512
    assert rows_drawn((2048, 4096), half) is None and rows_drawn((1 << 24,), half) is None  # small; one row
    assert rows_drawn((1 << 14, 1 << 12), index) is None  # pages and offsets belong together
    assert rows_drawn((64, 8, 8192, 128), half) is None  # too few rows


def test_slow_calls_are_timed_on_the_host_in_fewer_rounds() -> None:
    calls: list[int] = []

    def slow() -> None:
        calls.append(1)
        time.sleep(5e-4)

    timing.host_seconds(slow, wait=lambda: None)
    assert len(calls) == 1 + timing._HOST_CALLS * timing._FEWEST_ROUNDS


def test_attributes_reach_a_traced_peer_as_plain_numbers() -> None:
    from trtforge.harness.peer_compile import plain

    made = plain({"eps": np.float32(0.5), "to": "int8", "n": np.int64(3), "causal": True})
    assert made == {"eps": 0.5, "to": "int8", "n": 3, "causal": True}
    assert [type(v) for v in made.values()] == [float, str, int, bool]


# ---- ratios ----------------------------------------------------------------------------------------------------------


def test_ratios_are_the_peers_time_over_ours() -> None:
    rows = [
        row(),
        row(contender="ours: triton", kernel="triton", chosen=False, microseconds=50.0),
        peer("cuDNN", 120.0),
    ]
    assert regressions.ratios([*rows, peer("absent", None)]) == {"cuDNN": pytest.approx(1.2)}
    assert regressions.ratios([row(microseconds=None), peer("cuDNN", 120.0)]) == {}


def test_rows_below_a_peer_are_named() -> None:
    run = Run(rows=[row(), peer("cuDNN", 90.0), peer("slow", 300.0), peer("bare", 10.0, error=None)])
    (line,) = regressions.below_peers(run, 1.0)
    assert "a::op [M4096 N4096] bfloat16 graph: ours: cuda [T=1]: 0.900 of cuDNN" in line
    assert regressions.below_peers(run, 0.9) == [] and regressions.below_peers(run, 1.0, vs=["SLOW"]) == []
    run.rows[0].microseconds, run.rows[0].note = None, "wrong: y"
    (line,) = regressions.below_peers(run, 0.1)
    assert "no time (wrong: y)" in line
    with pytest.raises(UsageError, match="nothing to compare with"):
        regressions.below_peers(Run(rows=[row()]), 1.0)


def test_rows_below_a_stored_run_are_named() -> None:
    stored = Run(rows=[row(microseconds=90.0), row(kernel="triton", chosen=False, microseconds=50.0)])
    now = Run(rows=[row(kernel="other"), row(kernel="triton", chosen=False, microseconds=51.0), peer("x", 1.0)])
    (line,) = regressions.below_stored(now, stored, 0.95)
    assert "0.900 of the stored run (90.0 µs then, 100.0 µs now)" in line
    assert regressions.below_stored(now, stored, 0.9) == []
    now.rows[1].microseconds, now.rows[1].note = None, "absent: CompileError"
    (line,) = regressions.below_stored(now, stored, 0.5)
    assert "50.0 µs in the stored run, no time now (absent: CompileError)" in line
    with pytest.raises(UsageError, match="no row in common"):
        regressions.below_stored(Run(rows=[row(case="another")]), stored, 0.9)


# ---- the machine -----------------------------------------------------------------------------------------------------


def test_clocks_and_power(monkeypatch: pytest.MonkeyPatch) -> None:
    found = telemetry.parse("1980, 2619, 1980, 120.50, [N/A], 35, 580.95.05\n")
    assert found["sm_mhz"] == 1980 and found["watts"] == 120.5 and found["watts_limit"] is None
    assert found["driver"] == "580.95.05"
    assert "answered" in telemetry.parse("No devices were found")["absent"]
    monkeypatch.setenv("PATH", "")
    assert telemetry.read() == {"absent": "nvidia-smi is not installed"}

    def slow(*args: Any, **options: Any) -> Any:
        raise subprocess.TimeoutExpired("nvidia-smi", 15)

    monkeypatch.setattr(subprocess, "run", slow)
    assert "cannot be run" in telemetry.read()["absent"]
    monkeypatch.setattr(subprocess, "run", lambda *a, **o: SimpleNamespace(returncode=9, stdout="", stderr="broken\n"))
    assert telemetry.read() == {"absent": "nvidia-smi ended with status 9: broken"}


# ---- pytest-benchmark ------------------------------------------------------------------------------------------------


def test_the_suites_hand_recorded_times_to_pytest_benchmark(tmp_path: Path) -> None:
    test = f"""
import sys
sys.path.insert(0, {str(ROOT / "benchmarks")!r})
import pytest, suite
from trtforge.harness.bench import plan
from trtforge.harness.measurement import Measurement
from trtforge.harness.timing import summary
from trtforge.kernels import registry

PLANNED = plan([registry.get("rms_norm")])[0]
ROW = Measurement("a::op", "M1", "bfloat16", "ours", True, "cuda", rate=12.0, error=1e-3)
ABSENT = Measurement("a::op", "M1", "bfloat16", "peer", note="absent: nowhere")
WRONG = Measurement("a::op", "M1", "bfloat16", "bad", note="wrong: y")
suite.STATE.problem = f"{{PLANNED.name}} {{dict(PLANNED.dtypes)}}"
suite.STATE.rows = {{"cuda": (ROW, summary([1e-4, 3e-4, 2e-4])), "peer": (ABSENT, None), "bad": (WRONG, None)}}

@pytest.mark.benchmark(timer=suite.TIME)
@pytest.mark.parametrize("who", ["cuda", "peer", "bad", "nobody"])
def test_it(benchmark, who):
    suite.run(benchmark, PLANNED, who)
"""
    (tmp_path / "test_recorded.py").write_text(test)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--benchmark-json=out.json", "-rs"]
    alone = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_XDIST")}  # no worker of this run
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, env=alone)
    assert "1 failed, 1 passed, 2 skipped" in done.stdout, done.stdout + done.stderr
    assert "absent: nowhere" in done.stdout and "nobody does not serve" in done.stdout and "wrong: y" in done.stdout
    (made,) = json.loads((tmp_path / "out.json").read_text())["benchmarks"]
    assert made["stats"]["median"] == pytest.approx(2e-4) and made["stats"]["rounds"] == 3
    assert made["stats"]["max"] == pytest.approx(3e-4) and made["extra_info"]["GB/s"] == 12.0
    assert made["group"] == "a::op [M1] bfloat16"


# ---- on a GPU --------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
def test_the_same_kernel_twice_differs_by_less_than_two_percent() -> None:
    from trtforge.harness.contenders import Stage, ours
    from trtforge.harness.problem import Problem
    from trtforge.harness.timing import device_clock

    pytest.importorskip("cupy")
    (planned,) = bench.plan([registry.get("rms_norm")], "M16384 N8192")
    with Stage():
        one = Problem(planned.op, planned.case, planned.dtypes)
        (first, *_), (second, *_) = list(ours(one, Selection())), list(ours(one, Selection()))
        second.name = "again"
        rows = bench.measure(one, [first, second], {}, 0.1, device_clock())
    times = [r.microseconds or 0.0 for r in rows]
    assert min(times) >= 50 and abs(times[0] / times[1] - 1) <= 0.02, times


@pytest.mark.gpu
def test_a_run_on_the_gpu(tmp_path: Path) -> None:
    pytest.importorskip("cupy")
    path = tmp_path / "run.json"
    assert cli.main(["bench", "rms_norm", "--launch", "both", "--seconds", "0.01", "--json", str(path)]) == 0
    run = measurement.read(path)
    ours = [r for r in run.rows if r.ours]
    assert all(r.microseconds and r.error is not None and r.error < 5e-3 for r in ours)
    assert {r.launch for r in ours} == {"eager", "graph"} and sum(r.chosen for r in ours) == 6
    assert all(0 < (r.roofline or 0) < 1.2 for r in ours if r.launch == "graph") and run.ceilings["copy GB/s"] > 0


@pytest.mark.gpu
def test_a_wrong_kernel_gets_no_time_on_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("cupy")
    op: Op = registry.get("rms_norm")
    right = op._reference
    assert right is not None
    monkeypatch.setattr(op, "_reference", lambda x, weight, *, eps: right(x, weight, eps=eps) * 1.1)
    run = bench.bench("rms_norm", case="M16 N4096", seconds=0.01)
    assert run.rows and all(r.microseconds is None for r in run.rows if r.ours)
    assert all(r.note.startswith("wrong: y has a relative L2 error") for r in run.rows if r.ours)
