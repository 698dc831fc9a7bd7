"""The harness on a CPU: comparing, checking, inspecting, listing; a user's op; faults that must be found."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import trtforge
from trtforge import cli
from trtforge.bindings import device
from trtforge.bindings.errors import DeclarationError, UnknownNameError, UsageError
from trtforge.harness import pool
from trtforge.harness.check import check, summary
from trtforge.harness.compare import compare
from trtforge.harness.inspection import inspect
from trtforge.harness.listing import list_kernels
from trtforge.kernels import Tolerance, registry
from trtforge.plugins.eligibility import aot_eligibility

EXAMPLE = Path(__file__).parent.parent / "examples" / "squared_relu.py"
FLOAT = Tolerance(l2=1e-2, rtol=1e-2, atol=1e-2)


@pytest.fixture
def unregister() -> Iterator[None]:
    before = dict(registry._ops)
    yield
    registry._ops.clear()
    registry._ops.update(before)


# ---- comparing -------------------------------------------------------------------------------------------------


def test_equal_arrays_pass_with_error_zero() -> None:
    r = np.random.default_rng(0).standard_normal((8, 8)).astype(np.float16)
    assert compare(r, r, FLOAT) == compare(r.copy(), r, FLOAT)
    assert compare(r, r, FLOAT).error == 0.0 and compare(r, r, FLOAT).passed


def test_one_wrong_element_among_a_million_is_found() -> None:
    r = np.random.default_rng(0).standard_normal((1000, 1000)).astype(np.float16)
    o = r.copy()
    o[123, 456] = 0.5 if abs(o[123, 456]) > 1 else o[123, 456] + 1
    found = compare(o, r, FLOAT)
    assert not found.passed and found.error < FLOAT.l2 and "[123, 456]" in found.reason


def test_poison_is_found_even_in_bfloat16_and_fp8() -> None:
    for kind in (np.float16, ml_dtypes.bfloat16, np.float32):
        r = np.ones(64, kind)
        o = r.copy()
        o.view(np.uint8)[:8] = 0xFF
        assert not compare(o, r, FLOAT).passed
    codes = np.ones(64, ml_dtypes.float8_e4m3fn)
    bad = codes.copy()
    bad.view(np.uint8)[3] = 0xFF
    assert not compare(bad, codes, Tolerance()).passed


def test_non_finite_values_must_agree() -> None:
    r = np.array([1.0, np.inf, np.nan, -np.inf], np.float32)
    assert compare(r.copy(), r, FLOAT).passed
    assert not compare(np.array([1.0, np.inf, np.nan, np.inf], np.float32), r, FLOAT).passed
    assert not compare(np.array([1.0, 3.0, np.nan, -np.inf], np.float32), r, FLOAT).passed


def test_codes_may_differ_by_steps_in_a_fraction_only() -> None:
    r = np.linspace(-4, 4, 1000).astype(ml_dtypes.float8_e4m3fn)
    o = r.copy()
    o.view(np.uint8)[10] += 1
    assert not compare(o, r, Tolerance()).passed
    assert compare(o, r, Tolerance(steps=1, fraction=1e-3)).passed
    o.view(np.uint8)[20] += 3
    assert not compare(o, r, Tolerance(steps=1, fraction=1e-2)).passed
    zeros = np.array([0.0, -0.0], ml_dtypes.float8_e5m2)
    assert compare(zeros[::-1].copy(), zeros, Tolerance()).passed


# ---- checking ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rms_rows() -> list[trtforge.harness.jobs.Row]:  # type: ignore[name-defined]
    return check("rms_norm", device="cpu", architectures=("sm_80", "sm_90a"))


def test_check_on_a_cpu_interprets_triton_and_compiles_both_languages(rms_rows: list) -> None:
    assert summary(rms_rows)["failed"] == 0
    interpreted = [r for r in rms_rows if r.how == "interpreted"]
    assert interpreted and all(r.language == "triton" and r.error is not None for r in interpreted)
    assert {"compiled for sm_80", "compiled for sm_90a"} < {r.how for r in rms_rows}
    compiled = [r for r in rms_rows if r.how.startswith("compiled")]
    assert {"cuda", "triton"} == {r.language for r in compiled}
    assert all("not run" in r.reason and r.details["registers"] > 0 for r in compiled)


def test_every_combination_has_a_row(rms_rows: list) -> None:
    op = registry.get("rms_norm")
    interpreted = {(r.case, r.dtype) for r in rms_rows if r.how == "interpreted"}
    small = [c for c in op.cases if not c.tags]
    assert interpreted == {(c.label, t) for c in small for t in ("float16", "bfloat16")}
    compiled = {(r.kernel, r.tactic_index, r.dtype, r.how) for r in rms_rows if r.how.startswith("compiled")}
    assert len(compiled) == sum(len(k.tactics) for k in op.kernels) * 2 * 2


FAULTY = """
import numpy as np
import triton
import triton.language as tl
import trtforge
from trtforge.kernels import HALF, Case, Launch, Op, Tensor, cdiv

