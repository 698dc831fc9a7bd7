"""Weight-only products: against independent formulations, in every corner of their tiles, and in fused networks."""

from __future__ import annotations

import shutil
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from trtforge.bindings.architectures import architecture
from trtforge.bindings.errors import ContractError
from trtforge.graph_api import Dim, Network
from trtforge.graph_api import functional as F
from trtforge.harness.compare import compare, tolerance_of
from trtforge.harness.emulate.emulator import run
from trtforge.kernels import Case, registry
from trtforge.kernels.compile import compile_kernel
from trtforge.kernels.op import Op

BFLOAT16 = ml_dtypes.bfloat16
BITS = (8, 4)

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="the emulation needs g++")


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


def test_groups_are_whole() -> None:
    case = Case({"M": 1, "N": 8, "K": 192})
    with pytest.raises(ContractError, match="K must be a multiple of 128"):
        op_of(4).bind_case(case, op_of(4).dtype_combinations(case)[0])


# ---- the CUDA kernel -------------------------------------------------------------------------------------------


def emulated(bits: int, inputs: dict[str, np.ndarray], tactic: int, dims: dict[str, int], dtype: str) -> Any:
    op, case = op_of(bits), Case(dims, dtypes={"x": dtype})
    binding = op.bind_case(case, op.dtype_combinations(case)[0])
    return run(op.kernel_named("cuda"), binding, tactic, inputs, architecture("sm_90a"))["y"]


@needs_compiler
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("dtype, kind", [("float16", np.float16), ("bfloat16", BFLOAT16)])
def test_every_code_is_widened_exactly_and_meets_its_x(bits: int, dtype: str, kind: Any) -> None:
    """x is a row of the identity: y is one weight, all of its bits, for every position along K."""
    depth = 512
    code = np.arange(depth) - 128 if bits == 8 else np.arange(depth) % 16 - 8
    codes = np.stack([np.roll(code, 7 * n) for n in range(20)])
    if bits == 8:
        codes = (codes + 128) % 256 - 128
        stored, scale = codes.astype(np.int8), np.ones(20, np.float32)
    else:
        nibbles = codes.astype(np.uint8) & 15
        stored = nibbles[:, 0::2] | nibbles[:, 1::2] << 4
        scale = np.ones((20, depth // 128), np.float32)
    rows = np.array([0, 1, 2, 3, 5, 8, 63, 64, 127, 128, 129, 250, 255, 256, 300, 511])
    x = np.zeros((len(rows), depth), kind)
    x[np.arange(len(rows)), rows] = 1
    table = op_of(bits).kernel_named("cuda").tactics
    tactic = next(i for i, t in enumerate(table) if t["COLUMN_TILES"] == 2 and t["SPLITS"] == 2)
    y = emulated(bits, {"x": x, "w": stored, "scale": scale}, tactic, {"M": len(rows), "N": 20, "K": depth}, dtype)
    np.testing.assert_array_equal(y.astype(np.float32), codes[:, rows].T)


@needs_compiler
@pytest.mark.parametrize("seed", range(4))
def test_random_shapes_and_tactics_against_the_reference(seed: int) -> None:
    rng = np.random.default_rng(seed)
    bits = BITS[seed % 2]
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
    tactic = int(rng.integers(len(op.kernel_named("cuda").tactics)))
    expected = op.run_reference(inputs, {})["y"]
    found = emulated(bits, inputs, tactic, dims, "float16")
    held = compare(found, expected, tolerance_of(op, "float16"))
    assert held.passed, f"{dims} tactic {tactic}: {held.reason}"


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
def test_the_largest_tiles_fit_the_registers(bits: int, arch: str) -> None:
    op = op_of(bits)
    case = next(c for c in op.cases if "bench" in c.tags)
    binding = op.bind_case(case, op.dtype_combinations(case)[0])
    kernel = op.kernel_named("cuda")
    for index, tactic in enumerate(kernel.tactics):
        if tactic["COLUMN_TILES"] == 8 and tactic["SPLITS"] == (4 if arch == "sm_90a" else 1):
            resources = compile_kernel(kernel, binding, index, architecture(arch)).resources
            assert resources.spill_stores == resources.spill_loads == 0


# ---- what is chosen --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("rows, tiles", [(1, 1), (8, 1), (9, 2), (17, 4), (64, 8), (200, 8)])
def test_as_many_rows_at_a_time_as_there_are(bits: int, rows: int, tiles: int) -> None:
    op = op_of(bits)
    case = Case({"M": rows, "N": 8192, "K": 8192})
    binding = op.bind_case(case, op.dtype_combinations(case)[0])
    for arch in ("sm_80", "sm_90a"):
        chosen = op.choose(binding, architecture(arch))
        tactic = chosen.kernel.tactics[chosen.tactic]
        assert chosen.kernel.name == "cuda" and tactic["COLUMN_TILES"] == tiles
        assert (tactic["SPLITS"] > 1) == (arch == "sm_90a")


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
