"""2,000 random calls of attention on a GPU against float64: odd sizes, lengths, heads, windows, packed sequences.

What is compiled in (head dimension, dtype, attributes, tactic) comes from a short list, so that compiling takes a
minute; shapes and lengths are drawn anew for each call. Keys and values that nobody may see hold NaN.
"""

from __future__ import annotations

from typing import Any

import attention_in_torch as reference
import numpy as np
import pytest

from trtforge.harness.compare import tolerance_of
from trtforge.kernels import Op
from trtforge.kernels.flash_attention.op import flash_attention
from trtforge.kernels.varlen_attention.op import flash_attention_varlen

CALLS = 72  # of each of the 28 specializations
SCORES = 12_000_000  # of one call at most: the float64 reference holds them all

PERSISTENT, SINGLE = {"PERSISTENT": 1}, {"PERSISTENT": 0}
#: kernel, tactic (some of its parameters), D, dtype, attributes
Specialization = tuple[str, dict[str, int], int, str, dict[str, Any]]
DENSE: list[Specialization] = [
    ("sm90", {"TILE_D": 64, "CONSUMERS": 3, **SINGLE}, 64, "bfloat16", {}),
    ("sm90", {"TILE_D": 64, "CONSUMERS": 3, **PERSISTENT}, 64, "float16", {"causal": True}),
    ("sm90", {"TILE_D": 64, "CONSUMERS": 2}, 40, "bfloat16", {"causal": True, "window": 100, "soft_cap": 20.0}),
    ("sm90", {"TILE_D": 128, **SINGLE}, 128, "bfloat16", {"causal": True}),
    ("sm90", {"TILE_D": 128, "BLOCK_N": 176}, 128, "float16", {}),
    ("sm90", {"TILE_D": 128, **PERSISTENT}, 128, "bfloat16", {}),
    ("sm90", {"TILE_D": 128, **PERSISTENT}, 128, "bfloat16", {"causal": True, "window": 333}),
    ("sm90", {"TILE_D": 128, **PERSISTENT}, 72, "float16", {"window": 64}),
    ("sm90", {"TILE_D": 192, "PINGPONG": 0}, 192, "bfloat16", {"causal": True}),
    ("sm90", {"TILE_D": 192, **PERSISTENT}, 136, "float16", {"soft_cap": 15.0}),
    ("sm90", {"TILE_D": 256, "PINGPONG": 0}, 256, "float16", {"causal": True}),
    ("sm90", {"TILE_D": 256, **PERSISTENT}, 256, "bfloat16", {"window": 17}),
    ("mma", {"WARPS": 4, "M_TILES": 1, "BLOCK_N": 64}, 128, "bfloat16", {"causal": True}),
    ("mma", {"WARPS": 4, "M_TILES": 2}, 64, "float16", {"window": 50}),
    ("mma", {"WARPS": 8}, 80, "bfloat16", {"causal": True, "window": 5}),
    ("mma", {"BLOCK_N": 32}, 256, "float16", {"causal": True, "soft_cap": 30.0}),
    ("mma", {"BLOCK_N": 128}, 37, "bfloat16", {}),
    ("mma", {"WARPS": 4, "M_TILES": 1, "BLOCK_N": 64}, 5, "float16", {"causal": True}),
]
VARLEN: list[Specialization] = [
    ("sm90", {"TILE_D": 64, "CONSUMERS": 3}, 64, "bfloat16", {"causal": True}),
    ("sm90", {"TILE_D": 128}, 128, "bfloat16", {"causal": True}),
    ("sm90", {"TILE_D": 128}, 128, "float16", {}),
    ("sm90", {"TILE_D": 128, "BLOCK_N": 176}, 72, "bfloat16", {"causal": True, "window": 90, "soft_cap": 20.0}),
    ("sm90", {"TILE_D": 256}, 256, "bfloat16", {"causal": True}),
    ("mma", {"WARPS": 8}, 128, "bfloat16", {"causal": True}),
    ("mma", {"WARPS": 4, "M_TILES": 2}, 64, "float16", {}),
    ("mma", {"BLOCK_N": 32}, 256, "bfloat16", {"window": 40}),
    ("mma", {"BLOCK_N": 64}, 61, "float16", {"causal": True, "soft_cap": 10.0}),
    ("mma", {"BLOCK_N": 128}, 96, "bfloat16", {"causal": True, "window": 7}),
]


