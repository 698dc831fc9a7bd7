"""Weight-only products: against independent formulations, in every corner of their tiles, and in fused networks."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from compiler import needs_compiler

from trtforge.bindings.architectures import architecture
from trtforge.bindings.errors import ContractError
from trtforge.graph_api import Dim, Network
from trtforge.graph_api import functional as F
from trtforge.harness.compare import compare, tolerance_of
from trtforge.harness.emulate.emulator import run
from trtforge.kernels import Case, registry
from trtforge.kernels.compile import compile_kernel
from trtforge.kernels.dims import evaluate
from trtforge.kernels.op import Choice, Op

BFLOAT16 = ml_dtypes.bfloat16
SM90A = architecture("sm_90a")
BITS = (8, 4)


def op_of(bits: int) -> Op:
    return registry.get(f"int{bits}_weight_gemm")


def quantized(weights: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes and scales, as the quantize family makes them."""
    name, attributes = ("quantize_token", {"to": "int8"}) if bits == 8 else ("pack_int4", {})
    made = registry.get(name).run_reference({"x": weights}, attributes)
    return made["y"], made["scale"]


def nibble(byte: int, high: int) -> int:
    value = byte >> 4 if high else byte & 15
    return value - 16 if value > 7 else value


# ---- references ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits, error", [(8, 1.5e-2), (4, 0.15)])
def test_a_quantized_layer_stays_near_the_float_one(bits: int, error: float) -> None:
    rng = np.random.default_rng(1)
    x = rng.standard_normal((3, 5, 256)).astype(np.float16)
    weights = rng.standard_normal((40, 256), dtype=np.float32)
    y = op_of(bits)(x, *quantized(weights, bits), device="cpu")
    exact = x.astype(np.float64) @ weights.T
    assert y.shape == (3, 5, 40) and y.dtype == np.float16
    found = np.linalg.norm(y.astype(np.float64) - exact) / np.linalg.norm(exact)
    assert 1e-3 < found < error  # quantization must show, and no more than it should


