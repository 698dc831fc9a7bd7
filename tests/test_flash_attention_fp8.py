"""8-bit flash attention: reference, contract, which kernel, machine code, and the kernels run on a CPU."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from compiler import needs_compiler

from trtforge.bindings.architectures import architecture
from trtforge.bindings.disassemble import sass
from trtforge.bindings.errors import ContractError
from trtforge.harness import pool
from trtforge.harness.check import plan_interpreter
from trtforge.harness.compare import compare, tolerance_of
from trtforge.harness.emulate.emulator import run
from trtforge.harness.inspection import inspect_kernel
from trtforge.harness.oracle import parts_of
from trtforge.kernels import Case
from trtforge.kernels.compile import compile_kernel
from trtforge.kernels.flash_attention_fp8.op import LONGEST_SUM, SM90_TACTICS
from trtforge.kernels.flash_attention_fp8.op import flash_attention_fp8 as op

TARGET = architecture("sm_90a")
DTYPES = {**dict.fromkeys("qkv", "float8_e4m3fn"), **{f"{name}_scale": "float32" for name in "qkv"}}
DIMS = {"B": 1, "Hq": 2, "Hkv": 1, "Sq": 64, "Sk": 64, "D": 128, "SB": 1}


def _binding(dims: dict[str, int] | None = None, **attributes: Any) -> Any:
    return op.bind_case(Case({**DIMS, **(dims or {})}, attributes), DTYPES)


def by_definition(inputs: dict[str, np.ndarray], causal: bool, window: int, scale: float) -> np.ndarray:
    """One query of one head at a time in float64, straight from the op's documentation."""
    batch, heads, queries, _ = inputs["q"].shape
    kv_heads, keys = inputs["k"].shape[1:3]
    o = np.zeros(inputs["q"].shape)

    def values(name: str, b: int, h: int) -> np.ndarray:
        scales = inputs[f"{name}_scale"]
        return inputs[name][b, h].astype(np.float64) * float(scales[b if len(scales) > 1 else 0, h])

    for b in range(batch):
        for h in range(heads):
            g = h // (heads // kv_heads)
            q, k, v = values("q", b, h), values("k", b, g), values("v", b, g)
            for i in range(queries):
                diagonal = keys - queries + i
                seen = [
                    j for j in range(keys) if (not causal or j <= diagonal) and (window < 0 or j > diagonal - window)
                ]
                if seen:
                    scores = [scale * float(q[i] @ k[j]) for j in seen]
                    p = [math.exp(s - max(scores)) for s in scores]
                    o[b, h, i] = sum(x * v[j] for x, j in zip(p, seen)) / sum(p)
    return o


# ---- reference, contract, choice ------------------------------------------------------------------------------------


