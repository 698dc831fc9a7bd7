"""Flash attention of e4m3 codes in Triton: one program per block of queries of one head.

    q [BLOCK_M, D] ── stays ──┐
    k [BLOCK_N, D] ─ block ─▶ dot ─▶ scores of codes ─▶ mask ─▶ online softmax ─▶ p 2^8 ─▶ e4m3 ─▶ dot(p, v) ─▶ o += ...
    v [BLOCK_N, D] ─ block ───────────────────────────────────────────────────────────────────────▶─┘

The scales of q and k are part of the exponent's factor, the scale of v is applied at the end, with 1 / l. Blocks in
which every query sees every key, [full_begin, full_end), come without a mask, those before and after with one.
"""

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
NO_MAXIMUM = tl.constexpr(-1.0e30)  # finite: a row with no visible key yet gives 2^-inf = 0 rather than NaN
MASKED_OUT = tl.constexpr(float("-inf"))
PROBABILITY_EXPONENT = tl.constexpr(8.0)  # e4m3 ends at 448 and becomes coarse below 2^-6
SMALLEST_SCALE = tl.constexpr(2.0**-120)  # not 0: hidden scores are -infinity
SPLIT = tl.constexpr(2.0**20 + 1.0)


@triton.jit
def four_bits(x):
    """x rounded to four significant bits, as e4m3 has them (Dekker 1971, "A floating-point technique for extending the
    available precision"): the conversion that follows is then exact. Triton's interpreter would not round."""
    shifted = x * SPLIT
    return shifted - (shifted - x)


@triton.jit
def attend(
    state,
    q,
    k_rows,
    v_rows,
    begin,
    end,
    keys,
    first_key,
    end_key,
    scale,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Attend to keys begin..end (begin a multiple of BLOCK_N). ``state``: accumulator, maxima and sums of the rows."""
    acc, row_max, row_sum = state
    columns = tl.arange(0, BLOCK_D)
    offsets = tl.arange(0, BLOCK_N)
    for start in range(begin, end, BLOCK_N):
        at = start + offsets
        present = (at[:, None] < keys) & (columns[None, :] < HEAD_DIM)
        address = at[:, None] * HEAD_DIM + columns[None, :]
        k = tl.load(k_rows + address, mask=present, other=0.0)
        scores = tl.dot(q, tl.trans(k)) * scale
        if MASKED:
            visible = (at[None, :] < end_key[:, None]) & (at[None, :] >= first_key[:, None])
            scores = tl.where(visible, scores, MASKED_OUT)
        new_max = tl.maximum(row_max, tl.max(scores, axis=1))
        p = tl.exp2(scores - (new_max - PROBABILITY_EXPONENT)[:, None])
        rescale = tl.exp2(row_max - new_max)
        row_sum = row_sum * rescale + tl.sum(p, axis=1)
        v = tl.load(v_rows + address, mask=present, other=0.0)
        acc = acc * rescale[:, None] + tl.dot(four_bits(p).to(v.dtype), v, max_num_imprecise_acc=0)
        row_max = new_max
    return acc, row_max, row_sum


@triton.jit
def flash_attention_fp8(
    q,
    k,
    v,
    q_scale,
    k_scale,
    v_scale,
    heads,
    q_heads,
    kv_heads,
    queries,
    keys,
    scales_of_batches,
    o,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
    SCALE: tl.constexpr,
):
    blocks = tl.cdiv(queries, BLOCK_M)
    block = tl.program_id(0) % blocks
    if CAUSAL:
        block = blocks - 1 - block  # longest first
    head = tl.program_id(0) // blocks
    batch = head // q_heads
    kv_head = batch * kv_heads + (head % q_heads) // (q_heads // kv_heads)
    q_at = tl.where(scales_of_batches != 0, head, head % q_heads)
    kv_at = tl.where(scales_of_batches != 0, kv_head, kv_head % kv_heads)
    scale = tl.maximum(tl.load(q_scale + q_at) * tl.load(k_scale + kv_at) * (SCALE * LOG2_E), SMALLEST_SCALE)

    first_query = block * BLOCK_M
    rows = first_query + tl.arange(0, BLOCK_M)
    columns = tl.arange(0, BLOCK_D)
    inside = (rows[:, None] < queries) & (columns[None, :] < HEAD_DIM)
    q_address = head.to(tl.int64) * queries * HEAD_DIM + rows[:, None] * HEAD_DIM + columns[None, :]
    q_tile = tl.load(q + q_address, mask=inside, other=0.0)
    k_rows = k + kv_head.to(tl.int64) * keys * HEAD_DIM
    v_rows = v + kv_head.to(tl.int64) * keys * HEAD_DIM

    # Visible keys of each row, and of the tile's first and last row.
    diagonal = keys - queries
    low = first_query + diagonal
    high = tl.minimum(first_query + BLOCK_M, queries) - 1 + diagonal
    first_key = tl.zeros([BLOCK_M], tl.int32)
    end_key = tl.zeros([BLOCK_M], tl.int32) + keys
    begin = 0
    full_begin = 0
    full_end = keys
    end = keys
    if CAUSAL:
        end_key = tl.minimum(rows + diagonal + 1, keys)
        full_end = tl.minimum(low + 1, keys)
        end = tl.minimum(high + 1, keys)
    if WINDOW > 0:
        first_key = tl.maximum(rows + diagonal - (WINDOW - 1), 0)
        begin = tl.maximum(low - (WINDOW - 1), 0) // BLOCK_N * BLOCK_N
        full_begin = tl.cdiv(tl.maximum(high - (WINDOW - 1), 0), BLOCK_N) * BLOCK_N
    end = tl.maximum(end, begin)
    full_begin = tl.maximum(tl.minimum(full_begin, tl.cdiv(end, BLOCK_N) * BLOCK_N), begin)
    full_end = tl.maximum(tl.maximum(full_end, 0) // BLOCK_N * BLOCK_N, full_begin)

    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    row_max = tl.zeros([BLOCK_M], tl.float32) + NO_MAXIMUM
    row_sum = tl.zeros([BLOCK_M], tl.float32)
    state = acc, row_max, row_sum
    window = (keys, first_key, end_key, scale)
    if WINDOW > 0:
        state = attend(state, q_tile, k_rows, v_rows, begin, full_begin, *window, HEAD_DIM, BLOCK_D, BLOCK_N, True)
    state = attend(state, q_tile, k_rows, v_rows, full_begin, full_end, *window, HEAD_DIM, BLOCK_D, BLOCK_N, False)
    state = attend(state, q_tile, k_rows, v_rows, full_end, end, *window, HEAD_DIM, BLOCK_D, BLOCK_N, True)
    acc, row_max, row_sum = state
    factor = tl.load(v_scale + kv_at) / tl.where(row_sum == 0.0, 1.0, row_sum)  # rows that saw no key stay zero
    tl.store(o + q_address, (acc * factor[:, None]).to(o.dtype.element_ty), mask=inside)
