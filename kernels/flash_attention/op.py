"""Flash attention: softmax(q k^T) v without the score matrix ever reaching memory."""

import numpy as np

from trtforge.kernels import HALF, Attr, Cost, Op, Tensor, Tolerance
from trtforge.kernels.flash_attention import decode, patterns, peers, prefill, triton_tiles
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


#: Where a row sees no key, the kernels multiply a finite stand-in for its maximum, -1e30, by the scale.
LARGEST_SCALE = 2.0**20

#: What every form of attention asks for.
RULES = [
    (lambda d: d.Hq % d.Hkv == 0, "Hq must be a multiple of Hkv: a key head serves a whole group of query heads"),
    (lambda d: d.D <= 256, "D must be at most 256: one row of the output is held in registers"),
    (lambda a: a.window != 0, "window must be -1 (off) or at least 1"),
    (lambda a: a.scale > 0.0, "scale must be positive"),
]

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
        "scale": Attr(
            lambda d: int(d.D) ** -0.5,
            minimum=0.0,
            maximum=LARGEST_SCALE,
            doc="factor of the scores; D ** -0.5 by default",
        ),
    },
    rules=[
        *RULES,
        (
            lambda d: (d.Sk * d.D < 1 << 31) & (d.Sq * d.D * (d.Hq // d.Hkv) < 1 << 31),
            "the keys of a head, and the queries that share them, must be fewer than 2^31 elements each: their rows "
            "are addressed with 32 bits",
        ),
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


def attention_and_log_sum_exp(q, k, v, k_lengths, causal, window, soft_cap, scale):
    """(o, lse) in float32: lse [B, Hq, Sq] is the natural logarithm of the sum of exponentials of a query's scores."""
    q, k, v = (x.astype(np.float32) for x in (q, k, v))
    batch, q_heads, queries, _ = q.shape
    kv_heads, keys = k.shape[1:3]
    lengths = np.full(batch, keys) if k_lengths is None else np.clip(k_lengths, 0, keys)
    o = np.zeros(q.shape, dtype=np.float32)
    lse = np.full(q.shape[:3], -np.inf, dtype=np.float32)
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
                highest = np.where(np.isfinite(highest), highest, 0.0)
                p = np.exp(scores - highest)
                total = p.sum(axis=1, keepdims=True)
                o[b, h, rows] = (p @ v[b, group, :n]) / np.where(total > 0, total, 1.0)
                seen = total[:, 0] > 0
                lse[b, h, rows][seen] = highest[seen, 0] + np.log(total[seen, 0])
    return o, lse


@flash_attention.reference
def _(q, k, v, k_lengths, *, causal, window, soft_cap, scale):
    return attention_and_log_sum_exp(q, k, v, k_lengths, causal, window, soft_cap, scale)[0]


def attention_cost(d, a):
    """Two products per visible (query, key) pair; lengths are data, so all Sk keys count."""
    first, end = visible_keys(d.Sq, d.Sk, d.Sk, a.causal, a.window)
    pairs = int(np.maximum(end - first, 0).sum())
    return Cost(flops=4 * d.B * d.Hq * pairs * d.D)


flash_attention.cost(attention_cost)


# ---- sm90 and mma: many queries ----

prefill.declare(flash_attention)


# ---- triton ----

triton_tiles.declare(flash_attention, entry="flash_attention")


# ---- decode: few queries, the keys split over a cluster ----

decode.declare(flash_attention)


# ---- which kernel ----


@flash_attention.heuristic
def _(d, a, dev):
    """decode for few rows (queries, and heads of a group, of one key head), sm90 where it serves, else mma."""
    order: list[object] = []
    if decode.serves_few_rows(d):
        order += [("decode", t) for t in decode.preferences(decode.TACTICS, d, dev, d.Sk)]
    order += prefill.preferences(d, a, dev)
    return [*order, "triton"]


patterns.declare(flash_attention)
peers.declare(flash_attention)


# ---- with the log-sum-exp of every query as a second output ----

flash_attention_lse = Op(
    "trtforge::flash_attention_lse",
    doc="""`flash_attention`, and the log-sum-exp of each query's scores: what a backward pass starts from, and what
merges attention over parts of the keys, o = sum of o_i exp(lse_i - lse), lse = log of the sum of exp(lse_i).

lse is the natural logarithm of the sum of exp(score) over the keys a query sees, scores after scale and soft cap;
-infinity for a query that sees no key.""",
    inputs=flash_attention.inputs,
    outputs={
        **flash_attention.outputs,
        "lse": Tensor("B", "Hq", "Sq", dtype="float32", doc="log-sum-exp of the scores, natural logarithm"),
    },
    attributes=flash_attention.attributes,
    rules=flash_attention.rules,
    tolerance={**flash_attention.tolerance, "float32": Tolerance(l2=1e-5, atol=1e-4, rtol=1e-4)},
    cases=[case for case in CASES if "bench" not in case.tags],
)


@flash_attention_lse.reference
def _(q, k, v, k_lengths, *, causal, window, soft_cap, scale):
    return attention_and_log_sum_exp(q, k, v, k_lengths, causal, window, soft_cap, scale)


flash_attention_lse.cost(attention_cost)
prefill.declare(flash_attention_lse, with_lse=True)
triton_tiles.declare(flash_attention_lse, entry="flash_attention_lse")


@flash_attention_lse.heuristic
def _(d, a, dev):
    return [*prefill.preferences(d, a, dev), "triton"]
