"""The mma.sync form of the scaled product: emulated against the reference, with faults, and where it is chosen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from compiler import needs_compiler
from emulated import TARGET, agrees, changed, matching

from trtforge.bindings.architectures import architecture
from trtforge.bindings.errors import ContractError
from trtforge.harness.emulate.emulator import run
from trtforge.harness.emulate.reports import KernelFault
from trtforge.kernels import Case, registry
from trtforge.kernels.compile import compile_kernel
from trtforge.kernels.scaled_gemm.op import sizes

OP = registry.get("scaled_gemm")
FP8 = "float8_e4m3fn"


# ---- it computes what the reference does -------------------------------------------------------------------------


@needs_compiler
@pytest.mark.parametrize("dtype", ["int8", FP8])
@pytest.mark.parametrize("tactic", range(len(OP.kernel_named("mma").tactics)))
def test_every_tile_agrees_with_the_reference(dtype: str, tactic: int) -> None:
    """Stages that are full, partly full and empty, rows and columns outside, and sums of warps that share the depth."""
    case = Case(sizes(35, 75, 464), {"activation": "silu", "to": "float16"}, ("bias",))
    agrees(OP, OP.kernel_named("mma"), case, {"x": dtype}, tactic)


@needs_compiler
@pytest.mark.parametrize("dtype", ["int8", FP8])
@pytest.mark.parametrize("k", [1, 15, 130, 257])
def test_any_depth_is_served_element_by_element(dtype: str, k: int) -> None:
    agrees(OP, OP.kernel_named("mma_elementwise"), Case(sizes(19, 33, k, columns=False)), {"x": dtype}, tactic=1)


@needs_compiler
@pytest.mark.parametrize("kernel", ["mma", "mma_elementwise"])
def test_int8_sums_are_exact_over_the_whole_range_of_codes(kernel: str) -> None:
    """Half of the products cancel the others, all of them -128 · -128 or -128 · 127, and what is left over is small."""
    m, n, k = 17, 24, 2064
    rng = np.random.default_rng(3)
    w = np.repeat(rng.choice([-128, 127], (n, k // 2)), 2, axis=1)
    x = np.full((m, k), -128)
    x[:, 1::2] = 127  # -128 w + 127 w = -w for each pair
    x[:, :16] = rng.integers(-128, 128, (m, 16))
    inputs = {"x": x.astype(np.int8), "w": w.astype(np.int8)}
    inputs |= {"x_scale": np.ones(1, np.float32), "w_scale": np.full(1, 2.0**-12, np.float32)}
    case = Case(sizes(m, n, k, rows=False, columns=False), {"to": "float16"})
    binding = OP.bind_case(case, matching(OP, case, {"x": "int8"}))
    y = run(OP.kernel_named(kernel), binding, 0, inputs, TARGET)["y"]
    np.testing.assert_array_equal(y, ((x @ w.T) * 2.0**-12).astype(np.float16))


@needs_compiler
@pytest.mark.parametrize("sanitize", ["address", "undefined", "thread"])
def test_it_is_clean_under_the_sanitizers(sanitize: str) -> None:
    case = Case(sizes(5, 23, 272), optional=("bias",))
    agrees(OP, OP.kernel_named("mma"), case, {"x": "int8"}, tactic=4, sanitize=sanitize)


@needs_compiler
@pytest.mark.parametrize(("old", "new", "sanitize"), [
    ("min(first_row + 8 * i, M - 1)", "(first_row + 8 * i)", "address"),
    ("+ j / 2 * MMA_N + j % 2, N - 1)", "+ j / 2 * MMA_N + j % 2, N)", "address"),
    ("+ j / 2 * MMA_N + j % 2, N - 1)", "+ j / 2 * MMA_N, N - 1)", None),
    ("finish.x_scale_step = x_scale_step", "finish.x_scale_step = 0", None),
])  # fmt: skip
def test_a_fault_in_the_epilogue_is_found(tmp_path: Path, old: str, new: str, sanitize: str | None) -> None:
    mutant = changed(OP.kernel_named("mma"), tmp_path, "scaled_gemm_mma.cu", old, new)
    with pytest.raises((KernelFault, AssertionError)):
        agrees(OP, mutant, Case(sizes(5, 23, 32)), {"x": "int8"}, tactic=1, sanitize=sanitize)


# ---- what it is compiled to, and where it is chosen --------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "dtype"),
    [("sm_80", "int8"), ("sm_89", FP8), ("sm_90a", FP8), ("sm_100a", FP8), ("sm_120a", "int8")],
)
def test_the_largest_tile_does_not_spill(target: str, dtype: str) -> None:
    case = Case(sizes(256, 4096, 4096), {"activation": "gelu_erf"}, ("bias",))
    binding = OP.bind_case(case, matching(OP, case, {"x": dtype}))
    resources = compile_kernel(OP.kernel_named("mma"), binding, 0, architecture(target)).resources
    assert resources.spill_stores == resources.spill_loads == 0 and not resources.warnings


@pytest.mark.parametrize(("target", "dtype", "n", "k", "kernel"), [
    ("sm_80", "int8", 4096, 4096, "mma"),
    ("sm_80", "int8", 4096, 4095, "mma_elementwise"),
    ("sm_86", "int8", 777, 4096, "mma"),
    ("sm_89", FP8, 4096, 4096, "mma"),
    ("sm_89", "int8", 4096, 4096, "mma"),
    ("sm_90a", FP8, 4096, 4096, "sm90"),
    ("sm_90a", FP8, 777, 4096, "mma"),
    ("sm_100a", FP8, 4096, 4096, "triton"),
    ("sm_120a", "int8", 777, 4096, "mma"),
])  # fmt: skip
def test_it_is_chosen_where_no_later_instruction_serves(target: str, dtype: str, n: int, k: int, kernel: str) -> None:
    case = Case(sizes(300, n, k))
    binding = OP.bind_case(case, matching(OP, case, {"x": dtype}))
    assert OP.choose(binding, architecture(target)).kernel.name == kernel


def test_few_rows_get_flat_tiles_and_many_get_square_ones() -> None:
    def tile(m: int) -> tuple[int, int]:
        case = Case(sizes(m, 4096, 4096))
        choice = OP.choose(OP.bind_case(case, matching(OP, case, {"x": "int8"})), architecture("sm_80"))
        tactic = choice.kernel.tactics[choice.tactic]
        return tactic["BLOCK_M"], tactic["BLOCK_N"]

    assert tile(16)[0] == 16 and tile(4096) == (128, 128)


def test_fp8_before_ada_is_refused_by_each_of_its_kernels() -> None:
    case = Case(sizes(64, 64, 64))
    binding = OP.bind_case(case, matching(OP, case, {"x": FP8}))
    for kernel in ("mma", "mma_elementwise"):
        with pytest.raises(ContractError, match=r"multiplies fp8, which mma\.sync does from sm_89 on"):
            OP.choose(binding, architecture("sm_80"), kernel=kernel)
