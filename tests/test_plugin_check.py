"""``check(..., as_plugin=...)``: rows for every combination, a user's op, faults that must be found; embedding."""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from trtforge.bindings.architectures import architecture
from trtforge.bindings.binary import Parameter
from trtforge.bindings.errors import DeclarationError, DeviceError, UsageError
from trtforge.bindings.per_launch import LaunchConfig
from trtforge.harness import plugin_check
from trtforge.harness.check import check, summary
from trtforge.harness.jobs import Job, Row
from trtforge.kernels import registry
from trtforge.kernels.compile import compile_kernel
from trtforge.plugins import generate, host, stand_ins, tactics
from trtforge.plugins.eligibility import aot_eligibility
from trtforge.plugins.embed import embed, without_trailing_parameters

EXAMPLE = Path(__file__).parent.parent / "examples" / "squared_relu.py"
SM90 = architecture("sm_90a")

needs_bindings = pytest.mark.skipif(
    importlib.util.find_spec(stand_ins.BINDINGS) is None, reason=f"needs pip install {stand_ins.WHEEL}"
)


@pytest.fixture
def unregister() -> Iterator[None]:
    before = dict(registry._ops)
    yield
    registry._ops.clear()
    registry._ops.update(before)


# ---- rows --------------------------------------------------------------------------------------------------


def combinations(rows: list[Row]) -> set[tuple[str, int, str]]:
    return {(r.kernel, r.tactic_index, r.dtype) for r in rows}


@needs_bindings
@pytest.mark.parametrize("mode", ["aot", "jit"])
def test_every_kernel_tactic_and_dtype_has_a_row(mode: str) -> None:
    rows = check("rms_norm", as_plugin=mode, device="cpu")
    assert {r.status for r in rows} == {"passed"}
    op = registry.get("rms_norm")
    wanted = {(k.name, t, d) for k in op.kernels for t in range(len(k.tactics)) for d in ("float16", "bfloat16")}
    assert combinations(rows) == wanted
    assert {r.how for r in rows} == {f"driven as {'an AOT' if mode == 'aot' else 'a JIT'} plugin"}
    for row in rows:
        assert "driven by the plugin host" in row.reason and "not launched" in row.reason
        assert row.details["shapes"] >= 3 and row.details["dynamic_axes"] >= 1 and row.device == "cpu"


@needs_bindings
def test_rows_say_what_tensorrt_cannot_hold_or_embed() -> None:
    rows = check("quantize_token_static", as_plugin="jit", device="cpu")
    assert summary(rows)["failed"] == 0
    skipped = [r for r in rows if r.status == "skipped"]
    assert skipped and all("no such element type: y is float8_e5m2" in r.reason for r in skipped)
    op = registry.get("flash_attention")
    planned = plugin_check.plan(
        op, [op.kernel_named("decode")], "aot", None, ["sm_90a"], frozenset(), (0,)
    )  # driving them all would take minutes
    reasons = {job.tactic: reason for job, _, _, reason in planned}
    for tactic, parameters in enumerate(op.kernel_named("decode").tactics):
        assert ("clusters of 16" in (reasons[tactic] or "")) == (parameters["SPLITS"] == 16), parameters


@needs_bindings
@pytest.mark.parametrize("mode", ["aot", "jit"])
def test_an_op_from_outside(mode: str, unregister: None) -> None:
    rows = check("squared_relu", loads=[str(EXAMPLE)], as_plugin=mode, device="cpu")
    assert rows and {r.status for r in rows} == {"passed"} and {r.op for r in rows} == {"examples::squared_relu"}


@needs_bindings
def test_every_optional_input_and_rank_is_driven() -> None:
    rows = check("gated_gemm", kernel="triton_elementwise", as_plugin="jit", device="cpu")
    assert summary(rows)["failed"] == 0
    cases = {r.case for r in rows}
    assert any("+bias_gate +bias_up" in c for c in cases) and any("lead2x3" in c for c in cases)


def test_an_unknown_way_is_refused() -> None:
    with pytest.raises(UsageError, match="accepted: aot, jit"):
        check("rms_norm", as_plugin="both")


# ---- faults ------------------------------------------------------------------------------------------------


def drive(op_name: str, kernel_name: str, mode: str = "aot", tactic: int = 0) -> plugin_check.Driven:
    op = registry.get(op_name)
    kernel = op.kernel_named(kernel_name)
    index, dtypes = next(
        (i, d)
        for i, case in enumerate(op.cases)
        for d in op.dtype_combinations(case)
        if kernel.refusal(op.bind_case(case, d), tactic, SM90) is None
    )
    case = op.cases[index]
    job = Job(mode, op.name, kernel_name, tactic, index, dtypes, "sm_90a")
    return plugin_check.drive(job, kernel, case, op.bind_case(case, dtypes))


@needs_bindings
def test_a_sound_plugin_passes() -> None:
    assert drive("rms_norm", "cuda_elementwise").details["code_bytes"] > 1000


