"""Flash attention: softmax(q k^T) v without the score matrix ever reaching memory."""

import numpy as np

from trtforge.kernels import (
    HALF,
    Attr,
    Cost,
    Launch,
    Op,
    Tensor,
    TensorMap,
    Tolerance,
    cdiv,
    cuda,
    maximum,
    next_power_of_2,
    triton,
)
from trtforge.kernels.flash_attention import patterns
from trtforge.kernels.flash_attention.cases import CASES

MAX_WINDOW = 1 << 30  # leaves room for position arithmetic in 32 bits
REFERENCE_ROWS = 1024  # rows of the score matrix that the reference holds at a time


def _sample_lengths(rng, shape, d):
    """Lengths from 0 to Sk; the last sequence is full, and of three or more the first is empty."""
    lengths = rng.integers(1, d.Sk + 1, shape)
    lengths[-1] = d.Sk
    if shape[0] > 2:
        lengths[0] = 0
    return lengths


flash_attention = Op(
    "trtforge::flash_attention",
    doc="""Scaled dot-product attention (Vaswani et al. 2017, arXiv:1706.03762), computed block by block with an online
softmax (Dao et al. 2022, arXiv:2205.14135).

Query head h reads key and value head h // (Hq / Hkv). Queries are aligned to the end of each sequence's keys: with
n = k_lengths[b] (Sk where absent), query i has its diagonal at key p = n - Sq + i and sees the keys j < n with

- causal: j <= p;
- window = w: j > p - w, the w most recent keys counted from the diagonal. Without `causal` a window bounds the past
  only: later keys stay visible.

A query that sees no key gives zeros. Keys and values at and past n are never used, whatever they hold.""",
    inputs={
        "q": Tensor("B", "Hq", "Sq", "D", dtype=HALF, doc="queries"),
        "k": Tensor("B", "Hkv", "Sk", "D", dtype="q", doc="keys"),
        "v": Tensor("B", "Hkv", "Sk", "D", dtype="q", doc="values"),
        "k_lengths": Tensor(
            "B",
            dtype="int32",
            optional=True,
            sample=_sample_lengths,
            doc="valid keys of each sequence, 0 to Sk (values outside are clamped)",
        ),
    },
    outputs={"o": Tensor("B", "Hq", "Sq", "D", dtype="q", doc="attention output")},
    attributes={
        "causal": Attr(False, doc="hide the keys after the diagonal, which is aligned to the end of the keys"),
        "window": Attr(-1, minimum=-1, maximum=MAX_WINDOW, doc="most recent keys that stay visible; -1: all"),
        "soft_cap": Attr(0.0, minimum=0.0, doc="scores become cap * tanh(score / cap), after the scale; 0: off"),
        "scale": Attr(lambda d: int(d.D) ** -0.5, minimum=0.0, doc="factor of the scores; D ** -0.5 by default"),
    },
    rules=[
        (lambda d: d.Hq % d.Hkv == 0, "Hq must be a multiple of Hkv: a key head serves a whole group of query heads"),
        (lambda d: d.D <= 256, "D must be at most 256: one row of the output is held in registers"),
        (lambda a: a.window != 0, "window must be -1 (off) or at least 1"),
        (lambda a: a.scale > 0.0, "scale must be positive"),
    ],
    tolerance={
        "float16": Tolerance(l2=1e-3, atol=1e-2, rtol=1e-2),
        "bfloat16": Tolerance(l2=6e-3, atol=5e-2, rtol=5e-2),
    },
    cases=CASES,
)


def visible_keys(queries, keys, valid_keys, causal, window):
    """Per query: first visible key and one past the last (arrays of length ``queries``; empty where first >= end)."""
    diagonal = valid_keys - queries + np.arange(queries)
    end = np.minimum(diagonal + 1, valid_keys) if causal else np.full(queries, valid_keys)
    first = np.maximum(diagonal - window + 1, 0) if window > 0 else np.zeros(queries, dtype=int)
    return first, np.clip(end, 0, keys)