double = Op(
    "faults::double",
    inputs={"x": Tensor("N", dtype=HALF)},
    outputs={"y": Tensor("N", dtype="x")},
    cases=[Case({"N": 100})],
)

@double.reference
def _(x):
    return 2 * x.astype(np.float32)

def declare(name):
    @double.kernel(trtforge.triton(__file__, entry=name), name=name)
    def _(d):
        return Launch(grid=cdiv(d.N, 64), scalars=(d.N,))

@triton.jit
def right(x_ptr, N, y_ptr):
    at = tl.program_id(0) * 64 + tl.arange(0, 64)
    tl.store(y_ptr + at, tl.load(x_ptr + at, mask=at < N) * 2, mask=at < N)

@triton.jit
def wrong(x_ptr, N, y_ptr):
    at = tl.program_id(0) * 64 + tl.arange(0, 64)
    tl.store(y_ptr + at, tl.load(x_ptr + at, mask=at < N) * 3, mask=at < N)

@triton.jit
def forgets_the_last(x_ptr, N, y_ptr):
    at = tl.program_id(0) * 64 + tl.arange(0, 64)
    tl.store(y_ptr + at, tl.load(x_ptr + at, mask=at < N) * 2, mask=at < N - 1)

@triton.jit
def writes_outside(x_ptr, N, y_ptr):
    at = tl.program_id(0) * 64 + tl.arange(0, 64)
    tl.store(y_ptr + at, tl.load(x_ptr + at, mask=at < N, other=0.0) * 2, mask=at < N + 1)

@triton.jit
def two_scalars(x_ptr, N, M, y_ptr):
    at = tl.program_id(0) * 64 + tl.arange(0, 64)
    tl.store(y_ptr + at, tl.load(x_ptr + at, mask=at < N) * 2, mask=at < N)

@triton.jit
def dies(x_ptr, N, y_ptr):
    at = tl.program_id(0) * 64 + tl.arange(0, 64)
    tl.store(y_ptr + at * 0 + 1099511627776, tl.load(x_ptr + at, mask=at < N) * 2, mask=at < N)

for one in ("right", "wrong", "forgets_the_last", "writes_outside", "two_scalars", "dies", "absent"):
    declare(one)
"""


def test_planted_faults_are_found_and_cost_one_row_each(tmp_path: Path, unregister: None) -> None:
    file = tmp_path / "faults.py"
    file.write_text(FAULTY)
    rows = check("faults::double", device="cpu", architectures=("sm_90a",), loads=[str(file)])
    interpreted = {r.kernel: r for r in rows if r.how == "interpreted" and r.dtype == "float16"}
    assert interpreted["right"].status == "passed"
    reasons = {
        "wrong": "relative L2 error",
        "forgets_the_last": "nan",
        "writes_outside": "wrote outside the output 'y'",
        "two_scalars": "the function has 4 parameters that are not constants",
        "dies": "signal",
        "absent": "has no function 'absent'",
    }
    for kernel, reason in reasons.items():
        assert interpreted[kernel].status == "failed", kernel
        assert reason in interpreted[kernel].reason, interpreted[kernel].reason


HANGING = """
import numpy as np
import triton
import triton.language as tl
import trtforge
from trtforge.kernels import Case, Launch, Op, Tensor

