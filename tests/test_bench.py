"""Benchmarks without a GPU: the clock is imitated, everything after it is the real thing."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from trtforge import bench_tables, cli
from trtforge.bindings import device
from trtforge.bindings.architectures import architecture
from trtforge.bindings.errors import DeclarationError, FileError, UnknownNameError, UsageError
from trtforge.bindings.files import replace_file
from trtforge.harness import bench, ceilings, measurement, regressions, telemetry, timing
from trtforge.harness.contenders import Contender, Selection, choices
from trtforge.harness.measurement import Measurement, Run
from trtforge.harness.timing import time_alternating
from trtforge.kernels import Case, Cost, registry
from trtforge.kernels.op import Op

ROOT = Path(__file__).parent.parent
H200 = architecture("sm_90a")


class FakeClock:
    """Every call says how long it took, by returning seconds."""

    def __init__(self) -> None:
        self.order: list[float] = []

    def start(self, call: Callable[[], Any]) -> float:
        self.order.append(call())
        return self.order[-1]

    def seconds(self, interval: float) -> float:
        return interval


def row(**changes: Any) -> Measurement:
    made = Measurement("a::op", "M4096 N4096", "bfloat16", "ours: cuda [T=1]", True, "cuda", "T=1", "direct")
    made.microseconds, made.spread, made.repeats, made.rate, made.error, made.chosen = (
        100.0,
        0.01,
        50,
        3000.0,
        1e-3,
        True,
    )
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def peer(name: str, microseconds: float | None, **changes: Any) -> Measurement:
    given = {"contender": name, "ours": False, "kernel": None, "tactic": None, "form": "", "chosen": False}
    return row(**{**given, "microseconds": microseconds, **changes})


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
    op = registry.get("quantize_token")
    first = bench.plan([op], "M4096 K4096 to=int8")
    assert [next(iter(p.dtypes.values())) for p in first] == ["float16", "bfloat16"]
    assert [p.case.label for p in bench.plan([op], "M4096", "float32")] == ["M4096 K4096 to=float8_e5m2"]
    with pytest.raises(UnknownNameError, match=r"'int4'; there are: bfloat16, float16, float32"):
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


# ---- a run that ends early -------------------------------------------------------------------------------------------


def grown(
    one_case: Callable[[Any], list[Measurement]], limit: float | None = None, **hooks: Any
) -> tuple[Run, list[tuple[int, str]]]:
    """The loop over the three benchmark cases of rms_norm; what each case's hook saw: rows, and the mark."""
    run, seen = Run(), []

    def on_case(so_far: Run, rows: list[Measurement]) -> None:
        seen.append((len(so_far.rows), so_far.about["stopped"]))

    def case(planned: Any, watch: Any) -> list[Measurement]:
        with watch.phase("timing"):
            return one_case(planned)

    def nothing(*given: Any) -> None:
        pass

    planned = bench.plan([registry.get("rms_norm")])
    prepare, start = hooks.get("prepare", nothing), hooks.get("start", nothing)
    bench._measure_all(run, planned, prepare, start, case, limit, on_case)
    return run, seen


def test_a_complete_run_has_no_mark_and_knows_its_seconds() -> None:
    run, seen = grown(lambda planned: [row(case=planned.case.label)])
    assert seen == [(i, f"not finished; {i} of 3 cases were measured") for i in (1, 2, 3)]
    assert "stopped" not in run.about and len(run.rows) == 3
    cases = run.about["seconds"].pop("cases")
    assert {"ceilings", "measuring", "timing"} <= run.about["seconds"].keys()
    assert [one["case"].split(" ", 1)[0] for one in cases] == ["trtforge::rms_norm"] * 3 and "timing" in cases[0]


def test_what_was_measured_before_an_interrupt_stands() -> None:
    def second_fails(error: BaseException) -> Callable[[Any], list[Measurement]]:
        def case(planned: Any) -> list[Measurement]:
            if planned.case.dims["M"] == 4096:
                raise error
            return [row(case=planned.case.label)]

        return case

    run, _ = grown(second_fails(KeyboardInterrupt("ended by SIGTERM")))
    assert [r.case for r in run.rows] == ["M16 N4096"]
    name = "trtforge::rms_norm [M4096 N4096]"
    assert run.about["stopped"] == f"{name}: ended by SIGTERM; 1 of 3 cases were measured"
    run, _ = grown(second_fails(bench._Stopped(f"{name}: CUDA error")))
    assert len(run.rows) == 1 and run.about["stopped"] == f"{name}: CUDA error; 1 of 3 cases were measured"

    def interrupted(watch: Any) -> None:
        raise KeyboardInterrupt

    run, _ = grown(second_fails(ValueError()), prepare=interrupted)
    assert not run.rows and run.about["stopped"] == "compiling: interrupted; 0 of 3 cases were measured"


