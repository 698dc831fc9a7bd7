"""Attention over packed sequences in Triton: one program per block of queries of one sequence and one head.

    tokens   │ sequence 0 │ sequence 1 │ ... │ sequence n-1 │ of nobody │      offsets[s]: where sequence s begins
    slots    [ .. . ][ .. ][ ...                            [ .. ]

Slots are those of flash_attention/packed_sequences.cuh, the loop is that of flash_attention/attend_triton.py. Sequence
s has the slots floor(offsets[s] / BLOCK_M) + s up to the first of s + 1, at least as many as its blocks, one too many
at most. Queries after the last offset are the sequence n, without keys: zeros. Offsets are clamped to the tensors, so
that nothing outside is touched whatever they hold.
"""

import triton
import triton.language as tl

from trtforge.kernels.flash_attention.attend_triton import LOG2_E, attend, or_one, visible_keys

CANDIDATES = tl.constexpr(128)  # sequences that are asked at once


@triton.jit
def offset_of(offsets, index, tokens, asked):
    """Where sequence ``index`` begins; entries that are not ``asked`` for are not read."""
    found = tl.load(offsets + index, mask=asked, other=0)
    return tl.where(index == 0, 0, tl.minimum(tl.maximum(found, 0), tokens))


@triton.jit
def sequence_of(slot, offsets, count, tokens, BLOCK_M: tl.constexpr):
    """The last of the sequences 0 to ``count`` whose first slot is not after ``slot``, and its first slot.

    Each round asks as many sequences, evenly spread, and goes on between the last that has begun and the next.
    """
    lanes = tl.arange(0, CANDIDATES)
    sequence = 0
    candidates = count + 1
    while candidates > 1:
        step = tl.cdiv(candidates, CANDIDATES)
        asked = lanes * step < candidates
        index = sequence + lanes * step
        begun = asked & (offset_of(offsets, index, tokens, asked) // BLOCK_M + index <= slot)
        passed = tl.maximum(tl.sum(begun.to(tl.int32), axis=0) - 1, 0) * step
        sequence += passed
        candidates = tl.minimum(step, candidates - passed)
    return sequence, offset_of(offsets, sequence, tokens, True) // BLOCK_M + sequence


@triton.jit
def flash_attention_varlen(
    q,
    k,
    v,
    cu_seqlens_q,
    cu_seqlens_k,
    count,
    q_heads,
    kv_heads,
    q_tokens,
    k_tokens,
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
    slots = q_tokens // BLOCK_M + count + 1
    slot = tl.program_id(0) % slots
    head = tl.program_id(0) // slots
    sequence, first_slot = sequence_of(slot, cu_seqlens_q, count, q_tokens, BLOCK_M)
    last = sequence == count  # the queries of nobody
    following = tl.minimum(sequence + 1, count)
    q_begin = offset_of(cu_seqlens_q, sequence, q_tokens, True)
    k_begin = offset_of(cu_seqlens_k, sequence, k_tokens, True)
    q_end = tl.where(last, q_tokens, offset_of(cu_seqlens_q, following, q_tokens, True))
    k_end = tl.where(last, k_begin, offset_of(cu_seqlens_k, following, k_tokens, True))
    queries = tl.maximum(q_end - q_begin, 0)
    keys = tl.maximum(k_end - k_begin, 0)
    blocks = tl.cdiv(queries, BLOCK_M)
    block = slot - first_slot
    if (block < 0) | (block >= blocks):
        return  # a slot too many
    if CAUSAL:
        block = blocks - 1 - block  # longest first

    first_query = block * BLOCK_M
    last_query = tl.minimum(first_query + BLOCK_M, queries) - 1
    rows = first_query + tl.arange(0, BLOCK_M)
    columns = tl.arange(0, BLOCK_D)
    inside = (rows[:, None] < queries) & (columns[None, :] < HEAD_DIM)
    q_rows = (q_begin + rows).to(tl.int64) * q_heads + head
    q_address = q_rows[:, None] * HEAD_DIM + columns[None, :]
    q_tile = tl.load(q + q_address, mask=inside, other=0.0)
    pitch = kv_heads * HEAD_DIM
    kv_offset = k_begin.to(tl.int64) * pitch + head // (q_heads // kv_heads) * HEAD_DIM
    cache = (k + kv_offset, v + kv_offset, keys, pitch, None)
    limits, runs = visible_keys(rows, first_query, last_query, keys, queries, BLOCK_N, CAUSAL, WINDOW)
    # fmt: off
    acc, _, row_sum = attend(q_tile, cache, None, limits, runs, HEAD_DIM, BLOCK_D, BLOCK_M, BLOCK_N,
                             WINDOW, SOFT_CAP, SCALE * LOG2_E, 0.0)
    # fmt: on
    result = acc / or_one(row_sum)[:, None]
    tl.store(o + q_address, result.to(o.dtype.element_ty), mask=inside)
