"""Kernels that visit tiles of BLOCK_ROWS x BLOCK_COLUMNS: static and per-tensor quantization, per-tile, dequantization.

Groups are GROUP_ROWS x GROUP_COLUMNS elements (0: all). BLOCK_COLUMNS divides GROUP_COLUMNS, so every row of a tile
has one scale.
"""

import triton
import triton.language as tl

from trtforge.kernels.common.quantize_triton import decode, decode_int4, encode, finite_magnitude, scale_of


@triton.jit
def _tile(rows, K: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr):
    across: tl.constexpr = (K + BLOCK_COLUMNS - 1) // BLOCK_COLUMNS
    row = (tl.program_id(0) // across) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    first = (tl.program_id(0) % across) * BLOCK_COLUMNS
    return row, first


@triton.jit
def _group(row, first, K: tl.constexpr, GROUP_ROWS: tl.constexpr, GROUP_COLUMNS: tl.constexpr):
    group = row * 0
    if GROUP_ROWS > 0:
        group = row // GROUP_ROWS
    if GROUP_COLUMNS > 0:
        across: tl.constexpr = (K + GROUP_COLUMNS - 1) // GROUP_COLUMNS
        group = group * across + first // GROUP_COLUMNS
    return group


@triton.jit
def _store_codes(y, offset, value, divisor, inside, TO: tl.constexpr):
    code = encode(tl.math.div_rn(value, tl.broadcast_to(divisor, value.shape)), TO)
    tl.store(y + offset, code.to(tl.uint8).to(y.dtype.element_ty, bitcast=True), mask=inside)


@triton.jit
def quantize_static(
    x,
    scale,
    rows,
    y,
    K: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    GROUP_ROWS: tl.constexpr,
    GROUP_COLUMNS: tl.constexpr,
    TO: tl.constexpr,
):
    row, first = _tile(rows, K, BLOCK_ROWS, BLOCK_COLUMNS)
    column = first + tl.arange(0, BLOCK_COLUMNS)[None, :]
    inside = (row < rows)[:, None] & (column < K)
    offset = row.to(tl.int64)[:, None] * K + column
    value = tl.load(x + offset, mask=inside, other=0.0).to(tl.float32)
    divisor = tl.load(scale + _group(row, first, K, GROUP_ROWS, GROUP_COLUMNS), mask=row < rows, other=1.0)
    _store_codes(y, offset, value, divisor[:, None], inside, TO)


@triton.jit
def quantize_tensor(
    x,
    partials,
    rows,
    y,
    scale,
    K: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    TO: tl.constexpr,
):
    row, first = _tile(rows, K, BLOCK_ROWS, BLOCK_COLUMNS)
    column = first + tl.arange(0, BLOCK_COLUMNS)[None, :]
    inside = (row < rows)[:, None] & (column < K)
    offset = row.to(tl.int64)[:, None] * K + column
    value = tl.load(x + offset, mask=inside, other=0.0).to(tl.float32)
    part = tl.arange(0, triton.next_power_of_2(PARTS))
    divisor = scale_of(tl.max(finite_magnitude(tl.load(partials + part, mask=part < PARTS, other=0.0)), axis=0), TO)
    tl.store(scale, divisor, mask=tl.program_id(0) == 0)
    _store_codes(y, offset, value, divisor, inside, TO)


@triton.jit
def quantize_tile(x, rows, y, scale, K: tl.constexpr, TILE: tl.constexpr, TO: tl.constexpr):
    row, first = _tile(rows, K, TILE, TILE)
    column = first + tl.arange(0, TILE)[None, :]
    inside = (row < rows)[:, None] & (column < K)
    offset = row.to(tl.int64)[:, None] * K + column
    value = tl.load(x + offset, mask=inside, other=0.0).to(tl.float32)
    divisor = scale_of(tl.max(tl.max(finite_magnitude(value), axis=1), axis=0), TO)
    tl.store(scale + tl.program_id(0), divisor)
    _store_codes(y, offset, value, divisor, inside, TO)


@triton.jit
def absmax_partials(
    x,
    rows,
    partials,
    K: tl.constexpr,
    PARTS: tl.constexpr,
    SHARE_STEP: tl.constexpr,
    SHARES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    count = rows.to(tl.int64) * K
    share = tl.cdiv(tl.cdiv(count, PARTS), SHARE_STEP) * SHARE_STEP
    part = tl.program_id(0) * SHARES + tl.arange(0, SHARES)
    begin = part[:, None] * share
    end = tl.minimum(begin + share, count)
    largest = tl.zeros((SHARES, BLOCK), tl.int32)
    for first in range(0, share, BLOCK):
        index = begin + first + tl.arange(0, BLOCK)[None, :]
        value = tl.load(x + index, mask=index < end, other=0.0).to(tl.float32)
        largest = tl.maximum(largest, finite_magnitude(value))
    tl.store(partials + part, tl.max(largest, axis=1).to(tl.float32, bitcast=True))


@triton.jit
def dequantize(
    y,
    scale,
    rows,
    x,
    K: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    GROUP_ROWS: tl.constexpr,
    GROUP_COLUMNS: tl.constexpr,
    FROM: tl.constexpr,
):
    row, first = _tile(rows, K, BLOCK_ROWS, BLOCK_COLUMNS)
    column = first + tl.arange(0, BLOCK_COLUMNS)[None, :]
    inside = (row < rows)[:, None] & (column < K)
    offset = row.to(tl.int64)[:, None] * K + column
    factor = tl.load(scale + _group(row, first, K, GROUP_ROWS, GROUP_COLUMNS), mask=row < rows, other=1.0)
    if FROM == "int4":
        code = tl.load(y + offset // 2, mask=inside, other=0).to(tl.int32) >> (4 * (column % 2))
        value = decode_int4(code).to(tl.float32)
    else:
        raw = tl.load(y + offset, mask=inside)
        value = decode(raw.to(tl.uint8, bitcast=True).to(tl.int32), FROM)
    tl.store(x + offset, (value * factor[:, None]).to(x.dtype.element_ty), mask=inside)


@triton.jit
def unpack_int4(y, rows, x, K: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr):
    row, first = _tile(rows, K, BLOCK_ROWS, BLOCK_COLUMNS)
    column = first + tl.arange(0, BLOCK_COLUMNS)[None, :]
    inside = (row < rows)[:, None] & (column < K)
    offset = row.to(tl.int64)[:, None] * K + column
    code = tl.load(y + offset // 2, mask=inside, other=0).to(tl.int32) >> (4 * (column % 2))
    tl.store(x + offset, decode_int4(code).to(tl.int8), mask=inside)
