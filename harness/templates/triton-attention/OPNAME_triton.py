"""Flash attention: one program per BLOCK_M queries of one head, which never writes the scores to memory.

    q [BLOCK_M, D] ── stays ──┐
    k [BLOCK_N, D] ── read ──▶ dot ──▶ formula ──▶ mask ──▶ online softmax ──▶ p ──▶ dot(p, v) ──▶ added to o
    v [BLOCK_N, D] ── read ────────────────────────────────────────────────────────▶─┘

Online softmax: Milakov and Gimelshein 2018, arXiv:1805.02867; its tiling: Dao et al. 2022, arXiv:2205.14135.
"""

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
NO_MAXIMUM = tl.constexpr(-1.0e30)  # finite, so that a row that sees no key yet subtracts no infinities
HIDDEN = tl.constexpr(float("-inf"))


# ==== THE FORMULA: edit it here and in op.py ====
@triton.jit
def formula(product, query, key, SCALE: tl.constexpr):
    """The score of a query and a key; ``query`` and ``key`` are their positions among the keys."""
    return product * SCALE


# ================================================


@triton.jit
def OPNAME_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    queries,
    keys,
    o_ptr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    CAUSAL: tl.constexpr,
    SCALE: tl.constexpr,
):
    blocks = tl.cdiv(queries, BLOCK_M)
    head = (tl.program_id(0) // blocks).to(tl.int64)
    row = tl.program_id(0) % blocks * BLOCK_M + tl.arange(0, BLOCK_M)
    column = tl.arange(0, BLOCK_D)
    query = row + keys - queries

    q_at = head * queries * HEAD_DIM + row[:, None] * HEAD_DIM + column[None, :]
    q_inside = (row[:, None] < queries) & (column[None, :] < HEAD_DIM)
    q = tl.load(q_ptr + q_at, mask=q_inside, other=0.0)

    end = keys
    if CAUSAL:
        end = tl.minimum(keys, tl.max(query, axis=0) + 1)
    o = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    highest = tl.full([BLOCK_M], NO_MAXIMUM, tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    for start in range(0, end, BLOCK_N):
        key = start + tl.arange(0, BLOCK_N)
        kv_at = head * keys * HEAD_DIM + key[:, None] * HEAD_DIM + column[None, :]
        kv_inside = (key[:, None] < keys) & (column[None, :] < HEAD_DIM)
        k = tl.load(k_ptr + kv_at, mask=kv_inside, other=0.0)
        scores = formula(tl.dot(q, tl.trans(k)), query[:, None], key[None, :], SCALE)
        visible = key[None, :] < keys
        if CAUSAL:
            visible = visible & (key[None, :] <= query[:, None])
        scores = tl.where(visible, scores, HIDDEN)

        new_highest = tl.maximum(highest, tl.max(scores, axis=1))
        p = tl.exp2((scores - new_highest[:, None]) * LOG2_E)
        rescale = tl.exp2((highest - new_highest) * LOG2_E)
        total = total * rescale + tl.sum(p, axis=1)
        v = tl.load(v_ptr + kv_at, mask=kv_inside, other=0.0)
        o = o * rescale[:, None] + tl.dot(p.to(v.dtype), v)
        highest = new_highest
    o = o / tl.where(total == 0.0, 1.0, total)[:, None]  # a row that saw no key stays zero
    tl.store(o_ptr + q_at, o.to(o_ptr.dtype.element_ty), mask=q_inside)
