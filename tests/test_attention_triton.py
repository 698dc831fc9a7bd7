"""The Triton forms of attention with log-sum-exp, over packed sequences and over paged caches."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from trtforge.bindings.architectures import architecture
from trtforge.harness import pool
from trtforge.harness.check import plan_interpreter
from trtforge.harness.compare import compare, tolerance_of
from trtforge.harness.inspection import inspect_kernel
from trtforge.kernels import Case, Op
from trtforge.kernels.compile import compile_kernel
from trtforge.kernels.flash_attention.op import flash_attention, flash_attention_lse
from trtforge.kernels.paged_attention.op import (
    TRITON_TACTICS,
    paged_attention,
    paged_attention_8bit,
    triton_shared_bytes,
)
from trtforge.kernels.varlen_attention.op import flash_attention_varlen

pytest.importorskip("triton", reason="these are Triton kernels")

OPS = (flash_attention_lse, flash_attention_varlen, paged_attention, paged_attention_8bit)
TARGET = architecture("sm_90a")

_INTERPRET = """
import pickle, sys
from trtforge.bindings.architectures import architecture
from trtforge.harness.interpreter import run
from trtforge.kernels import registry
problems, found = pickle.load(open(sys.argv[1], "rb")), []
for op_name, tactic, inputs, attributes in problems:
    op = registry.get(op_name)
    binding = op.bind({n: a.shape for n, a in inputs.items()}, {n: str(a.dtype) for n, a in inputs.items()}, attributes)
    found.append(run(op.kernel_named("triton"), binding, tactic, inputs, architecture("sm_90a")))
pickle.dump(found, open(sys.argv[1], "wb"))
"""


@dataclass
class Problem:
    op: Op
    inputs: dict[str, np.ndarray]
    attributes: dict[str, Any] = field(default_factory=dict)
    tactic: int = 0


def interpret(folder: Path, *problems: Problem) -> list[dict[str, np.ndarray]]:
    """What the kernels ``triton`` give, in Triton's interpreter."""
    passed = folder / "problems"
    passed.write_bytes(pickle.dumps([(p.op.name, p.tactic, p.inputs, p.attributes) for p in problems]))
    subprocess.run(
        [sys.executable, "-c", _INTERPRET, str(passed)], check=True, env={**os.environ, "TRITON_INTERPRET": "1"}
    )
    return pickle.loads(passed.read_bytes())


def reference(problem: Problem) -> dict[str, np.ndarray]:
    inputs, op = problem.inputs, problem.op
    types = {n: str(a.dtype) for n, a in inputs.items()}
    return op.run_reference(
        inputs, op.bind({n: a.shape for n, a in inputs.items()}, types, problem.attributes).attributes
    )


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float16)


def passes(found: np.ndarray, expected: np.ndarray, op: Op) -> None:
    verdict = compare(found, expected, tolerance_of(op, str(found.dtype)))
    assert verdict.passed, verdict


# ---- all of them ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name.split("::")[1])
def test_interpreted(op: Op) -> None:
    """One tactic, queries of float16; ``trtforge check`` runs them all."""
    planned = plan_interpreter(op, [op.kernel_named("triton")], (0,))
    jobs = [p.job for p in planned if p.job and p.job.tactic == 0 and p.job.dtypes["q"] == "float16"]
    rows = pool.run_jobs("interpret", jobs, (), 1)
    assert len(rows) >= 8
    assert not [(r.case, r.reason) for r in rows if r.status != "passed"]


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name.split("::")[1])
def test_what_was_chosen_before_is_chosen_still(op: Op) -> None:
    for case in op.cases:
        for dtypes in op.dtype_combinations(case):
            binding = op.bind_case(case, dtypes)
            for arch in ("sm_80", "sm_89", "sm_90a", "sm_120a"):
                assert op.choose(binding, architecture(arch)).kernel.language == "cuda"


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name.split("::")[1])
def test_every_width_has_a_tactic_everywhere(op: Op) -> None:
    kernel = op.kernel_named("triton")
    case = next(c for c in op.cases if not c.tags and c.dims["D"] == 64)
    for width in range(8, 257, 8):
        for dtypes in op.dtype_combinations(case):
            binding = op.bind_case(Case({**case.dims, "D": width}, optional=case.optional), dtypes)
            for arch in ("sm_80", "sm_89", "sm_90a", "sm_100a", "sm_120a"):
                refusals = [kernel.refusal(binding, i, architecture(arch)) for i in range(len(kernel.tactics))]
                if "float8_e4m3fn" in dtypes.values() and arch == "sm_80":
                    assert all("Triton has from sm_89 on" in str(r) for r in refusals)
                else:
                    assert None in refusals, (width, arch, refusals)


