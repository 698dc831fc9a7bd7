"""Decoding: attention of few queries over long caches, contiguous and paged, in 16 and 8 bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import attention_in_torch as reference
import ml_dtypes
import numpy as np
import pytest
from compiler import needs_compiler

from trtforge.bindings.architectures import INSPECTED, architecture
from trtforge.bindings.errors import ContractError
from trtforge.harness.compare import compare, tolerance_of
from trtforge.harness.emulate.emulator import run
from trtforge.harness.inspection import inspect_kernel
from trtforge.kernels import Case, Op
from trtforge.kernels.flash_attention.decode import TACTICS
from trtforge.kernels.flash_attention.op import flash_attention
from trtforge.kernels.paged_attention.op import paged_attention, paged_attention_8bit

TARGET = architecture("sm_90a")
OPS = (flash_attention, paged_attention, paged_attention_8bit)
PAGED = (paged_attention, paged_attention_8bit)


def _case(op: Op, dims: dict[str, int], optional: tuple[str, ...] = (), **attributes: Any) -> Case:
    if op is flash_attention:
        base = {"B": 2, "Hq": 8, "Hkv": 2, "Sq": 1, "Sk": 512, "D": 64}
    else:
        base = {"B": 2, "Hq": 8, "Hkv": 2, "Sq": 1, "D": 64, "pages": 16, "page_size": 64}
        if "block_table" in optional:
            base["max_pages"] = 8
    return Case({**base, **dims}, attributes, optional=optional)


def _dtypes(op: Op, q: str = "bfloat16", cache: str = "") -> dict[str, str]:
    types = {"q": q, "k_lengths": "int32"}
    if op is flash_attention:
        return types | {"k": q, "v": q}
    cache = cache or ("float8_e4m3fn" if op is paged_attention_8bit else q)
    return (
        types
        | {"k_cache": cache, "v_cache": cache, "block_table": "int32"}
        | dict.fromkeys(("k_scale", "v_scale"), "float32")
    )


def in_float64(op: Op, inputs: dict[str, np.ndarray], a: dict[str, Any]) -> np.ndarray:
    """Attention over the gathered cache in float64, written apart from the op's reference."""
    q = inputs["q"].astype(np.float64)
    batch, heads, queries, width = q.shape
    scale = a.get("scale") or width**-0.5
    o = np.zeros(q.shape)
    for b in range(batch):
        if op is flash_attention:
            k, v = inputs["k"][b], inputs["v"][b]
        else:
            table = inputs.get("block_table")
            pages = [b] if table is None else np.clip(table[b], 0, len(inputs["k_cache"]) - 1)
            k, v = (np.concatenate(list(inputs[name][pages]), axis=1) for name in ("k_cache", "v_cache"))
        k, v = k.astype(np.float64), v.astype(np.float64)
        if op is paged_attention_8bit:
            k, v = k * inputs["k_scale"][:, None, None], v * inputs["v_scale"][:, None, None]
        n = k.shape[1] if "k_lengths" not in inputs else int(np.clip(inputs["k_lengths"][b], 0, k.shape[1]))
        position = np.arange(n)[None, :]
        diagonal = (n - queries + np.arange(queries))[:, None]
        seen = np.ones((queries, n), bool)
        if a.get("causal"):
            seen &= position <= diagonal
        if a.get("window", -1) > 0:
            seen &= position > diagonal - a["window"]
        for h in range(heads):
            kv = h // (heads // len(k))
            s = scale * (q[b, h] @ k[kv, :n].T)
            if a.get("soft_cap"):
                s = a["soft_cap"] * np.tanh(s / a["soft_cap"])
            s = np.where(seen, s, -np.inf)
            top = s.max(axis=1, keepdims=True, initial=-1e300)
            p = np.where(seen, np.exp(s - top), 0.0)
            total = p.sum(axis=1, keepdims=True)
            o[b, h] = (p / np.where(total > 0, total, 1.0)) @ v[kv, :n]
    return o


