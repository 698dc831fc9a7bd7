"""The harness on a CPU: comparing, checking, inspecting, listing; a user's op; faults that must be found."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import compiler
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

@triton.jit
def writes_far_outside(x_ptr, N, y_ptr):  # as a store without a mask does
    at = tl.program_id(0) * 64 + tl.arange(0, 4096)
    tl.store(y_ptr + at, tl.load(x_ptr + at, mask=at < N, other=0.0) * 2)

@triton.jit
def writes_its_input(y_ptr, N, x_ptr):
    at = tl.program_id(0) * 64 + tl.arange(0, 64)
    tl.store(y_ptr + at, tl.load(x_ptr + at, mask=at < N) * 2, mask=at < N)

@triton.jit
def never_writes(x_ptr, N, y_ptr):
    at = tl.program_id(0) * 64 + tl.arange(0, 64)
    tl.load(x_ptr + at, mask=at < N) * 2

@triton.jit
def fails(x):
    return x * nonsense

@triton.jit
def calls_what_fails(x_ptr, N, y_ptr):
    at = tl.program_id(0) * 64 + tl.arange(0, 64)
    tl.store(y_ptr + at, fails(tl.load(x_ptr + at, mask=at < N)), mask=at < N)

for one in ("right", "wrong", "forgets_the_last", "writes_outside", "two_scalars", "dies", "absent",
            "writes_far_outside", "writes_its_input", "never_writes", "calls_what_fails"):
    declare(one)
"""


def test_planted_faults_are_found_and_cost_one_row_each(tmp_path: Path, unregister: None) -> None:
    file = tmp_path / "faults.py"
    file.write_text(FAULTY)
    rows = check("faults::double", device="cpu", architectures=("sm_90a",), loads=[str(file)])
    compiled = {r.kernel: r for r in rows if r.how == "compiled for sm_90a"}
    assert "nonsense is not defined" in compiled["calls_what_fails"].reason  # the cause, not only the call
    interpreted = {r.kernel: r for r in rows if r.how == "interpreted" and r.dtype == "float16"}
    assert interpreted["right"].status == "passed"
    reasons = {
        "wrong": "relative L2 error",
        "forgets_the_last": "nan",
        "writes_outside": "wrote outside the output 'y'",
        "two_scalars": "the function has 4 parameters that are not constants",
        "writes_far_outside": "wrote outside the output 'y'",
        "writes_its_input": "changed the input 'x', which no output updates; is the order",
        "never_writes": "was it written?",
        "calls_what_fails": "NameError: name 'nonsense' is not defined (faults.py:",
        "dies": "(SIGSEGV), as a kernel does that reads or writes far outside",
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
    rows = check(
        "faults::copy", device="cpu", architectures=("sm_90a",), loads=[str(file)], workers=1, time_limit=limit
    )
    interpreted = {r.kernel: r for r in rows if r.how == "interpreted"}
    assert interpreted["never_ends"].status == "failed" and interpreted["ends"].status == "passed"
    assert f"did not end within {limit:g} s and was ended" in interpreted["never_ends"].reason
    assert len(started) >= 2 and all(process.poll() is not None for process in started)


def test_an_op_that_was_loaded_is_known_to_the_workers(
    tmp_path: Path, unregister: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "again.py").write_text(EXAMPLE.read_text().replace("examples::squared_relu", "loaded::squared_relu"))
    monkeypatch.chdir(tmp_path)
    trtforge.load("again.py")
    monkeypatch.chdir("/")
    rows = check("loaded::squared_relu", device="cpu", architectures=("sm_90a",), workers=1)
    assert summary(rows)["failed"] == 0 and summary(rows)["passed"] > 0
    assert registry.targets(["loaded::squared_relu"], [tmp_path / "again.py"]) == []
    assert registry.targets(["rms_norm"]) == []


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


LIMITS = """
from trtforge.kernels import Case, Launch, Op, Tensor, cuda, grid
op = Op('faults::limits', inputs={'x': Tensor('N', dtype='float32')}, outputs={'y': Tensor('N', dtype='x')},
        cases=[Case({'N': 3})])

@op.reference
def _(x):
    return x

@op.kernel(cuda('copy.cu'), tactics=({'THREADS': 32, 'BYTES': 300000}, {'THREADS': 2048, 'BYTES': 0}))
def _(d, t):
    return Launch(grid=1, block=t.THREADS, shared=t.BYTES, scalars=(d.N,))
"""


@pytest.mark.parametrize(
    "how",
    [
        {},
        pytest.param({"device": "emulate", "every_case": True}, marks=compiler.needs_compiler),
        pytest.param(
            {"as_plugin": "aot"}, marks=pytest.mark.skipif(find_spec("tensorrt_bindings") is None, reason="no bindings")
        ),
    ],
)
def test_a_block_that_no_gpu_takes_fails_every_way_of_checking(
    how: dict[str, Any], tmp_path: Path, unregister: None
) -> None:
    (tmp_path / "copy.cu").write_text(
        'extern "C" __global__ void copy(const x_t* x, int n, y_t* y) { if (threadIdx.x < n) y[threadIdx.x] = 0; }'
    )
    (tmp_path / "op.py").write_text(LIMITS)
    rows = check("faults::limits", architectures=("sm_90a",), loads=[str(tmp_path)], **{"device": "cpu", **how})
    large, wide = rows
    assert large.status == wide.status == "failed"
    assert "needs 300000 bytes of shared memory, sm_90a allows" in large.reason
    assert "has 2048 threads per block, sm_90a allows 1 to 1024" in wide.reason


def test_a_float_parameter_is_no_scalar(tmp_path: Path, unregister: None) -> None:
    (tmp_path / "copy.cu").write_text('extern "C" __global__ void copy(const x_t* x, float n, y_t* y) { y[0] = n; }')
    (tmp_path / "op.py").write_text(LIMITS)
    rows = check("faults::limits", device="cpu", architectures=("sm_90a",), loads=[str(tmp_path)])
    assert all("must be int32 of 4 bytes, the kernel has float of 4" in row.reason for row in rows)


@compiler.needs_compiler
def test_a_source_that_no_compiler_takes_fails_when_emulated(tmp_path: Path, unregister: None) -> None:
    (tmp_path / "copy.cu").write_text('extern "C" __global__ void copy(const x_t* x, int n, y_t* y) { retrun; }')
    (tmp_path / "op.py").write_text(LIMITS.replace("300000", "0"))
    row, _ = check("faults::limits", device="emulate", every_case=True, loads=[str(tmp_path)])
    assert row.status == "failed" and 'identifier "retrun" is undefined' in row.reason


def test_a_worker_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    file = tmp_path / "hanging.py"
    file.write_text(HANGING)
    command = [sys.executable, "-m", "trtforge", "check", "copy", "--kernel", "never_ends", "--load", str(file)]
    parent = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    workers = Path(f"/proc/{parent.pid}/task")
    deadline = time.monotonic() + 60
    children: list[int] = []
    while not children and time.monotonic() < deadline:
        time.sleep(0.1)
        children = [int(pid) for task in workers.iterdir() for pid in (task / "children").read_text().split()]
    time.sleep(3)  # the worker is in the kernel by now
    parent.kill()
    parent.wait()
    while any(Path(f"/proc/{pid}").exists() for pid in children) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert children and not any(Path(f"/proc/{pid}").exists() for pid in children)


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
