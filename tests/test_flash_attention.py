"""Flash attention without a GPU: the reference, the contract, the choice of kernel, machine code, fusion patterns."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from compiler import needs_compiler

import trtforge.kernels
from trtforge.bindings.architectures import architecture
from trtforge.bindings.disassemble import sass
from trtforge.bindings.errors import ContractError
from trtforge.graph_api import Network
from trtforge.graph_api import functional as F
from trtforge.graph_api.fusion import fuse
from trtforge.harness import pool
from trtforge.harness.check import plan_interpreter
from trtforge.harness.compare import compare, tolerance_of
from trtforge.harness.emulate import emulator
from trtforge.harness.inspection import Inspection, inspect_kernel
from trtforge.kernels import Case, Op, registry
from trtforge.kernels.compile import compile_kernel
from trtforge.kernels.flash_attention.op import (
    attention_and_log_sum_exp,
    flash_attention,
    flash_attention_lse,
    visible_keys,
)
from trtforge.kernels.flash_attention.prefill import SM90_TACTICS


def by_definition(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    lengths: np.ndarray,
    causal: bool,
    window: int,
    soft_cap: float,
    scale: float,
) -> np.ndarray:
    """Attention one query at a time in float64, straight from the op's documentation."""
    batch, heads, queries, _ = q.shape
    o = np.zeros(q.shape)
    for b in range(batch):
        for h in range(heads):
            kv = h // (heads // k.shape[1])
            for i in range(queries):
                diagonal = int(lengths[b]) - queries + i
                seen = [
                    j
                    for j in range(int(lengths[b]))
                    if (not causal or j <= diagonal) and (window < 0 or j > diagonal - window)
                ]
                if not seen:
                    continue
                scores = [scale * float(np.dot(q[b, h, i], k[b, kv, j])) for j in seen]
                if soft_cap:
                    scores = [soft_cap * math.tanh(s / soft_cap) for s in scores]
                weights = [math.exp(s - max(scores)) for s in scores]
                o[b, h, i] = sum(w * v[b, kv, j] for w, j in zip(weights, seen)) / sum(weights)
    return o


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [-1, 1, 4])
@pytest.mark.parametrize("soft_cap", [0.0, 1.5])
@pytest.mark.parametrize(("queries", "keys"), [(5, 9), (9, 5), (1, 6), (6, 1)])
def test_reference_is_the_definition(causal: bool, window: int, soft_cap: float, queries: int, keys: int) -> None:
    rng = np.random.default_rng(queries * 100 + keys)
    q = rng.standard_normal((3, 4, queries, 6)).astype(np.float16)
    k, v = (rng.standard_normal((3, 2, keys, 6)).astype(np.float16) for _ in range(2))
    for lengths in (None, np.array([0, keys, min(3, keys)], np.int32)):
        inputs = {"q": q, "k": k, "v": v} | ({} if lengths is None else {"k_lengths": lengths})
        found = flash_attention.run_reference(
            inputs, {"causal": causal, "window": window, "soft_cap": soft_cap, "scale": 0.7}
        )["o"]
        all_keys = np.full(3, keys) if lengths is None else lengths
        wide = [x.astype(np.float64) for x in (q, k, v)]
        expected = by_definition(wide[0], wide[1], wide[2], all_keys, causal, window, soft_cap, 0.7)
        np.testing.assert_allclose(found.astype(np.float64), expected, atol=2e-3, rtol=2e-3)


def test_reference_ignores_what_lies_past_the_length() -> None:
    rng = np.random.default_rng(1)
    q, k, v = (rng.standard_normal((2, 1, 7, 4)).astype(np.float16) for _ in range(3))
    lengths = np.array([3, 0], np.int32)
    clean = flash_attention.run_reference({"q": q, "k": k, "v": v, "k_lengths": lengths})["o"]
    k[0, :, 3:], v[0, :, 3:], k[1], v[1] = np.nan, np.nan, np.nan, np.nan
    dirty = flash_attention.run_reference({"q": q, "k": k, "v": v, "k_lengths": lengths})["o"]
    np.testing.assert_array_equal(clean, dirty)
    assert not clean[1].any()