def test_the_four_bit_reference_is_the_definition() -> None:
    rng = np.random.default_rng(2)
    x = rng.standard_normal((2, 256)).astype(np.float16)
    packed = rng.integers(0, 256, (3, 128)).astype(np.uint8)
    scale = rng.uniform(0.1, 1, (3, 2)).astype(np.float32)
    bias = rng.standard_normal(3).astype(np.float16)
    found = op_of(4).run_reference({"x": x, "w": packed, "scale": scale, "bias": bias}, {"activation": "relu"})["y"]
    for m in range(2):
        for n in range(3):
            total = float(bias[n])
            for k in range(256):
                total += float(x[m, k]) * nibble(int(packed[n, k // 2]), k % 2) * float(scale[n, k // 128])
            assert found[m, n] == pytest.approx(max(total, 0.0), rel=2e-3, abs=2e-2)


def test_zero_points_are_taken_from_the_codes() -> None:
    rng = np.random.default_rng(5)
    x = rng.standard_normal((3, 256)).astype(np.float16)
    packed = rng.integers(0, 256, (5, 128)).astype(np.uint8)
    scale = rng.uniform(0.1, 1, (5, 2)).astype(np.float32)
    zero = rng.integers(-8, 8, (5, 2)).astype(np.int8)
    op = op_of(4)
    with_zero = op.run_reference({"x": x, "w": packed, "scale": scale, "zero": zero}, {})["y"].astype(np.float64)
    without = op.run_reference({"x": x, "w": packed, "scale": scale}, {})["y"].astype(np.float64)
    sums = x.astype(np.float64).reshape(3, 2, 128).sum(axis=2)
    np.testing.assert_allclose(with_zero, without - sums @ (zero * scale).T, rtol=1e-2, atol=0.2)


def test_groups_are_whole() -> None:
    case = Case({"M": 1, "N": 8, "K": 192})
    with pytest.raises(ContractError, match="K must be a multiple of 128"):
        op_of(4).bind_case(case, op_of(4).dtype_combinations(case)[0])


# ---- the CUDA kernel -------------------------------------------------------------------------------------------


KERNELS = ("cuda", "stream", "wgmma")
#: Of every kernel and of each structure of its own: what a tactic has, and the weight rows of a block without limits.
FORMS = {
    "cuda": ("cuda", {"COLUMN_TILES": 2}, 1),
    "stream": ("stream", {"COLUMN_TILES": 2, "SPLITS": 2}, 1),
    "wgmma": ("wgmma", {"COLUMNS": 32, "SPLITS": 2}, 1),
    "whole slots": ("stream_wide", {"COLUMN_TILES": 2, "SPLITS": 2}, 16),
    "whole slots, 8 rows": ("stream_wide", {"COLUMN_TILES": 1, "PARTS": 4}, 16),
    "two in flight": ("wgmma", {"COLUMNS": 64, "SPLITS": 2, "IN_FLIGHT": 2}, 256),
}


def tactic_of(kernel: Any, wanted: dict[str, int]) -> int:
    return next(i for i, t in enumerate(kernel.tactics) if all(t.get(k) == v for k, v in wanted.items()))


def emulated(
    bits: int, kernel: str, inputs: dict[str, np.ndarray], tactic: int, dims: dict[str, int], dtype: str
) -> Any:
    optional = tuple(name for name in ("bias", "zero") if name in inputs)
    op, case = op_of(bits), Case(dims, {}, optional, dtypes={"x": dtype})
    binding = op.bind_case(case, op.dtype_combinations(case)[0])
    gpu = replace(architecture("sm_90a"), sms=2)  # so few that a cluster has several tiles of weight rows
    return run(op.kernel_named(kernel), binding, tactic, inputs, gpu)["y"]


@needs_compiler
@pytest.mark.parametrize("bits, zeros", [(8, False), (4, False), (4, True)])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype, kind", [("float16", np.float16), ("bfloat16", BFLOAT16)])
def test_every_code_is_widened_exactly_and_meets_its_x(
    bits: int, zeros: bool, form: str, dtype: str, kind: Any
) -> None:
    """x is a row of the identity: y is one weight, all of its bits, for every position along K."""
    kernel, wanted, block = FORMS[form]
    count, depth = max(20, 2 * block) // block * block, 512
    found = op_of(bits).kernel_named(kernel)
    if zeros and (kernel == "cuda" or (wanted.get("COLUMN_TILES") == 2 and block > 1)):
        pytest.skip("takes codes without zero points")
    code = np.arange(depth) - 128 if bits == 8 else np.arange(depth) % 16 - 8
    codes = np.stack([np.roll(code, 7 * n) for n in range(count)])
    if bits == 8:
        codes = (codes + 128) % 256 - 128
        stored, scale = codes.astype(np.int8), np.ones(count, np.float32)
    else:
        nibbles = codes.astype(np.uint8) & 15
        stored = nibbles[:, 0::2] | nibbles[:, 1::2] << 4
        scale = np.ones((count, depth // 128), np.float32)
    rows = np.array([0, 1, 2, 3, 5, 8, 63, 64, 127, 128, 129, 250, 255, 256, 300, 511])
    x = np.zeros((len(rows), depth), kind)
    x[np.arange(len(rows)), rows] = 1
    inputs = {"x": x, "w": stored, "scale": scale}
    expected = codes[:, rows].T
    if zeros:
        inputs["zero"] = (np.arange(count * (depth // 128)).reshape(count, -1) % 16 - 8).astype(np.int8)
        expected = expected - inputs["zero"][:, rows // 128].T
    tactic = tactic_of(found, wanted)
    y = emulated(bits, kernel, inputs, tactic, {"M": len(rows), "N": count, "K": depth}, dtype)
    np.testing.assert_array_equal(y.astype(np.float32), expected)


@needs_compiler
@pytest.mark.parametrize("seed", range(6))
def test_random_shapes_and_tactics_against_the_reference(seed: int) -> None:
    rng = np.random.default_rng(seed)
    bits, kernel = BITS[seed % 2], KERNELS[seed // 2]
    op = op_of(bits)
    step = 16 if bits == 8 else 128
    dims = {
        "M": int(rng.integers(1, 80)),
        "N": int(rng.integers(1, 200)),
        "K": step * int(rng.integers(1, 1 + 1024 // step)),
    }
    x = rng.standard_normal((dims["M"], dims["K"])).astype(np.float16)
    stored, scale = quantized(rng.standard_normal((dims["N"], dims["K"]), dtype=np.float32), bits)
    inputs = {"x": x, "w": stored, "scale": scale}
    if bits == 4 and kernel != "cuda":
        inputs["zero"] = rng.integers(-8, 8, scale.shape).astype(np.int8)
    tactic = int(rng.integers(sum(not t.get("IN_FLIGHT") for t in op.kernel_named(kernel).tactics)))
    expected = op.run_reference(inputs, {})["y"]
    found = emulated(bits, kernel, inputs, tactic, dims, "float16")
    held = compare(found, expected, tolerance_of(op, "float16"))
    assert held.passed, f"{dims} {kernel} tactic {tactic}: {held.reason}"


@needs_compiler
@pytest.mark.parametrize("seed", range(8))
def test_random_whole_shapes_against_the_reference(seed: int) -> None:
    """Of kernels without limits in their loops: several tiles for a cluster, warps without a slot, unequal parts."""
    rng = np.random.default_rng(40 + seed)
    bits, kernel = BITS[seed % 2], ("stream_wide", "wgmma")[seed // 4]
    op, found = op_of(bits), op_of(bits).kernel_named(kernel)
    tactics = [i for i, t in enumerate(found.tactics) if kernel == "stream_wide" or t.get("IN_FLIGHT")]
    tactic = tactics[int(rng.integers(len(tactics)))]
    step, block = (1024 // bits * 2, 16) if kernel == "stream_wide" else (1024 // bits, 256)
    dims = {
        "M": int(rng.integers(1, 20 if kernel == "stream_wide" else 80)),
        "N": block * int(rng.integers(1, 9 if kernel == "stream_wide" else 3)),
        "K": step * int(rng.integers(1, 9)),
    }
    x = rng.standard_normal((dims["M"], dims["K"])).astype(np.float16)
    stored, scale = quantized(rng.standard_normal((dims["N"], dims["K"]), dtype=np.float32), bits)
    inputs = {"x": x, "w": stored, "scale": scale, "bias": rng.standard_normal(dims["N"]).astype(np.float16)}
    expected = op.run_reference(inputs, {})["y"]
    held = compare(emulated(bits, kernel, inputs, tactic, dims, "float16"), expected, tolerance_of(op, "float16"))
    assert held.passed, f"{dims} {kernel} tactic {tactic}: {held.reason}"


@pytest.mark.parametrize("bits", BITS)
def test_no_tactic_without_limits_spills_or_waits_product_by_product(bits: int) -> None:
    op = op_of(bits)
    case = Case({"M": 64, "N": 8192, "K": 8192}, {"activation": "gelu_erf"}, ("bias",), dtypes={"x": "bfloat16"})
    binding = op.bind_case(case, op.dtype_combinations(case)[0])
    for name, wanted in (("stream_wide", {}), ("wgmma", {"IN_FLIGHT": 2})):
        kernel = op.kernel_named(name)
        for index, tactic in enumerate(kernel.tactics):
            if any(tactic.get(k) != v for k, v in wanted.items()) or kernel.refusal(binding, index, SM90A):
                continue
            resources = compile_kernel(kernel, binding, index, SM90A).resources
            assert resources.spill_stores == resources.spill_loads == 0, kernel.tactic_label(index)
            assert not resources.warnings, kernel.tactic_label(index)


def test_kernels_without_limits_refuse_what_is_not_whole() -> None:
    op = op_of(4)

    def refusals(n: int, k: int, kernel: str, wanted: dict[str, int], optional: tuple[str, ...] = ()) -> str:
        case = Case({"M": 4, "N": n, "K": k}, {}, optional)
        found = op.kernel_named(kernel)
        return found.refusal(op.bind_case(case, op.dtype_combinations(case)[0]), tactic_of(found, wanted), SM90A) or ""

    wide = {"COLUMN_TILES": 1, "PARTS": 4}
    assert refusals(64, 1024, "stream_wide", wide) == ""
    assert "N must be a multiple of 16" in refusals(72, 1024, "stream_wide", wide)
    assert "whole slots" in refusals(64, 1152, "stream_wide", wide)
    assert "K must be smaller" in refusals(64, 16384, "stream_wide", wide)
    assert "zero points" in refusals(64, 1024, "stream_wide", {"COLUMN_TILES": 1, "PARTS": 2}, ("zero",))
    assert "N must be a multiple of 256" in refusals(128, 1024, "wgmma", {"IN_FLIGHT": 2})


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("rows", [1, 4, 8, 9, 16])
def test_weights_of_a_large_layer_are_read_in_one_wave(bits: int, rows: int) -> None:
    """28672 x 8192, the largest benchmark: the sums of all tiles of a cluster fit beside its ring."""
    op = op_of(bits)
    case = Case({"M": rows, "N": 28672, "K": 8192}, dtypes={"x": "bfloat16"})
    binding = op.bind_case(case, op.dtype_combinations(case)[0])
    device = architecture("sm_90a")
    chosen = [op.choose(binding, device)]
    wide = op.kernel_named("stream_wide")
    chosen += [Choice(wide, i) for i in range(len(wide.tactics)) if wide.refusal(binding, i, device) is None]
    assert len(chosen) > 1
    for choice in chosen:
        splits = choice.kernel.tactics[choice.tactic]["SPLITS"]
        columns = 8 * choice.kernel.tactics[choice.tactic]["COLUMN_TILES"]
        x, y = (evaluate(size, {}) for size in choice.kernel.launch(binding, choice.tactic, device).grid)
        assert x == device.sms // splits * splits, choice.kernel.tactic_label(choice.tactic)
        assert y == -(-rows // columns)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("kernel", KERNELS)
def test_the_largest_tiles_fit_the_registers(bits: int, kernel: str) -> None:
    op = op_of(bits)
    case = Case({"M": 64, "N": 8192, "K": 8192}, {}, ("zero",) if bits == 4 and kernel != "cuda" else ())
    binding = op.bind_case(case, op.dtype_combinations(case)[0])
    target = architecture("sm_80" if kernel == "cuda" else "sm_90a")
    found = op.kernel_named(kernel)
    resources = compile_kernel(found, binding, len(found.tactics) - 1, target).resources
    assert resources.spill_stores == resources.spill_loads == 0
    assert not resources.warnings


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_the_device_compiler_keeps_what_widening_takes_away(kernel: str, dtype: str) -> None:
    """NVRTC runs member initializers of a[2][2] for a[0] only; g++, which compiles the emulation, for all."""
    case = Case({"M": 16, "N": 256, "K": 4096}, {}, dtypes={"x": dtype})
    op = op_of(4)
    binding = op.bind_case(case, op.dtype_combinations(case)[0])
    ptx = compile_kernel(op.kernel_named(kernel), binding, 0, architecture("sm_90a")).ptx
    text = ptx if isinstance(ptx, str) else ptx.decode()
    constants = dict(re.findall(r"mov\.[bu]32\s+(%r\d+), (-?\d+);", text))
    addends = re.findall(r"fma\.rn\.b?f16x2 %r\d+, %r\d+, %r\d+, (%r\d+);", text)
    assert bool(addends) == (kernel != "stream"), "the stream multiplies with biased codes"
    assert "0" not in {constants.get(register) for register in addends}


# ---- what is chosen --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(
    "rows, tiles, kernel, columns",
    [(1, 1, "stream", 8), (8, 1, "stream", 8), (9, 2, "stream", 16), (17, 4, "wgmma", 32), (64, 8, "wgmma", 64)],
)
def test_as_many_rows_at_a_time_as_there_are(bits: int, rows: int, tiles: int, kernel: str, columns: int) -> None:
    op = op_of(bits)
    case = Case({"M": rows, "N": 8192, "K": 8192})
    binding = op.bind_case(case, op.dtype_combinations(case)[0])
    chosen = op.choose(binding, architecture("sm_80"))
    assert (chosen.kernel.name, chosen.kernel.tactics[chosen.tactic]["COLUMN_TILES"]) == ("cuda", tiles)
    chosen = op.choose(binding, architecture("sm_90a"))
    tactic = chosen.kernel.tactics[chosen.tactic]
    assert (chosen.kernel.name, tactic.get("COLUMNS", 8 * tactic.get("COLUMN_TILES", 0))) == (kernel, columns)


@pytest.mark.parametrize("rows, splits", [(8192, 3), (14336, 2)])
def test_clusters_that_do_not_fit_together_are_not_chosen(rows: int, splits: int) -> None:
    """32 clusters of four are two waves on 132 multiprocessors: GPCs are not all a multiple of four."""
    op = op_of(4)
    case = Case({"M": 64, "N": rows, "K": 8192})
    chosen = op.choose(op.bind_case(case, op.dtype_combinations(case)[0]), architecture("sm_90a"))
    assert chosen.kernel.tactics[chosen.tactic]["SPLITS"] == splits


@pytest.mark.parametrize("bits", BITS)
def test_x_that_does_not_fit_the_registers_is_cut_up(bits: int) -> None:
    op = op_of(bits)
    for depth, splits in ((8192, 1), (16384, 2), (28672, 4)):
        case = Case({"M": 4, "N": 256, "K": depth})
        chosen = op.choose(op.bind_case(case, op.dtype_combinations(case)[0]), architecture("sm_90a"))
        assert chosen.kernel.name == "stream" and chosen.kernel.tactics[chosen.tactic]["SPLITS"] == splits
    case = Case({"M": 4, "N": 256, "K": 65536})
    assert op.choose(op.bind_case(case, op.dtype_combinations(case)[0]), architecture("sm_90a")).kernel.name == "cuda"


def test_odd_depths_of_int8_weights_get_triton() -> None:
    op = op_of(8)
    case = Case({"M": 3, "N": 33, "K": 65})
    binding = op.bind_case(case, op.dtype_combinations(case)[0])
    assert op.choose(binding, architecture("sm_90a")).kernel.name == "triton_elementwise"


# ---- networks --------------------------------------------------------------------------------------------------


def layer(bits: int, bias: bool, activate: bool) -> Network:
    rng = np.random.default_rng(3)
    stored, scale = quantized(rng.standard_normal((48, 256), dtype=np.float32), bits)
    with Network("layer") as network:
        x = network.input("x", "float16", (Dim("tokens", min=1, max=64), 256))
        codes = network.constant(stored)
        if bits == 8:
            weights = F.dequantize(codes, scale, granularity="token", to="float16")
        else:
            weights = F.dequantize_int4(codes, scale, to="float16")
        y = F.matmul(x, weights, transpose_b=True)
        y = F.add(y, rng.standard_normal(48).astype(np.float16)) if bias else y
        network.mark_output(F.silu(y) if activate else y, "y")
    return network


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("activate", [False, True])
def test_dequantization_and_product_become_one_op(bits: int, bias: bool, activate: bool) -> None:
    x = np.random.default_rng(4).standard_normal((5, 256)).astype(np.float16)
    plain, network = layer(bits, bias, activate), layer(bits, bias, activate)
    report = network.fuse()
    assert [r.op for r in report.replacements] == [f"trtforge::int{bits}_weight_gemm"]
    assert report.nodes_after < report.nodes_before
    expected, found = (n.build(backend="reference")(x=x)["y"] for n in (plain, network))
    np.testing.assert_allclose(
        found.astype(np.float64), expected, rtol=2e-2, atol=0.1
    )  # weights were rounded to 16 bits
