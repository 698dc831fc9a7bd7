"""The block-scaled product: its reference against dequantized matrices, its limits, and what is chosen where."""

from __future__ import annotations

import re
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from compiler import needs_compiler

from trtforge.bindings.architectures import architecture
from trtforge.bindings.disassemble import sass
from trtforge.bindings.errors import ContractError
from trtforge.harness.compare import compare, tolerance_of
from trtforge.harness.emulate.emulator import run
from trtforge.kernels import Case, registry
from trtforge.kernels.compile import compile_kernel

E4M3 = ml_dtypes.float8_e4m3fn
OP = registry.get("block_scaled_gemm")


def quantized(rng: np.random.Generator, m: int, n: int, k: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Activations and weights of very different blocks, quantized by the family, and their exact product."""
    x = (rng.standard_normal((m, k)) * 10.0 ** rng.integers(-2, 3, (m, 1))).astype(np.float32)
    x[:, k // 2 :] *= 30.0
    w = rng.standard_normal((n, k)).astype(np.float32)
    w[n // 2 :] *= 0.01
    rows = registry.get("quantize_block").run_reference({"x": x}, {"to": "float8_e4m3fn"})
    tiles = registry.get("quantize_tile").run_reference({"x": w}, {"to": "float8_e4m3fn"})
    inputs = {"x": rows["y"], "w": tiles["y"], "x_scale": rows["scale"], "w_scale": tiles["scale"]}
    return inputs, x.astype(np.float64) @ w.astype(np.float64).T


def binding(m: int, n: int, k: int):
    case = Case({"M": m, "N": n, "K": k})
    return OP.bind_case(case, OP.dtype_combinations(case)[0])


def test_what_quantize_block_and_quantize_tile_make_is_multiplied_nearly_exactly() -> None:
    inputs, exact = quantized(np.random.default_rng(8), 24, 264, 400)
    y = OP(*inputs.values(), device="cpu").astype(np.float64)
    by_row = np.linalg.norm(y - exact, axis=1) / np.linalg.norm(exact, axis=1)
    assert y.shape == (24, 264)
    assert by_row.max() < 6e-2  # fp8 codes have four bits; no row drowns in another's scale


def test_the_reference_is_the_product_of_what_dequantization_gives() -> None:
    inputs, _ = quantized(np.random.default_rng(9), 6, 200, 300)
    rows = registry.get("dequantize_block").run_reference(
        {"y": inputs["x"], "scale": inputs["x_scale"]}, {"to": "float32"}
    )["x"]
    tiles = registry.get("dequantize_tile").run_reference(
        {"y": inputs["w"], "scale": inputs["w_scale"]}, {"to": "float32"}
    )["x"]
    bias = np.random.default_rng(10).standard_normal(200).astype(ml_dtypes.bfloat16)
    found = OP.run_reference({**inputs, "bias": bias}, {"activation": "relu"})["y"]
    expected = np.maximum(rows.astype(np.float64) @ tiles.astype(np.float64).T + bias.astype(np.float64), 0.0)
    np.testing.assert_allclose(found.astype(np.float64), expected, rtol=4e-3, atol=1e-30)


def test_scales_of_another_shape_are_refused() -> None:
    x, w = np.zeros((4, 256), E4M3), np.zeros((16, 256), E4M3)
    with pytest.raises(ContractError, match="x_scale"):
        OP(x, w, np.ones((4, 1), np.float32), np.ones((1, 2), np.float32), device="cpu")


@pytest.mark.parametrize(
    "m, n, k, kernel",
    [(4096, 4096, 4096, "sm90"), (7, 4096, 4096, "sm90"), (64, 4096, 4104, "triton_elementwise"),
     (64, 777, 4096, "triton_elementwise")],
)  # fmt: skip
def test_shapes_that_tma_cannot_address_get_another_kernel(m: int, n: int, k: int, kernel: str) -> None:
    assert OP.choose(binding(m, n, k), architecture("sm_90a")).kernel.name == kernel


def test_fp8_needs_ada_or_later_and_says_so() -> None:
    assert OP.choose(binding(64, 64, 64), architecture("sm_89")).kernel.language == "triton"
    with pytest.raises(ContractError, match="reads fp8, which Triton has from sm_89 on"):
        OP.choose(binding(64, 64, 64), architecture("sm_80"))


WIDE = [i for i, t in enumerate(OP.kernel_named("sm90").tactics) if t["BLOCK_N"] == 256]
QUARTERS = [i for i in WIDE if OP.kernel_named("sm90").tactics[i].get("QUARTERS")]


@pytest.mark.parametrize("index", WIDE)
def test_a_tile_and_the_partial_sums_of_half_of_it_fit_the_registers(index: int) -> None:
    """128 sums and 64 partial ones a thread: nothing is spilled, and no product waits for another."""
    kernel = OP.kernel_named("sm90")
    resources = compile_kernel(kernel, binding(4096, 4096, 4096), index, architecture("sm_90a")).resources
    assert resources.spill_stores == resources.spill_loads == 0
    assert not resources.warnings


@pytest.mark.parametrize("index", QUARTERS)
def test_quarters_are_promoted_while_the_next_one_is_multiplied(index: int) -> None:
    """In machine code: 32 multiply-adds between a wait for all quarters but one and the start of the next."""
    binary = compile_kernel(OP.kernel_named("sm90"), binding(4096, 4096, 4096), index, architecture("sm_90a"))
    names = ["QGMMA.64x64x32", "WARPGROUP.DEPBAR.LE gsb0, 0x1", "WARPGROUP.DEPBAR.LE gsb0, 0x0", "FFMA"]
    order = [next((i for i, name in enumerate(names) if name in line), None) for line in sass(binary).splitlines()]
    steps = "".join("mw0f"[step] for step in order if step is not None)
    assert re.search(r"m{8}(wf{28,}m{4}){2}wf{28,}0", steps), steps


@needs_compiler
@pytest.mark.parametrize("index", QUARTERS)
def test_quarters_multiply_like_the_reference(index: int) -> None:
    """More blocks than the ring has stages, the last of them not whole, and tiles beyond the last row and column."""
    case = Case({"M": 150, "N": 264, "K": 784}, {"activation": "relu"}, ("bias",))
    dtypes = OP.dtype_combinations(case)[0]
    inputs = OP.sample_inputs(case, dtypes, seed=3)
    gpu = replace(architecture("sm_90a"), sms=2)
    found = run(OP.kernel_named("sm90"), OP.bind_case(case, dtypes), index, inputs, gpu)["y"]
    held = compare(found, OP.run_reference(inputs, {"activation": "relu"})["y"], tolerance_of(OP, "bfloat16"))
    assert held.passed, held.reason