@needs_bindings
def test_a_wrong_launch_parameter_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    true = generate.to_shape_expr

    def wrong(layer: Any, value: Any, call: Any, descriptors: Any) -> Any:
        return true(layer, value + 1 if str(value) == "M.0" else value, call, descriptors)

    monkeypatch.setattr(generate, "to_shape_expr", wrong)
    with pytest.raises(DeclarationError, match="output shapes for"):
        drive("rms_norm", "cuda_elementwise")
    monkeypatch.setattr(generate, "to_shape_expr", true)
    embedder = generate._embed

    def embed_wrongly(*arguments: Any) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(generate, "to_shape_expr", wrong)
            return embedder(*arguments)

    holder = host.host_layer().registry["trtforge::rms_norm"]
    definition = host.host_layer().definitions["trtforge::rms_norm"]
    monkeypatch.setattr(definition, "aot_impl_func", lambda *a: embed_wrongly(holder, *a))
    with pytest.raises(DeclarationError, match="launch parameters for"):
        drive("rms_norm", "cuda_elementwise")


@needs_bindings
def test_code_with_a_parameter_too_many_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(generate, "embed", lambda label, b: replace(embed(label, b), ptx=b.ptx))
        with pytest.raises(DeclarationError, match="not the code of the declared kernel"):
            drive("rms_norm", "triton")


@needs_bindings
def test_a_wrong_output_dtype_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    definition = host.host_layer().definitions
    generate.register("rms_norm", layer=host.host_layer())
    plugin = definition["trtforge::rms_norm"]
    true = plugin.register_func

    def swap(*args: Any, **fields: Any) -> Any:
        (output,) = true(*args, **fields)
        output.dtype = host.host_layer().trt.DataType.INT8
        return (output,)

    monkeypatch.setattr(plugin, "register_func", swap)
    with pytest.raises(DeclarationError, match="is not among the combinations"):
        drive("rms_norm", "cuda_elementwise", mode="jit")


@needs_bindings
def test_attributes_that_come_back_changed_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    op = registry.get("rms_norm")
    shapes = {"x": (4, 64), "weight": (64,)}
    profile = host.Profile(shapes, shapes, shapes)
    dtypes = dict.fromkeys(shapes, "float16")
    hosted = host.build(op, profile, dtypes, {"eps": 1e-6}, SM90, aot=False)
    with pytest.raises(DeclarationError, match="came back"):
        replace(hosted, attributes={"eps": 1e-5}).reloaded()


# ---- embedding ---------------------------------------------------------------------------------------------

PTX = """
.version 8.0
.target sm_90
.visible .entry f(
  .param .u64 .ptr .global .align 16 f_param_0,
  .param .u32 f_param_1,
  .param .u64 .ptr .global .align 1 f_param_2,
  .param .u64 .ptr .global .align 1 f_param_3
)
.reqntid 128
{ ld.param.b64 %rd1, [f_param_0]; %s }
"""


def test_unused_scratch_parameters_are_taken_out() -> None:
    rewritten = without_trailing_parameters("op/k", PTX, "f", 2)
    assert "f_param_1" in rewritten and "f_param_2" not in rewritten and "f_param_3" not in rewritten
    assert rewritten.split(")", 1)[1] == PTX.split(")", 1)[1], "nothing else is touched"


def test_a_scratch_parameter_in_use_is_refused() -> None:
    with pytest.raises(DeclarationError, match="reads the scratch pointer f_param_3"):
        without_trailing_parameters("op/k", PTX.replace("%s", "ld.param.b64 %rd2, [f_param_3];"), "f", 2)
    assert "f_param_30" in without_trailing_parameters("op/k", PTX.replace("%s", "// f_param_30"), "f", 2)


def test_a_kernel_that_needs_scratch_memory_is_refused() -> None:
    op = registry.get("rms_norm")
    kernel = op.kernel_named("triton")
    binding = op.bind_case(op.cases[0], op.dtype_combinations(op.cases[0])[0])
    binary = compile_kernel(kernel, binding, 0, SM90)
    assert embed(str(kernel), binary).parameters == (
        *[Parameter("pointer", 8)] * 2,
        *[Parameter("int32", 4)] * 2,
        Parameter("pointer", 8),
    )
    greedy = replace(binary, metadata={**binary.metadata, "global_scratch_size": 128})
    with pytest.raises(DeclarationError, match="128 bytes of Triton's global scratch"):
        embed(str(kernel), greedy)


def test_eligibility_per_kernel() -> None:
    gemm = registry.get("fused_gemm")
    assert aot_eligibility(gemm.kernel_named("sm90")).aot
    assert aot_eligibility(gemm.kernel_named("mma")).aot
    assert aot_eligibility(registry.get("rms_norm").kernel_named("triton")).static == ("N",)
    every = {str(k): aot_eligibility(k) for op in registry.ops() for k in op.kernels}
    for op in registry.ops():
        assert any(every[str(k)].aot for k in op.kernels), f"{op.name} has no kernel that an engine can keep"


