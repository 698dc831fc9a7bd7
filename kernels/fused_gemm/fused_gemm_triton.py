"""y = activate(x wᵀ + bias) + residual in Triton: one program per tile, float32 accumulation, any M, N and K.

N and K come as multiples of VECTOR, so that the compiler knows the alignment of rows: 8 elements (16 bytes), or 1.
"""

import triton
import triton.language as tl

from trtforge.kernels.common.activation_triton import activate
from trtforge.kernels.common.gemm_triton import add_bias, multiply, tile_rows_and_columns


@triton.jit
def fused_gemm(
    x_ptr,
    w_ptr,
    bias_ptr,
    residual_ptr,
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
    HAS_RESIDUAL: tl.constexpr,
):
    K = K_vectors * VECTOR
    N = N_vectors * VECTOR
    rows, columns = tile_rows_and_columns(M, N, BLOCK_M, BLOCK_N, GROUP_M)
    row_inside = rows < M
    column_inside = columns < N

    sums = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    sums = multiply(sums, x_ptr, w_ptr, rows, columns, row_inside, column_inside, K, K, BLOCK_K)

    if HAS_BIAS:
        sums = add_bias(sums, bias_ptr, columns, column_inside)
    y = activate(sums, ACTIVATION)
    place = rows.to(tl.int64)[:, None] * N + columns[None, :]
    inside = row_inside[:, None] & column_inside[None, :]
    if HAS_RESIDUAL:
        y += tl.load(residual_ptr + place, mask=inside, other=0.0).to(tl.float32)
    tl.store(y_ptr + place, y.to(y_ptr.dtype.element_ty), mask=inside)