@pytest.mark.parametrize(
    ("arch", "op", "width", "tactic", "product"),
    [
        ("sm_80", flash_attention_lse, 128, 0, "HMMA"),
        ("sm_90a", flash_attention_varlen, 128, 0, "HGMMA"),
        ("sm_100a", flash_attention_varlen, 128, 2, "UTCHMMA"),
        ("sm_90a", flash_attention_varlen, 256, 4, "HGMMA"),
        ("sm_80", paged_attention, 128, 0, "HMMA"),
        ("sm_90a", paged_attention, 64, 0, "HMMA"),
        ("sm_90a", paged_attention, 128, 2, "HGMMA"),
        ("sm_120a", paged_attention, 256, 1, "HMMA"),
        ("sm_89", paged_attention_8bit, 128, 0, "HMMA"),
        ("sm_90a", paged_attention_8bit, 128, 0, "HMMA"),
    ],
)
def test_machine_code(arch: str, op: Op, width: int, tactic: int, product: str) -> None:
    """Tensor cores, asynchronous copies, and nothing in local memory."""
    case = next(c for c in op.cases if c.dims["D"] == width and len(c.optional) in (0, 2))
    dtypes = op.dtype_combinations(case)[0]
    code = inspect_kernel(op.kernel_named("triton"), tactic, architecture(arch), case, dtypes)
    assert code.instructions[product] and code.instructions["LDGSTS"]
    assert not code.spills and not code.stack and not code.warnings


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float8_e4m3fn", "int8"])
def test_paged_tiles_fit_as_counted(dtype: str) -> None:
    """Tactics are refused by a count of shared memory, which the compiled code must not exceed."""
    op = paged_attention_8bit if "8" in dtype else paged_attention
    dims = {"B": 1, "Hq": 4, "Hkv": 1, "Sq": 1, "pages": 4, "page_size": 16, "max_pages": 4, "D": 128}
    cache = {"k_cache": dtype, "v_cache": dtype, "q": "float16" if "8" in dtype else dtype}
    dtypes = {**cache, "block_table": "int32", "k_scale": "float32", "v_scale": "float32"}
    binding = op.bind_case(Case(dims, optional=("block_table",)), {n: dtypes[n] for n in op.inputs if n in dtypes})
    kernel = op.kernel_named("triton")
    for tactic, parameters in enumerate(TRITON_TACTICS):
        needed = compile_kernel(kernel, binding, tactic, TARGET).metadata["shared"]
        counted = triton_shared_bytes(binding.context()["d"], _Tactic(parameters), 1 if "8" in dtype else 2)
        assert counted / 1.6 <= needed <= counted, (parameters, needed, counted)


class _Tactic:
    def __init__(self, parameters: dict[str, int]):
        self.__dict__.update(parameters)


# ---- with the log-sum-exp -------------------------------------------------------------------------------------------


