"""Attention over packed sequences: reference, contract, which kernel, machine code, and both kernels run on a CPU."""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from compiler import needs_compiler

from trtforge.bindings.architectures import architecture
from trtforge.bindings.errors import ContractError
from trtforge.harness.compare import compare, tolerance_of
from trtforge.harness.emulate.emulator import run
from trtforge.harness.emulate.reports import KernelFault
from trtforge.harness.inspection import inspect_kernel
from trtforge.harness.oracle import parts_of
from trtforge.kernels import Case
from trtforge.kernels.varlen_attention.op import flash_attention_varlen as op

TARGET = architecture("sm_90a")
DTYPES = {**dict.fromkeys("qkv", "bfloat16"), "cu_seqlens_q": "int32", "cu_seqlens_k": "int32"}


def _case(dims: dict[str, int] | None = None, **attributes: Any) -> Case:
    return Case({"offsets": 4, "Hq": 2, "Hkv": 1, "Tq": 150, "Tk": 150, "D": 64, **(dims or {})}, attributes)


def _inputs(
    at_q: list[int], at_k: list[int], q_tokens: int, k_tokens: int, width: int, heads: tuple[int, int] = (2, 1)
) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(q_tokens + k_tokens)
    shapes = {"q": (q_tokens, heads[0]), "k": (k_tokens, heads[1]), "v": (k_tokens, heads[1])}
    made = {name: rng.standard_normal((*shape, width)).astype(ml_dtypes.bfloat16) for name, shape in shapes.items()}
    return made | {"cu_seqlens_q": np.array(at_q, np.int32), "cu_seqlens_k": np.array(at_k, np.int32)}


def _binding(inputs: dict[str, np.ndarray], **attributes: Any) -> Any:
    return op.bind({n: x.shape for n, x in inputs.items()}, DTYPES, attributes)


def by_definition(
    inputs: dict[str, np.ndarray], causal: bool, window: int, soft_cap: float, scale: float
) -> np.ndarray:
    """One query of one head at a time in float64, straight from the op's documentation."""
    q, k, v = (inputs[name].astype(np.float64) for name in "qkv")
    at_q, at_k = inputs["cu_seqlens_q"], inputs["cu_seqlens_k"]
    o = np.zeros(q.shape)
    for b in range(len(at_q) - 1):
        queries, keys = int(at_q[b + 1] - at_q[b]), int(at_k[b + 1] - at_k[b])
        for i in range(queries):
            diagonal = keys - queries + i
            seen = [j for j in range(keys) if (not causal or j <= diagonal) and (window < 0 or j > diagonal - window)]
            for h in range(q.shape[1] if seen else 0):
                g = h // (q.shape[1] // k.shape[1])
                scores = [scale * float(q[at_q[b] + i, h] @ k[at_k[b] + j, g]) for j in seen]
                if soft_cap:
                    scores = [soft_cap * math.tanh(s / soft_cap) for s in scores]
                p = [math.exp(s - max(scores)) for s in scores]
                o[at_q[b] + i, h] = sum(x * v[at_k[b] + j, g] for x, j in zip(p, seen)) / sum(p)
    return o


# ---- reference, contract, choice ------------------------------------------------------------------------------------


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("window", "soft_cap"), [(-1, 0.0), (3, 1.5)])
def test_reference_is_the_definition(causal: bool, window: int, soft_cap: float) -> None:
    inputs = _inputs([0, 4, 4, 9, 11, 12], [0, 6, 8, 10, 10, 15], 14, 17, 6, (4, 2))
    options: dict[str, Any] = {"causal": causal, "window": window, "soft_cap": soft_cap, "scale": 0.7}
    found = op.run_reference(inputs, options)["o"]
    np.testing.assert_allclose(found.astype(np.float64), by_definition(inputs, **options), atol=1e-2, rtol=1e-2)
    assert not found[9:11].any(), "a sequence without keys"
    assert not found[12:].any(), "queries after the last offset"


