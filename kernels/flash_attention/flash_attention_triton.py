"""Flash attention in Triton: one program per block of queries of one head.

    q [BLOCK_M, D] ── stays ──┐
    k [BLOCK_N, D] ─ block ─▶ dot ─▶ scores ─▶ soft cap ─▶ mask ─▶ online softmax ─▶ p ─▶ dot(p, v) ─▶ o += ...
    v [BLOCK_N, D] ─ block ────────────────────────────────────────────────────────────▶─┘

The key blocks fall into three runs, [begin, full_begin) and [full_end, end) with a mask, [full_begin, full_end)
without. Probabilities are computed in base two with the scale folded into the exponent (Milakov & Gimelshein 2018,
arXiv:1805.02867; Dao 2023, arXiv:2307.08691). Head dimensions that are not powers of two are padded with zeros.
"""

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
NO_MAXIMUM = tl.constexpr(-1.0e30)  # finite: a row with no visible key yet gives 2^-inf = 0 rather than NaN
MASKED_OUT = tl.constexpr(float("-inf"))


@triton.jit
def attend(
    acc,
    row_max,
    row_sum,
    q,
    k_rows,
    v_rows,
    begin,
    end,
    keys,
    first_key,
    end_key,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    MASKED: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFT_CAP: tl.constexpr,
    SCALE: tl.constexpr,
):
    """Attend to keys begin..end (begin a multiple of BLOCK_N); returns the new accumulator, maxima and sums."""
    columns = tl.arange(0, BLOCK_D)
    offsets = tl.arange(0, BLOCK_N)
    for start in range(begin, end, BLOCK_N):
        at = start + offsets
        present = (at[:, None] < keys) & (columns[None, :] < HEAD_DIM)
        address = at[:, None] * HEAD_DIM + columns[None, :]
        k = tl.load(k_rows + address, mask=present, other=0.0)
        scores = tl.dot(q, tl.trans(k))
        if SOFT_CAP > 0:
            capped = 2.0 * LOG2_E * SCALE / SOFT_CAP
            scores = 1.0 - 2.0 / (tl.exp2(scores * capped) + 1.0)
            exponent_scale: tl.constexpr = SOFT_CAP * LOG2_E
        else:
            exponent_scale: tl.constexpr = SCALE * LOG2_E
        if MASKED:
            visible = at[None, :] < end_key[:, None]
            if WINDOW > 0:
                visible = visible & (at[None, :] >= first_key[:, None])
            scores = tl.where(visible, scores, MASKED_OUT)
        new_max = tl.maximum(row_max, tl.max(scores, axis=1))
        p = tl.exp2(scores * exponent_scale - (new_max * exponent_scale)[:, None])
        rescale = tl.exp2((row_max - new_max) * exponent_scale)
        row_sum = row_sum * rescale + tl.sum(p, axis=1)
        v = tl.load(v_rows + address, mask=present, other=0.0)
        acc = acc * rescale[:, None] + tl.dot(p.to(v.dtype), v)
        row_max = new_max
    return acc, row_max, row_sum


@triton.jit
def flash_attention(
    q,
    k,
    v,
    k_lengths,
    heads,
    q_heads,
    kv_heads,
    queries,
    keys_in_memory,
    o,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFT_CAP: tl.constexpr,
    SCALE: tl.constexpr,
    HAS_K_LENGTHS: tl.constexpr,
):
    blocks = tl.cdiv(queries, BLOCK_M)
    program = tl.program_id(0)
    block = program % blocks
    if CAUSAL:
        block = blocks - 1 - block  # longest first
    head = program // blocks
    batch = head // q_heads
    kv_head = batch * kv_heads + (head % q_heads) // (q_heads // kv_heads)

    keys = keys_in_memory
    if HAS_K_LENGTHS:
        keys = tl.minimum(tl.maximum(tl.load(k_lengths + batch), 0), keys_in_memory)
    diagonal = keys - queries

    first_query = block * BLOCK_M
    last_query = tl.minimum(first_query + BLOCK_M, queries) - 1
    rows = first_query + tl.arange(0, BLOCK_M)
    columns = tl.arange(0, BLOCK_D)
    inside = (rows[:, None] < queries) & (columns[None, :] < HEAD_DIM)
    q_address = head.to(tl.int64) * queries * HEAD_DIM + rows[:, None] * HEAD_DIM + columns[None, :]
    q_tile = tl.load(q + q_address, mask=inside, other=0.0)
    kv_offset = kv_head.to(tl.int64) * keys_in_memory * HEAD_DIM

    # Visible keys of each row, and of the tile's first and last row.
    end_key = tl.zeros([BLOCK_M], tl.int32) + keys
    end_low = keys
    end_high = keys
    if CAUSAL:
        end_key = tl.minimum(end_key, rows + diagonal + 1)
        end_low = tl.minimum(keys, first_query + diagonal + 1)
        end_high = tl.minimum(keys, last_query + diagonal + 1)
    first_key = tl.zeros([BLOCK_M], tl.int32)
    begin_low = 0
    begin_high = 0
    if WINDOW > 0:
        first_key = tl.maximum(rows + diagonal - (WINDOW - 1), 0)
        begin_low = tl.maximum(first_query + diagonal - (WINDOW - 1), 0)
        begin_high = tl.maximum(last_query + diagonal - (WINDOW - 1), 0)

    begin = begin_low // BLOCK_N * BLOCK_N
    end = tl.maximum(end_high, begin)
    full_begin = tl.minimum(tl.cdiv(begin_high, BLOCK_N) * BLOCK_N, tl.cdiv(end, BLOCK_N) * BLOCK_N)
    full_begin = tl.maximum(full_begin, begin)
    full_end = tl.maximum(tl.maximum(end_low, 0) // BLOCK_N * BLOCK_N, full_begin)

    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    row_max = tl.zeros([BLOCK_M], tl.float32) + NO_MAXIMUM
    row_sum = tl.zeros([BLOCK_M], tl.float32)
    if WINDOW > 0:
        acc, row_max, row_sum = attend(
            acc,
            row_max,
            row_sum,
            q_tile,
            k + kv_offset,
            v + kv_offset,
            begin,
            full_begin,
            keys,
            first_key,
            end_key,
            HEAD_DIM,
            BLOCK_D,
            BLOCK_N,
            True,
            WINDOW,
            SOFT_CAP,
            SCALE,
        )
    acc, row_max, row_sum = attend(
        acc,
        row_max,
        row_sum,
        q_tile,
        k + kv_offset,
        v + kv_offset,
        full_begin,
        full_end,
        keys,
        first_key,
        end_key,
        HEAD_DIM,
        BLOCK_D,
        BLOCK_N,
        False,
        WINDOW,
        SOFT_CAP,
        SCALE,
    )
    acc, row_max, row_sum = attend(
        acc,
        row_max,
        row_sum,
        q_tile,
        k + kv_offset,
        v + kv_offset,
        full_end,
        end,
        keys,
        first_key,
        end_key,
        HEAD_DIM,
        BLOCK_D,
        BLOCK_N,
        True,
        WINDOW,
        SOFT_CAP,
        SCALE,
    )
    result = acc / tl.where(row_sum == 0.0, 1.0, row_sum)[:, None]  # rows that saw no key stay zero
    tl.store(o + q_address, result.to(o.dtype.element_ty), mask=inside)
