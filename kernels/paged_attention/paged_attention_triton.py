"""Attention of few queries over a cache in pages, in Triton: one program per key head of a sequence and BLOCK_M rows.

    packed row r = query r / group, head r % group of the query heads that share the key head

    q [BLOCK_M, D] ─── stays ────────────┐
    table ─▶ page of each key ─▶ k, v ─▶ the loop of flash_attention/attend_triton.py ─▶ o

Rows are packed because tl.dot wants 16 of them at least. A program attends to all keys of its sequence: Triton has
neither clusters that programs could meet in nor, in an op without scratch memory, a place to combine splits in.

With an 8-bit cache products are float16, and a row of bfloat16 may not fit: each row of q is divided by the power of
two below its largest magnitude, and its scores are multiplied by that again.
"""

import triton
import triton.language as tl

from trtforge.kernels.flash_attention.attend_triton import LOG2_E, attend, or_one, visible_keys


@triton.jit
def divided_rows(q):
    """(q as float16, each row divided by the power of two below its largest magnitude; these powers)."""
    q = q.to(tl.float32)
    largest = tl.max(tl.abs(q), axis=1)
    exponent = tl.minimum(tl.maximum(largest.to(tl.int32, bitcast=True) >> 23, 1), 253)
    divide = ((254 - exponent) << 23).to(tl.float32, bitcast=True)
    multiply = (exponent << 23).to(tl.float32, bitcast=True)
    return (q * divide[:, None]).to(tl.float16), multiply


@triton.jit
def attend_rows(
    q,
    k_cache,
    v_cache,
    k_scale,
    v_scale,
    k_lengths,
    block_table,
    q_heads,
    kv_heads,
    queries,
    pages,
    page_size,
    pages_per_sequence,
    o,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFT_CAP: tl.constexpr,
    SCALE: tl.constexpr,
):
    """This program's rows of o. The scales are None where the cache has the type of q."""
    group = q_heads // kv_heads
    row_blocks = tl.cdiv(queries * group, BLOCK_M)
    first_row = tl.program_id(0) % row_blocks * BLOCK_M
    kv_head = tl.program_id(0) // row_blocks % kv_heads
    batch = tl.program_id(0) // row_blocks // kv_heads

    keys = pages_per_sequence * page_size
    if k_lengths is not None:
        keys = tl.minimum(tl.maximum(tl.load(k_lengths + batch), 0), keys)

    rows = first_row + tl.arange(0, BLOCK_M)
    query = rows // group
    columns = tl.arange(0, BLOCK_D)
    inside = (query[:, None] < queries) & (columns[None, :] < HEAD_DIM)
    q_head = batch * q_heads + kv_head * group + rows % group
    q_address = (q_head.to(tl.int64) * queries + query)[:, None] * HEAD_DIM + columns[None, :]
    q_tile = tl.load(q + q_address, mask=inside, other=0.0)
    if block_table is None:
        offset = (batch.to(tl.int64) * kv_heads + kv_head) * page_size * HEAD_DIM
        cache = (k_cache + offset, v_cache + offset, keys, None, None)
    else:
        place = (block_table + batch.to(tl.int64) * pages_per_sequence, pages, page_size, kv_heads, kv_head)
        cache = (k_cache, v_cache, keys, None, place)
    row_scale = None
    v_unit = 1.0
    if k_scale is not None:
        q_tile, power = divided_rows(q_tile)
        row_scale = (power * tl.load(k_scale + kv_head))[:, None]
        v_unit = tl.load(v_scale + kv_head)

    last_query = (tl.minimum(first_row + BLOCK_M, queries * group) - 1) // group
    limits, runs = visible_keys(query, first_row // group, last_query, keys, queries, BLOCK_N, CAUSAL, WINDOW)
    # fmt: off
    acc, _, row_sum = attend(q_tile, cache, row_scale, limits, runs, HEAD_DIM, BLOCK_D, BLOCK_M, BLOCK_N,
                             WINDOW, SOFT_CAP, SCALE * LOG2_E, 0.0)
    # fmt: on
    result = acc * (v_unit / or_one(row_sum))[:, None]
    tl.store(o + q_address, result.to(o.dtype.element_ty), mask=inside)


@triton.jit
def paged_attention(
    q,
    k_cache,
    v_cache,
    k_lengths,
    block_table,
    q_heads,
    kv_heads,
    queries,
    pages,
    page_size,
    pages_per_sequence,
    o,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFT_CAP: tl.constexpr,
    SCALE: tl.constexpr,
):
    # fmt: off
    attend_rows(q, k_cache, v_cache, None, None, k_lengths, block_table,
                q_heads, kv_heads, queries, pages, page_size, pages_per_sequence, o,
                HEAD_DIM, BLOCK_D, BLOCK_M, BLOCK_N, CAUSAL, WINDOW, SOFT_CAP, SCALE)
    # fmt: on


@triton.jit
def paged_attention_8bit(
    q,
    k_cache,
    v_cache,
    k_scale,
    v_scale,
    k_lengths,
    block_table,
    q_heads,
    kv_heads,
    queries,
    pages,
    page_size,
    pages_per_sequence,
    o,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFT_CAP: tl.constexpr,
    SCALE: tl.constexpr,
):
    # fmt: off
    attend_rows(q, k_cache, v_cache, k_scale, v_scale, k_lengths, block_table,
                q_heads, kv_heads, queries, pages, page_size, pages_per_sequence, o,
                HEAD_DIM, BLOCK_D, BLOCK_M, BLOCK_N, CAUSAL, WINDOW, SOFT_CAP, SCALE)
    # fmt: on