@flash_attention.reference
def _(q, k, v, k_lengths, *, causal, window, soft_cap, scale):
    q, k, v = (x.astype(np.float32) for x in (q, k, v))
    batch, q_heads, queries, _ = q.shape
    kv_heads, keys = k.shape[1:3]
    lengths = np.full(batch, keys) if k_lengths is None else np.clip(k_lengths, 0, keys)
    o = np.zeros(q.shape, dtype=np.float32)
    for b in range(batch):
        n = int(lengths[b])
        first, end = visible_keys(queries, keys, n, causal, window)
        position = np.arange(n)
        for h in range(q_heads if n else 0):
            group = h // (q_heads // kv_heads)
            for row in range(0, queries, REFERENCE_ROWS):
                rows = slice(row, row + REFERENCE_ROWS)
                scores = scale * (q[b, h, rows] @ k[b, group, :n].T)
                if soft_cap > 0:
                    scores = soft_cap * np.tanh(scores / soft_cap)
                visible = (position >= first[rows, None]) & (position < end[rows, None])
                scores = np.where(visible, scores, -np.inf)
                highest = scores.max(axis=1, keepdims=True)
                p = np.exp(scores - np.where(np.isfinite(highest), highest, 0.0))
                total = p.sum(axis=1, keepdims=True)
                o[b, h, rows] = (p @ v[b, group, :n]) / np.where(total > 0, total, 1.0)
    return o


@flash_attention.cost
def _(d, a):
    """Two products per visible (query, key) pair; lengths are data, so all Sk keys count."""
    first, end = visible_keys(d.Sq, d.Sk, d.Sk, a.causal, a.window)
    pairs = int(np.maximum(end - first, 0).sum())
    return Cost(flops=4 * d.B * d.Hq * pairs * d.D)


# ---- sm90: TMA and wgmma ----

SM90_ROWS = 64  # queries of one consumer warpgroup
SM90_CHUNK = 64  # columns of a tensor-map box: 128 bytes
SM90_SLACK = 1024 + 128  # aligning the tiles to 1024 bytes, and the barriers

# TILE_D: D rounded up to 64. BLOCK_N and STAGES are what registers and shared memory leave room for.
SM90_TACTICS = (
    {"TILE_D": 64, "CONSUMERS": 3, "BLOCK_N": 128, "STAGES": 2, "PINGPONG": 1},
    {"TILE_D": 64, "CONSUMERS": 3, "BLOCK_N": 128, "STAGES": 3, "PINGPONG": 0},
    {"TILE_D": 64, "CONSUMERS": 2, "BLOCK_N": 176, "STAGES": 3, "PINGPONG": 1},
    {"TILE_D": 128, "CONSUMERS": 2, "BLOCK_N": 128, "STAGES": 2, "PINGPONG": 1},
    {"TILE_D": 128, "CONSUMERS": 2, "BLOCK_N": 176, "STAGES": 2, "PINGPONG": 1},
    {"TILE_D": 128, "CONSUMERS": 2, "BLOCK_N": 128, "STAGES": 2, "PINGPONG": 0},
    {"TILE_D": 128, "CONSUMERS": 2, "BLOCK_N": 176, "STAGES": 2, "PINGPONG": 0},
    {"TILE_D": 192, "CONSUMERS": 2, "BLOCK_N": 112, "STAGES": 2, "PINGPONG": 0},
    {"TILE_D": 192, "CONSUMERS": 2, "BLOCK_N": 96, "STAGES": 2, "PINGPONG": 1},
    {"TILE_D": 256, "CONSUMERS": 2, "BLOCK_N": 80, "STAGES": 2, "PINGPONG": 0},
    {"TILE_D": 256, "CONSUMERS": 2, "BLOCK_N": 80, "STAGES": 2, "PINGPONG": 1},
)


@flash_attention.kernel(
    cuda("flash_attention_sm90.cu"),
    name="sm90",
    arch=("sm_90a",),
    tactics=SM90_TACTICS,
    requires=[
        (lambda d: d.D % 8 == 0, "needs D to be a multiple of 8: tensor maps have row pitches of 16 bytes"),
        (lambda d, t: t.TILE_D - 64 < d.D <= t.TILE_D, "has no tactic for this D with this TILE_D"),
        (lambda a, t: t.CONSUMERS == 2 or a.soft_cap == 0.0, "has no registers for a soft cap with three consumers"),
    ],
)
def _(d, t):
    rows = t.CONSUMERS * SM90_ROWS
    tile_bytes = 2 * t.TILE_D
    shared = (rows + 2 * t.STAGES * t.BLOCK_N) * tile_bytes + SM90_SLACK
    q_shape, kv_shape = (d.D, d.Sq, d.B * d.Hq), (d.D, d.Sk, d.B * d.Hkv)
    return Launch(
        grid=cdiv(d.Sq, rows) * d.B * d.Hq,
        block=(t.CONSUMERS + 1) * 128,
        shared=shared,
        scalars=(d.B * d.Hq, d.Hq, d.Hkv, d.Sq, d.Sk),
        constants={"HEAD_DIM": d.D},
        tensor_maps=(
            TensorMap("q", shape=q_shape, box=(SM90_CHUNK, rows, 1), swizzle=128),
            TensorMap("k", shape=kv_shape, box=(SM90_CHUNK, t.BLOCK_N, 1), swizzle=128),
            TensorMap("v", shape=kv_shape, box=(SM90_CHUNK, t.BLOCK_N, 1), swizzle=128),
            TensorMap("o", shape=q_shape, box=(SM90_CHUNK, SM90_ROWS, 1), swizzle=128),
        ),
    )


