"""Products over experts: the reference, offsets of every kind in every kernel, geometry, choice, machine code."""

from __future__ import annotations

import math
import os
import pickle
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from compiler import needs_compiler
from emulated import TARGET
from hypothesis import given, settings
from hypothesis import strategies as st

from trtforge.bindings.architectures import INSPECTED, architecture
from trtforge.bindings.errors import CompileError, ContractError
from trtforge.harness.compare import compare, tolerance_of
from trtforge.harness.emulate.emulator import run
from trtforge.harness.inspection import inspect
from trtforge.harness.oracle import parts_of
from trtforge.kernels import Case, registry
from trtforge.kernels.compile import compile_kernel
from trtforge.kernels.contract import Names
from trtforge.kernels.grouped_gemm.geometry import expert_ends, rows_of_experts, tiles_at_most
from trtforge.kernels.grouped_gemm.op import SM90_TACTICS, grouped_gemm, scaled_grouped_gemm

#: Ends of four experts' rows, of 150: what each case is named for.
OFFSETS = {
    "tiles cut": [37, 70, 141, 150],
    "multiples of the tile": [64, 128, 128, 150],
    "one expert has all": [0, 150, 150, 150],
    "last has all": [0, 0, 0, 150],
    "rows of none": [10, 20, 66, 70],
    "nobody has any": [0, 0, 0, 0],
    "descending, outside": [90, -7, 30, 4000],
}


def bind(dims: dict[str, int], dtype: str = "bfloat16", biased: bool = False, **attributes: Any) -> Any:
    case = Case({"M": 150, "K": 40, "E": 4, "N": 72, **dims}, attributes, ("bias",) if biased else ())
    return grouped_gemm.bind_case(case, {"x": dtype, "w": dtype, "offsets": "int32", "bias": dtype})


def problem(offsets: list[int], n: int = 72, k: int = 40, rows: int = 150) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(len(offsets) + n)
    experts = len(offsets)
    return {
        "x": rng.standard_normal((rows, k)).astype(np.float16),
        "w": (rng.standard_normal((experts, n, k)) / math.sqrt(k)).astype(np.float16),
        "offsets": np.array(offsets, np.int32),
        "bias": rng.standard_normal((experts, n)).astype(np.float16),
    }


def holds(inputs: dict[str, np.ndarray], found: np.ndarray, **attributes: Any) -> None:
    verdict = compare(found, grouped_gemm.run_reference(inputs, attributes)["y"], tolerance_of(grouped_gemm, "float16"))
    assert verdict.passed, verdict
    last = int(np.clip(inputs["offsets"].max(), 0, len(found)))
    assert not found[last:].any(), "rows of no expert"


# ---- reference -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("offsets", OFFSETS.values(), ids=OFFSETS)
def test_the_reference_is_the_definition(offsets: list[int]) -> None:
    inputs = problem(offsets, n=3, k=5)
    found = grouped_gemm.run_reference(inputs, {"activation": "silu"})["y"]
    end = 0
    owner = [-1] * 150
    for expert, offset in enumerate(offsets):
        for row in range(end, min(offset, 150)):
            owner[row] = expert
        end = max(end, min(offset, 150))
    x, w, bias = (inputs[name].astype(np.float64) for name in ("x", "w", "bias"))
    for row in range(150):
        for n in range(3):
            expected = 0.0
            if owner[row] >= 0:
                expected = math.fsum([*(x[row] * w[owner[row], n]), bias[owner[row], n]])
                expected /= 1.0 + math.exp(-expected)
            assert float(found[row, n]) == pytest.approx(expected, rel=1e-3, abs=1e-5)


def test_one_expert_is_the_fused_product() -> None:
    from trtforge.kernels.fused_gemm.op import fused_gemm

    inputs = problem([150])
    expected = fused_gemm.run_reference(
        {"x": inputs["x"], "w": inputs["w"][0], "bias": inputs["bias"][0]}, {"activation": "gelu_tanh"}
    )
    np.testing.assert_array_equal(grouped_gemm.run_reference(inputs, {"activation": "gelu_tanh"})["y"], expected["y"])


