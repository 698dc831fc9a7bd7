"""`trtforge profile` without a GPU: stand-ins for NVIDIA's tools, readings of reports, errors, comparisons."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from ncu_double import COUNTERS, NSYS, raw_page

from trtforge import cli, profile_show
from trtforge.bindings import device
from trtforge.bindings.architectures import architecture
from trtforge.bindings.errors import MissingDependencyError, ProfileError, UnknownNameError
from trtforge.harness import profile_target, profile_tools
from trtforge.harness.profile import metric_name, profile, read
from trtforge.kernels import registry

TOOL = """#!{python}
import json, os, subprocess, sys, time
argv, mode, folder = sys.argv[1:], os.environ.get("FAKE_MODE", "right"), {folder!r}
if "--import" in argv or argv[0] == "stats":
    print(open(os.path.join(folder, "page.csv")).read())
    sys.exit(0)
json.dump(argv, open(os.path.join(folder, "argv.json"), "w"))
if mode == "refused":
    print("==PROF== Connected to process 7\\n==ERROR== ERR_NVGPUCTRPERM - The user does not have permission to access")
    sys.exit(1)
if mode == "hangs":
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    open(os.path.join(folder, "child"), "w").write(str(child.pid))
    print("==PROF== Profiling rms_norm: 0%", flush=True)
    time.sleep(600)
if mode == "dies":
    print("trtforge: DeviceError: CUDA failed: CUDA_ERROR_ILLEGAL_ADDRESS")
    print("==ERROR== The application returned an error code (2).")
    sys.exit(2)
if mode == "crashes":
    os.kill(os.getpid(), 11)
if mode == "nothing":
    print("==WARNING== No kernels were profiled.")
    sys.exit(0)
if mode != "no report":
    named = [a[len("--output="):] for a in argv if a.startswith("--output=")]
    report = named[0] if named else argv[argv.index("--export") + 1]
    open(report, "w").write("binary")
described = {{"op": "trtforge::rms_norm", "kernel": "cuda", "tactic": "THREADS=256", "case": "M4096 N4096",
             "dtype": "bfloat16", "input_dtype": "bfloat16", "flops": 67108864, "bytes": 67117056, "cc": 90, "sms": 132,
             "about": {{"gpu": "NVIDIA H200"}}}}
json.dump(described, open(argv[argv.index("--describe") + 1], "w"))
"""


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on PATH with an ncu and an nsys that do as FAKE_MODE says, on a machine that seems to have a GPU."""
    folder = tmp_path / "tools"
    folder.mkdir()
    for name in ("ncu", "nsys"):
        file = folder / name
        file.write_text(TOOL.format(python=sys.executable, folder=str(folder)))
        file.chmod(0o755)
    (folder / "page.csv").write_text(raw_page(COUNTERS))
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(device, "why_no_gpu", lambda: "")
    monkeypatch.chdir(tmp_path)
    return folder


def asked(tools: Path) -> list[str]:
    found: list[str] = json.loads((tools / "argv.json").read_text())
    return found


# ---- running ------------------------------------------------------------------------------------------------------