def test_the_log_sum_exp_changes_no_bit_of_the_output_and_merges_parts(tmp_path: Path) -> None:
    """Keys in two parts, merged by what their log-sum-exps say, are all keys; a query without keys has -infinity."""
    q, k, v = normal(1, 3, 4, 20, 40), normal(2, 3, 2, 90, 40), normal(3, 3, 2, 90, 40)
    lengths = np.array([0, 70, 90], np.int32)
    options = {"causal": True, "window": 50, "soft_cap": 3.0}
    whole = {"q": q, "k": k, "v": v, "k_lengths": lengths}
    halves = [{"q": q, "k": k[:, :, at].copy(), "v": v[:, :, at].copy()} for at in (slice(33), slice(33, 90))]
    masked, plain, full, *parts = interpret(
        tmp_path,
        Problem(flash_attention_lse, whole, options),
        Problem(flash_attention, whole, options),
        Problem(flash_attention_lse, {"q": q, "k": k, "v": v}),
        *(Problem(flash_attention_lse, half) for half in halves),
    )
    np.testing.assert_array_equal(masked["o"], plain["o"])
    expected = reference(Problem(flash_attention_lse, whole, options))
    assert np.isneginf(masked["lse"][0]).all() and not masked["o"][0].any()
    np.testing.assert_allclose(masked["lse"], expected["lse"], rtol=1e-5, atol=1e-5)
    lse = np.logaddexp(parts[0]["lse"], parts[1]["lse"])
    merged = sum(part["o"] * np.exp(part["lse"] - lse)[..., None] for part in parts)
    np.testing.assert_allclose(lse, full["lse"], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(merged, full["o"].astype(np.float32), atol=2e-3)


# ---- packed sequences -----------------------------------------------------------------------------------------------


def packed(
    at_q: list[int], at_k: list[int], tokens: tuple[int, int], heads: tuple[int, int] = (2, 1)
) -> dict[str, Any]:
    return {
        "q": normal(4, tokens[0], heads[0], 64),
        "k": normal(5, tokens[1], heads[1], 64),
        "v": normal(6, tokens[1], heads[1], 64),
        "cu_seqlens_q": np.array(at_q, np.int32),
        "cu_seqlens_k": np.array(at_k, np.int32),
    }


def test_packed_sequences(tmp_path: Path) -> None:
    """One sequence is plain attention bit for bit; two rounds of the search; sequences keep to themselves."""
    one = packed([0, 70], [0, 90], (70, 90), (4, 2))
    options = {"causal": True, "window": 33, "soft_cap": 4.0}
    batched = {name: np.ascontiguousarray(np.swapaxes(one[name], 0, 1)[None]) for name in "qkv"}
    rng = np.random.default_rng(3)
    at_q, at_k = ([0, *np.sort(rng.integers(0, n - 7, 199)), n - 7] for n in (90, 200))
    many = packed(at_q, at_k, (90, 200), (1, 1))
    clean = packed([0, 30, 70, 100], [0, 50, 90, 160], (110, 170))
    dirty = {name: x.copy() for name, x in clean.items()}
    for name, rows in (("q", slice(30, 70)), ("k", slice(50, 90)), ("v", slice(50, 90)), ("v", slice(160, 170))):
        dirty[name][rows] = np.nan
    causal = {"causal": True}
    packed_one, plain, of_many, of_clean, of_dirty = interpret(
        tmp_path,
        Problem(flash_attention_varlen, one, options),
        Problem(flash_attention, batched, options),
        Problem(flash_attention_varlen, many, causal, tactic=3),
        Problem(flash_attention_varlen, clean, causal),
        Problem(flash_attention_varlen, dirty, causal),
    )
    np.testing.assert_array_equal(np.swapaxes(packed_one["o"], 0, 1)[None], plain["o"])
    passes(of_many["o"], reference(Problem(flash_attention_varlen, many, causal))["o"], flash_attention_varlen)
    assert not of_many["o"][-7:].any(), "queries after the last offset"
    passes(of_clean["o"], reference(Problem(flash_attention_varlen, clean, causal))["o"], flash_attention_varlen)
    others = np.delete(of_dirty["o"], np.s_[30:70], 0)
    np.testing.assert_array_equal(others, np.delete(of_clean["o"], np.s_[30:70], 0))
    assert np.isnan(of_dirty["o"][30:70].astype(np.float32)).any()


def test_wild_offsets_write_nothing_outside(tmp_path: Path) -> None:
    """Negative, huge and descending offsets: guard bands around the output stay, nothing far away is read."""
    low, high = -(2**31), 2**31 - 1
    wild = (([7, low, high, 40], [9, high, low, 60]), ([high, 50, 20, low], [low, low, 10, low]))
    problems = [Problem(flash_attention_varlen, packed(*at, (60, 90)), {"causal": True}, 3) for at in wild]
    for found in interpret(tmp_path, *problems):
        assert found["o"].shape == (60, 2, 64)


# ---- paged caches ---------------------------------------------------------------------------------------------------


def cache_in_pages(cache: np.ndarray, table: np.ndarray, page: int, spare: int) -> np.ndarray:
    """A cache [B, heads, keys, D] as pages, those of ``table``; pages of nobody hold NaN codes, or 127."""
    batch, heads, _, width = cache.shape
    kind = cache.dtype
    pages = np.full((table.size + spare, heads, page, width), 127, np.int8 if kind == np.int8 else kind)
    if kind != np.int8:
        pages[:] = np.nan
    for b in range(batch):
        for i, number in enumerate(table[b]):
            pages[number] = cache[b, :, i * page : (i + 1) * page]
    return pages


@pytest.mark.parametrize("kind", ["float16", "float8_e4m3fn", "int8"])
def test_pages_give_the_bits_of_one_piece(tmp_path: Path, kind: str) -> None:
    """Pages in any order, of 16 and of 48 keys, wild numbers where no key is."""
    scaled = kind != "float16"
    element = np.dtype(getattr(ml_dtypes, kind, kind))
    raw = normal(7, 2, 2, 2, 192, 72).astype(np.float32)
    k, v = (np.clip(raw * 40, -127, 127) if kind == "int8" else raw).astype(element)
    lengths = np.array([100, 192], np.int32)
    common: dict[str, Any] = {"q": normal(8, 2, 6, 2, 72)}
    scales = {n: np.array([0.7, 0.02], np.float32) for n in ("k_scale", "v_scale")} if scaled else {}
    op = paged_attention_8bit if scaled else paged_attention
    problems = [Problem(op, {**common, "k_cache": k, "v_cache": v, **scales, "k_lengths": lengths}, {"causal": True})]
    for page in (16, 48):
        table = np.random.default_rng(page).permutation(2 * 192 // page).astype(np.int32).reshape(2, -1) + 1
        caches = {f"{n}_cache": cache_in_pages(x, table, page, 3) for n, x in (("k", k), ("v", v))}
        unused = table[0, -(-100 // page) :]
        unused[:] = np.resize([-1, 2**31 - 1, -(2**31)], unused.shape)
        inputs = {**common, **caches, **scales, "k_lengths": lengths, "block_table": table}
        problems.append(Problem(op, inputs, {"causal": True}))
    contiguous, *paged = interpret(tmp_path, *problems)
    passes(contiguous["o"], reference(problems[0])["o"], op)
    for found in paged:
        np.testing.assert_array_equal(found["o"], contiguous["o"])


def test_wild_page_numbers_are_clamped(tmp_path: Path) -> None:
    cache = normal(9, 2, 3, 1, 16, 64)
    table = np.array([[-5, 2**31 - 1], [1, 3]], np.int32)
    inputs = {"q": normal(10, 2, 2, 1, 64), "k_cache": cache[0], "v_cache": cache[1], "block_table": table}
    problem = Problem(paged_attention, inputs)
    passes(interpret(tmp_path, problem)[0]["o"], reference(problem)["o"], paged_attention)


def test_large_queries_fit_the_products_of_8_bit_caches(tmp_path: Path) -> None:
    """bfloat16 rows far beyond float16 and far below it, in one tile, and a row of zeros."""
    sizes = np.array([1e30, 1e-30, 1.0, 0.0], np.float32)
    q = (normal(11, 1, 4, 1, 64).astype(np.float32) * sizes[None, :, None, None]).astype(ml_dtypes.bfloat16)
    cache = normal(12, 2, 1, 1, 80, 64).astype(ml_dtypes.float8_e4m3fn)
    one = np.ones(1, np.float32)
    inputs = {"q": q, "k_cache": cache[0], "v_cache": cache[1], "k_scale": one, "v_scale": one}
    problem = Problem(paged_attention_8bit, inputs)
    passes(interpret(tmp_path, problem)[0]["o"], reference(problem)["o"], paged_attention_8bit)


def test_nan_codes_of_e4m3_never_become_nan() -> None:
    """They count as 480. The interpreter's conversion has no NaN; the machine code takes the smaller number of both."""
    case = next(c for c in paged_attention_8bit.cases if c.dims["D"] == 128 and len(c.optional) == 2)
    dtypes = {"q": "float16", **dict.fromkeys(("k_cache", "v_cache"), "float8_e4m3fn")}
    dtypes |= {"k_scale": "float32", "v_scale": "float32", "k_lengths": "int32", "block_table": "int32"}
    binary = compile_kernel(
        paged_attention_8bit.kernel_named("triton"), paged_attention_8bit.bind_case(case, dtypes), 0, TARGET
    )
    assert "min.f16" in binary.ptx and "min.NaN.f16" not in binary.ptx