def test_one_sequence_is_plain_attention() -> None:
    from trtforge.kernels.flash_attention.op import flash_attention

    inputs = _inputs([0, 20], [0, 30], 20, 30, 8, (4, 2))
    batched = {name: np.swapaxes(inputs[name], 0, 1)[None] for name in "qkv"}
    options = {"causal": True, "window": 9, "soft_cap": 0.0, "scale": 0.3}
    expected = flash_attention.run_reference(batched, options)["o"][0].swapaxes(0, 1)
    np.testing.assert_array_equal(op.run_reference(inputs, options)["o"], expected)


@pytest.mark.parametrize(
    ("dims", "attributes", "words"),
    [
        ({"Hq": 3, "Hkv": 2}, {}, "multiple of Hkv"),
        ({"D": 264}, {}, "at most 256"),
        ({"offsets": 1}, {}, "at least two"),
        ({}, {"window": 0}, "window must be"),
    ],
)
def test_refusals_name_the_rule(dims: dict[str, int], attributes: dict[str, Any], words: str) -> None:
    with pytest.raises(ContractError, match=words):
        op.bind_case(_case(dims, **attributes), DTYPES)


def test_long_sequences_take_sm90_and_short_ones_mma() -> None:
    def chosen(arch: str, **dims: int) -> str:
        return op.choose(op.bind_case(_case(dims), DTYPES), architecture(arch)).kernel.name

    assert chosen("sm_90a", Tq=4000, D=128) == "sm90"
    assert chosen("sm_90a", Tq=4000, D=128, offsets=1001) == "mma"
    assert chosen("sm_90a", Tq=4000, D=61) == "mma"
    assert chosen("sm_80", Tq=4000, D=256) == "mma"


def test_a_part_is_a_piece_of_the_whole() -> None:
    case = _case({"Hq": 6, "Hkv": 3, "D": 16}, causal=True)
    binding = op.bind_case(case, DTYPES)
    inputs = op.sample_inputs(case, DTYPES, 1)
    whole = op.run_reference(inputs, binding.attributes)["o"]
    for part in parts_of(op, binding):
        cut = {name: x[part.inputs[name]] if name in part.inputs else x for name, x in inputs.items()}
        np.testing.assert_array_equal(op.run_reference(cut, binding.attributes)["o"], whole[part.outputs["o"]])


# ---- machine code ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arch", "kernel", "width", "tactic"),
    [
        ("sm_90a", "sm90", 64, {"CONSUMERS": 3}),
        ("sm_90a", "sm90", 128, {"TILE_D": 128}),
        ("sm_90a", "sm90", 256, {"TILE_D": 256}),
        ("sm_80", "mma", 128, {"WARPS": 8}),
        ("sm_120a", "mma", 256, {"BLOCK_N": 32}),
    ],
)
def test_machine_code(arch: str, kernel: str, width: int, tactic: dict[str, int]) -> None:
    """Tensor cores, asynchronous copies, and nothing in local memory."""
    code = inspect_kernel(
        op.kernel_named(kernel),
        op.tactic_index(op.kernel_named(kernel), tactic),
        architecture(arch),
        _case({"D": width}, causal=True),
        DTYPES,
    )
    wanted = ("HGMMA", "UTMALDG") if kernel == "sm90" else ("HMMA", "LDGSTS", "LDSM")
    assert all(code.instructions[name] for name in wanted)
    assert not code.spills and not code.stack and not code.warnings


# ---- run on the CPU -------------------------------------------------------------------------------------------------


def _emulate(
    kernel: str, inputs: dict[str, np.ndarray], tactic: int = 0, sanitize: str | None = None, **a: Any
) -> np.ndarray:
    width = inputs["q"].shape[-1]
    at = {64: 0, 128: 2}[width] if kernel == "sm90" else tactic
    return run(op.kernel_named(kernel), _binding(inputs, **a), at, inputs, TARGET, sanitize=sanitize)["o"]


