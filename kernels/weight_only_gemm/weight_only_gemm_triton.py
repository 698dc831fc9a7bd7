"""y = activate(x wᵀ * scale + bias) for codes w of 8 or 4 bits in Triton: one program per tile, any M, N and K.

N and K come as multiples of VECTOR, so that the compiler knows the alignment of rows.
"""

import triton
import triton.language as tl

from trtforge.kernels.common.activation_triton import activate
from trtforge.kernels.common.gemm_triton import add_bias, multiply, store_tile, tile_rows_and_columns


@triton.jit
def _store(sums, bias_ptr, y_ptr, rows, columns, M, N, ACTIVATION: tl.constexpr, HAS_BIAS: tl.constexpr):
    column_inside = columns < N
    if HAS_BIAS:
        sums = add_bias(sums, bias_ptr, columns, column_inside)
    y = activate(sums, ACTIVATION)
    store_tile(y_ptr, y, rows, columns, N, rows < M, column_inside)


@triton.jit
def int8_weight_gemm(
    x_ptr,
    w_ptr,
    scale_ptr,
    bias_ptr,
    M,
    N_vectors,
    K_vectors,
    y_ptr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    VECTOR: tl.constexpr,
    ACTIVATION: tl.constexpr,
    HAS_BIAS: tl.constexpr,
):
    K = K_vectors * VECTOR
    N = N_vectors * VECTOR
    rows, columns = tile_rows_and_columns(M, N, BLOCK_M, BLOCK_N, GROUP_M)
    row_inside = rows < M
    column_inside = columns < N

    sums = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    sums = multiply(sums, x_ptr, w_ptr, rows, columns, row_inside, column_inside, K, K, BLOCK_K)
    sums *= tl.load(scale_ptr + columns, mask=column_inside, other=0.0)[None, :]
    _store(sums, bias_ptr, y_ptr, rows, columns, M, N, ACTIVATION, HAS_BIAS)


@triton.jit
def int4_weight_gemm(
    x_ptr,
    w_ptr,
    scale_ptr,
    bias_ptr,
    zero_ptr,
    M,
    N_vectors,
    groups,
    y_ptr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    GROUP: tl.constexpr,
    GROUP_M: tl.constexpr,
    VECTOR: tl.constexpr,
    ACTIVATION: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_ZERO: tl.constexpr,
):
    """A step is one group. Even and odd elements of x meet the low and the high nibbles in a product of their own; the
    zero point of the group meets the sum of x."""
    N = N_vectors * VECTOR
    HALF: tl.constexpr = GROUP // 2
    rows, columns = tile_rows_and_columns(M, N, BLOCK_M, BLOCK_N, GROUP_M)
    depth = tl.arange(0, HALF)
    row_inside = rows < M
    column_inside = columns < N

    x_tile = x_ptr + rows.to(tl.int64)[:, None] * (groups * GROUP) + 2 * depth[None, :]
    w_tile = w_ptr + columns.to(tl.int64)[None, :] * (groups * HALF) + depth[:, None]
    group_column = columns.to(tl.int64) * groups
    sums = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for _ in range(groups):
        even = tl.load(x_tile, mask=row_inside[:, None], other=0.0)
        odd = tl.load(x_tile + 1, mask=row_inside[:, None], other=0.0)
        packed = tl.load(w_tile, mask=column_inside[None, :], other=0).to(tl.int32)
        low = ((packed & 15) ^ 8) - 8
        high = ((packed >> 4) ^ 8) - 8
        part = tl.dot(even, low.to(even.dtype))
        part = tl.dot(odd, high.to(odd.dtype), part)
        if HAS_ZERO:
            zero = tl.load(zero_ptr + group_column, mask=column_inside, other=0).to(tl.float32)
            row_sum = tl.sum(even.to(tl.float32) + odd.to(tl.float32), axis=1)
            part -= row_sum[:, None] * zero[None, :]
        sums += part * tl.load(scale_ptr + group_column, mask=column_inside, other=0.0)[None, :]
        x_tile += GROUP
        w_tile += HALF
        group_column += 1
    _store(sums, bias_ptr, y_ptr, rows, columns, M, N, ACTIVATION, HAS_BIAS)