def test_the_time_limit_ends_a_run_between_cases() -> None:
    run, _ = grown(lambda planned: [row()], limit=time.monotonic() - 1)
    assert run.about["stopped"] == "time limit; 0 of 3 cases were measured"
    run, _ = grown(lambda planned: [row()], limit=time.monotonic() + 100)
    assert len(run.rows) == 3 and "stopped" not in run.about


SIGNALED = """
import os, sys, time
from trtforge import cli
from trtforge.harness import bench
from trtforge.harness.measurement import Measurement, Run

def measured(*ops, on_start, on_case, **options):
    run = Run({"gpu": "a GPU"})
    def case(planned, watch):
        if planned.op.name.endswith("gated_gemm"):
            print("waiting", flush=True, file=sys.stderr)
            time.sleep(60)
        return [Measurement(planned.op.name, planned.case.label, "bfloat16", "ours", True, microseconds=12.5)]
    planned = bench.plan([bench.registry.get(name) for name in ops])
    on_start({one.op.name: 3 if one.op.name.endswith('rms_norm') else 5 for one in planned})
    bench._measure_all(run, planned, lambda watch: None, lambda: None, case, None, on_case)
    return run

bench.bench = measured
sys.exit(cli.main(["bench", "rms_norm", "gated_gemm", "--json", sys.argv[1]]))
"""


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_tables_and_a_marked_file(tmp_path: Path, number: int, status: int) -> None:
    path, out = tmp_path / "run.json", tmp_path / "out"
    with out.open("w") as printed:
        process = subprocess.Popen(
            [sys.executable, "-c", SIGNALED, str(path)],
            stdout=printed,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        assert process.stderr is not None and process.stderr.readline() == "waiting\n"
        assert "M16384 N8192" in out.read_text()  # the op before is complete, and printed
        assert measurement.read(path).about["stopped"] == "not finished; 3 of 8 cases were measured"
        process.send_signal(number)
        errors = process.communicate(timeout=60)[1]
    assert process.returncode == status, errors
    name = signal.Signals(number).name
    run = measurement.read(path)
    assert len(run.rows) == 3 and f"ended by {name}; 3 of 8 cases" in run.about["stopped"]
    assert out.read_text().count("M16384 N8192") == 1 and "ratio: the contender's time" in out.read_text()
    assert f"ended by {name}" in errors


def test_runs_are_put_together_case_by_case(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = a_run(), a_run()
    first.rows += [row(case="M16", microseconds=7.0)]
    first.about["stopped"] = "time limit; 2 of 3 cases were measured"
    second.rows, second.ceilings = [row(microseconds=90.0)], {"copy GB/s": 4300.0}
    second.about["torch"] = "2.11"
    for name, run in (("a.json", first), ("b.json", second)):
        measurement.write(run, tmp_path / name)
    pieces = [str(tmp_path / "a.json"), str(tmp_path / "b.json")]
    made = tmp_path / "run.json"
    assert cli.main(["bench", "--merge", *pieces, "--json", str(made)]) == 0
    assert "M16 " in capsys.readouterr().out
    run = measurement.read(made)
    assert [(r.case, r.microseconds) for r in run.rows] == [("M4096 N4096", 90.0), ("M16", 7.0)]  # no mixed case
    assert run.ceilings == {"copy GB/s": 4300.0} and "stopped" not in run.about and "torch" not in run.about
    assert [p["file"] for p in run.about["runs"]] == pieces and run.about["gpu"] == "NVIDIA H200"
    assert run.about["runs"][0]["about"]["stopped"].startswith("time limit")
    assert run.about["runs"][0]["cases"] == ["a::op M16 bfloat16 graph"]
    second.about["gpu"] = "another"
    measurement.write(second, pieces[1])
    assert cli.main(["bench", "--merge", *pieces, "--json", str(made)]) == 2
    assert "runs of one GPU are put together; these are of NVIDIA H200, another" in capsys.readouterr().err
    assert cli.main(["bench", "--merge", *pieces]) == 2
    assert "--merge puts runs together into the file of --json" in capsys.readouterr().err


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


# ---- files -----------------------------------------------------------------------------------------------------------


def a_run() -> Run:
    rows = [row(), peer("cuDNN", 120.0), peer("torch.compile", None, note="absent: not installed", error=None)]
    return Run({"gpu": "NVIDIA H200", "date": "2026-11-23"}, {"copy GB/s": 4275.0}, rows)


def test_a_run_survives_its_file(tmp_path: Path) -> None:
    run, path = a_run(), tmp_path / "run.json"
    measurement.write(run, path)
    assert measurement.read(path) == run
    data = json.loads(path.read_text())
    assert data["format"] == "trtforge.bench/1" and data["rows"][1]["contender"] == "cuDNN"
    run.rows[0].error = float("inf")
    measurement.write(run, path)
    assert measurement.read(path).rows[0].error is None
    data["rows"][0]["added_later"] = 1
    path.write_text(json.dumps(data))
    assert measurement.read(path).rows[0].microseconds == 100.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[]", "its format is None"),
        ('{"format": "trtforge.bench/9"}', "'trtforge.bench/9', accepted is 'trtforge.bench/1'"),
        ('{"format": "trtforge.bench/1", "about": {}, "ceilings": {}}', "damaged"),
        ('{"format": "trtforge.bench/1", "about": {}, "ceilings": {}, "rows": [{"op": "a"}]}', "damaged"),
        (json.dumps({**Run(rows=[row(microseconds="fast")]).to_json()}), "is 'fast', not a number"),
    ],
)
def test_files_that_are_no_runs(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "run.json"
    path.write_text(text)
    with pytest.raises(FileError, match=re.escape(message)):
        measurement.read(path)


# ---- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def fake_bench(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """``trtforge bench`` with a run that was made elsewhere; the arguments that it got are in the result."""
    seen: dict[str, Any] = {"run": a_run()}

    def imitation(*ops: str, on_start: Any, on_case: Any, **options: Any) -> Run:
        seen.update(options, ops=ops)
        on_start({r.op: 1 for r in seen["run"].rows})
        on_case(seen["run"], seen["run"].rows)
        return seen["run"]

    monkeypatch.setattr(bench, "bench", imitation)
    return seen


def test_the_table(fake_bench: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "op", "--case", "M4096", "--vs", "cuDNN", "--vs", "x", "--forms", "direct,aot"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"ours: cuda \[T=1\] +│ +100 │ +1.0% │ +3,000 │", out)
    assert re.search(r"cuDNN +│ +120 .* 1\.20×", out)
    assert "absent: not installed" in out and "copy GB/s 4275" in out
    assert fake_bench["case"] == "M4096" and fake_bench["vs"] == ["cuDNN", "x"] and fake_bench["ops"] == ("op",)
    assert fake_bench["forms"] == ["direct", "aot"]


def test_many_problems_are_told_in_one_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    from trtforge import show

    rows = [made for i in range(20) for made in (row(case=f"M{i}"), peer("cuDNN", 150.0, case=f"M{i}"))]
    rows += [row(case="M99", microseconds=None, note="wrong: y")]
    bench_tables.tables(show.console(), Run({}, {}, rows))
    out = capsys.readouterr().out
    assert out.count("cuDNN 1.50×") == 20 and "wrong: y" in out and "1 × a::op/cuda: wrong: y" in out


def test_no_peers(fake_bench: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "op", "--vs", "none", "--launch", "both", "--tactics", "all", "--no-tables"]) == 0
    assert fake_bench["vs"] == [] and fake_bench["launch"] == "both" and fake_bench["tactics"] == "all"