def _passes(found: np.ndarray, inputs: dict[str, np.ndarray], causal: bool) -> None:
    width = inputs["q"].shape[-1]
    options = {"causal": causal, "window": -1, "soft_cap": 0.0, "scale": width**-0.5}
    verdict = compare(found, op.run_reference(inputs, options)["o"], tolerance_of(op, "bfloat16"))
    assert verdict.passed, verdict


@needs_compiler
@pytest.mark.parametrize("kernel", ["mma", "sm90"])
def test_what_other_sequences_hold_does_not_reach_a_sequence(kernel: str) -> None:
    """NaN in all rows of one sequence, and after the last: the other sequences stay as they are."""
    at_q, at_k = [0, 30, 70, 100], [0, 50, 90, 160]
    inputs = _inputs(at_q, at_k, 110, 170, 64)
    clean = _emulate(kernel, inputs, causal=True)
    _passes(clean, inputs, True)
    dirty = {name: x.copy() for name, x in inputs.items()}
    for name, rows in (("q", slice(30, 70)), ("k", slice(50, 90)), ("v", slice(50, 90)), ("v", slice(160, 170))):
        dirty[name][rows] = np.nan
    found = _emulate(kernel, dirty, causal=True)
    np.testing.assert_array_equal(np.delete(found, np.s_[30:70], 0), np.delete(clean, np.s_[30:70], 0))
    assert np.isnan(found[30:70].astype(np.float32)).any()


@needs_compiler
@pytest.mark.parametrize(("kernel", "sequences"), [("mma", 1100), ("sm90", 70)])
def test_many_short_sequences(kernel: str, sequences: int) -> None:
    """Two and three rounds of a warp's search, empty sequences, tokens of nobody."""
    rng = np.random.default_rng(3)
    at_q, at_k = ([0, *np.sort(rng.integers(0, n - 7, sequences - 1)), n - 7] for n in (160, 400))
    inputs = _inputs(at_q, at_k, 160, 400, 64)
    _passes(_emulate(kernel, inputs, tactic=3, causal=True), inputs, True)


@needs_compiler
@pytest.mark.parametrize("kernel", ["mma", "sm90"])
def test_wild_offsets_touch_nothing_outside(kernel: str) -> None:
    """Negative, huge and descending offsets: guarded memory and the sanitizer see no access outside of the tensors."""
    low, high = -(2**31), 2**31 - 1
    for at_q, at_k in (
        ([7, low, high, 40], [9, high, low, 60]),
        ([high, 50, 20, low], [low, low, 10, low]),
    ):
        inputs = _inputs(at_q, at_k, 60, 90, 64)
        try:
            assert _emulate(kernel, inputs, sanitize="address", causal=True).shape == (60, 2, 64)
        except KernelFault as fault:  # sequences that overlap write the same rows
            assert "depends on the order" in str(fault)


# ---- on a GPU -------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
def test_new_offsets_need_no_new_plan() -> None:
    """The same shapes with other lengths, in a CUDA graph too: lengths are data."""
    torch = pytest.importorskip("torch")
    q, k, v = (torch.randn(1000, 4, 128, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    offsets = torch.tensor([0, 300, 301, 900], dtype=torch.int32, device="cuda")
    op(q, k, v, offsets, offsets, causal=True)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = op(q, k, v, offsets, offsets, causal=True)
    offsets.copy_(torch.tensor([0, 10, 700, 1000], dtype=torch.int32))
    graph.replay()
    assert torch.equal(captured, op(q, k, v, offsets, offsets, causal=True))
    host = [x.float().cpu().numpy().astype(ml_dtypes.bfloat16) for x in (q, k, v)]
    at = offsets.cpu().numpy()
    expected = op.run_reference(
        {**dict(zip("qkv", host)), "cu_seqlens_q": at, "cu_seqlens_k": at},
        {"causal": True, "window": -1, "soft_cap": 0.0, "scale": 128**-0.5},
    )["o"]
    found = captured.float().cpu().numpy().astype(ml_dtypes.bfloat16)
    assert compare(found, expected, tolerance_of(op, "bfloat16")).passed
