"""Products of fp8 with scales of 1 x 128 and 128 x 128 blocks in Triton: one program per tile, any M, N and K.

    y = act(Σ_b (x_b w_bᵀ) · x_scale[row, b] · w_scale[column // 128, b] + bias)

A step of the loop is a block of K: its product starts from zero, and is scaled and added in float32. N and K come as
multiples of VECTOR, so that the compiler knows the alignment of rows: 16 elements (16 bytes), or 1.
"""

import triton
import triton.language as tl

from trtforge.kernels.common.activation_triton import activate
from trtforge.kernels.common.gemm_triton import add_bias, store_tile, tile_rows_and_columns


@triton.jit
def block_scaled_gemm(
    x_ptr,
    w_ptr,
    x_scale_ptr,
    w_scale_ptr,
    bias_ptr,
    M,
    N_vectors,
    K_vectors,
    y_ptr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    GROUP_M: tl.constexpr,
    VECTOR: tl.constexpr,
    SCALE_BLOCK: tl.constexpr,
    ACTIVATION: tl.constexpr,
    HAS_BIAS: tl.constexpr,
):
    K = K_vectors * VECTOR
    N = N_vectors * VECTOR
    rows, columns = tile_rows_and_columns(M, N, BLOCK_M, BLOCK_N, GROUP_M)
    depth = tl.arange(0, SCALE_BLOCK)
    row_inside = rows < M
    column_inside = columns < N

    x_tile = x_ptr + rows.to(tl.int64)[:, None] * K + depth[None, :]
    w_tile = w_ptr + columns.to(tl.int64)[None, :] * K + depth[:, None]
    blocks = tl.cdiv(K, SCALE_BLOCK)
    x_scales = x_scale_ptr + rows.to(tl.int64) * blocks
    w_scales = w_scale_ptr + columns // SCALE_BLOCK * blocks
    sums = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for block in range(0, blocks):
        depth_inside = depth < K - block * SCALE_BLOCK
        x = tl.load(x_tile, mask=row_inside[:, None] & depth_inside[None, :], other=0.0)
        w = tl.load(w_tile, mask=column_inside[None, :] & depth_inside[:, None], other=0.0)
        x_scale = tl.load(x_scales + block, mask=row_inside, other=0.0)
        w_scale = tl.load(w_scales + block, mask=column_inside, other=0.0)
        sums += tl.dot(x, w) * (x_scale[:, None] * w_scale[None, :])
        x_tile += SCALE_BLOCK
        w_tile += SCALE_BLOCK

    if HAS_BIAS:
        sums = add_bias(sums, bias_ptr, columns, column_inside)
    y = activate(sums, ACTIVATION)
    store_tile(y_ptr, y, rows, columns, N, row_inside, column_inside)
