"""What the Triton matrix products share: y [M, N] from x [M, K] and w [N, K], one program per tile.

rows, columns of the tile ──▶ x_tile, w_tile ── BLOCK_K at a time ──▶ multiply ──▶ sums ──▶ bias, activation ──▶ store
"""

import triton
import triton.language as tl

from trtforge.kernels.common.tile_order_triton import grouped_tile


@triton.jit
def tile_rows_and_columns(M, N, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP_M: tl.constexpr):
    """Rows and columns of this program's tile of y; some may lie outside."""
    tile_m, tile_n = grouped_tile(tl.program_id(0), tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N), GROUP_M)
    return tile_m * BLOCK_M + tl.arange(0, BLOCK_M), tile_n * BLOCK_N + tl.arange(0, BLOCK_N)


@triton.jit
def multiply(sums, x_ptr, w_ptr, rows, weight_rows, row_inside, column_inside, K, depth, BLOCK_K: tl.constexpr):
    """sums + x[rows, :depth] w[weight_rows, :depth]ᵀ, both with rows of K elements; sums says in which type.

    ``depth``: K, or 0 for no product. Codes of w that are not of x's type are converted to it.
    """
    offsets = tl.arange(0, BLOCK_K)
    x_tile = x_ptr + rows.to(tl.int64)[:, None] * K + offsets[None, :]
    w_tile = w_ptr + weight_rows.to(tl.int64)[None, :] * K + offsets[:, None]
    for k in range(0, depth, BLOCK_K):
        inside = offsets < K - k
        x = tl.load(x_tile, mask=row_inside[:, None] & inside[None, :], other=0.0)
        w = tl.load(w_tile, mask=column_inside[None, :] & inside[:, None], other=0.0)
        sums = tl.dot(x, w.to(x.dtype), sums, out_dtype=sums.dtype)
        x_tile += BLOCK_K
        w_tile += BLOCK_K
    return sums


@triton.jit
def add_bias(sums, bias_ptr, columns, column_inside):
    """sums + bias[columns] in every row, in float32."""
    return sums + tl.load(bias_ptr + columns, mask=column_inside, other=0.0).to(tl.float32)[None, :]


@triton.jit
def store_tile(y_ptr, y, rows, columns, N, row_inside, column_inside):
    """Round y to the element type of y_ptr and store what lies inside."""
    place = y_ptr + rows.to(tl.int64)[:, None] * N + columns[None, :]
    tl.store(place, y.to(y_ptr.dtype.element_ty), mask=row_inside[:, None] & column_inside[None, :])
