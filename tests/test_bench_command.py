"""What a benchmark run prints, writes and keeps: the command, its files, and runs that end early."""

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

import pytest
from bench_rows import H200, a_run, peer, row

from trtforge import bench_tables, cli
from trtforge.bindings import device
from trtforge.bindings.errors import FileError
from trtforge.bindings.files import replace_file
from trtforge.harness import bench, measurement
from trtforge.harness.measurement import Measurement, Run
from trtforge.kernels import registry

ROOT = Path(__file__).parent.parent


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


# ---- files -----------------------------------------------------------------------------------------------------------


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
