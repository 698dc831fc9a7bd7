"""Writing new rows into a KV cache in place, in Triton: a program moves BLOCK elements of one head."""

import triton
import triton.language as tl


@triton.jit
def kv_cache_update(cache_ptr, new_ptr, positions_ptr, T, S, D, updated_ptr, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    sequence = tl.program_id(2)
    head = sequence.to(tl.int64) * tl.num_programs(1) + tl.program_id(1)
    row = tl.load(positions_ptr + sequence) + at // D
    inside = (at < T * D) & (row >= 0) & (row < S)
    new = tl.load(new_ptr + head * T * D + at, mask=inside)
    tl.store(updated_ptr + (head * S + row) * D + at % D, new, mask=inside)