def _size(rng: np.random.Generator, largest: int) -> int:
    """A size of any magnitude, often at or beside a multiple of a tile."""
    if rng.random() < 0.4:
        return int(np.clip(64 * rng.integers(1, largest // 64 + 1) + rng.integers(-1, 2), 1, largest))
    return int(np.exp(rng.uniform(0.0, np.log(largest))))


def dense_dims(rng: np.random.Generator) -> dict[str, int]:
    kv_heads, group = int(rng.integers(1, 4)), int(rng.choice([1, 1, 2, 3, 4, 8]))
    dims = {"B": int(rng.integers(1, 6)), "Hkv": kv_heads, "Hq": kv_heads * group}
    dims |= {"Sq": _size(rng, 1500), "Sk": _size(rng, 2500)}
    while dims["B"] > 1 and dims["B"] * dims["Hq"] * dims["Sq"] * dims["Sk"] > SCORES:
        dims["B"] -= 1
    while dims["Hq"] * dims["Sq"] * dims["Sk"] > SCORES:
        dims["Sk"] = dims["Sk"] // 2 + 1
    return dims


def random_offsets(rng: np.random.Generator, tokens: int, sequences: int) -> np.ndarray:
    """Ascending, empty sequences among them; now and then tokens are left over."""
    end = tokens if rng.random() < 0.6 else int(rng.integers(0, tokens + 1))
    return np.array([0, *np.sort(rng.integers(0, end + 1, sequences - 1)), end], np.int32)


def _normal(generator: Any, dtype: str, *shape: int) -> Any:
    import torch

    made = torch.randn(shape, generator=generator, device=generator.device, dtype=torch.float32)
    return made.to(getattr(torch, dtype))


def dense_call(rng: np.random.Generator, generator: Any, spec: Specialization) -> tuple[list[Any], tuple[Any, ...]]:
    """Inputs of flash_attention, and q, k, v [B, H, S, D] and what is seen, for the reference."""
    import torch

    _, _, width, dtype, attributes = spec
    d = dense_dims(rng)
    q = _normal(generator, dtype, d["B"], d["Hq"], d["Sq"], width)
    k, v = (_normal(generator, dtype, d["B"], d["Hkv"], d["Sk"], width) for _ in range(2))
    lengths = torch.full((d["B"],), d["Sk"], dtype=torch.int32, device=q.device)
    clean = k, v
    given = None
    if rng.random() < 0.5:
        drawn = [int(rng.choice([0, d["Sk"], int(rng.integers(0, d["Sk"] + 1))])) for _ in range(d["B"])]
        lengths = torch.tensor(drawn, dtype=torch.int32, device=q.device)
        given = lengths
        hidden = (torch.arange(d["Sk"], device=q.device) >= lengths[:, None])[:, None, :, None]
        clean = k.masked_fill(hidden, 0.0), v.masked_fill(hidden, 0.0)
        k, v = k.masked_fill(hidden, float("nan")), v.masked_fill(hidden, float("nan"))
    seen = reference.dense_visible(
        d["Sq"], lengths, d["Sk"], attributes.get("causal", False), attributes.get("window", -1)
    )
    return [q, k, v, given], (q, *clean, seen)


def packed_call(rng: np.random.Generator, generator: Any, spec: Specialization) -> tuple[list[Any], tuple[Any, ...]]:
    """The same of flash_attention_varlen."""
    import torch

    _, _, width, dtype, attributes = spec
    kv_heads, group = int(rng.integers(1, 4)), int(rng.choice([1, 1, 2, 3, 4]))
    q_tokens = _size(rng, 1000)
    k_tokens = q_tokens if rng.random() < 0.5 else _size(rng, 1000)
    sequences = int(rng.choice([1, 2, 3, 5, 8, 40, 100]))
    q = _normal(generator, dtype, q_tokens, kv_heads * group, width)
    k, v = (_normal(generator, dtype, k_tokens, kv_heads, width) for _ in range(2))
    at_q = random_offsets(rng, q_tokens, sequences)
    at_k = at_q if k_tokens == q_tokens and rng.random() < 0.6 else random_offsets(rng, k_tokens, sequences)
    k[int(at_k[-1]) :], v[int(at_k[-1]) :] = 0.0, 0.0
    heads_first = tuple(x.transpose(0, 1)[None] for x in (q, k.clone(), v.clone()))
    k[int(at_k[-1]) :], v[int(at_k[-1]) :] = float("nan"), float("nan")
    at_q, at_k = (torch.from_numpy(x).to(q.device) for x in (at_q, at_k))
    seen = reference.packed_visible(
        at_q, at_k, q_tokens, k_tokens, attributes.get("causal", False), attributes.get("window", -1)
    )
    return [q, k, v, at_q, at_k], (*heads_first, seen)


def check_calls(op: Op, spec: Specialization, seed: int, device: str, calls: int, **choice: Any) -> float:
    """Draw and judge; the largest ratio of our error to PyTorch's. ``choice`` goes to the op."""
    import torch

    attributes, dtype = spec[4], spec[3]
    draw = dense_call if op is flash_attention else packed_call
    wrong, largest = [], 0.0
    scale, soft_cap = spec[2] ** -0.5, attributes.get("soft_cap", 0.0)
    for number in range(calls):
        rng = np.random.default_rng((seed, number))
        generator = torch.Generator(device).manual_seed(1000 * seed + number)
        inputs, (q, k, v, seen) = draw(rng, generator, spec)
        found = op(*inputs, **attributes, **choice)
        if op is flash_attention_varlen:
            found = found.transpose(0, 1)[None]
        expected = reference.attend(q.double(), k.double(), v.double(), seen, soft_cap, scale)
        peer = None if soft_cap else reference.pytorch_attention(q, k, v, seen, scale)
        message, ratio = reference.verdict(found, expected, tolerance_of(op, dtype), peer)
        largest = max(largest, ratio)
        if message:
            wrong.append((number, message, [None if x is None else tuple(x.shape) for x in inputs]))
    assert not wrong, f"{len(wrong)} of {calls} calls: {wrong[:5]}"
    return largest


ALL = [(flash_attention, s) for s in DENSE] + [(flash_attention_varlen, s) for s in VARLEN]


def _name(op: Op, spec: Specialization) -> str:
    kernel, tactic, width, dtype, attributes = spec
    parts = [op.name.split("::")[1], kernel, *(f"{k}{v}" for k, v in tactic.items()), f"D{width}", dtype, *attributes]
    return "-".join(parts)


@pytest.mark.gpu
@pytest.mark.parametrize(("op", "spec"), ALL, ids=[_name(*pair) for pair in ALL])
def test_random_calls(op: Op, spec: Specialization, record_property: Any) -> None:
    """72 calls each: at most 1.5 times PyTorch's error on the same inputs, and within the declared tolerance."""
    pytest.importorskip("torch")
    from trtforge.bindings import device

    kernel, target = op.kernel_named(spec[0]), device.current_device().architecture
    if not kernel.serves(target):
        pytest.skip(f"{spec[0]} does not run on {target.name}")
    choice = {"kernel": spec[0], "tactic": op.tactic_index(kernel, spec[1])}
    largest = check_calls(op, spec, ALL.index((op, spec)), "cuda", CALLS, **choice)
    record_property("largest_error_over_pytorch", largest)
    print(f"{_name(op, spec)}: at most {largest:.2f} times PyTorch's error")


def test_there_are_two_thousand_calls_and_every_kernel_can_serve_its_own() -> None:
    from trtforge.bindings.architectures import architecture
    from trtforge.kernels import Case

    assert len(ALL) * CALLS >= 2000
    for op, (name, tactic, width, dtype, attributes) in ALL:
        sizes = {"Hq": 2, "Hkv": 1, "D": width}
        more = {"B": 2, "Sq": 9, "Sk": 9} if op is flash_attention else {"Tq": 9, "Tk": 9, "offsets": 3}
        types = {**dict.fromkeys("qkv", dtype), "cu_seqlens_q": "int32", "cu_seqlens_k": "int32"}
        binding = op.bind_case(Case({**sizes, **more}, attributes), types)
        kernel = op.kernel_named(name)
        index = op.tactic_index(kernel, tactic)
        assert kernel.refusal(binding, index, architecture("sm_90a")) is None, (op.name, name, width)


def _rounded_attention(q: Any, k: Any, v: Any, seen: Any, scale: float) -> Any:
    """What a kernel does: probabilities rounded to 16 bits, sums in float32 or better, one rounding at the end."""
    s = ((q.double() @ k.double().transpose(-1, -2)) * scale).masked_fill(~seen, -np.inf)
    p = (s - s.amax(-1, keepdim=True).clamp(min=-1e30)).exp()
    return (p.to(q.dtype).double() @ v.double() / p.sum(-1, keepdim=True).clamp(min=1e-300)).to(q.dtype)


@pytest.mark.parametrize(
    ("dtype", "queries", "keys", "width", "window"),
    [("bfloat16", 1025, 3, 128, 333), ("bfloat16", 1281, 2, 80, 5), ("float16", 300, 300, 5, -1)],
)
def test_few_visible_keys_are_judged_by_their_own_size(
    dtype: str, queries: int, keys: int, width: int, window: int
) -> None:
    torch = pytest.importorskip("torch")
    generator = torch.Generator().manual_seed(0)
    q = _normal(generator, dtype, 3, 4, queries, width)
    k, v = (_normal(generator, dtype, 3, 4, keys, width) for _ in range(2))
    seen = reference.dense_visible(queries, torch.full((3,), keys), keys, True, window)
    scale = width**-0.5
    expected = reference.attend(q.double(), k.double(), v.double(), seen, 0.0, scale)
    found, tolerance = _rounded_attention(q, k, v, seen, scale), tolerance_of(flash_attention, dtype)
    peer = reference.pytorch_attention(q, k, v, seen, scale)
    assert reference.verdict(found, expected, tolerance) == ("", 0.0)
    assert reference.verdict(found, expected, tolerance, peer)[0] == ""
    at = (0, 0, queries - 1, 0)
    assert tolerance.atol is not None and tolerance.rtol is not None
    allowed = tolerance.atol * float(reference.scale_of(expected)[0, 0, -1, 0]) + tolerance.rtol * abs(
        float(expected[at])
    )
    wrong = found.clone()
    wrong[at] = float(expected[at]) + 1.2 * allowed
    message = (
        f"{reference.verdict(wrong, expected, tolerance)[0]} {reference.verdict(wrong, expected, tolerance, peer)[0]}"
    )
    assert message.count("an element is off by") == 2 and "PyTorch's largest error" in message
    assert reference.verdict(wrong, expected, tolerance, wrong)[0] == ""  # PyTorch is off by as much