def test_ncu_is_asked_for_exactly_the_wanted_launch(tools: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["profile", "rms_norm", "--case", "M4096", "--dtype", "bfloat16", "--kernel", "cuda", "--tactic", "1"]
    assert cli.main(command) == 0
    argv = asked(tools)
    line = " ".join(argv)
    for part in ("--profile-from-start off", "--clock-control none", "--cache-control all", "--target-processes all"):
        assert part in line
    assert "--section SpeedOfLight" in line and "--section WarpStateStats" in line and "--set" not in argv
    target = argv[argv.index("trtforge.harness.profile_target") :]
    assert target[1:] == [
        "trtforge::rms_norm", "--case", "M4096", "--dtype", "bfloat16", "--kernel", "cuda", "--tactic", "1",
        "--launches", "1", "--describe", "rms_norm-cuda.target.json",
    ]  # fmt: skip
    assert argv[argv.index("--export") + 1] == "rms_norm-cuda.ncu-rep"
    out = capsys.readouterr().out
    for part in ("20.00 µs", "3,355 GB/s, 85.2% of peak", "61.0% achieved, 75.0% possible", "registers", "60%"):
        assert part in out, part
    assert "device memory, at 85% of its peak" in out and "bank conflicts" in out
    stored = json.loads(Path("rms_norm-cuda.json").read_text())
    assert stored["format"] == "trtforge.profile/1" and stored["about"]["gpu"] == "NVIDIA H200"
    assert stored["command"].startswith("ncu --target-processes all")
    (one,) = read("rms_norm-cuda.json")
    assert (one.op, one.kernel, one.tactic, one.tool) == ("trtforge::rms_norm", "cuda", "THREADS=256", "ncu")
    assert one.microseconds == pytest.approx(20.0) and one.metrics["DRAM GB/s"] == pytest.approx(3355.44, rel=1e-4)
    assert read("rms_norm-cuda.ncu-rep") == [one]  # the tool's own report says the same


def test_sections_sets_and_several_launches_reach_the_tool(tools: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tools / "page.csv").write_text(raw_page(COUNTERS, COUNTERS, functions=("rms_norm", "rms_norm")))
    command = ["profile", "rms_norm", "--set", "full", "--section", "PmSampling", "--launches", "2", "-o", "deep"]
    assert cli.main([*command, "--json"]) == 0
    argv = asked(tools)
    assert argv[argv.index("--set") + 1] == "full" and argv[argv.index("--section") + 1] == "PmSampling"
    assert argv.count("--section") == 1 and argv[argv.index("--launches") + 1] == "2"
    printed = json.loads(capsys.readouterr().out)
    assert printed["format"] == "trtforge.profile/1" and len(printed["profiles"]) == 2
    assert Path("deep.ncu-rep").is_file() and Path("deep.json").is_file()


def test_nsys_traces_ranges_and_lists_the_kernels(tools: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tools / "page.csv").write_text(NSYS)
    assert cli.main(["profile", "rms_norm", "--tool", "nsys"]) == 0
    line = " ".join(asked(tools))
    for part in ("--trace=cuda,nvtx", "--capture-range=cudaProfilerApi", "--sample=none", "--launches 20"):
        assert part in line
    out = capsys.readouterr().out
    assert "20.50" in out and "90.0%" in out and "void fill<float, 4>(float *)" in out
    first, _ = read("rms_norm.json")
    assert first.metrics["launches"] == 20 and first.metrics["total µs"] == pytest.approx(420.0)


@pytest.mark.parametrize(
    "mode, message",
    [
        ("refused", "NVreg_RestrictProfilingToAdminUsers=0"),
        ("dies", "CUDA_ERROR_ILLEGAL_ADDRESS"),
        ("crashes", "was ended by signal 11"),
        ("nothing", "saw no launch"),
        ("no report", "left no report"),
    ],
)
def test_a_tool_that_fails_is_a_typed_error(
    tools: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], mode: str, message: str
) -> None:
    monkeypatch.setenv("FAKE_MODE", mode)
    assert cli.main(["profile", "rms_norm"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("trtforge: ProfileError: ") and message in error and "Traceback" not in error
    if mode == "refused":
        assert "ncu --target-processes all" in error and "trtforge profile rms_norm.ncu-rep" in error
    assert not Path("rms_norm.json").exists()


def test_a_tool_that_hangs_is_ended_with_what_it_started(tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_MODE", "hangs")
    started = time.monotonic()
    with pytest.raises(ProfileError, match=r"did not finish within 3 s .*--time-limit.*Profiling rms_norm"):
        profile_tools.run([str(tools / "ncu"), "--export", "x.ncu-rep", "--describe", "x.json"], 3.0)
    assert time.monotonic() - started < 30
    child = int((tools / "child").read_text())
    for _ in range(100):
        state = Path(f"/proc/{child}/stat")
        if not state.exists() or state.read_text().rsplit(")", 1)[1].split()[0] == "Z":
            break
        time.sleep(0.1)
    else:
        pytest.fail("the profiled process is still alive")


def test_without_a_gpu_or_a_tool_the_command_line_to_run_elsewhere_is_given(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["profile", "rms_norm", "--case", "M4096 N4096"]
    monkeypatch.setattr(device, "why_no_gpu", lambda: "there is none")
    assert cli.main(command) == 2
    error = capsys.readouterr().err
    assert "DeviceError: profiling needs an NVIDIA GPU: there is none" in error
    wanted = "python -m trtforge.harness.profile_target trtforge::rms_norm --case 'M4096 N4096' --launches 1"
    assert wanted in error and "ncu --target-processes all --profile-from-start off --clock-control none" in error
    monkeypatch.setattr(device, "why_no_gpu", lambda: "")
    monkeypatch.setattr(profile_tools, "_PLACES", {"ncu": (), "nsys": ()})
    monkeypatch.setenv("PATH", "/nowhere")
    assert cli.main(command) == 2
    error = capsys.readouterr().err
    assert "MissingDependencyError: ncu (Nsight Compute) is neither on PATH" in error and wanted in error


@pytest.mark.parametrize(
    "command, message",
    [
        ([], "name an op, a plan file or a stored report"),
        (["softermax"], "no op 'softermax'"),
        (["rms_norm", "--tactic", "1"], "--kernel NAME --tactic N"),
        (["rms_norm", "--kernel", "cuda", "--tactic", "99"], "tactics 0 to"),
        (["rms_norm", "--kernel", "none"], "has no kernel 'none'"),
        (["rms_norm", "--case", "N77777"], "no case like 'N77777'"),
        (["rms_norm", "--dtype", "int8"], "no dtype 'int8'"),
        (["rms_norm", "--launches", "0"], "--launches is 0"),
        (["rms_norm", "--time-limit", "0"], "--time-limit is 0"),
        (["rms_norm", "-o", "/no/such/folder/x"], "there is no folder"),
        (["gone.ncu-rep"], "there is no profile gone.ncu-rep"),
        (["rms_norm", "--compare", "a", "b"], "leave 'rms_norm' out"),
    ],
)
def test_wrong_arguments(tools: Path, capsys: pytest.CaptureFixture[str], command: list[str], message: str) -> None:
    assert cli.main(["profile", *command]) == 2
    assert message in capsys.readouterr().err
    assert not (tools / "argv.json").exists()


def test_a_damaged_plan_is_refused_before_the_tool_starts(tools: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("net.plan").write_bytes(b"not a plan")
    assert cli.main(["profile", "net.plan"]) == 2
    assert "PlanError" in capsys.readouterr().err
    assert cli.main(["profile", "net.plan", "--kernel", "cuda"]) == 2
    assert "--kernel select a call of an op" in capsys.readouterr().err


# ---- the watched process --------------------------------------------------------------------------------------------


@pytest.mark.skipif(device.has_gpu(), reason="there is a GPU here")
@pytest.mark.parametrize("module", ["trtforge.harness.profile_target", "trtforge.profile_plan"])
def test_the_watched_process_refuses_without_a_gpu(module: str) -> None:
    done = subprocess.run([sys.executable, "-m", module, "rms_norm"], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("trtforge: DeviceError: profiling rms_norm".replace(
        "rms_norm", "trtforge::rms_norm" if "harness" in module else "rms_norm"))  # fmt: skip


def test_selection_takes_a_benchmark_case_and_what_a_call_would_take() -> None:
    op, target = registry.get("rms_norm"), architecture("sm_90a")
    case, dtypes, choice = profile_target.select(op, target, None, None, None, None)
    assert "bench" in case.tags and choice.kernel in op.kernels
    case, dtypes, choice = profile_target.select(op, target, "M1 N1", "bfloat16", "triton", 1)
    assert case.label.startswith("M1 N1") and set(dtypes.values()) == {"bfloat16"}
    assert (choice.kernel.name, choice.tactic) == ("triton", 1)
    with pytest.raises(UnknownNameError, match="no case like"):
        profile_target.candidates(op, "Q", None)


# ---- comparing ----------------------------------------------------------------------------------------------------


def test_two_profiles_side_by_side(tools: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["profile", "rms_norm", "-o", "before"]) == 0
    faster: dict[str, Any] = {**COUNTERS, "gpu__time_duration.sum": ("ns", "16,000")}
    faster["launch__registers_per_thread"] = ("register/thread", "32")
    del faster["smsp__average_warps_issue_stalled_barrier_per_issue_active.ratio"]
    (tools / "page.csv").write_text(raw_page(faster))
    assert cli.main(["profile", "rms_norm", "-o", "after"]) == 0
    capsys.readouterr()
    assert cli.main(["profile", "--compare", "before.json", "after.ncu-rep"]) == 0
    out = capsys.readouterr().out
    assert "-20.0%" in out and "stall barrier %" in out and "before.json" in out
    assert cli.main(["profile", "--compare", "before.json", "after.json", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["metrics"]["time µs"] == {
        "a": pytest.approx(20.0),
        "b": pytest.approx(16.0),
        "change": pytest.approx(-0.2),
    }
    assert found["metrics"]["registers per thread"]["change"] == pytest.approx(-0.2)
    assert found["metrics"]["stall barrier %"]["b"] == 0


def test_the_longest_function_of_several_is_read(tmp_path: Path) -> None:
    slow: dict[str, Any] = {**COUNTERS, "gpu__time_duration.sum": ("ns", "90,000")}
    file = tmp_path / "net.csv"
    file.write_text(raw_page(COUNTERS, slow, COUNTERS, functions=("a", "b", "a")))
    found = read(file)
    assert [p.function for p in found] == ["a", "b", "a"] and profile_show.longest(found).function == "b"


def test_the_tool_is_found_where_the_installers_put_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for version in ("2024.1.0", "2025.3.1"):
        (tmp_path / version).mkdir()
        (tmp_path / version / "ncu").write_text("#!/bin/sh\n")
        (tmp_path / version / "ncu").chmod(0o755)
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(profile_tools, "_PLACES", {"ncu": (f"{tmp_path}/*/ncu",), "nsys": ()})
    assert profile_tools.find_tool("ncu") == f"{tmp_path}/2025.3.1/ncu"
    with pytest.raises(MissingDependencyError, match="Nsight Systems"):
        profile_tools.require_tool("nsys", "")


# ---- on a GPU -----------------------------------------------------------------------------------------------------


@pytest.mark.gpu
def test_the_watched_process_on_a_gpu(tmp_path: Path) -> None:
    described = tmp_path / "x.target.json"
    command = [sys.executable, "-m", "trtforge.harness.profile_target", "rms_norm", "--kernel", "cuda"]
    done = subprocess.run([*command, "--describe", str(described)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(described.read_text())
    assert found["kernel"] == "cuda" and found["bytes"] > 0 and found["about"]["gpu"]


@pytest.mark.gpu
@pytest.mark.skipif(profile_tools.find_tool("ncu") is None, reason="needs Nsight Compute (ncu)")
def test_ncu_on_a_gpu(tmp_path: Path) -> None:
    try:
        found = profile("rms_norm", tmp_path / "rms", kernel="cuda")
    except ProfileError as error:
        if "ERR_NVGPUCTRPERM" in str(error):
            pytest.skip("the counters are kept for administrators here")
        raise
    (one,) = found
    assert "rms_norm" in one.function and one.microseconds and one.stalls and one.occupancy_limiter
    wanted = ("dram_pct", "dram_gb_s", "l2_pct", "tensor_pct", "issue_pct", "occupancy_pct", "registers", "waves")
    assert not [key for key in wanted if metric_name(key) not in one.metrics], sorted(one.metrics)
    assert not one.bound.startswith("not in this report") and 0 < one.roofline["fraction"] < 1.2