copy = Op("faults::copy", inputs={"x": Tensor("N", dtype="float32")}, outputs={"y": Tensor("N", dtype="x")},
          cases=[Case({"N": 16})])

@copy.reference
def _(x):
    return x

@triton.jit
def never_ends(x_ptr, N, y_ptr):
    at = tl.arange(0, 16)
    while tl.load(x_ptr) == tl.load(x_ptr):
        tl.store(y_ptr + at, tl.load(x_ptr + at))

@triton.jit
def ends(x_ptr, N, y_ptr):
    at = tl.arange(0, 16)
    tl.store(y_ptr + at, tl.load(x_ptr + at))

for one in ("never_ends", "ends"):
    @copy.kernel(trtforge.triton(__file__, entry=one), name=one)
    def _(d):
        return Launch(grid=1, scalars=(d.N,))
"""


def test_a_kernel_that_hangs_costs_one_row_and_leaves_no_process(
    tmp_path: Path, unregister: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "hanging.py"
    file.write_text(HANGING)
    started: list[subprocess.Popen[str]] = []
    limit = 8.0

    class Watched(pool._Worker):
        def __init__(self, mode: str, loads: Sequence[str]):
            super().__init__(mode, loads)
            started.append(self.process)

    monkeypatch.setattr(pool, "_Worker", Watched)
    monkeypatch.setattr(pool, "run_jobs", functools.partial(pool.run_jobs, limit=limit))
    rows = check("faults::copy", device="cpu", architectures=("sm_90a",), loads=[str(file)], workers=1)
    interpreted = {r.kernel: r for r in rows if r.how == "interpreted"}
    assert interpreted["never_ends"].status == "failed" and interpreted["ends"].status == "passed"
    assert f"ended by signal 9 (time limit {limit:g} s)" in interpreted["never_ends"].reason
    assert len(started) >= 2 and all(process.poll() is not None for process in started)


def test_a_cuda_kernel_that_does_not_match_its_declaration_is_refused(tmp_path: Path, unregister: None) -> None:
    (tmp_path / "double.cu").write_text('extern "C" __global__ void twice(const x_t* x, long long n, x_t* y) {}')
    (tmp_path / "op.py").write_text(
        "from trtforge.kernels import Case, Launch, Op, Tensor, cuda\n"
        "op = Op('faults::twice', inputs={'x': Tensor('N', dtype='float32')},\n"
        "        outputs={'y': Tensor('N', dtype='x')}, cases=[Case({'N': 3})])\n"
        "@op.kernel(cuda('double.cu', entry='twice'))\n"
        "def _(d): return Launch(grid=1, block=32, scalars=(d.N,))\n"
    )
    (row,) = check("faults::twice", device="cpu", architectures=("sm_90a",), loads=[str(tmp_path)])
    assert row.status == "failed" and "parameter 1 (scalar 0) must be int32 of 4 bytes" in row.reason


def test_check_refuses_what_it_does_not_know() -> None:
    with pytest.raises(UsageError, match="auto, cpu, cuda"):
        check("rms_norm", device="tpu")
    with pytest.raises(UnknownNameError, match="no op 'softermax'"):
        check("softermax")


# ---- an op from outside the repository, in one file ---------------------------------------------------------------


def test_one_file_outside_makes_a_whole_op(unregister: None) -> None:
    (op,) = registry.load(EXAMPLE)
    x = np.random.default_rng(0).standard_normal((4, 100)).astype(np.float16)
    expected = np.square(np.maximum(x.astype(np.float32), 0))
    np.testing.assert_allclose(op(x, device="cpu"), expected, rtol=1e-3)
    rows = check(op.name, device="cpu", loads=[str(EXAMPLE)], architectures=("sm_90a",))
    assert summary(rows)["failed"] == 0 and any(r.how == "interpreted" for r in rows)
    assert aot_eligibility(op.kernels[0]).aot

    with trtforge.Network("user") as network:
        network.mark_output(
            trtforge.functional.call("examples::squared_relu", network.input("x", "float16", (4, 100))), "y"
        )
    executable = network.build(backend="reference")
    np.testing.assert_allclose(executable(x=x)["y"], expected, rtol=1e-3)


def test_its_fusion_pattern_replaces_the_primitives(unregister: None) -> None:
    registry.load(EXAMPLE)
    f = trtforge.functional
    with trtforge.Network("user") as network:
        positive = f.relu(network.input("x", "float16", (4, 100)))
        network.mark_output(f.mul(positive, positive), "y")
    report = trtforge.fuse(network)
    assert "examples::squared_relu" in str(report)


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "no such file"),
        ("x = 1\n", "declares no op"),
        ("import no_such_module_anywhere\n", "no_such_module_anywhere"),
        ("def broken(:\n", "SyntaxError"),
    ],
)
def test_loading_what_declares_nothing(tmp_path: Path, content: str | None, message: str) -> None:
    file = tmp_path / "ops.py"
    if content is not None:
        file.write_text(content)
    with pytest.raises(DeclarationError, match=message):
        registry.load(file)


# ---- inspecting and listing -----------------------------------------------------------------------------------------


def test_inspect_reports_what_the_machine_code_holds() -> None:
    (found,) = inspect("rms_norm/cuda", arch="sm_90a", tactic=1)
    assert found.registers > 0 and found.spills == 0 and found.occupancy > 0.3
    assert found.instructions["LDG"] > 0 and found.instructions["total"] > 50
    assert found.parameters == ["x: bfloat16*", "weight: bfloat16*", "M: int32", "N: int32", "y: bfloat16*"]
    with pytest.raises(UnknownNameError, match="no case like"):
        inspect("rms_norm/cuda", case="N77777")


def test_list_says_which_kernels_can_be_aot_and_why_not() -> None:
    entries = {f"{e.op}/{e.kernel}": e for e in list_kernels()}
    assert entries["trtforge::rms_norm/cuda"].aot and entries["trtforge::rms_norm/cuda"].static == ("N",)
    hopper = entries["trtforge::flash_attention/sm90"]
    assert hopper.aot and hopper.static == ("D",)


# ---- the command line ------------------------------------------------------------------------------------------------


def test_cli_check_json_and_exit_status(capsys: pytest.CaptureFixture[str]) -> None:
    status = cli.main(["check", "rms_norm", "--kernel", "cuda", "--device", "cpu", "--arch", "sm_89", "--json"])
    data = json.loads(capsys.readouterr().out)
    assert status == 0 and data["summary"]["passed"] == len(data["rows"]) == 6
    assert {"op", "kernel", "tactic", "case", "dtype", "device", "error", "tolerance", "status", "reason"} <= set(
        data["rows"][0]
    )


def test_cli_fails_with_status_1_on_a_wrong_kernel(tmp_path: Path, unregister: None) -> None:
    file = tmp_path / "faults.py"
    file.write_text(FAULTY)
    command = ["check", "faults::double", "--kernel", "wrong", "--device", "cpu", "--arch", "sm_90a"]
    assert cli.main([*command, "--load", str(file)]) == 1


@pytest.mark.parametrize(
    "command, message",
    [
        (["inspect", "nothing"], "UnknownNameError"),
        (["inspect", "rms_norm", "--arch", "sm_1"], "unknown architecture"),
        (["inspect", "rms_norm/cuda", "--tactic", "99"], "tactics 0 to 2"),
        (["check", "--load", "/no/such/file.py"], "there is no such file"),
        (["check", "rms_norm", "--seeds", "0"], "--seeds is 0"),
        (["list", "softermax"], "no op 'softermax'"),
        (["generate", "/no/such/model", "--prompt", "x"], "CheckpointError"),
    ],
)
def test_cli_wrong_input_ends_with_status_2_and_one_line(
    command: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(command) == 2
    error = capsys.readouterr().err
    assert error.startswith("trtforge: ") and message in error and "Traceback" not in error


@pytest.mark.skipif(device.has_gpu(), reason="there is a GPU here")
def test_cli_without_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", "rms_norm", "--device", "cuda"]) == 2
    assert "needs an NVIDIA GPU" in capsys.readouterr().err


def test_the_command_is_installed_and_piped_output_is_plain() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "trtforge", "list", "rms_norm"], capture_output=True, text=True, check=True
    )
    assert "trtforge::rms_norm" in done.stdout and "\x1b" not in done.stdout
