"""Flash attention of e4m3 codes in Triton: one program per block of queries of one head.

    q [BLOCK_M, D] ── stays ──┐
    k [BLOCK_N, D] ─ block ─▶ dot ─▶ scores of codes ─▶ mask ─▶ online softmax ─▶ p 2^8 ─▶ e4m3 ─▶ dot(p, v) ─▶ o += ...
    v [BLOCK_N, D] ─ block ───────────────────────────────────────────────────────────────────────▶─┘

The loop is that of flash_attention/attend_triton.py. The scales of q and k are part of the exponent's factor, the scale
of v is applied at the end, with 1 / l.
"""

import triton
import triton.language as tl

from trtforge.kernels.flash_attention.attend_triton import LOG2_E, attend, or_one, visible_keys

PROBABILITY_EXPONENT = tl.constexpr(8.0)  # e4m3 ends at 448 and becomes coarse below 2^-6
SMALLEST_SCALE = tl.constexpr(2.0**-120)  # not 0: hidden scores are -infinity


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
    last_query = tl.minimum(first_query + BLOCK_M, queries) - 1
    rows = first_query + tl.arange(0, BLOCK_M)
    columns = tl.arange(0, BLOCK_D)
    inside = (rows[:, None] < queries) & (columns[None, :] < HEAD_DIM)
    q_address = head.to(tl.int64) * queries * HEAD_DIM + rows[:, None] * HEAD_DIM + columns[None, :]
    q_tile = tl.load(q + q_address, mask=inside, other=0.0)
    kv_offset = kv_head.to(tl.int64) * keys * HEAD_DIM
    cache = (k + kv_offset, v + kv_offset, keys, None, None)
    limits, runs = visible_keys(rows, first_query, last_query, keys, queries, BLOCK_N, CAUSAL, WINDOW)
    # fmt: off
    acc, _, row_sum = attend(q_tile, cache, scale, limits, runs, HEAD_DIM, BLOCK_D, BLOCK_M, BLOCK_N,
                             WINDOW, 0.0, 1.0, PROBABILITY_EXPONENT)
    # fmt: on
    factor = tl.load(v_scale + kv_at) / or_one(row_sum)
    tl.store(o + q_address, (acc * factor[:, None]).to(o.dtype.element_ty), mask=inside)