def test_log_sum_exp_merges_attention_over_parts_of_the_keys() -> None:
    rng = np.random.default_rng(4)
    q, k, v = (rng.standard_normal((2, 2, 9, 4)).astype(np.float16) for _ in range(3))
    lengths = np.array([9, 3], np.int32)
    options: dict[str, Any] = {"causal": False, "window": -1, "soft_cap": 2.0, "scale": 0.7}

    def part(keys: slice, valid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        o, lse = attention_and_log_sum_exp(q, k[:, :, keys], v[:, :, keys], valid, **options)
        return o, lse[..., None]

    whole, total = part(slice(0, 9), lengths)
    (o1, lse1), (o2, lse2) = part(slice(0, 4), np.minimum(lengths, 4)), part(slice(4, 9), np.maximum(lengths - 4, 0))
    assert np.isneginf(lse2[1]).all() and not o2[1].any()
    np.testing.assert_allclose(np.logaddexp(lse1, lse2), total, rtol=1e-5)
    np.testing.assert_allclose(o1 * np.exp(lse1 - total) + o2 * np.exp(lse2 - total), whole, rtol=1e-4, atol=1e-5)


def test_a_long_reference_is_computed_in_pieces_without_a_seam() -> None:
    rng = np.random.default_rng(2)
    q, k, v = (rng.standard_normal((1, 1, 1030, 2)).astype(np.float32) for _ in range(3))
    whole = flash_attention._reference(q, k, v, None, causal=True, window=-1, soft_cap=0.0, scale=1.0)
    tail = flash_attention._reference(q[:, :, 1000:], k, v, None, causal=True, window=-1, soft_cap=0.0, scale=1.0)
    np.testing.assert_allclose(whole[:, :, 1000:], tail, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [-1, 3])
def test_cost_counts_visible_pairs(causal: bool, window: int) -> None:
    case = Case({"B": 2, "Hq": 4, "Hkv": 2, "Sq": 6, "Sk": 10, "D": 8}, {"causal": causal, "window": window})
    binding = flash_attention.bind_case(case, {"q": "float16", "k": "float16", "v": "float16"})
    first, end = visible_keys(6, 10, 10, causal, window)
    pairs = sum(1 for i in range(6) for j in range(10) if first[i] <= j < end[i])
    assert flash_attention.cost_of(binding).flops == 4 * 2 * 4 * 8 * pairs
    if not causal and window < 0:
        assert pairs == 60


def _bind(dims: dict[str, int], dtype: str = "float16", **attributes: Any) -> Any:
    case = Case({"B": 1, "Hq": 4, "Hkv": 2, "Sq": 128, "Sk": 128, "D": 64} | dims, attributes)
    return flash_attention.bind_case(case, {"q": dtype, "k": dtype, "v": dtype})


@pytest.mark.parametrize(
    ("dims", "attributes", "words"),
    [
        ({"Hkv": 3}, {}, "multiple of Hkv"),
        ({"D": 257}, {}, "at most 256"),
        ({}, {"window": 0}, "window must be"),
        ({}, {"window": -2}, "at least -1"),
        ({}, {"scale": 0.0}, "scale must be positive"),
        ({}, {"soft_cap": -1.0}, "at least 0"),
        ({}, {"causal": 1}, "of type bool"),
    ],
)
def test_refusals_name_the_rule(dims: dict[str, int], attributes: dict[str, Any], words: str) -> None:
    with pytest.raises(ContractError, match=words):
        _bind(dims, **attributes)


def test_refusal_of_dtypes() -> None:
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys("qkv", (1, 1, 4, 8))
    with pytest.raises(ContractError, match="'q' is float32"):
        flash_attention.bind(shapes, dict.fromkeys("qkv", "float32"))
    with pytest.raises(ContractError, match="'k' is bfloat16"):
        flash_attention.bind(shapes, {"q": "float16", "k": "bfloat16", "v": "float16"})
    with pytest.raises(ContractError, match="k_lengths"):
        flash_attention.bind({**shapes, "k_lengths": (1,)}, dict.fromkeys("qkv", "float16") | {"k_lengths": "int64"})


@pytest.mark.parametrize(
    ("dims", "arch", "kernel"),
    [
        ({"D": 128, "Sq": 4096, "Sk": 4096}, "sm_90a", "sm90"),
        ({"D": 40}, "sm_90a", "sm90"),
        ({"D": 256}, "sm_90a", "sm90"),
        ({"D": 37}, "sm_90a", "mma"),
        ({"Sq": 1}, "sm_90a", "decode"),
        ({"Sq": 1, "D": 36}, "sm_90a", "mma"),
        ({"Sq": 4, "D": 128}, "sm_80", "decode"),
        ({"D": 128}, "sm_80", "mma"),
        ({"D": 256}, "sm_120a", "mma"),
        ({"D": 1, "Sq": 1, "Sk": 1}, "sm_89", "mma"),
    ],
)
def test_heuristic(dims: dict[str, int], arch: str, kernel: str) -> None:
    assert flash_attention.choose(_bind(dims), architecture(arch)).kernel.name == kernel


def test_every_case_has_a_kernel_everywhere() -> None:
    for case in flash_attention.cases:
        for dtypes in flash_attention.dtype_combinations(case):
            binding = flash_attention.bind_case(case, dtypes)
            for arch in ("sm_80", "sm_89", "sm_90a", "sm_100a", "sm_120a"):
                flash_attention.choose(binding, architecture(arch))


def test_triton_kernel_in_the_interpreter() -> None:
    """One tactic and float16; ``trtforge check`` runs them all."""
    planned = plan_interpreter(flash_attention, [flash_attention.kernel_named("triton")], (0,))
    jobs = [p.job for p in planned if p.job and p.job.tactic == 0 and p.job.dtypes["q"] == "float16"]
    rows = pool.run_jobs("interpret", jobs, (), 1)
    assert len(rows) >= 15
    assert not [(r.case, r.reason) for r in rows if r.status != "passed"]


def test_sm90_tactics_fit_and_cover_every_head_dimension() -> None:
    kernel, target = flash_attention.kernel_named("sm90"), architecture("sm_90a")
    for width in range(8, 257, 8):
        binding = _bind({"D": width})
        served = [i for i in range(len(kernel.tactics)) if kernel.refusal(binding, i, target) is None]
        assert served, width
        for index in served:
            assert kernel.launch(binding, index, target).shared <= target.smem_per_block
    assert kernel.refusal(_bind({"D": 36}), 0, target) is not None


def _code(kernel: str, index: int, arch: str, width: int) -> Inspection:
    dims = {"B": 2, "Hq": 4, "Hkv": 2, "Sq": 512, "Sk": 512, "D": width}
    case = Case(dims, {"causal": True, "window": 200}, optional=("k_lengths",))
    dtypes = dict.fromkeys("qkv", "bfloat16") | {"k_lengths": "int32"}
    return inspect_kernel(flash_attention.kernel_named(kernel), index, architecture(arch), case, dtypes)


@pytest.mark.parametrize("index", range(len(SM90_TACTICS)))
def test_sm90_machine_code(index: int) -> None:
    """Tensor cores by wgmma, tiles by the copy engine, and nothing in local memory."""
    code = _code("sm90", index, "sm_90a", SM90_TACTICS[index]["TILE_D"])
    mix = code.instructions
    persistent = SM90_TACTICS[index]["PERSISTENT"]
    assert mix["HGMMA"] and mix["UTMALDG"]
    assert mix["STG"] if persistent else mix["UTMASTG"] and mix["STSM"]
    assert not code.spills and not code.stack and not mix.get("LDL") and not mix.get("STL")
    assert not code.warnings, code.warnings


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("persistent", [0, 1])
def test_sm90_exponentials_run_beside_the_second_product(persistent: int, causal: bool) -> None:
    """Every exponential of a block lies between the wait for S and the wait for P V, at a change of tiles too."""
    kernel, target = flash_attention.kernel_named("sm90"), architecture("sm_90a")
    index = next(i for i, t in enumerate(SM90_TACTICS) if t["TILE_D"] == 128 and t["PERSISTENT"] == persistent)
    text = sass(compile_kernel(kernel, _bind({"D": 128}, causal=causal), index, target))
    waits = re.findall(r"DEPBAR\.LE gsb0, 0x1(.*?)DEPBAR\.LE gsb0, 0x0(.*?)WARPGROUP\.ARRIVE", text, flags=re.DOTALL)
    assert len(waits) == 1 + causal + persistent  # blocks with and without a mask; the first block of a further tile
    per_thread = SM90_TACTICS[index]["BLOCK_N"] // 2
    for beside, after in waits:
        assert beside.count("MUFU.EX2") >= per_thread and "MUFU.EX2" not in after and "HGMMA" not in beside


UNMEASURED = [i for i, t in enumerate(SM90_TACTICS) if len(t) > 6]  # with parameters beyond those of the first


@pytest.mark.parametrize("index", UNMEASURED)
def test_sm90_polynomials_and_lazy_rescaling_leave_the_schedule(index: int) -> None:
    """Of a block without a mask at most the factors of the rescaling come after the wait for P V."""
    tactic = SM90_TACTICS[index]
    kernel, target = flash_attention.kernel_named("sm90"), architecture("sm_90a")
    text = sass(compile_kernel(kernel, _bind({"D": tactic["TILE_D"]}, causal=True), index, target))
    waits = re.findall(r"DEPBAR\.LE gsb0, 0x1(.*?)DEPBAR\.LE gsb0, 0x0(.*?)WARPGROUP\.ARRIVE", text, flags=re.DOTALL)
    assert len(waits) == 3  # blocks with and without a mask; the first block of a further tile
    special = tactic["BLOCK_N"] // 2 * (16 - tactic.get("EXP_FMA", 0)) // 16
    counts = [beside.count("MUFU.EX2") for beside, _ in waits]
    assert min(counts) >= special and all(after.count("MUFU.EX2") <= 2 for _, after in waits)
    if tactic.get("EXP_FMA"):
        assert min(counts) <= special + 2 and max(counts) >= tactic["BLOCK_N"] // 2  # masked blocks have no polynomials


def _polynomial_constants() -> dict[str, np.float32]:
    source = (Path(trtforge.kernels.__file__).parent / "common" / "exp2.cuh").read_text()
    found = dict(re.findall(r"constexpr float (\w+) = ([\d.]+)f", source))
    return {name: np.float32(value) for name, value in found.items()}


def test_exp2_polynomial_is_near_enough_and_never_negative() -> None:
    """The float32 operations of exp2.cuh over every 1,009th argument, and where it saturates."""
    c = _polynomial_constants()
    steps, shift = c["STEPS"], c["SHIFT"]
    lift = c["ROUND"] - shift
    assert lift == np.float32(98304.0 - 0.875)

    def fma(a: np.ndarray, b: Any, addend: Any) -> np.ndarray:
        return (a.astype(np.float64) * np.float64(b) + np.float64(addend)).astype(np.float32)

    def exp2(t: np.ndarray) -> np.ndarray:
        x = np.clip(np.nan_to_num(fma(t, 1 / steps, shift), nan=0.0), 0.0, 1.0).astype(np.float32)
        r = x + lift
        g = x - (r - lift)
        p = fma(g, c["C3"] * steps**3, c["C2"] * steps**2)
        p = (g.astype(np.float64) * p + np.float64(c["C1"] * steps)).astype(np.float32)
        p = (g.astype(np.float64) * p + np.float64(c["C0"])).astype(np.float32)
        return (p.view(np.uint32) + (r.view(np.uint32) << np.uint32(23))).view(np.float32)

    bits = [np.array(v, np.float32).view(np.uint32) for v in (-1e-9, -112.0, 1e-9, 15.999)]
    t = np.concatenate([np.arange(bits[i], bits[i + 1], 1009, np.uint32).view(np.float32) for i in (0, 2)])
    assert len(t) > 400_000
    assert np.abs(exp2(t) / np.exp2(t.astype(np.float64)) - 1).max() < 2**-13.5
    outside = exp2(np.array([-np.inf, -1e30, -113.0, np.nan, 17.0, np.inf], np.float32))
    np.testing.assert_allclose(outside, [2.0**-112] * 4 + [2.0**16] * 2, rtol=2**-13.5)


@pytest.mark.parametrize("index", [i for i in UNMEASURED if SM90_TACTICS[i].get("HANDED_OUT")])
@pytest.mark.parametrize(("heads", "length"), [(1, 64), (16, 1200), (128, 2048), (33, 700), (132, 384)])
def test_sm90_tiles_handed_out_are_each_done_once(index: int, heads: int, length: int) -> None:
    kernel, target = flash_attention.kernel_named("sm90"), architecture("sm_90a")
    dims = {"Hq": heads, "Hkv": heads, "Sq": length, "Sk": length, "D": SM90_TACTICS[index]["TILE_D"]}
    launch = kernel.launch(_bind(dims, causal=True), index, target)
    section, query_blocks, walked, walkers = (int(x) for x in launch.scalars[5:9])
    tiles = query_blocks * heads
    done = [tile for cta in range(walkers) for tile in range(cta, walked, walkers)]
    done += [cta - walkers + walked for cta in range(walkers, launch.grid)]
    assert sorted(done) == list(range(tiles)) and 1 <= walkers <= target.sms

    inverses, last = [int(x) for x in launch.scalars[9:13]], int(launch.scalars[13])
    assert last == (heads - 1) // section
    divisors = (query_blocks, section * query_blocks, section, heads - last * section)
    for divisor, inverse in zip(divisors, inverses, strict=True):
        for n in range(tiles):  # as in tile_order.cuh
            assert n // divisor - ((2 * (n + 1) * inverse) >> 32) in (0, 1)


def _causal_order(query_blocks: int, heads: int, section: int) -> list[int]:
    """Key blocks of each tile in the persistent order of tile_order.cuh."""
    order: list[int] = []
    for first in range(0, heads, section):
        ascending = ((heads - 1) // section - first // section) % 2 == 1
        for nth in range(query_blocks):
            order += [nth + 1 if ascending else query_blocks - nth] * min(section, heads - first)
    return order


@pytest.mark.parametrize(("length", "batch"), [(2048, 1), (2048, 8), (4096, 4), (8192, 2), (16384, 1)])
def test_sm90_persistent_blocks_get_equal_shares(length: int, batch: int) -> None:
    """Causal tiles dealt out in turn: nobody gets more than 6.5 % above the mean of the key blocks."""
    kernel, target = flash_attention.kernel_named("sm90"), architecture("sm_90a")
    index = next(i for i, t in enumerate(SM90_TACTICS) if t["TILE_D"] == 128 and t["PERSISTENT"])
    binding = _bind({"B": batch, "Hq": 16, "Hkv": 16, "Sq": length, "Sk": length, "D": 128}, causal=True)
    launch = kernel.launch(binding, index, target)
    section, query_blocks, tiles, step = (int(x) for x in launch.scalars[5:])
    order = _causal_order(query_blocks, tiles // query_blocks, section)
    assert len(order) == tiles and step == launch.grid == target.sms
    shares = [sum(order[block::step]) for block in range(step)]
    assert max(shares) <= 1.065 * sum(order) / step


PERSISTENT_CASES = (
    ({"B": 2, "Hq": 2, "Hkv": 1, "Sq": 300, "Sk": 400, "D": 128}, {"causal": True}, (), 2),
    ({"B": 1, "Hq": 2, "Hkv": 2, "Sq": 700, "Sk": 200, "D": 64}, {"causal": True}, (), 2),
    ({"B": 1, "Hq": 2, "Hkv": 1, "Sq": 256, "Sk": 256, "D": 128}, {"causal": True}, (), 2),
    ({"B": 3, "Hq": 2, "Hkv": 1, "Sq": 150, "Sk": 300, "D": 72}, {"causal": True, "window": 90}, ("k_lengths",), 2),
    ({"B": 4, "Hq": 2, "Hkv": 1, "Sq": 70, "Sk": 300, "D": 104}, {"window": 60}, ("k_lengths",), 3),
)


@needs_compiler
@pytest.mark.parametrize("op", [flash_attention, flash_attention_lse], ids=lambda op: op.name)
@pytest.mark.parametrize(("dims", "attributes", "optional", "sms"), PERSISTENT_CASES)
def test_sm90_persistent_blocks_walk_over_many_tiles(
    op: Op, dims: dict[str, int], attributes: dict[str, Any], optional: tuple[str, ...], sms: int
) -> None:
    """On a CPU, with so few multiprocessors that every block has several tiles, some of which see no key."""
    kernel, target = op.kernel_named("sm90"), replace(architecture("sm_90a"), sms=sms)
    case = Case(dims, attributes, optional=optional)
    dtypes = op.dtype_combinations(case)[-1]
    binding = op.bind_case(case, dtypes)
    index = next(
        i for i, t in enumerate(SM90_TACTICS) if t["PERSISTENT"] and kernel.refusal(binding, i, target) is None
    )
    assert int(kernel.launch(binding, index, target).scalars[7]) >= 2 * sms
    _emulate(op, case, index, sms)


@needs_compiler
@pytest.mark.parametrize("index", [*UNMEASURED[:4:3], *UNMEASURED[4::3]])  # for each TILE_D with the least and all
def test_sm90_unmeasured_tactics_in_the_emulation(index: int) -> None:
    """Blocks with and without a mask, rows that see no key, tiles walked over and handed out, sums rescaled."""
    dims = {"B": 2, "Hq": 3, "Hkv": 1, "Sq": 300, "Sk": 400, "D": SM90_TACTICS[index]["TILE_D"]}
    _emulate(flash_attention, Case(dims, {"causal": True, "scale": 0.5}), index, 2)
    dims = {"B": 4, "Hq": 2, "Hkv": 1, "Sq": 70, "Sk": 300, "D": SM90_TACTICS[index]["TILE_D"] - 24}
    with_lse = flash_attention_lse.kernel_named("sm90").tactics
    if SM90_TACTICS[index] in with_lse:
        _emulate(flash_attention_lse, Case(dims, optional=("k_lengths",)), with_lse.index(SM90_TACTICS[index]), 3)
    else:
        _emulate(flash_attention, Case(dims, optional=("k_lengths",)), index, 3)


@needs_compiler
@pytest.mark.parametrize("width", [64, 128])
@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_sm90_maxima_by_bits_are_the_maxima(width: int, sign: float) -> None:
    """Scores all below or all above zero: the same bits as with maxima of floats."""
    kernel, target = flash_attention.kernel_named("sm90"), replace(architecture("sm_90a"), sms=3)
    tactics = {"TILE_D": width, "HANDED_OUT": 2}
    by_floats = flash_attention.tactic_index(kernel, tactics)
    by_bits = flash_attention.tactic_index(kernel, tactics | {"INTEGER_MAXIMUM": 1})
    assert "INTEGER_MAXIMUM" not in kernel.tactics[by_floats]
    case = Case({"B": 1, "Hq": 2, "Hkv": 2, "Sq": 200, "Sk": 400, "D": width}, {"scale": 0.5})
    dtypes = dict.fromkeys("qkv", "float16")
    inputs = flash_attention.sample_inputs(case, dtypes, 4)
    inputs |= {"q": np.abs(inputs["q"]), "k": sign * np.abs(inputs["k"])}
    binding = flash_attention.bind_case(case, dtypes)
    found = [emulator.run(kernel, binding, i, inputs, target)["o"] for i in (by_floats, by_bits)]
    np.testing.assert_array_equal(found[0].view(np.uint16), found[1].view(np.uint16))
    expected = flash_attention.run_reference(inputs, case.attributes)["o"]
    assert compare(found[1], expected, tolerance_of(flash_attention, "float16")).passed


def _emulate(op: Op, case: Case, index: int, sms: int) -> None:
    kernel, target = op.kernel_named("sm90"), replace(architecture("sm_90a"), sms=sms)
    dtypes = op.dtype_combinations(case)[-1]
    binding = op.bind_case(case, dtypes)
    inputs = op.sample_inputs(case, dtypes, 3)
    for b, n in enumerate(inputs.get("k_lengths", ())):
        for name in ("k", "v"):
            inputs[name][b, :, n:] = np.array(np.nan, inputs[name].dtype)
    found = emulator.run(kernel, binding, index, inputs, target)
    for name, expected in op.run_reference(inputs, case.attributes).items():
        result = compare(found[name], expected, tolerance_of(op, binding.dtypes[name]))
        assert result.passed, result


@pytest.mark.parametrize("arch", ["sm_80", "sm_120a"])
@pytest.mark.parametrize("index", [0, 2])
def test_mma_machine_code(index: int, arch: str) -> None:
    code = _code("mma", index, arch, 64)
    mix = code.instructions
    assert mix["HMMA"] and mix["LDGSTS"] and mix["LDSM"]
    assert not code.spills and not code.stack


# ---- fusion ---------------------------------------------------------------------------------------------------------


def _fused(write: Any, queries: int = 8, keys: int = 8, kv_heads: int = 2) -> Any:
    with Network("attention") as network:
        q = network.input("q", "float16", (1, 4, queries, 32))
        k = network.input("k", "float16", (1, kv_heads, keys, 32))
        v = network.input("v", "float16", (1, kv_heads, keys, 32))
        lengths = network.input("lengths", "int32", (1,))
        network.mark_output(write(q, k, v, lengths), "o")
    return fuse(network)


@pytest.mark.parametrize("lengths", [False, True])
@pytest.mark.parametrize(
    "options",
    [{}, {"causal": True}, {"window": 3}, {"causal": True, "window": 3, "soft_cap": 5.0}, {"scale": 0.25}],
)
def test_written_out_attention_becomes_the_op(options: dict[str, Any], lengths: bool) -> None:
    report = _fused(lambda q, k, v, n: F.attention_written_out(q, k, v, k_lengths=n if lengths else None, **options))
    (replacement,) = report.replacements
    assert replacement.op == "trtforge::flash_attention"
    assert replacement.inputs == (("q", "k", "v", "lengths") if lengths else ("q", "k", "v"))
    expected = {"causal": False, "window": -1, "soft_cap": 0.0, "scale": 32**-0.5} | options
    found = {**{"window": -1, "soft_cap": 0.0}, **replacement.attributes}
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=2e-3), name


def test_other_spellings_become_the_op() -> None:
    def scaled_queries(q: Any, k: Any, v: Any, _: Any) -> Any:
        return F.matmul(F.softmax(F.matmul(F.mul(q, 0.25), F.transpose(k)), -1), v)

    def unscaled(q: Any, k: Any, v: Any, _: Any) -> Any:
        return F.matmul(F.softmax(F.matmul(q, k, transpose_b=True), -1), v)

    for write, scale in ((scaled_queries, 0.25), (unscaled, 1.0)):
        (replacement,) = _fused(write, kv_heads=4).replacements
        assert replacement.attributes["scale"] == pytest.approx(scale)


def test_a_finite_mask_is_refused_where_a_query_may_see_nothing() -> None:
    def finite(q: Any, k: Any, v: Any, _: Any) -> Any:
        scores = F.where(F.causal_mask(q, k), F.div(F.matmul(q, k, transpose_b=True), 8.0), -65504.0)
        return F.matmul(F.softmax(scores, -1), v)

    assert len(_fused(finite, 8, 8, 4).replacements) == 1
    report = _fused(finite, 9, 8, 4)
    assert not report.replacements and "may see no key" in str(report)


# ---- on a GPU -------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("kernel", ["sm90", "mma", "triton"])
@pytest.mark.parametrize("width", [64, 128])
def test_garbage_past_the_length_does_not_reach_the_output(kernel: str, width: int) -> None:
    from trtforge.bindings import device

    op = registry.get("flash_attention")
    case = Case(
        {"B": 4, "Hq": 4, "Hkv": 2, "Sq": 130, "Sk": 500, "D": width}, {"causal": True}, optional=("k_lengths",)
    )
    dtypes = {"q": "bfloat16", "k": "bfloat16", "v": "bfloat16", "k_lengths": "int32"}
    target = device.current_device().architecture
    if not op.kernel_named(kernel).serves(target):
        pytest.skip(f"{kernel} does not run on {target.name}")
    inputs = op.sample_inputs(case, dtypes, seed=5)
    for b, n in enumerate(inputs["k_lengths"]):
        for name in ("k", "v"):
            inputs[name][b, :, n:] = np.array(np.nan, ml_dtypes.bfloat16)
    expected = op.run_reference(inputs, case.attributes)["o"]
    found = op(*inputs.values(), **case.attributes, kernel=kernel, device="cuda")
    assert compare(found, expected, tolerance_of(op, "bfloat16")).passed
