"""Norms and gates fused with quantization: references against compositions, kernels emulated, interpreted, compiled."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from compiler import needs_compiler
from emulated import TARGET, agrees

from trtforge.bindings.architectures import INSPECTED, architecture
from trtforge.bindings.errors import ContractError
from trtforge.harness.check import check
from trtforge.harness.compare import compare, tolerance_of
from trtforge.harness.emulate.emulator import run
from trtforge.kernels import Case, registry
from trtforge.kernels.compile import compile_kernel
from trtforge.kernels.fused_quantize.op import (
    add_rms_norm_quantize_token,
    layer_norm_quantize_token,
    rms_norm_quantize_token,
    silu_mul_quantize_token,
)
from trtforge.kernels.op import Op

registry.load_builtin()
OPS = (rms_norm_quantize_token, add_rms_norm_quantize_token, layer_norm_quantize_token, silu_mul_quantize_token)
CODES = ("int8", "float8_e4m3fn", "float8_e5m2")
NAN_CODE = {"int8": 0, "float8_e4m3fn": 0x7F, "float8_e5m2": 0x7F}


def first_of(op: Op) -> str:
    return next(iter(op.inputs))


def case_of(op: Op, m: int, n: int, to: str = "float8_e4m3fn", optional: tuple[str, ...] = ()) -> Case:
    return Case({"M": m, "N": n}, {"to": to}, optional, dtypes={first_of(op): "bfloat16"})


# ---- references ----------------------------------------------------------------------------------------------------


def rows(m: int = 6, n: int = 40, kind: Any = ml_dtypes.bfloat16, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((m, n)).astype(kind)


def quantized(value: np.ndarray, to: str) -> dict[str, np.ndarray]:
    return registry.get("quantize_token").run_reference({"x": value.astype(np.float32)}, {"to": to})


@pytest.mark.parametrize("to", CODES)
def test_the_references_are_the_norms_and_then_the_quantization_of_the_kit(to: str) -> None:
    x, residual, weight, bias = rows(), rows(seed=1), rows(1, seed=2)[0], rows(1, seed=3)[0]
    wide, gain = x.astype(np.float32), weight.astype(np.float32)
    total = (wide + residual.astype(np.float32)).astype(x.dtype)
    summed = total.astype(np.float32)

    def normalized(v: np.ndarray, eps: float) -> np.ndarray:
        return v / np.sqrt(np.mean(v * v, axis=-1, keepdims=True) + np.float32(eps))

    centered = wide - wide.mean(axis=-1, keepdims=True)
    silu = wide / (1 + np.exp(-wide)) * residual.astype(np.float32)
    expected: list[tuple[Op, dict[str, np.ndarray], np.ndarray]] = [
        (rms_norm_quantize_token, {"x": x, "weight": weight}, normalized(wide, 1e-6) * gain),
        (
            add_rms_norm_quantize_token,
            {"x": x, "residual": residual, "weight": weight},
            normalized(summed, 1e-6) * gain,
        ),
        (
            layer_norm_quantize_token,
            {"x": x, "weight": weight, "bias": bias},
            normalized(centered, 1e-5) * gain + bias.astype(np.float32),
        ),
        (silu_mul_quantize_token, {"gate": x, "up": residual}, silu),
    ]
    for op, inputs, value in expected:
        found, wanted = op.run_reference(inputs, {"to": to}), quantized(value, to)
        for name in ("y", "scale"):
            assert compare(found[name], wanted[name], tolerance_of(op, wanted[name].dtype.name)).passed, op.name
    found = add_rms_norm_quantize_token.run_reference({"x": x, "residual": residual, "weight": weight}, {"to": to})
    np.testing.assert_array_equal(found["sum"], total)


@pytest.mark.parametrize("to", CODES)
def test_zeros_nan_and_infinities_stay_in_their_row(to: str) -> None:
    x, weight = rows(5), rows(1, seed=2)[0]
    x[0], x[1, 3], x[2, 5] = 0.0, np.nan, np.inf
    clean = rms_norm_quantize_token.run_reference({"x": x[3:], "weight": weight}, {"to": to})
    found = rms_norm_quantize_token.run_reference({"x": x, "weight": weight}, {"to": to})
    smallest = np.float32(2.0**-126)
    assert (found["scale"][:3] == smallest).all() and not found["y"][0].astype(np.float32).any()
    assert (found["y"][1].view(np.uint8) == NAN_CODE[to]).all()
    assert found["y"][2].view(np.uint8)[5] == NAN_CODE[to]
    np.testing.assert_array_equal(found["y"][3:].view(np.uint8), clean["y"].view(np.uint8))


def test_a_given_scale_is_used_for_every_row_and_given_back() -> None:
    given = np.array([0.03], np.float32)
    inputs = {"gate": rows(), "up": rows(seed=1), "static_scale": given}
    found = silu_mul_quantize_token.run_reference(inputs, {"to": "int8"})
    np.testing.assert_array_equal(found["scale"], np.full(6, 0.03, np.float32))
    gate = inputs["gate"].astype(np.float64)
    value = (gate / (1 + np.exp(-gate)) * inputs["up"].astype(np.float64)).astype(np.float32)
    np.testing.assert_array_equal(found["y"], np.clip(np.rint(value / given[0]), -128, 127).astype(np.int8))


def test_leading_dimensions_are_kept_and_contracts_held() -> None:
    x = rows(6).reshape(2, 3, 40)
    found = rms_norm_quantize_token.run_reference({"x": x, "weight": rows(1)[0]}, {"to": "int8"})
    assert found["y"].shape == (2, 3, 40) and found["scale"].shape == (2, 3)
    with pytest.raises(ContractError, match="residual"):
        add_rms_norm_quantize_token.run_reference({"x": x, "residual": rows(5), "weight": rows(1)[0]}, {})
    with pytest.raises(ContractError, match="to"):
        rms_norm_quantize_token.run_reference({"x": x, "weight": rows(1)[0]}, {"to": "int4"})


# ---- choices -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_every_width_has_a_kernel_that_reads_a_row_once(op: Op) -> None:
    for n in (64, 128, 320, 512, 1024, 2048, 4096, 5120, 8192, 11008, 16384, 28672, 32768, 53248, 65536):
        for m in (1, 64, 4096, 16384):
            case = case_of(op, m, n)
            choice = op.choose(op.bind_case(case, op.dtype_combinations(case)[0]), TARGET)
            tactic = choice.kernel.tactics[choice.tactic]
            assert choice.kernel.name in ("cuda", "cluster") and not tactic.get("OVERFLOW"), (m, n, choice)


@pytest.mark.parametrize("arch", INSPECTED)
@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_any_shape_and_alignment_is_served_on_every_architecture(op: Op, arch: str) -> None:
    for n in (1, 7, 1000, 4099, 65536, 100000, 200001):
        binding = op.bind_case(case_of(op, 3, n), op.dtype_combinations(case_of(op, 3, n))[0])
        assert op.choose(binding, architecture(arch))
        assert op.choose(binding, architecture(arch), alignment=2).kernel.name in ("cuda_scalar", "triton")


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_the_chosen_kernel_of_a_large_problem_compiles_without_spills(op: Op) -> None:
    case = case_of(op, 16384, 8192)
    binding = op.bind_case(case, op.dtype_combinations(case)[0])
    choice = op.choose(binding, TARGET)
    resources = compile_kernel(choice.kernel, binding, choice.tactic, TARGET).resources
    assert not resources.spill_stores and not resources.spill_loads
    launch = choice.kernel.launch(binding, choice.tactic, TARGET)
    threads = choice.kernel.tactics[choice.tactic]["THREADS"]
    blocks, _ = TARGET.occupancy(threads, resources.registers, int(launch.shared))
    under_way = min(blocks, int(launch.grid) // TARGET.sms) * int(launch.shared)
    assert under_way >= 32 << 10, "bytes under way in a multiprocessor"


# ---- kernels on the CPU --------------------------------------------------------------------------------------------


def tactic_of(op: Op, kernel: str, **wanted: int) -> int:
    return op.tactic_index(op.kernel_named(kernel), wanted)


@needs_compiler
@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
@pytest.mark.parametrize(
    ("kernel", "wanted", "m", "n"),
    [
        ("cuda", {"ROW_THREADS": 8}, 37, 64),
        ("cuda", {"ROW_THREADS": 32, "STAGES": 0}, 6, 520),
        ("cuda", {"ROW_THREADS": 128, "STAGES": 0}, 2, 1032),
        ("cuda", {"OVERFLOW": 1}, 2, 16392),
        ("cluster", {"THREADS": 512, "CLUSTER": 2}, 2, 4104),
        ("cuda_scalar", {"ROW_THREADS": 256}, 2, 4099),
    ],
)
def test_kernels_run_on_a_cpu(op: Op, kernel: str, wanted: dict[str, int], m: int, n: int) -> None:
    for to, optional in (("float8_e4m3fn", ()), ("int8", ("static_scale",))):
        agrees(op, op.kernel_named(kernel), case_of(op, m, n, to, optional), {}, tactic_of(op, kernel, **wanted))


def run_ring(op: Op, m: int, n: int, stages: int, row_threads: int, sanitize: str | None = None) -> None:
    """A persistent launch on an imagined GPU of one multiprocessor, so that each block takes many rows."""
    kernel, case = op.kernel_named("cuda"), case_of(op, m, n)
    small = replace(TARGET, sms=1)
    dtypes = op.dtype_combinations(case)[0]
    binding, inputs = op.bind_case(case, dtypes), op.sample_inputs(case, dtypes, 0)
    index = tactic_of(op, "cuda", ROW_THREADS=row_threads, STAGES=stages)
    launch = kernel.launch(binding, index, small)
    assert int(launch.grid) * kernel.tactics[index]["THREADS"] // row_threads < m // 2
    found = run(kernel, binding, index, inputs, small, sanitize)
    for name, expected in op.run_reference(inputs, case.attributes).items():
        held = compare(found[name], expected, tolerance_of(op, binding.dtypes[name]))
        assert held.passed, f"{name}: {held.reason}"


@needs_compiler
@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
@pytest.mark.parametrize(
    ("row_threads", "stages", "m", "n"), [(32, 2, 53, 264), (128, 2, 19, 1032), (256, 3, 11, 2056)]
)
def test_a_block_takes_row_after_row_from_its_ring(op: Op, row_threads: int, stages: int, m: int, n: int) -> None:
    run_ring(op, m, n, stages, row_threads)


@needs_compiler
@pytest.mark.parametrize("sanitize", ["address", "thread"])
def test_the_ring_and_the_cluster_are_clean_under_sanitizers(sanitize: str) -> None:
    run_ring(add_rms_norm_quantize_token, 13, 1032, 2, 128, sanitize)
    index = tactic_of(layer_norm_quantize_token, "cluster", THREADS=512, CLUSTER=2)
    cluster = layer_norm_quantize_token.kernel_named("cluster")
    case = case_of(layer_norm_quantize_token, 2, 4104, optional=("bias",))
    agrees(layer_norm_quantize_token, cluster, case, {}, index, sanitize)


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_triton_kernels_agree_in_the_interpreter(op: Op) -> None:
    found = check(op.name, kernel="triton", device="cpu", architectures=())
    assert found and not [row for row in found if row.status == "failed"]
    assert [row for row in found if row.status == "passed"]