def test_a_part_is_a_piece_of_the_whole() -> None:
    inputs = problem(OFFSETS["tiles cut"])
    binding = bind({}, "float16", biased=True)
    whole = grouped_gemm.run_reference(inputs, binding.attributes)["y"]
    for part in parts_of(grouped_gemm, binding):
        cut = {name: x[part.inputs[name]] if name in part.inputs else x for name, x in inputs.items()}
        found = grouped_gemm.run_reference(cut, binding.attributes)["y"]
        assert compare(found, whole[part.outputs["y"]], tolerance_of(grouped_gemm, "float16")).passed


# ---- samples and geometry --------------------------------------------------------------------------------------------


def test_equal_shares_where_rows_are_a_multiple_of_experts_and_uneven_ones_elsewhere() -> None:
    def ends(seed: int, rows: int, experts: int) -> np.ndarray:
        return expert_ends(np.random.default_rng(seed), Names("dimension", {"M": rows, "E": experts}))

    assert ends(0, 4096, 16).tolist() == list(range(256, 4097, 256))
    uneven = np.diff(ends(1, 4100, 16), prepend=0)
    assert uneven.sum() == 4100 and uneven.min() == 0 and uneven.max() > 2 * 4100 / 16
    assert ends(2, 99, 40)[-1] == 95, "M % 5 rows of nobody"


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(-5, 300), min_size=1, max_size=12), st.integers(1, 250), st.sampled_from([16, 32, 64, 128]))
def test_every_row_has_one_owner_and_the_grid_enough_tiles(offsets: list[int], rows: int, block: int) -> None:
    parts = rows_of_experts(np.array(offsets, np.int32), rows)
    assert parts[0].start == 0 and all(a.stop == b.start for a, b in pairwise(parts))
    groups = [*parts, slice(parts[-1].stop, rows)]
    tiles = sum(-(-(one.stop - one.start) // block) for one in groups)
    at_most = tiles_at_most(Names("dimension", {"M": rows, "E": len(offsets), "N": 100}), block, 32)
    assert tiles * 4 <= at_most <= (rows // block + len(offsets) + 1) * 4


# ---- contract and choice ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        ({"x": (2, 8), "w": (3, 4, 9), "offsets": (3,)}, "axis 2"),
        ({"x": (2, 8), "w": (3, 4, 8), "offsets": (4,)}, "'offsets'"),
        ({"x": (2, 8), "w": (3, 4, 8), "offsets": (3,), "bias": (4,)}, "rank 2"),
        ({"x": (2, 8), "w": (1 << 16, 1 << 15, 8), "offsets": (1 << 16,)}, "below 2\\^31"),
    ],
)
def test_refusals_name_what_is_wrong(shapes: dict[str, tuple[int, ...]], words: str) -> None:
    dtypes = {name: "int32" if name == "offsets" else "float16" for name in shapes}
    with pytest.raises(ContractError, match=words):
        grouped_gemm.bind(shapes, dtypes)


@pytest.mark.parametrize(
    ("dims", "arch", "kernel", "rows"),
    [
        ({"M": 4096, "E": 16, "N": 4096, "K": 4096}, "sm_90a", "sm90", 128),
        ({"M": 4096, "E": 64, "N": 2048, "K": 4096}, "sm_90a", "sm90", 64),
        ({"M": 64, "E": 64, "N": 2048, "K": 4096}, "sm_90a", "sm90", 64),
        ({"M": 4096, "E": 16, "N": 4096, "K": 4096}, "sm_80", "mma", 128),
        ({"M": 64, "E": 64, "N": 2048, "K": 4096}, "sm_120a", "mma", 16),
        ({"M": 4096, "E": 16, "N": 4097, "K": 4096}, "sm_90a", "mma", 128),
        ({"M": 4096, "E": 16, "N": 4096, "K": 4095}, "sm_90a", "mma_elementwise", 64),
    ],
)
def test_heuristic(dims: dict[str, int], arch: str, kernel: str, rows: int) -> None:
    choice = grouped_gemm.choose(bind(dims), architecture(arch), tuned=False)
    assert choice.kernel.name == kernel
    assert choice.kernel.tactics[choice.tactic]["BLOCK_M"] == rows


def test_every_case_has_a_kernel_everywhere_and_every_tactic_fits() -> None:
    for case in grouped_gemm.cases:
        for dtypes in grouped_gemm.dtype_combinations(case):
            binding = grouped_gemm.bind_case(case, dtypes)
            for target in map(architecture, INSPECTED):
                grouped_gemm.choose(binding, target)
                for kernel in grouped_gemm.kernels:
                    for tactic in range(len(kernel.tactics)):
                        if kernel.refusal(binding, tactic, target) is None:
                            assert int(kernel.launch(binding, tactic, target).shared) <= target.smem_per_block


# ---- the kernels, on the CPU -----------------------------------------------------------------------------------------


@needs_compiler
@pytest.mark.parametrize("offsets", OFFSETS.values(), ids=OFFSETS)
@pytest.mark.parametrize(("kernel", "tactic"), [("sm90", 0), ("sm90", 3), ("mma", 1), ("mma_elementwise", 0)])
def test_offsets_of_every_kind_emulated(kernel: str, tactic: int, offsets: list[int]) -> None:
    inputs = problem(offsets)
    binding = bind({}, "float16", biased=True, activation="relu")
    found = run(grouped_gemm.kernel_named(kernel), binding, tactic, inputs, TARGET)["y"]
    holds(inputs, found, activation="relu")


@needs_compiler
@pytest.mark.parametrize("tactic", range(len(SM90_TACTICS)))
def test_several_tiles_a_block_and_no_expert_touches_another(tactic: int) -> None:
    """Rows of other experts are NaN: none may reach a result, and every tile that an end cuts must keep its rows."""
    inputs = problem([130, 131, 260, 300], n=264, k=72, rows=301)
    clean = grouped_gemm.run_reference(inputs, {})["y"]
    inputs["x"][131:260] = np.nan
    binding = bind({"M": 301, "N": 264, "K": 72}, "float16", biased=True)
    found = run(grouped_gemm.kernel_named("sm90"), binding, tactic, inputs, TARGET)["y"]
    mine = np.r_[0:131, 260:301]
    assert compare(found[mine], clean[mine], tolerance_of(grouped_gemm, "float16")).passed
    assert np.isnan(found[131:260].astype(np.float32)).all()


@needs_compiler
def test_nothing_outside_is_touched() -> None:
    inputs = problem([1 << 30, -5, 149, 2], n=24, k=16)
    binding = bind({"N": 24, "K": 16}, "float16", biased=True)
    for kernel, tactic in (("sm90", 4), ("mma", 3)):
        found = run(grouped_gemm.kernel_named(kernel), binding, tactic, inputs, TARGET, sanitize="address")["y"]
        holds(inputs, found)


@needs_compiler
def test_the_form_that_an_engine_keeps() -> None:
    inputs = problem(OFFSETS["rows of none"])
    binding = bind({}, "float16", biased=True)
    holds(inputs, run(grouped_gemm.kernel_named("sm90"), binding, 2, inputs, TARGET, embedded=True)["y"])


def test_stores_of_single_warps_do_not_compile() -> None:
    """They would write over the rows of the next expert."""
    kernel = grouped_gemm.kernel_named("sm90")
    single = replace(kernel, tactics=({**kernel.tactics[0], "WARP_STORES": 1},))
    with pytest.raises(CompileError, match="do not stop where an expert's rows end"):
        compile_kernel(single, bind({}), 0, TARGET)


_INTERPRET = """
import pickle, sys
from trtforge.bindings.architectures import architecture
from trtforge.harness.interpreter import run
from trtforge.kernels import Case, registry
from trtforge.kernels.grouped_gemm.op import grouped_gemm as op
problems, found = pickle.load(open(sys.argv[1], "rb")), []
for kernel, tactic, inputs in problems:
    binding = op.bind({n: a.shape for n, a in inputs.items()},
                      {n: str(a.dtype) for n, a in inputs.items()}, {"activation": "relu"})
    found.append(run(op.kernel_named(kernel), binding, tactic, inputs, architecture("sm_80"))["y"])
pickle.dump(found, open(sys.argv[1], "wb"))
"""


def test_offsets_of_every_kind_in_triton(tmp_path: Path) -> None:
    kernels = (("triton", 1), ("triton", 2), ("triton_elementwise", 0))
    problems = [(kernel, tactic, problem(o)) for kernel, tactic in kernels for o in OFFSETS.values()]
    passed = tmp_path / "problems"
    passed.write_bytes(pickle.dumps(problems))
    subprocess.run(
        [sys.executable, "-c", _INTERPRET, str(passed)], check=True, env={**os.environ, "TRITON_INTERPRET": "1"}
    )
    for (_, _, inputs), found in zip(problems, pickle.loads(passed.read_bytes())):
        holds(inputs, found, activation="relu")


# ---- fp8 -------------------------------------------------------------------------------------------------------------


def scaled_problem(offsets: list[int]) -> dict[str, np.ndarray]:
    """What quantize_token makes of :func:`problem`, and its biases."""
    floats = problem(offsets, n=72, k=48)
    quantize = registry.get("quantize_token").run_reference
    x = quantize({"x": floats["x"]}, {"to": "float8_e4m3fn"})
    w = quantize({"x": floats["w"]}, {"to": "float8_e4m3fn"})
    scales = {"x_scale": x["scale"].reshape(-1), "w_scale": w["scale"].reshape(w["y"].shape[:2])}
    return {"x": x["y"], "w": w["y"], "offsets": floats["offsets"], **scales, "bias": floats["bias"]}


def test_a_quantized_mixture_of_experts_stays_near_the_float_one() -> None:
    offsets = OFFSETS["tiles cut"]
    exact = grouped_gemm.run_reference(problem(offsets, n=72, k=48), {})["y"].astype(np.float64)
    found = scaled_grouped_gemm.run_reference(scaled_problem(offsets), {"to": "float16"})["y"].astype(np.float64)
    assert 1e-3 < np.linalg.norm(found - exact) / np.linalg.norm(exact) < 6e-2


@needs_compiler
@pytest.mark.parametrize("offsets", OFFSETS.values(), ids=OFFSETS)
@pytest.mark.parametrize("tactic", [0, 3])
def test_offsets_of_every_kind_emulated_in_fp8(tactic: int, offsets: list[int]) -> None:
    inputs, attributes = scaled_problem(offsets), {"to": "float16", "activation": "gelu_tanh"}
    binding = scaled_grouped_gemm.bind(
        {name: array.shape for name, array in inputs.items()},
        {name: str(array.dtype) for name, array in inputs.items()},
        attributes,
    )
    found = run(scaled_grouped_gemm.kernel_named("sm90"), binding, tactic, inputs, TARGET)["y"]
    right = scaled_grouped_gemm.run_reference(inputs, attributes)["y"]
    verdict = compare(found, right, tolerance_of(scaled_grouped_gemm, "float16"))
    assert verdict.passed, verdict


@pytest.mark.parametrize(("arch", "kernel"), [("sm_90a", "sm90"), ("sm_89", "triton"), ("sm_120a", "triton")])
def test_fp8_kernels_by_architecture(arch: str, kernel: str) -> None:
    case = scaled_grouped_gemm.cases[-1]
    binding = scaled_grouped_gemm.bind_case(case, scaled_grouped_gemm.dtype_combinations(case)[0])
    assert scaled_grouped_gemm.choose(binding, architecture(arch), tuned=False).kernel.name == kernel
    with pytest.raises(ContractError, match="reads fp8, which Triton has from sm_89 on"):
        scaled_grouped_gemm.choose(binding, architecture("sm_80"))


# ---- machine code ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("op", "tactic", "product"),
    [("grouped_gemm", t, "HGMMA") for t in range(len(SM90_TACTICS))] + [("scaled_grouped_gemm", 0, "QGMMA")],
)
def test_sm90_machine_code(op: str, tactic: int, product: str) -> None:
    """wgmma on tiles that the copy engine brings, four per stage without moves between; nothing in local memory."""
    (code,) = inspect(f"{op}/sm90", arch="sm_90a", tactic=tactic)
    mix = code.instructions
    assert mix[product] == 4 and mix["UTMALDG"] == 2 and mix["UTMASTG"] and mix["STSM"]
    assert not code.spills and not code.stack and not mix.get("LDL") and not mix.get("STL")
    assert not code.warnings, code.warnings
