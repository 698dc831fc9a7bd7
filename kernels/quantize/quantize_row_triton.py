"""Dynamic quantization of groups within a row: GROUPS groups of WIDTH elements per program, each read once.

WIDTH is K for one group per row (per token), or the block width. With TO = "int4" two codes share a byte: even and
odd elements are loaded as two half tiles, so that a pair meets in one lane.
"""

import triton
import triton.language as tl

from trtforge.kernels.common.quantize_triton import encode, finite_magnitude, scale_of


@triton.jit
def quantize_row(
    x,
    groups,
    y,
    scale,
    K: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    GROUPS: tl.constexpr,
    TO: tl.constexpr,
):
    per_row: tl.constexpr = (K + WIDTH - 1) // WIDTH
    group = tl.program_id(0) * GROUPS + tl.arange(0, GROUPS)
    begin = (group % per_row) * WIDTH
    offset = (group // per_row).to(tl.int64)[:, None] * K + begin[:, None]
    inside = (group < groups)[:, None]
    if TO == "int4":
        pair = tl.arange(0, BLOCK // 2)[None, :]
        inside = inside & (2 * pair < WIDTH) & (begin[:, None] + 2 * pair < K)
        even = tl.load(x + offset + 2 * pair, mask=inside, other=0.0).to(tl.float32)
        odd = tl.load(x + offset + 2 * pair + 1, mask=inside, other=0.0).to(tl.float32)
        largest = tl.max(tl.maximum(finite_magnitude(even), finite_magnitude(odd)), axis=1)
        divisor = scale_of(largest, TO)
        low = encode(tl.math.div_rn(even, tl.broadcast_to(divisor[:, None], even.shape)), TO)
        high = encode(tl.math.div_rn(odd, tl.broadcast_to(divisor[:, None], odd.shape)), TO)
        code = (low & 0xF) | ((high & 0xF) << 4)
        tl.store(y + offset // 2 + pair, code.to(tl.uint8), mask=inside)
    else:
        column = tl.arange(0, BLOCK)[None, :]
        inside = inside & (column < WIDTH) & (begin[:, None] + column < K)
        value = tl.load(x + offset + column, mask=inside, other=0.0).to(tl.float32)
        divisor = scale_of(tl.max(finite_magnitude(value), axis=1), TO)
        code = encode(tl.math.div_rn(value, tl.broadcast_to(divisor[:, None], value.shape)), TO)
        tl.store(y + offset + column, code.to(tl.uint8).to(y.dtype.element_ty, bitcast=True), mask=inside)
    tl.store(scale + group, divisor, mask=group < groups)
