"""The scaled product: its reference against an independent formulation, its limits, and what is chosen where."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest

from trtforge.bindings.architectures import architecture
from trtforge.bindings.errors import ContractError
from trtforge.kernels import Case, registry
from trtforge.kernels.binding import Binding
from trtforge.kernels.scaled_gemm.op import LONGEST_INT8_SUM

E4M3 = ml_dtypes.float8_e4m3fn


def quantized(rng: np.random.Generator, rows: int, columns: int, to: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A float matrix, and what quantize_token makes of it."""
    matrix = rng.standard_normal((rows, columns)).astype(np.float32)
    made = registry.get("quantize_token").run_reference({"x": matrix}, {"to": to})
    return matrix, made["y"], made["scale"]


@pytest.mark.parametrize("to, error", [("int8", 1.5e-2), ("float8_e4m3fn", 5e-2)])
def test_a_quantized_linear_layer_stays_near_the_float_one(to: str, error: float) -> None:
    rng = np.random.default_rng(4)
    x, x_codes, x_scale = quantized(rng, 48, 512, to)
    w, w_codes, w_scale = quantized(rng, 96, 512, to)
    y = registry.get("scaled_gemm")(x_codes, w_codes, x_scale, w_scale, to="float16", device="cpu")
    exact = x.astype(np.float64) @ w.astype(np.float64).T
    assert y.shape == (48, 96) and y.dtype == np.float16
    found = np.linalg.norm(y.astype(np.float64) - exact) / np.linalg.norm(exact)
    assert 1e-4 < found < error  # quantization must show, and no more than it should


def test_the_reference_is_dequantize_multiply_add_activate() -> None:
    rng = np.random.default_rng(5)
    x, w = rng.standard_normal((2, 3, 40)).astype(E4M3), rng.standard_normal((7, 40)).astype(E4M3)
    x_scale, w_scale = rng.uniform(0.1, 1, 6).astype(np.float32), rng.uniform(0.1, 1, 7).astype(np.float32)
    bias = rng.standard_normal(7).astype(np.float16)
    inputs = {"x": x, "w": w, "x_scale": x_scale, "w_scale": w_scale, "bias": bias}
    found = registry.get("scaled_gemm").run_reference(inputs, {"to": "float16", "activation": "silu"})["y"]
    left = x.reshape(6, 40).astype(np.float64) * x_scale[:, None]
    sums = left @ (w.astype(np.float64) * w_scale[:, None]).T + bias.astype(np.float64)
    expected = [[v / (1 + math.exp(-v)) for v in row] for row in sums]
    np.testing.assert_allclose(found.reshape(6, 7).astype(np.float64), expected, rtol=2e-3, atol=1e-3)


@pytest.mark.parametrize("sizes, message", [
    ({"SX": 3}, "x_scale has one element, or one per row of x"),
    ({"SW": 4}, "w_scale has one element, or one per row of w"),
])  # fmt: skip
def test_other_numbers_of_scales_are_refused(sizes: dict[str, int], message: str) -> None:
    op = registry.get("scaled_gemm")
    case = Case({"M": 8, "N": 16, "K": 32, "SX": 8, "SW": 16, **sizes})
    with pytest.raises(ContractError, match=message):
        op.bind_case(case, {"x": "int8", "w": "int8", "x_scale": "float32", "w_scale": "float32"})


def test_int8_sums_that_could_leave_int32_are_refused() -> None:
    def bound(dtype: str, depth: int) -> Binding:
        shapes = {"x": (2, depth), "w": (8, depth), "x_scale": (1,), "w_scale": (1,)}
        dtypes = {"x": dtype, "w": dtype, "x_scale": "float32", "w_scale": "float32"}
        return registry.get("scaled_gemm").bind(shapes, dtypes)

    assert 128 * 128 * LONGEST_INT8_SUM < 1 << 31 <= 128 * 128 * (LONGEST_INT8_SUM + 1)
    bound("int8", LONGEST_INT8_SUM)
    bound("float8_e4m3fn", LONGEST_INT8_SUM + 1)
    with pytest.raises(ContractError, match="K of int8 must be at most 131071"):
        bound("int8", LONGEST_INT8_SUM + 1)


@pytest.mark.parametrize("k, n, kernel", [(4096, 4096, "sm90"), (4104, 4096, "triton_elementwise"), (4096, 777, "mma")])
def test_shapes_that_tma_cannot_address_get_another_kernel(k: int, n: int, kernel: str) -> None:
    op = registry.get("scaled_gemm")
    case = Case({"M": 300, "N": n, "K": k, "SX": 300, "SW": n})
    binding = op.bind_case(case, op.dtype_combinations(case)[0])
    assert op.choose(binding, architecture("sm_90a")).kernel.name == kernel


@pytest.mark.parametrize("m, block", [(16, (64, 64)), (256, (64, 64)), (512, (128, 128)), (4096, (128, 256))])
def test_tiles_grow_with_the_product(m: int, block: tuple[int, int]) -> None:
    op = registry.get("scaled_gemm")
    case = Case({"M": m, "N": 4096, "K": 4096, "SX": m, "SW": 4096})
    binding = op.bind_case(case, op.dtype_combinations(case)[0])
    choice = op.choose(binding, architecture("sm_90a"), tuned=False)
    tactic = choice.kernel.tactics[choice.tactic]
    assert (choice.kernel.name, tactic["BLOCK_M"], tactic["BLOCK_N"], tactic["CLUSTER_M"]) == ("sm90", *block, 1)


def test_fp8_needs_ada_or_later_and_says_so() -> None:
    op = registry.get("scaled_gemm")
    case = Case({"M": 64, "N": 64, "K": 64, "SX": 1, "SW": 1})
    by_type = {dtypes["x"]: op.bind_case(case, dtypes) for dtypes in op.dtype_combinations(case)}
    assert op.choose(by_type["int8"], architecture("sm_80")).kernel.name == "mma"
    with pytest.raises(ContractError, match=r"multiplies fp8, which mma\.sync does from sm_89 on"):
        op.choose(by_type["float8_e4m3fn"], architecture("sm_80"))


def test_overlapping_and_shared_tiles_launch_as_many_threads_as_they_use() -> None:
    """Ping-pong: two consumers with a tile each; otherwise as many as share one."""
    op = registry.get("fused_gemm")
    case = next(c for c in op.cases if "bench" in c.tags)
    binding = op.bind_case(case, op.dtype_combinations(case)[0])
    kernel = op.kernel_named("sm90")
    for index, tactic in enumerate(kernel.tactics):
        launch = kernel.launch(binding, index, architecture("sm_90a"))
        consumers = 2 if tactic["PINGPONG"] else tactic["BLOCK_M"] // 64
        assert launch.block == 128 * (1 + consumers)