def test_static_dimensions_are_what_requirements_and_constants_ask_for() -> None:
    op = registry.get("rms_norm")
    binding = op.bind_case(op.cases[2], op.dtype_combinations(op.cases[2])[0])
    entries = {c.kernel.name: c for c in tactics.table(op)}
    assert tactics.static_for(entries["cuda"], binding, SM90, aot=False) == {"N"}
    assert tactics.static_for(entries["triton"], binding, SM90, aot=False) == set()
    assert tactics.static_for(entries["triton"], binding, SM90, aot=True) == {"N"}


# ---- on a GPU ----------------------------------------------------------------------------------------------


@needs_bindings
@pytest.mark.gpu
@pytest.mark.parametrize("mode", ["aot", "jit"])
@pytest.mark.parametrize("op", ["rms_norm", "fused_gemm", "flash_attention", "quantize_token"])
def test_plugins_compute_what_the_reference_computes(op: str, mode: str) -> None:
    rows = check(op, as_plugin=mode, device="cuda", seeds=(0,))
    failed = [f"{r.kernel} {r.tactic} {r.case} {r.dtype}: {r.reason}" for r in rows if r.status == "failed"]
    assert not failed, "\n".join(failed[:10])
    launched = [r for r in rows if r.status == "passed"]
    assert launched and all(r.device == "cuda" and r.error is not None for r in launched)


@needs_bindings
@pytest.mark.gpu
def test_code_that_writes_nothing_is_found_on_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The outputs are poisoned: a launch that does not happen cannot pass."""
    from trtforge.harness import worker

    monkeypatch.setattr(plugin_check, "launcher", lambda driven, binding: lambda pointers, stream: None)
    op = registry.get("rms_norm")
    row = worker.run_job(Job("aot-cuda", op.name, "cuda", 0, 2, op.dtype_combinations(op.cases[2])[0], "sm_90a"))
    assert row.status == "failed"


@needs_bindings
@pytest.mark.gpu
def test_embedded_code_that_is_no_ptx_fails_to_load() -> None:
    driven = drive("rms_norm", "cuda_elementwise", mode="aot-cuda")
    assert driven.code is not None
    broken = replace(driven, code=replace(driven.code, code=b"not ptx"))
    op = registry.get("rms_norm")
    with pytest.raises(DeviceError, match="cannot be loaded"):
        plugin_check.launcher(broken, op.bind_case(op.cases[0], op.dtype_combinations(op.cases[0])[0]))


# ---- the argument block of an embedded launch, without a GPU -------------------------------------------------


class RecordingDriver:
    """Stands for ``cuda.bindings.driver``: keeps what is loaded and reads the argument block of a launch."""

    CUlibrary = CUfunction = staticmethod(lambda handle: handle)

    class CUfunction_attribute:
        CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES = 8

    def __init__(self, sizes: list[int]):
        self.sizes = sizes
        self.images: list[bytes] = []
        self.launches: list[tuple[Any, ...]] = []

    def cuLibraryLoadData(self, image: bytes, *_: Any) -> tuple[int, int]:
        self.images.append(image)
        return 0, 11

    def cuLibraryGetKernel(self, library: int, name: bytes) -> tuple[int, int]:
        self.entry = name.decode()
        return 0, 22

    def cuDeviceGet(self, ordinal: int) -> tuple[int, int]:
        return 0, ordinal

    def cuKernelSetAttribute(self, *_: Any) -> tuple[int]:
        return (0,)

    def launch(self, config_at: int, function: int, arguments_at: int, extra: None) -> int:
        config = LaunchConfig.from_address(config_at)
        addresses = (ctypes.c_void_p * len(self.sizes)).from_address(arguments_at)
        kinds = {8: ctypes.c_uint64, 4: ctypes.c_int32}
        values = [kinds[size].from_address(a).value for size, a in zip(self.sizes, addresses)]
        self.launches.append(((*config.grid, *config.block, config.shared), config.stream, values))
        return 0


@needs_bindings
@pytest.mark.parametrize("kernel", ["mma", "triton"])
def test_embedded_code_is_launched_with_tensorrts_argument_order(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from trtforge.bindings import launch

    driven = drive("fused_gemm", kernel)
    assert driven.code is not None
    recording = RecordingDriver([8] * 2 + [4] * len(driven.code.scalars) + [8])
    monkeypatch.setattr(launch, "driver", lambda: recording)
    monkeypatch.setattr(launch.per_launch, "launcher", lambda: recording.launch)
    monkeypatch.setattr(launch, "current_ordinal", lambda: 0)
    monkeypatch.setattr(launch, "device", lambda ordinal: SimpleNamespace(architecture=SM90))
    monkeypatch.setattr(launch, "_loaded", {})
    op = registry.get("fused_gemm")
    at = driven.hosted.profile.optimal
    binding = op.bind(at, dict.fromkeys(at, "float16"), driven.hosted.attributes)
    geometry = driven.code.geometry(at)
    plugin_check.launcher(driven, binding)([0x100, 0x200, 0x300], 9)
    assert recording.entry == driven.code.entry and recording.images == [driven.code.code + b"\0"]
    assert recording.launches == [
        ((*geometry["grid"], *geometry["block"], geometry["shared"]), 9, [0x100, 0x200, *geometry["scalars"], 0x300])
    ]
