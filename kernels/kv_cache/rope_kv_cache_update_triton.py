"""Rotary embedding and quantization of new keys and values on their way into a cache: a program takes one token."""

import triton
import triton.language as tl

from trtforge.kernels.common.quantize_triton import encode


@triton.jit
def _put(cache, offset, value, scale, at, stored, TO: tl.constexpr):
    if scale is None:
        tl.store(cache + offset, value.to(cache.dtype.element_ty), mask=stored)
    else:
        divisor = tl.load(scale + at)[:, None]
        code = encode(tl.math.div_rn(value, tl.broadcast_to(divisor, value.shape)), TO)
        tl.store(cache + offset, code.to(tl.uint8).to(cache.dtype.element_ty, bitcast=True), mask=stored)


@triton.jit
def rope_kv_cache_update(
    k_cache,
    v_cache,
    k,
    v,
    cos,
    sin,
    positions,
    k_scale,
    v_scale,
    block_table,
    heads,
    tokens,
    pages,
    page_size,
    max_pages,
    k_updated,
    v_updated,
    HALF: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
    SCALE_STRIDE: tl.constexpr,
    TO: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    sequence = token // tokens
    head = tl.arange(0, BLOCK_HEADS)
    column = tl.arange(0, BLOCK_HALF)[None, :]
    inside = (head < heads)[:, None] & (column < HALF)
    head = tl.minimum(head, heads - 1)
    source = ((sequence * heads + head) * tokens + token % tokens)[:, None] * (2 * HALF) + column
    cos_at = tl.load(cos + token * HALF + column, mask=column < HALF, other=0.0)
    sin_at = tl.load(sin + token * HALF + column, mask=column < HALF, other=0.0)
    first = tl.load(k + source, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(k + source + HALF, mask=inside, other=0.0).to(tl.float32)
    v_first = tl.load(v + source, mask=inside, other=0.0).to(tl.float32)
    v_second = tl.load(v + source + HALF, mask=inside, other=0.0).to(tl.float32)

    row = tl.load(positions + sequence) + (token % tokens).to(tl.int32)
    kept = (row >= 0) & (row < max_pages * page_size)
    page = sequence
    if block_table is not None:
        slot = tl.where(kept, row // page_size, 0)
        page = tl.load(block_table + sequence * max_pages + slot).to(tl.int64)
        kept = kept & (page >= 0) & (page < pages)
    target = ((page * heads + head) * page_size + row % page_size)[:, None] * (2 * HALF) + column
    stored = inside & kept
    at = head * SCALE_STRIDE
    _put(k_updated, target, first * cos_at - second * sin_at, k_scale, at, stored, TO)
    _put(k_updated, target + HALF, second * cos_at + first * sin_at, k_scale, at, stored, TO)
    _put(v_updated, target, v_first, v_scale, at, stored, TO)
    _put(v_updated, target + HALF, v_second, v_scale, at, stored, TO)