@pytest.mark.parametrize("scales", [1, 2])
@pytest.mark.parametrize(("causal", "window"), [(False, -1), (True, -1), (True, 3)])
@pytest.mark.parametrize(("queries", "keys"), [(5, 9), (9, 5)])
def test_reference_is_the_definition(scales: int, causal: bool, window: int, queries: int, keys: int) -> None:
    case = Case({"B": 2, "Hq": 4, "Hkv": 2, "Sq": queries, "Sk": keys, "D": 16, "SB": scales})
    inputs = op.sample_inputs(case, DTYPES, 7)
    found = op.run_reference(inputs, {"to": "float16", "causal": causal, "window": window, "scale": 0.2})["o"]
    assert found.dtype == np.float16
    expected = by_definition(inputs, causal, window, 0.2)
    np.testing.assert_allclose(found.astype(np.float64), expected, atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize(
    ("dims", "attributes", "words"),
    [
        ({"Hq": 3, "Hkv": 2}, {}, "multiple of Hkv"),
        ({"D": 272}, {}, "at most 256"),
        ({"B": 3, "SB": 2}, {}, "for all sequences"),
        ({}, {"window": 0}, "window must be"),
        ({}, {"to": "float32"}, "accepted: 'bfloat16', 'float16'"),
    ],
)
def test_refusals_name_the_rule(dims: dict[str, int], attributes: dict[str, Any], words: str) -> None:
    with pytest.raises(ContractError, match=words):
        _binding(dims, **attributes)


def test_which_kernel() -> None:
    def chosen(arch: str = "sm_90a", causal: bool = False, **dims: int) -> Any:
        return op.choose(_binding(dims, causal=causal), architecture(arch))

    def tactic(**options: Any) -> Any:
        choice = chosen(**options)
        assert choice.kernel.name == "sm90"
        return choice.kernel.tactics[choice.tactic]

    assert tactic(Sk=512)["PERSISTENT"] == 1
    assert tactic(Sk=LONGEST_SUM + 1)["SUM_BY_BLOCK"] == 1
    assert tactic(D=48)["TILE_D"] == 64 and tactic(D=144)["TILE_D"] == 256
    assert chosen(D=144, Sk=LONGEST_SUM + 1).kernel.name == "triton"
    assert chosen(D=36).kernel.name == "triton" and chosen("sm_89").kernel.name == "triton"


def test_sm90_tactics_fit_and_cover_every_head_dimension() -> None:
    kernel = op.kernel_named("sm90")
    for width in range(16, 257, 16):
        binding = _binding({"D": width})
        served = [i for i in range(len(SM90_TACTICS)) if kernel.refusal(binding, i, TARGET) is None]
        assert served, width
        assert all(kernel.launch(binding, i, TARGET).shared <= TARGET.smem_per_block for i in served)


def test_a_part_is_a_piece_of_the_whole() -> None:
    for scales in (1, 2):
        case = Case({"B": 2, "Hq": 6, "Hkv": 3, "Sq": 90, "Sk": 90, "D": 16, "SB": scales}, {"causal": True})
        binding = op.bind_case(case, DTYPES)
        inputs = op.sample_inputs(case, DTYPES, 1)
        whole = op.run_reference(inputs, binding.attributes)["o"]
        for part in parts_of(op, binding):
            cut = {name: x[part.inputs[name]] if name in part.inputs else x for name, x in inputs.items()}
            found = op.run_reference(cut, binding.attributes)["o"]
            np.testing.assert_allclose(
                found.astype(np.float32), whole[part.outputs["o"]].astype(np.float32), rtol=1e-2, atol=1e-3
            )


# ---- machine code ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("index", range(len(SM90_TACTICS)))
def test_sm90_machine_code(index: int, causal: bool) -> None:
    """8-bit tensor-core products, V transposed through registers, and nothing in local memory."""
    kernel = op.kernel_named("sm90")
    case = Case({**DIMS, "D": SM90_TACTICS[index]["TILE_D"]}, {"causal": causal})
    code = inspect_kernel(kernel, index, TARGET, case, DTYPES)
    assert all(code.instructions[name] for name in ("QGMMA", "UTMALDG", "LDSM", "STSM"))
    assert not code.spills and not code.stack and not code.warnings


@pytest.mark.parametrize(("index", "blocks"), [(0, 2), (1, 3)])
def test_exponentials_run_beside_the_second_product(index: int, blocks: int) -> None:
    """Between the wait for S and the wait for P V: with and without a mask, and at a change of tiles."""
    text = sass(compile_kernel(op.kernel_named("sm90"), _binding({"Sk": 512}, causal=True), index, TARGET))
    waits = re.findall(r"DEPBAR\.LE gsb0, 0x1(.*?)DEPBAR\.LE gsb0, 0x0(.*?)WARPGROUP\.ARRIVE", text, flags=re.DOTALL)
    assert len(waits) == blocks
    for beside, after in waits:
        assert beside.count("MUFU.EX2") >= SM90_TACTICS[index]["BLOCK_N"] // 2
        assert "MUFU.EX2" not in after and "QGMMA" not in beside


# ---- run on the CPU -------------------------------------------------------------------------------------------------


def _emulate(case: Case, index: int, sms: int, inputs: dict[str, np.ndarray]) -> np.ndarray:
    binding = op.bind_case(case, DTYPES)
    return run(op.kernel_named("sm90"), binding, index, inputs, replace(TARGET, sms=sms))["o"]


def _passes(found: np.ndarray, case: Case, inputs: dict[str, np.ndarray]) -> None:
    expected = op.run_reference(inputs, op.bind_case(case, DTYPES).attributes)["o"]
    verdict = compare(found, expected, tolerance_of(op, "bfloat16"))
    assert verdict.passed, verdict


@needs_compiler
@pytest.mark.parametrize(
    ("index", "dims", "attributes"),
    [
        (1, {"Hq": 1, "Sq": 130, "Sk": 500}, {"causal": True}),
        (1, {"B": 2, "SB": 2, "Hq": 3, "Sq": 260, "Sk": 300}, {"causal": True}),
        (1, {"Hq": 2, "Hkv": 2, "Sq": 300, "Sk": 140, "D": 80}, {"causal": True, "window": 50}),
        (0, {"Sk": 201}, {"window": 60}),
        (0, {"Hq": 1, "Sq": 100, "Sk": 250, "D": 112}, {"causal": True}),
        (2, {"Hq": 1, "Sq": 150, "Sk": 300, "D": 48}, {}),
        (3, {"Hq": 1, "Sk": 200, "D": 256}, {}),
        (3, {"Hq": 1, "Sq": 100, "Sk": 130, "D": 192}, {"causal": True}),
    ],
)
def test_every_tactic(index: int, dims: dict[str, int], attributes: dict[str, Any]) -> None:
    """Several key blocks, tiles that see none, and persistent blocks with several tiles each."""
    case = Case({**DIMS, **dims}, attributes)
    inputs = op.sample_inputs(case, DTYPES, 3)
    _passes(_emulate(case, index, 2, inputs), case, inputs)


@needs_compiler
def test_each_value_finds_its_key_and_its_column() -> None:
    """Queries that attend to one key each bring back that key's row of V: nothing is moved by the transposition."""
    width = keys = 128
    case = Case({**DIMS, "Hq": 1, "Sq": keys, "Sk": keys}, {"scale": 1.0})
    rng = np.random.default_rng(5)
    order = rng.permutation(keys)
    one_hot = 16.0 * np.eye(keys, width)
    v = rng.integers(-8, 9, (keys, width))
    inputs: dict[str, np.ndarray] = {
        name: x[None, None].astype(ml_dtypes.float8_e4m3fn)
        for name, x in (("q", one_hot[order]), ("k", one_hot), ("v", v))
    }
    inputs |= {f"{name}_scale": np.ones((1, 1), np.float32) for name in "qkv"}
    np.testing.assert_array_equal(_emulate(case, 1, 2, inputs)[0, 0].astype(np.float64), v[order])


@needs_compiler
@pytest.mark.parametrize("index", [0, 1])
def test_heads_of_zeros_give_means(index: int) -> None:
    """The smallest scales that quantization gives: their product is below float32, hidden keys stay hidden."""
    case = Case({**DIMS, "Sq": 70, "Sk": 70}, {"causal": True})
    inputs = op.sample_inputs(case, DTYPES, 3)
    for name in "qk":
        inputs[name][:] = 0
        inputs[f"{name}_scale"][:] = 2.0**-126
    _passes(_emulate(case, index, 2, inputs), case, inputs)


def test_triton_kernel_in_the_interpreter() -> None:
    planned = plan_interpreter(op, [op.kernel_named("triton")], (0,))
    jobs = [p.job for p in planned if p.job and p.job.tactic == 1]
    rows = pool.run_jobs("interpret", jobs, (), 1)
    assert len(rows) >= 8
    assert not [(r.case, r.reason) for r in rows if r.status != "passed"]


# ---- on a GPU -------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("sum_by_block", [0, 1])
def test_many_keys(sum_by_block: int) -> None:
    """Errors of sums over as many keys as the tensor cores are trusted with, and over more by block."""
    keys = 65536 if sum_by_block else LONGEST_SUM
    case = Case({**DIMS, "Hq": 1, "Sq": 128, "Sk": keys})
    inputs = op.sample_inputs(case, DTYPES, 11)
    inputs["v"] = np.abs(inputs["v"].astype(np.float32)).astype(ml_dtypes.float8_e4m3fn)  # sums that only grow
    tactic = next(i for i, t in enumerate(SM90_TACTICS) if t["SUM_BY_BLOCK"] == sum_by_block)
    found = op(*inputs.values(), kernel="sm90", tactic=tactic, device="cuda")
    _passes(found, case, inputs)
