"""y = activate(x wᵀ · x_scale · w_scale + bias) for 8-bit x and w in Triton: one program per tile, any M, N and K.

N and K come as multiples of VECTOR, so that the compiler knows the alignment of rows: 16 elements (16 bytes), or 1.
"""

import triton
import triton.language as tl

from trtforge.kernels.common.activation_triton import activate
from trtforge.kernels.common.gemm_triton import add_bias, multiply, store_tile, tile_rows_and_columns


@triton.jit
def scaled_gemm(
    x_ptr,
    w_ptr,
    x_scale_ptr,
    w_scale_ptr,
    bias_ptr,
    M,
    N_vectors,
    K_vectors,
    x_scale_step,
    w_scale_step,
    y_ptr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    VECTOR: tl.constexpr,
    INTEGER: tl.constexpr,
    ACTIVATION: tl.constexpr,
    HAS_BIAS: tl.constexpr,
):
    K = K_vectors * VECTOR
    N = N_vectors * VECTOR
    rows, columns = tile_rows_and_columns(M, N, BLOCK_M, BLOCK_N, GROUP_M)
    row_inside = rows < M
    column_inside = columns < N

    sums = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.int32 if INTEGER else tl.float32)
    sums = multiply(sums, x_ptr, w_ptr, rows, columns, row_inside, column_inside, K, K, BLOCK_K)

    x_scale = tl.load(x_scale_ptr + rows * x_scale_step, mask=row_inside, other=0.0)
    w_scale = tl.load(w_scale_ptr + columns * w_scale_step, mask=column_inside, other=0.0)
    scaled = sums.to(tl.float32) * x_scale[:, None] * w_scale[None, :]
    if HAS_BIAS:
        scaled = add_bias(scaled, bias_ptr, columns, column_inside)
    y = activate(scaled, ACTIVATION)
    store_tile(y_ptr, y, rows, columns, N, row_inside, column_inside)
