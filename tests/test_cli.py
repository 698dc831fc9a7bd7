"""The command line end to end: generate, reports, and the demo that `make demo` runs."""

from __future__ import annotations

import argparse
import io
import json
import os
import pty
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from trtforge import cli, show
from trtforge.bindings import device
from trtforge.harness.check import report
from trtforge.harness.environment import about
from trtforge.harness.jobs import Row

ROOT = Path(__file__).parent.parent
MODEL = ROOT / "examples" / "pydoc_llama" / "model"


def test_generate_streams_the_prompt_and_its_continuation(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["generate", str(MODEL), "--prompt", "The following", "--max-tokens", "12", "--backend", "reference"]
    assert cli.main(command) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("The following") and len(captured.out) > len("The following") + 10
    assert "reference backend" in captured.err and "12 tokens" in captured.err


def test_generate_json_holds_text_tokens_rates_and_explanation(capsys: pytest.CaptureFixture[str]) -> None:
    command = [
        "generate",
        str(MODEL),
        "--prompt",
        "A class",
        "--max-tokens",
        "5",
        "--temperature",
        "0.7",
        "--seed",
        "3",
    ]
    assert cli.main([*command, "--backend", "reference", "--json", "--explain"]) == 0
    first = json.loads(capsys.readouterr().out)
    assert len(first["token_ids"]) == 5 and first["text"] and first["seed"] == 3
    assert any(n["op"] == "trtforge::flash_attention" for n in first["explain"]["nodes"])
    assert cli.main([*command, "--backend", "reference", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["text"] == first["text"]


@pytest.mark.parametrize(
    "options, message",
    [
        (["--temperature", "-1"], "temperature"),
        (["--top-p", "0"], "top_p"),
        (["--top-k", "-2"], "top_k"),
        (["--max-tokens", "0"], "max_tokens"),
        (["--prompt", ""], "prompt"),
    ],
)
def test_generate_refuses_impossible_arguments(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["generate", str(MODEL), "--prompt", "x", "--backend", "reference", *options]
    assert cli.main(command) == 2
    error = capsys.readouterr().err
    assert "UsageError" in error and message in error


def test_a_report_gathers_rows_and_keeps_failures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "check.json"
    command = ["check", "rms_norm", "--kernel", "cuda", "--device", "cpu", "--arch", "sm_90a", "--report", str(file)]
    assert cli.main(command) == 0
    capsys.readouterr()
    written = json.loads(file.read_text())
    assert written["summary"] == {"passed": 6, "failed": 0, "skipped": 0} and written["failed"] == []
    assert written["about"]["date"] == about()["date"] and written["kernels"][0]["how"] == "compiled for sm_90a"
    assert list(tmp_path.iterdir()) == [file]
    failed = Row("a::b", "k", "cuda", "-", 0, "N1", "float16", "cuda", "launched", 2.0, 1.0, "failed", "wrong")
    gathered = report([failed])
    assert gathered["kernels"][0]["worst_over_tolerance"] == 2.0 and gathered["failed"][0]["reason"] == "wrong"


def test_a_report_that_cannot_be_written_is_refused_before_the_work(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", "rms_norm", "--report", "/no/such/folder/check.json"]) == 2
    assert "there is no folder" in capsys.readouterr().err


def test_the_demo_ends_with_text_written_by_the_model() -> None:
    done = subprocess.run([sys.executable, ROOT / "examples" / "demo.py"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    for expected in ("28 passed, 0 failed", "HGMMA", "gated_gemm = trtforge::gated_gemm", "The following", "done"):
        assert expected in done.stdout, expected
    assert "flash_attention = trtforge::flash_attention" in done.stderr


# ---- new, and plan files ---------------------------------------------------------------------------------------------


def test_new_prints_the_next_command_and_that_works(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["new", "lab::hush", "--template", "triton-elementwise", "--into", str(tmp_path), "--json"]
    assert cli.main(command) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["op"] == "lab::hush" and Path(made["folder"], "op.py").is_file()
    assert cli.main([*made["next"].split()[1:], "--device", "cpu", "--arch", "sm_90a"]) == 0
    assert cli.main(command) == 2
    assert "hush" in capsys.readouterr().err


def test_a_plan_is_built_inspected_and_refused_without_a_gpu(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="building a plan needs tensorrt-rtx")
    plan = str(tmp_path / "llama.plan")
    build = ["build", str(MODEL), "-o", plan, "--compute-capability", "8.9", "--max-length", "64"]
    assert cli.main(build) == 0
    assert "6 engines" in capsys.readouterr().out
    assert cli.main(["inspect", plan, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["pieces"]) == 6 and len(found["kernels"]) == 5
    assert found["file"]["compute_capability"] == "8.9" and found["network"]["dims"] == {"S": [1, 1, 64]}
    assert cli.main(["inspect", plan]) == 0
    assert "kernels between the engines" in capsys.readouterr().out
    assert cli.main(["generate", plan, "--prompt", "x", "--backend", "cuda"]) == 2
    assert "leave those options out" in capsys.readouterr().err
    damaged = tmp_path / "damaged.plan"
    damaged.write_bytes(Path(plan).read_bytes()[:-100])
    assert cli.main(["inspect", str(damaged)]) == 2
    assert "PlanError" in capsys.readouterr().err


def test_build_refuses_what_is_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["build", str(tmp_path), "-o", str(tmp_path / "x.plan")]) == 2
    assert "CheckpointError" in capsys.readouterr().err
    assert not (tmp_path / "x.plan").exists()


# ---- JSON, colors, pipes ---------------------------------------------------------------------------------------------

QUICK_CHECK = ["check", "rms_norm", "--kernel", "cuda", "--device", "cpu", "--arch", "sm_90a"]
QUICK = {
    "list": ["list", "rms_norm"],
    "check": QUICK_CHECK,
    "every row": [*QUICK_CHECK, "--verbose"],
    "inspect": ["inspect", "rms_norm/cuda", "--arch", "sm_90a", "--tactic", "0"],
    "generate": ["generate", str(MODEL), "--prompt", "A", "--max-tokens", "2", "--backend", "reference"],
    "completion": ["completion", "bash"],
    "an error": ["inspect", "absent"],
}
COLOR = re.compile(r"\x1b\[(?:\d+;)*(?:3[0-8]|4[0-8]|9[0-7]|10[0-7])(?:;\d+)*m")


def _environment(**changes: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS")}
    return {**kept, "TERM": "xterm-256color", **changes}


def _on_a_terminal(command: list[str], **changes: str) -> str:
    """What a command writes to a terminal."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "trtforge", *command],
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
        env=_environment(**changes),
    )
    os.close(theirs)
    written = bytearray()
    while True:
        try:
            piece = os.read(ours, 1 << 16)
        except OSError:  # how Linux says that the other side is closed
            break
        if not piece:
            break
        written += piece
    os.close(ours)
    process.wait(timeout=60)
    return written.decode()


@pytest.mark.parametrize("name", QUICK)
def test_no_color_is_respected_on_a_terminal(name: str) -> None:
    written = _on_a_terminal(QUICK[name], NO_COLOR="1")
    assert written and not COLOR.search(written), written


def test_a_terminal_has_colors_and_a_bar() -> None:
    written = _on_a_terminal(QUICK_CHECK)
    assert COLOR.search(written) and "checking" in written
    assert "\x1b" not in _on_a_terminal(QUICK_CHECK, TERM="dumb")


@pytest.mark.parametrize("name", QUICK)
def test_what_is_piped_is_plain(name: str) -> None:
    command = [sys.executable, "-m", "trtforge", *QUICK[name]]
    done = subprocess.run(command, capture_output=True, text=True, env=_environment(), timeout=120)
    assert "\x1b" not in done.stdout + done.stderr and "checking" not in done.stderr
    assert (done.returncode, bool(done.stdout)) == ((2, False) if name == "an error" else (0, True))


def _commands() -> dict[str, argparse.ArgumentParser]:
    actions = cli._parser()._actions
    return next(dict(a.choices) for a in actions if isinstance(a, argparse._SubParsersAction))


def test_every_command_has_json_and_load() -> None:
    commands = _commands()
    assert {"list", "check", "new", "inspect", "bench", "profile", "report", "build", "run", "generate"} <= {*commands}
    for name, parser in commands.items():
        assert {"--json", "--load"} <= {*parser._option_string_actions}, name


def _strict(text: str) -> Any:
    """JSON as other languages read it: no NaN, no Infinity."""

    def refuse(constant: str) -> float:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize("name", ["list", "check", "inspect", "generate", "completion"])
def test_json_is_all_that_is_printed(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*QUICK[name], "--json"]) == 0
    captured = capsys.readouterr()
    assert _strict(captured.out) and captured.err == ""


def test_json_of_build_and_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from trtforge import plans

    outputs = {"y": np.zeros((2, 3), np.float16)}
    monkeypatch.setattr(plans, "run_plan", lambda plan, inputs, out: outputs)
    assert cli.main(["run", "some.plan", "--inputs", "x.npz", "-o", "y.npz", "--json"]) == 0
    assert _strict(capsys.readouterr().out)["outputs"] == {"y": {"dtype": "float16", "shape": [2, 3]}}
    pytest.importorskip("tensorrt_rtx", reason="building a plan needs tensorrt-rtx")
    network = tmp_path / "small.py"
    network.write_text(
        "import trtforge\n\ndef network():\n    with trtforge.Network('small') as made:\n"
        "        x = made.input('x', 'float16', (4, 8))\n"
        "        made.mark_output(trtforge.functional.relu(x), 'y')\n    return made\n"
    )
    plan = str(tmp_path / "small.plan")
    assert cli.main(["build", f"{network}:network", "-o", plan, "--compute-capability", "8.9", "--json"]) == 0
    assert _strict(capsys.readouterr().out)


def test_numbers_that_are_not_finite_become_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = Row("a::b", "k", "cuda", "-", 0, "N1", "float16", "cuda", "launched", float("inf"), 1.0, "failed", "wrong")
    monkeypatch.setattr("trtforge.harness.check.check", lambda *arguments, **options: [wrong])
    file = tmp_path / "check.json"
    assert cli.main(["check", "--json", "--report", str(file)]) == 1
    assert _strict(capsys.readouterr().out)["rows"][0]["error"] == "inf"
    assert _strict(file.read_text())["kernels"][0]["worst_over_tolerance"] == "inf"


@pytest.mark.skipif(not device.why_no_gpu(), reason="says what happens without a GPU")
@pytest.mark.parametrize("command", ["bench", "profile"])
def test_what_needs_a_gpu_says_so(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([command, "rms_norm", "--json"]) == 2
    captured = capsys.readouterr()
    assert "DeviceError" in captured.err and "GPU" in captured.err
    assert _strict(captured.out)["error"]["type"] == "DeviceError"
    typed = (
        "trtforge bench rms_norm --json bench.json ;"
        if command == "bench"
        else "type the same command, or without it: ncu"
    )
    assert typed in captured.err


@pytest.mark.parametrize(
    "command", [["list", "nope", "--json"], ["inspect", "nope", "--json"], ["bench", "nope", "--json"]]
)
def test_an_error_is_json_too(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(command) == 2
    captured = capsys.readouterr()
    error = json.loads(captured.out)["error"]
    assert error["type"] == "UnknownNameError" and error["message"] in captured.err


def test_a_name_that_is_nearly_right_is_proposed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list", "rmsnorm"]) == 2
    assert "meant: trtforge::rms_norm?" in capsys.readouterr().err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_full_disk_under_the_output_is_one_line(options: list[str]) -> None:
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "trtforge", "list", "rms_norm", *options]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert done.stderr.strip() == "trtforge: FileError: cannot write the output: No space left on device"


def test_the_next_command_of_new_can_be_typed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "sp ace"
    folder.mkdir()
    assert cli.main(["new", "idea", "--template", "triton-elementwise", "--into", str(folder), "--json"]) == 0
    typed = shlex.split(json.loads(capsys.readouterr().out)["next"])
    assert typed == ["trtforge", "check", "my::idea", "--load", str(folder / "idea")]


def test_a_narrow_terminal_has_no_broken_words() -> None:
    rows = [("trtforge::rms_norm", "cuda_elementwise", "float16|bfloat16", 3, "")]
    made = show.table("1 kernel", ("op", "kernel", "dtypes", "tactics", "note"), rows)
    for width, is_table in ((50, False), (100, True)):
        out = io.StringIO()
        Console(file=out, width=width).print(made)
        told = out.getvalue()
        assert all(word in told for word in ("trtforge::rms_norm", "cuda_elementwise", "float16|bfloat16"))
        assert ("│" in told) == is_table and "1 kernel" in told
    assert "dtypes float16|bfloat16 · tactics 3" in _narrow(made)


def _narrow(made: Any) -> str:
    out = io.StringIO()
    Console(file=out, width=50).print(made)
    return out.getvalue()


def test_failures_of_one_kind_are_told_once() -> None:
    def row(case: str, value: float) -> Row:
        reason = f"relative L2 error {value} above the tolerance 0.1, most at [0, {case}]: {value}, the reference has 1"
        return Row("a::b", "cuda", "cuda", "-", 0, case, "float16", "cpu", "emulated", value, 0.1, "failed", reason)

    out = io.StringIO()
    show.check_rows(Console(file=out, width=200), [row("1", 0.2), row("2", 300.0), row("33", float("inf"))], False)
    assert out.getvalue().count("FAILED") == 1 and "(and 2 more rows)" in out.getvalue()
    assert "not finite" in out.getvalue() and show._share(1152.3) == "1,152 × tolerance"
    assert "--device emulate" not in out.getvalue()