# ---- mma: cp.async, ldmatrix and mma.sync, on any GPU since sm_80 and for any shape ----


def mma_shared_bytes(d, t):
    """Q, one K and one V tile; rows are D rounded up to 16, and 16 bytes that keep ldmatrix free of bank conflicts."""
    row_bytes = cdiv(d.D, 16) * 32 + 16
    return (t.WARPS * t.M_TILES * 16 + 2 * t.BLOCK_N) * row_bytes


@flash_attention.kernel(
    cuda("flash_attention_mma.cu"),
    name="mma",
    tactics=(
        {"WARPS": 4, "M_TILES": 1, "BLOCK_N": 64},
        {"WARPS": 4, "M_TILES": 1, "BLOCK_N": 32},
        {"WARPS": 8, "M_TILES": 1, "BLOCK_N": 64},
        {"WARPS": 4, "M_TILES": 2, "BLOCK_N": 64},
        {"WARPS": 4, "M_TILES": 1, "BLOCK_N": 128},
    ),
    requires=[
        (lambda d, t: t.M_TILES == 1 or d.D <= 64, "holds 32 rows a warp in registers only up to D = 64"),
        (lambda d, t: t.BLOCK_N <= 64 or d.D <= 128, "holds 128 keys of scores in registers only up to D = 128"),
        (
            lambda d, t, dev: mma_shared_bytes(d, t) <= dev.smem_per_block,
            "needs more shared memory for this D than a block of this GPU has",
        ),
    ],
)
def _(d, t):
    rows = t.WARPS * t.M_TILES * 16
    return Launch(
        grid=cdiv(d.Sq * (d.Hq // d.Hkv), rows) * d.B * d.Hkv,
        block=t.WARPS * 32,
        shared=mma_shared_bytes(d, t),
        scalars=(d.Hq, d.Hkv, d.Sq, d.Sk),
        constants={"HEAD_DIM": d.D},
    )


# ---- triton ----


TRITON_TACTICS = (
    {"BLOCK_M": 64, "BLOCK_N": 32, "num_warps": 4, "num_stages": 2},
    {"BLOCK_M": 128, "BLOCK_N": 32, "num_warps": 8, "num_stages": 2},
    {"BLOCK_M": 64, "BLOCK_N": 64, "num_warps": 8, "num_stages": 2},
    {"BLOCK_M": 16, "BLOCK_N": 64, "num_warps": 4, "num_stages": 2},
)


@flash_attention.kernel(
    triton("flash_attention_triton.py"),
    tactics=TRITON_TACTICS,
    requires=[
        (
            lambda d, t, dev: (
                (t.BLOCK_M + 2 * t.num_stages * t.BLOCK_N) * 2 * max(16, next_power_of_2(d.D)) <= dev.smem_per_block
            ),
            "needs more shared memory for this D than a block of this GPU has",
        ),
        (lambda d, t: t.BLOCK_M <= 64 or d.D <= 64, "holds 128 rows in registers only up to D = 64"),
    ],
)
def _(d, t):
    return Launch(
        grid=cdiv(d.Sq, t.BLOCK_M) * d.B * d.Hq,
        scalars=(d.B * d.Hq, d.Hq, d.Hkv, d.Sq, d.Sk),
        constants={"HEAD_DIM": d.D, "BLOCK_D": maximum(16, next_power_of_2(d.D))},
    )


# ---- which kernel ----

SM90_MIN_ROWS = 64  # below, most of a consumer warpgroup's rows would be padding


@flash_attention.heuristic
def _(d, a, dev):
    """sm90 where it serves; mma for few queries (it packs the heads of a group into its rows) and elsewhere."""
    order: list[object] = []
    if dev.cc == 90 and d.Sq >= SM90_MIN_ROWS and d.D % 8 == 0:
        if d.D > 64 and d.D <= 128:
            order.append(("sm90", {"TILE_D": 128, "BLOCK_N": 128 if a.causal else 176, "PINGPONG": 1}))
        order.append("sm90")
    few_rows = d.Sq * (d.Hq // d.Hkv) <= 64
    if not few_rows and d.D <= 64:
        order.append(("mma", {"WARPS": 4, "M_TILES": 2, "BLOCK_N": 64}))
    if not few_rows and d.D <= 128:
        order.append(("mma", {"WARPS": 8, "M_TILES": 1, "BLOCK_N": 64}))
    return [*order, "mma", "triton"]


patterns.declare(flash_attention)
