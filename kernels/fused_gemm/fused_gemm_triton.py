"""y = activate(x wᵀ + bias) + residual in Triton: one program per tile, float32 accumulation, any M, N and K.

N and K come as multiples of VECTOR, so that the compiler knows the alignment of rows: 8 elements (16 bytes), or 1.
"""

import triton
import triton.language as tl

from trtforge.kernels.common.activation_triton import activate
from trtforge.kernels.common.tile_order_triton import grouped_tile


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
    tile_m, tile_n = grouped_tile(tl.program_id(0), tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N), GROUP_M)
    rows = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    depth = tl.arange(0, BLOCK_K)
    row_inside = rows < M
    column_inside = columns < N

    x_tile = x_ptr + rows.to(tl.int64)[:, None] * K + depth[None, :]
    w_tile = w_ptr + columns.to(tl.int64)[None, :] * K + depth[:, None]
    sums = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for k in range(0, K, BLOCK_K):
        depth_inside = depth < K - k
        x = tl.load(x_tile, mask=row_inside[:, None] & depth_inside[None, :], other=0.0)
        w = tl.load(w_tile, mask=column_inside[None, :] & depth_inside[:, None], other=0.0)
        sums = tl.dot(x, w, sums)
        x_tile += BLOCK_K
        w_tile += BLOCK_K

    if HAS_BIAS:
        sums += tl.load(bias_ptr + columns, mask=column_inside, other=0.0).to(tl.float32)[None, :]
    y = activate(sums, ACTIVATION)
    place = rows.to(tl.int64)[:, None] * N + columns[None, :]
    inside = row_inside[:, None] & column_inside[None, :]
    if HAS_RESIDUAL:
        y += tl.load(residual_ptr + place, mask=inside, other=0.0).to(tl.float32)
    tl.store(y_ptr + place, y.to(y_ptr.dtype.element_ty), mask=inside)