@dataclass(frozen=True)
class Drawn:
    """What is compiled in, of a random call: all but its sizes."""

    op: Op
    width: int
    optional: tuple[str, ...]
    attributes: dict[str, Any]
    dtypes: dict[str, str]

    def case(self, rng: np.random.Generator, largest: int) -> Case:
        """Sizes with at most about ``largest`` keys."""
        hkv, queries = int(rng.integers(1, 4)), int(rng.choice([1, 1, 1, 2, 3, 5]))
        group = int(rng.choice([1, 2, 4, 8, 3, 16]))
        dims = {"B": int(rng.integers(1, 5)), "Hkv": hkv, "Hq": hkv * group, "Sq": queries, "D": self.width}
        keys = int(rng.integers(1, largest + 1))
        if self.op is flash_attention:
            dims["Sk"] = keys
        elif "block_table" not in self.optional:
            dims |= {"pages": dims["B"], "page_size": keys}
        else:
            page = int(rng.choice([16, 64, 128, 48]))
            width = -(-keys // page)
            dims |= {"page_size": page, "max_pages": width, "pages": dims["B"] * width + int(rng.integers(0, 4))}
        return Case(dims, self.attributes, optional=self.optional)


def draw(rng: np.random.Generator, largest: int) -> Drawn:
    """An op, a width, dtypes and options; every option now and then."""
    op = OPS[rng.integers(3)]
    width = int(rng.choice([64, 128, 128, 8, 40, 72, 96, 192, 256]))
    optional: tuple[str, ...] = ("k_lengths",) if rng.random() < 0.6 else ()
    if op is not flash_attention and rng.random() < 0.75:
        optional += ("block_table",)
    attributes: dict[str, Any] = {"causal": bool(rng.random() < 0.5)}
    if rng.random() < 0.3:
        attributes["window"] = int(largest ** rng.random())
    if rng.random() < 0.3:
        attributes["soft_cap"] = float(rng.choice([2.0, 15.0, 50.0]))
    q = str(rng.choice(["float16", "bfloat16"]))
    cache = str(rng.choice(["float8_e4m3fn", "int8"])) if op is paged_attention_8bit else ""
    return Drawn(op, width, optional, attributes, _dtypes(op, q, cache))


def random_call(rng: np.random.Generator, largest: int) -> tuple[Op, Case, dict[str, str]]:
    drawn = draw(rng, largest)
    return drawn.op, drawn.case(rng, largest), drawn.dtypes


def _sample(op: Op, case: Case, dtypes: dict[str, str], seed: int) -> dict[str, np.ndarray]:
    """Inputs whose unused places hold what must not matter: NaN past the lengths, wild pages past the last."""
    inputs = op.sample_inputs(case, dtypes, seed)
    rng = np.random.default_rng(seed)
    lengths = inputs.get("k_lengths")
    if lengths is not None and op is flash_attention:
        for b, n in enumerate(lengths):
            inputs["k"][b, :, n:], inputs["v"][b, :, n:] = np.nan, np.nan
    table = inputs.get("block_table")
    if lengths is not None and table is not None:
        size = case.dims["page_size"]
        for b, n in enumerate(lengths):
            table[b, -(-int(n) // size) :] = rng.choice([-1, 2**31 - 1, -(2**31)])
    return inputs


# ---- reference and contract -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(40))
def test_reference_is_the_definition(seed: int) -> None:
    op, case, dtypes = random_call(np.random.default_rng(seed), 150)
    inputs = _sample(op, case, dtypes, seed)
    found = op.run_reference(inputs, case.attributes)["o"].astype(np.float64)
    expected = in_float64(op, inputs, dict(case.attributes))
    assert compare(found, expected, tolerance_of(op, dtypes["q"])).passed


@pytest.mark.parametrize("op", PAGED)
@pytest.mark.parametrize(
    ("dims", "optional", "words"),
    [
        ({"Hkv": 3}, (), "multiple of Hkv"),
        ({"D": 260}, (), "at most 256"),
        ({"D": 36, "pages": 2}, (), "multiple of 8"),
        ({"page_size": 40}, ("block_table",), "multiple of 16"),
        ({"pages": 5}, (), "pages must equal B"),
    ],
)
def test_refusals_name_the_rule(op: Op, dims: dict[str, int], optional: tuple[str, ...], words: str) -> None:
    with pytest.raises(ContractError, match=words):
        op.bind_case(_case(op, dims, optional), _dtypes(op))


def test_dtypes_of_a_cache() -> None:
    with pytest.raises(ContractError, match="'k_cache' is float8_e4m3fn"):
        paged_attention.bind_case(_case(paged_attention, {"pages": 2}), _dtypes(paged_attention, cache="float8_e4m3fn"))
    with pytest.raises(ContractError, match="'k_cache' is bfloat16"):
        paged_attention_8bit.bind_case(
            _case(paged_attention_8bit, {"pages": 2}), _dtypes(paged_attention_8bit, cache="bfloat16")
        )


# ---- which tactic ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", OPS)
def test_every_case_of_few_queries_has_a_kernel_everywhere(op: Op) -> None:
    for case in op.cases:
        if op is flash_attention and (case.dims["Sq"] > 1 or case.dims["D"] % 8):
            continue
        for dtypes in op.dtype_combinations(case):
            binding = op.bind_case(case, dtypes)
            for name in INSPECTED:
                assert op.choose(binding, architecture(name)).kernel.name == "decode"


@pytest.mark.parametrize(
    ("batch", "keys", "splits"),
    [(1, 1024, 8), (1, 4096, 8), (4, 1024, 4), (8, 32768, 2), (16, 4096, 1), (64, 8192, 1), (1, 100, 1)],
)
def test_splits_take_at_most_a_cta_to_a_multiprocessor(batch: int, keys: int, splits: int) -> None:
    case = _case(flash_attention, {"B": batch, "Hq": 32, "Hkv": 8, "Sk": keys, "D": 128})
    choice = flash_attention.choose(flash_attention.bind_case(case, _dtypes(flash_attention)), TARGET)
    assert choice.kernel.tactics[choice.tactic]["SPLITS"] == splits
    assert batch * 8 * splits <= max(TARGET.sms, batch * 8)


def test_a_cluster_needs_a_gpu_that_has_it() -> None:
    kernel = flash_attention.kernel_named("decode")
    binding = flash_attention.bind_case(_case(flash_attention, {}), _dtypes(flash_attention))
    for index, tactic in enumerate(TACTICS):
        assert (kernel.refusal(binding, index, architecture("sm_80")) is None) == (tactic["SPLITS"] == 1)
        assert tactic["SPLITS"] < 16 or kernel.refusal(binding, index, architecture("sm_120a")) is not None


# ---- machine code ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arch", "op", "width", "tactic"),
    [
        ("sm_90a", flash_attention, 128, {"STAGES": 3}),
        ("sm_90a", flash_attention, 128, {"SPLITS": 4, "ROW_TILES": 2}),
        ("sm_90a", paged_attention_8bit, 256, {"STAGES": 2}),
        ("sm_80", flash_attention, 128, {"STAGES": 3}),
        ("sm_80", paged_attention_8bit, 128, {"STAGES": 4}),
        ("sm_120a", flash_attention, 256, {"WARPS": 2}),
        ("sm_120a", paged_attention_8bit, 128, {"STAGES": 2}),
    ],
)
def test_machine_code(arch: str, op: Op, width: int, tactic: dict[str, int]) -> None:
    """Tensor cores, asynchronous copies, and nothing in local memory."""
    kernel, target = op.kernel_named("decode"), architecture(arch)
    optional = ("k_lengths",) if op is flash_attention else ("k_lengths", "block_table")
    case = _case(op, {"D": width}, optional, causal=True, window=300, soft_cap=20.0)
    binding = op.bind_case(case, _dtypes(op))
    split = 8 if target.cc >= 90 else 1
    index = op.tactic_index(kernel, {"SPLITS": split, **tactic})
    assert kernel.refusal(binding, index, target) is None
    code = inspect_kernel(kernel, index, target, case, _dtypes(op))
    assert code.instructions["HMMA"] and code.instructions["LDGSTS"] and code.instructions["LDSM"]
    assert not code.spills and not code.stack and not code.warnings


# ---- run on the CPU -------------------------------------------------------------------------------------------------


@needs_compiler
@pytest.mark.parametrize("seed", range(6))
def test_emulated_against_float64(seed: int) -> None:
    rng = np.random.default_rng(1000 + seed)
    op, case, dtypes = random_call(rng, 120)
    kernel = op.kernel_named("decode")
    inputs = _sample(op, case, dtypes, seed)
    binding = op.bind_case(case, dtypes)
    served = [i for i in range(len(kernel.tactics)) if kernel.refusal(binding, i, TARGET) is None]
    index = int(rng.choice(served))
    found = run(kernel, binding, index, inputs, TARGET)["o"].astype(np.float64)
    expected = in_float64(op, inputs, dict(case.attributes))
    verdict = compare(found, expected, tolerance_of(op, dtypes["q"]))
    assert verdict.passed, (op.name, case.label, kernel.tactic_label(index), verdict)


@needs_compiler
def test_wild_page_numbers_read_nothing_outside_of_the_cache() -> None:
    op = paged_attention
    case = _case(op, {"pages": 3, "page_size": 16, "max_pages": 2}, ("block_table",))
    inputs = op.sample_inputs(case, _dtypes(op), 1)
    inputs["block_table"][:] = [[-5, 2**31 - 1], [1, 3]]
    kernel = op.kernel_named("decode")
    found = run(kernel, op.bind_case(case, _dtypes(op)), 3, inputs, TARGET, sanitize="address")["o"]
    assert compare(found, in_float64(op, inputs, {}), tolerance_of(op, "bfloat16")).passed


# ---- on a GPU -------------------------------------------------------------------------------------------------------


def inputs_in_torch(drawn: Drawn, case: Case, rng: np.random.Generator, generator: Any) -> dict[str, Any]:
    """What :func:`_sample` makes, drawn on the generator's device."""
    import torch

    d, where = case.dims, generator.device
    paged = drawn.op is not flash_attention
    cache = (d["pages"], d["Hkv"], d["page_size"], d["D"]) if paged else (d["B"], d["Hkv"], d["Sk"], d["D"])
    capacity = d["page_size"] * d.get("max_pages", 1) if paged else d["Sk"]
    shapes = {"q": (d["B"], d["Hq"], d["Sq"], d["D"]), ("k_cache" if paged else "k"): cache}
    shapes["v_cache" if paged else "v"] = cache
    inputs: dict[str, Any] = {}
    for name, shape in shapes.items():
        kind = drawn.dtypes[name]
        if kind == "int8":
            inputs[name] = torch.randint(-128, 128, shape, generator=generator, device=where, dtype=torch.int8)
        else:
            made = torch.randn(shape, generator=generator, device=where)
            inputs[name] = made.to(getattr(torch, kind))
    if drawn.op is paged_attention_8bit:
        low, high = (0.005, 0.02) if drawn.dtypes["k_cache"] == "int8" else (0.5, 2.0)
        for name in ("k_scale", "v_scale"):
            inputs[name] = low + (high - low) * torch.rand(d["Hkv"], generator=generator, device=where)
    lengths = None
    if "k_lengths" in drawn.optional:
        lengths = rng.integers(0, capacity + 1, d["B"]).astype(np.int32)
        inputs["k_lengths"] = torch.from_numpy(lengths).to(where)
        if not paged:
            past = (torch.arange(capacity, device=where) >= inputs["k_lengths"][:, None])[:, None, :, None]
            inputs["k"], inputs["v"] = (inputs[x].masked_fill(past, float("nan")) for x in "kv")
    if "block_table" in drawn.optional:
        table = rng.permutation(d["pages"])[: d["B"] * d["max_pages"]].reshape(d["B"], -1).astype(np.int32)
        for b, n in enumerate(lengths if lengths is not None else ()):
            table[b, -(-int(n) // d["page_size"]) :] = rng.choice([-1, 2**31 - 1, -(2**31)])
        inputs["block_table"] = torch.from_numpy(table).to(where)
    return inputs


def in_torch(drawn: Drawn, inputs: dict[str, Any]) -> Any:
    """What :func:`in_float64` computes, on the device of the inputs."""
    import torch

    q, a = inputs["q"], drawn.attributes
    if drawn.op is flash_attention:
        k, v = inputs["k"].double(), inputs["v"].double()
    else:
        pages = len(inputs["k_cache"])
        table = inputs.get("block_table", torch.arange(pages, device=q.device)[:, None]).long().clamp(0, pages - 1)
        k, v = (inputs[x].float()[table].double().transpose(1, 2).flatten(2, 3) for x in ("k_cache", "v_cache"))
    if drawn.op is paged_attention_8bit:
        k, v = k * inputs["k_scale"].double()[:, None, None], v * inputs["v_scale"].double()[:, None, None]
    keys = k.shape[2]
    lengths = inputs.get("k_lengths", torch.full((len(q),), keys, device=q.device))
    past = (torch.arange(keys, device=q.device) >= lengths[:, None])[:, None, :, None]
    seen = reference.dense_visible(q.shape[2], lengths, keys, a["causal"], a.get("window", -1))
    return reference.attend(
        q.double(),
        k.masked_fill(past, 0.0),
        v.masked_fill(past, 0.0),
        seen,
        a.get("soft_cap", 0.0),
        q.shape[-1] ** -0.5,
    )


@pytest.mark.gpu
@pytest.mark.parametrize("part", range(25))
def test_random_configurations_on_the_gpu(part: int) -> None:
    """500 in all: odd sizes, lengths, heads, windows, pages, caches, tactics, against float64."""
    torch = pytest.importorskip("torch")
    from trtforge.bindings import device

    target = device.current_device().architecture
    rng = np.random.default_rng(part)
    drawn = draw(rng, 3000)
    op, kernel = drawn.op, drawn.op.kernel_named("decode")
    binding = op.bind_case(drawn.case(rng, 3000), drawn.dtypes)
    served = [i for i in range(len(kernel.tactics)) if kernel.refusal(binding, i, target) is None]
    index = int(rng.choice(served))
    wrong = []
    for number in range(20):
        case = drawn.case(rng, 3000)
        inputs = inputs_in_torch(drawn, case, rng, torch.Generator("cuda").manual_seed(100 * part + number))
        arguments = [inputs.get(name) for name in op.inputs]
        found = op(*arguments, **case.attributes, kernel="decode", tactic=index)
        message, _ = reference.verdict(found, in_torch(drawn, inputs), tolerance_of(op, drawn.dtypes["q"]))
        if message:
            wrong.append((number, op.name, case.label, kernel.tactic_label(index), message))
    assert not wrong, wrong


@pytest.mark.gpu
@pytest.mark.parametrize("tactic", [i for i, t in enumerate(TACTICS) if t["WARPS"] == 4 and t["ROW_TILES"] == 1])
def test_the_same_bits_every_time(tactic: int) -> None:
    from trtforge.bindings import device

    op = flash_attention
    kernel = op.kernel_named("decode")
    case = _case(op, {"B": 3, "Hq": 32, "Hkv": 8, "Sk": 4000, "D": 128}, ("k_lengths",), causal=True)
    binding = op.bind_case(case, _dtypes(op))
    if kernel.refusal(binding, tactic, device.current_device().architecture):
        pytest.skip("not on this GPU")
    inputs = op.sample_inputs(case, _dtypes(op), 3)
    first = op(*inputs.values(), causal=True, kernel="decode", tactic=tactic, device="cuda")
    for _ in range(10):
        again = op(*inputs.values(), causal=True, kernel="decode", tactic=tactic, device="cuda")
        np.testing.assert_array_equal(first.view(np.uint16), again.view(np.uint16))


@pytest.mark.gpu
def test_pages_give_the_bits_of_a_contiguous_cache() -> None:
    rng = np.random.default_rng(9)
    batch, heads, keys, width, size = 3, 2, 640, 128, 64
    k, v = (rng.standard_normal((batch, heads, keys, width)).astype(ml_dtypes.bfloat16) for _ in range(2))
    q = rng.standard_normal((batch, 8, 1, width)).astype(ml_dtypes.bfloat16)
    order = rng.permutation(batch * keys // size).astype(np.int32)
    pools = []
    for cache in (k, v):
        pieces = cache.reshape(batch, heads, keys // size, size, width).swapaxes(1, 2).reshape(-1, heads, size, width)
        pool = np.empty_like(pieces)
        pool[order] = pieces
        pools.append(pool)
    choice = {"kernel": "decode", "tactic": 3, "device": "cuda"}
    whole = flash_attention(q, k, v, **choice)
    paged = paged_attention(q, *pools, None, order.reshape(batch, -1), **choice)
    np.testing.assert_array_equal(whole.view(np.uint16), paged.view(np.uint16))
