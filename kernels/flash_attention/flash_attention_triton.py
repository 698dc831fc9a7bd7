"""Flash attention in Triton: one program per block of queries of one head. The loop is that of attend_triton.py."""

import triton
import triton.language as tl

from trtforge.kernels.flash_attention.attend_triton import LN_2, LOG2_E, attend, or_one, visible_keys


@triton.jit
def attend_tile(
    q,
    k,
    v,
    k_lengths,
    q_heads,
    kv_heads,
    queries,
    keys_in_memory,
    o,
    lse,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFT_CAP: tl.constexpr,
    SCALE: tl.constexpr,
):
    """This program's tile of o, and of lse unless that is None."""
    blocks = tl.cdiv(queries, BLOCK_M)
    program = tl.program_id(0)
    block = program % blocks
    if CAUSAL:
        block = blocks - 1 - block  # longest first
    head = program // blocks
    batch = head // q_heads
    kv_head = batch * kv_heads + (head % q_heads) // (q_heads // kv_heads)

    keys = keys_in_memory
    if k_lengths is not None:
        keys = tl.minimum(tl.maximum(tl.load(k_lengths + batch), 0), keys_in_memory)

    first_query = block * BLOCK_M
    last_query = tl.minimum(first_query + BLOCK_M, queries) - 1
    rows = first_query + tl.arange(0, BLOCK_M)
    columns = tl.arange(0, BLOCK_D)
    inside = (rows[:, None] < queries) & (columns[None, :] < HEAD_DIM)
    q_address = head.to(tl.int64) * queries * HEAD_DIM + rows[:, None] * HEAD_DIM + columns[None, :]
    q_tile = tl.load(q + q_address, mask=inside, other=0.0)
    kv_offset = kv_head.to(tl.int64) * keys_in_memory * HEAD_DIM
    cache = (k + kv_offset, v + kv_offset, keys, None, None)
    limits, runs = visible_keys(rows, first_query, last_query, keys, queries, BLOCK_N, CAUSAL, WINDOW)
    # fmt: off
    acc, row_max, row_sum = attend(q_tile, cache, None, limits, runs, HEAD_DIM, BLOCK_D, BLOCK_M, BLOCK_N,
                                   WINDOW, SOFT_CAP, SCALE * LOG2_E, 0.0)
    # fmt: on
    result = acc / or_one(row_sum)[:, None]
    tl.store(o + q_address, result.to(o.dtype.element_ty), mask=inside)
    if lse is not None:
        unit: tl.constexpr = SOFT_CAP if SOFT_CAP > 0 else SCALE
        sums = row_max * unit + tl.log2(row_sum) * LN_2  # -infinity where no key was seen
        sums = tl.where(row_sum == 0.0, float("-inf"), sums)
        tl.store(lse + head.to(tl.int64) * queries + rows, sums, mask=rows < queries)


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
):
    # fmt: off
    attend_tile(q, k, v, k_lengths, q_heads, kv_heads, queries, keys_in_memory, o, None,
                HEAD_DIM, BLOCK_D, BLOCK_M, BLOCK_N, CAUSAL, WINDOW, SOFT_CAP, SCALE)
    # fmt: on


@triton.jit
def flash_attention_lse(
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
    lse,
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
    attend_tile(q, k, v, k_lengths, q_heads, kv_heads, queries, keys_in_memory, o, lse,
                HEAD_DIM, BLOCK_D, BLOCK_M, BLOCK_N, CAUSAL, WINDOW, SOFT_CAP, SCALE)
    # fmt: on
