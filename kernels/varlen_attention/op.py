"""Attention over sequences of different lengths, packed one after another without padding."""

from itertools import pairwise
from typing import Any

import numpy as np

from trtforge.kernels import HALF, Cost, Launch, Op, Tensor, TensorMap, cuda, triton
from trtforge.kernels.flash_attention import prefill, triton_tiles
from trtforge.kernels.flash_attention.op import RULES, attention_and_log_sum_exp, flash_attention, visible_keys
from trtforge.kernels.varlen_attention import peers
from trtforge.kernels.varlen_attention.cases import CASES, k_offsets, q_offsets

MEAN_QUERIES_FOR_SM90 = 64  # of a sequence; with fewer, most rows of an sm90 tile would be another sequence's

flash_attention_varlen = Op(
    "trtforge::flash_attention_varlen",
    doc="""Attention of sequences of different lengths, packed one after another (Dao et al. 2022, arXiv:2205.14135).

Sequence b has the queries cu_seqlens_q[b] up to cu_seqlens_q[b + 1] and the keys cu_seqlens_k[b] up to
cu_seqlens_k[b + 1]; either may be none. Within a sequence it is trtforge::flash_attention: query head h reads key head
h // (Hq / Hkv), queries are aligned to the end of the keys, and `causal` and `window` hide what they hide there. Zeros
come out for a query that sees no key, and for queries after the last offset.

Offsets start with 0 and do not descend. Others are clamped to 0 to Tq (or Tk), and the first is taken as 0: nothing
outside of the tensors is read or written whatever they hold, but where they descend the output is undefined.""",
    inputs={
        "q": Tensor("Tq", "Hq", "D", dtype=HALF, doc="queries of all sequences"),
        "k": Tensor("Tk", "Hkv", "D", dtype="q", doc="keys of all sequences"),
        "v": Tensor("Tk", "Hkv", "D", dtype="q", doc="values of all sequences"),
        "cu_seqlens_q": Tensor(
            "offsets",
            dtype="int32",
            sample=lambda rng, shape, d: q_offsets(d),
            doc="where the queries of each sequence begin, and where the last ends",
        ),
        "cu_seqlens_k": Tensor(
            "offsets",
            dtype="int32",
            sample=lambda rng, shape, d: k_offsets(d),
            doc="where the keys of each sequence begin, and where the last ends",
        ),
    },
    outputs={"o": Tensor("Tq", "Hq", "D", dtype="q", doc="attention output")},
    attributes=flash_attention.attributes,
    rules=[
        *RULES,
        (
            lambda d: (d.Tk < 1 << 31) & (d.Tq * (d.Hq // d.Hkv) < 1 << 31),
            "Tk, and Tq times the query heads of a key head, must be below 2^31: rows are counted in 32 bits",
        ),
        (lambda d: d.offsets >= 2, "one sequence has two offsets, 0 and its length: pass at least two"),
    ],
    tolerance=flash_attention.tolerance,
    cases=CASES,
)


def sequences_of(offsets: np.ndarray, tokens: int) -> list[slice]:
    """The tokens of each sequence; offsets as the kernels take them."""
    ends = np.clip(offsets, 0, tokens)
    ends[0] = 0
    return [slice(int(a), max(int(a), int(b))) for a, b in pairwise(ends)]


@flash_attention_varlen.reference
def _(q, k, v, cu_seqlens_q, cu_seqlens_k, **attributes):
    o = np.zeros(q.shape, np.float32)
    for queries, keys in zip(sequences_of(cu_seqlens_q, len(q)), sequences_of(cu_seqlens_k, len(k))):
        if queries.stop > queries.start and keys.stop > keys.start:
            q_one, k_one, v_one = (np.swapaxes(x, 0, 1)[None] for x in (q[queries], k[keys], v[keys]))
            one, _ = attention_and_log_sum_exp(q_one, k_one, v_one, None, **attributes)
            o[queries] = np.swapaxes(one[0], 0, 1)
    return o


@flash_attention_varlen.cost
def _(d, a):
    """Two products per visible (query, key) pair. Lengths are data: those of the cases are counted."""
    pairs = 0
    for queries, keys in zip(np.diff(q_offsets(d)), np.diff(k_offsets(d))):
        first, end = visible_keys(int(queries), int(keys), int(keys), a.causal, a.window)
        pairs += int(np.maximum(end - first, 0).sum())
    return Cost(flops=4 * d.Hq * pairs * d.D)


@flash_attention_varlen.part
def _(rng, d):
    """One key head and its group; all sequences."""
    g, group = int(rng.integers(d.Hkv)), d.Hq // d.Hkv
    rows = np.s_[:, g * group : (g + 1) * group]
    keys = np.s_[:, g : g + 1]
    return {"q": rows, "k": keys, "v": keys}, {"o": rows}


def _slots(tokens: Any, rows: int, offsets: Any) -> Any:
    """Blocks of a head: one for each tile of ``rows`` rows, at most one too many for each sequence and for the rest."""
    return tokens // rows + offsets


_CONSTANTS = {"VARLEN": 1, "WITH_LSE": 0, "HAS_K_LENGTHS": 0}


@flash_attention_varlen.kernel(
    cuda("../flash_attention/flash_attention_sm90.cu"),
    name="sm90",
    arch=("sm_90a",),
    tactics=tuple(t for t in prefill.SM90_TACTICS if not t["PERSISTENT"]),
    requires=prefill.SM90_REQUIRES,
)
def _(d, t):
    rows = t.CONSUMERS * prefill.SM90_ROWS
    maps = [
        TensorMap(
            name,
            shape=(d.D, tokens, heads),
            strides=(heads * d.D, d.D),
            box=(prefill.SM90_CHUNK, box_rows, 1),
            swizzle=128,
        )
        for name, tokens, heads, box_rows in (
            ("q", d.Tq, d.Hq, prefill.SM90_ROWS),
            ("k", d.Tk, d.Hkv, t.BLOCK_N),
            ("v", d.Tk, d.Hkv, t.BLOCK_N),
        )
    ]
    return Launch(
        grid=_slots(d.Tq, rows, d.offsets) * d.Hq,
        block=(t.CONSUMERS + 1) * 128,
        shared=prefill.sm90_shared_bytes(t),
        scalars=(d.offsets - 1, d.Hq, d.Hkv, d.Tq, d.Tk),
        constants={"HEAD_DIM": d.D, **_CONSTANTS},
        tensor_maps=tuple(maps),
    )


@flash_attention_varlen.kernel(
    cuda("../flash_attention/flash_attention_mma.cu"),
    name="mma",
    tactics=prefill.MMA_TACTICS,
    requires=prefill.MMA_REQUIRES,
)
def _(d, t):
    rows = t.WARPS * t.M_TILES * 16
    return Launch(
        grid=_slots(d.Tq * (d.Hq // d.Hkv), rows, d.offsets) * d.Hkv,
        block=t.WARPS * 32,
        shared=prefill.mma_shared_bytes(d, t),
        scalars=(d.offsets - 1, d.Hq, d.Hkv, d.Tq, d.Tk),
        constants={"HEAD_DIM": d.D, **_CONSTANTS},
    )


# Those of flash_attention. With tiles of 16 queries a third stage, without which ptxas spills a register at D 64; for D
# over 128 twice the warps, since a thread also keeps where its keys are.
TRITON_TACTICS = (
    *triton_tiles.TACTICS[:3],
    {**triton_tiles.TACTICS[3], "num_stages": 3},
    {**triton_tiles.TACTICS[0], "num_warps": 8},
)


@flash_attention_varlen.kernel(
    triton("flash_attention_varlen_triton.py", entry="flash_attention_varlen"),
    tactics=TRITON_TACTICS,
    requires=[
        *triton_tiles.REQUIRES,
        (
            lambda d, t: t.BLOCK_M != 64 or (t.BLOCK_N // t.num_warps <= 4) == (int(d.D) > 128),
            "holds 64 rows in registers with 4 keys to a warp for D over 128, and with 8 up to 128",
        ),
    ],
)
def _(d, t):
    return Launch(
        grid=_slots(d.Tq, t.BLOCK_M, d.offsets) * d.Hq,
        scalars=(d.offsets - 1, d.Hq, d.Hkv, d.Tq, d.Tk),
        constants=triton_tiles.widths(d),
    )


@flash_attention_varlen.heuristic
def _(d, a, dev):
    """sm90 where it serves and sequences are not very short, else mma; Triton is measured nowhere and comes last."""
    order: list[object] = []
    sequences = d.offsets - 1
    if dev.cc == 90 and d.Tq >= MEAN_QUERIES_FOR_SM90 * sequences and d.D % 8 == 0:
        order += [("sm90", form) for form in prefill.sm90_forms(d, 0)]
        order.append("sm90")
    return [*order, *prefill.mma_preferences(d, d.Tq // sequences * (d.Hq // d.Hkv)), "triton"]


peers.declare(flash_attention_varlen)