def test_json_to_a_file_and_to_the_terminal(
    fake_bench: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run.json"
    assert cli.main(["bench", "op", "--json", str(path)]) == 0
    assert measurement.read(path) == fake_bench["run"] and "cuDNN" in capsys.readouterr().out
    assert measurement.read(path).about["command"] == f"trtforge bench op --json {path}"
    assert cli.main(["bench", "op", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"][0]["kernel"] == "cuda"


def test_fail_below_peers_and_stored_runs(
    fake_bench: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["bench", "op", "--fail-below", "1.1"]) == 0
    assert cli.main(["bench", "op", "--fail-below", "1.3"]) == 1
    assert "1.200 of cuDNN, below 1.3" in capsys.readouterr().err
    stored = a_run()
    stored.rows[0].microseconds = 80.0
    path = tmp_path / "stored.json"
    measurement.write(stored, path)
    assert cli.main(["bench", "op", "--against", str(path), "--fail-below", "0.75"]) == 0
    assert cli.main(["bench", "op", "--against", str(path), "--fail-below", "0.95"]) == 1
    assert "0.800 of the stored run" in capsys.readouterr().err


def test_all_tactics_write_the_tuning_table(
    fake_bench: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    op = registry.get("rms_norm")
    binding = bench.plan([op], "M4096")[0].binding
    kernel = op.kernel_named("triton")
    rows = [
        row(op=op.name, kernel="cuda", tactic=op.kernels[0].tactic_label(0), microseconds=30.0),
        row(op=op.name, kernel="triton", tactic=kernel.tactic_label(1), microseconds=20.0, chosen=False),
        peer("cuDNN", 10.0, op=op.name),
    ]
    fake_bench["run"] = Run({"date": "2026-11-23"}, {}, rows)
    gpu = SimpleNamespace(name="NVIDIA Test", architecture=replace(H200, gpu="NVIDIA Test"))
    monkeypatch.setattr(device, "current_device", lambda: gpu)
    monkeypatch.setenv("TRTFORGE_TUNING", str(tmp_path))
    assert cli.main(["bench", "rms_norm", "--tactics", "all", "--no-tables"]) == 0
    assert not list(tmp_path.iterdir())
    assert cli.main(["bench", "rms_norm", "--tactics", "all", "--kernel", "cuda"]) == 0  # some of the kernels only
    assert not list(tmp_path.iterdir())
    assert cli.main(["bench", "rms_norm", "--tactics", "all"]) == 0
    (path,) = tmp_path.rglob("*.json")
    assert f"wrote {path}" in capsys.readouterr().err.replace("\n", "")
    assert op.choose(binding, gpu.architecture).kernel is kernel
    assert [one.chosen for one in rows] == [False, True, False]  # what a plain call runs from now on
    fake_bench["run"] = Run({}, {}, [row(op=op.name, case="no such case")])
    assert cli.main(["bench", "rms_norm", "--tactics", "all"]) == 1
    assert "no tuning table of trtforge::rms_norm" in capsys.readouterr().err


def test_wrong_kernels_and_a_failed_gpu_make_the_command_fail(
    fake_bench: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    fake_bench["run"].rows[0].note, fake_bench["run"].rows[0].microseconds = "wrong: y differs", None
    assert cli.main(["bench", "op"]) == 1
    assert "wrong: y differs" in capsys.readouterr().err
    fake_bench["run"] = a_run()
    fake_bench["run"].rows[1].note = "wrong: a peer may be"
    assert cli.main(["bench", "op"]) == 0
    fake_bench["run"].about["stopped"] = "a::op [M1]: the launch timed out"
    assert cli.main(["bench", "op"]) == 1
    assert "stopped: a::op [M1]: the launch timed out" in capsys.readouterr().err


def test_a_full_disk_keeps_the_old_run(
    fake_bench: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "run.json"
    replace_file(path, "old")

    def full(descriptor: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    assert cli.main(["bench", "op", "--json", str(path)]) == 2
    assert f"FileError: cannot write {path}: No space left on device" in capsys.readouterr().err
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["rms_norm", "--case", "zebra"], "its benchmark cases: M16 N4096; M4096 N4096"),
        (["rms_norm", "--vs", "nobody"], "no peer is called 'nobody'; there are: torch.compile, PyTorch eager"),
        (["rms_norm", "--dtype", "int8"], "there are: bfloat16"),
        (["rms_norm", "--forms", "engine"], "forms is 'engine'; accepted: direct, jit, aot"),
        (["rms_norm", "--seconds", "0"], "it must be positive"),
        (["zebra"], "zebra"),
        (["rms_norm", "--json", "/no/such/folder/run.json"], "there is no folder /no/such/folder"),
        (["rms_norm", "--plot", "run.pdf"], "written as .svg or .png"),
        (["rms_norm", "--against", "/no/file.json", "--fail-below", "1"], "cannot read the benchmark run"),
        (["--case", "zebra"], "no op has a case whose label contains 'zebra'"),
    ],
)
def test_wrong_commands(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", *options]) == 2
    assert message in capsys.readouterr().err


def test_a_stored_run_alone_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    measurement.write(a_run(), tmp_path / "run.json")
    assert cli.main(["bench", "rms_norm", "--against", str(tmp_path / "run.json")]) == 2
    assert "--fail-below RATIO; give both" in capsys.readouterr().err


@pytest.mark.skipif(device.has_gpu(), reason="there is a GPU")
def test_without_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "rms_norm"]) == 2
    assert "DeviceError: bench needs an NVIDIA GPU" in capsys.readouterr().err


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
