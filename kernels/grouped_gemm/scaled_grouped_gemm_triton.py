"""y = activate((x w[expert]ᵀ) · x_scale · w_scale[expert] + bias[expert]) in Triton for fp8 e4m3, sorted by expert.

One program per tile; see ``grouped_gemm_triton.py``. VECTOR is 16 elements (16 bytes), or 1.
"""

import triton
import triton.language as tl

from trtforge.kernels.common.activation_triton import activate
from trtforge.kernels.common.expert_tiles_triton import expert_tile
from trtforge.kernels.common.gemm_triton import multiply, store_tile


@triton.jit
def scaled_grouped_gemm(
    x_ptr,
    w_ptr,
    offsets_ptr,
    x_scale_ptr,
    w_scale_ptr,
    bias_ptr,
    M,
    N_vectors,
    K_vectors,
    E,
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
    expert, row, column, end = expert_tile(offsets_ptr, tl.program_id(0), E, M, N, BLOCK_M, BLOCK_N, GROUP_M)
    rows = row + tl.arange(0, BLOCK_M)
    columns = column + tl.arange(0, BLOCK_N)
    row_inside = rows < end
    column_inside = columns < N
    has_expert = expert < E
    row_of_weights = tl.where(has_expert, expert, 0).to(tl.int64) * N + columns

    depth = tl.where(has_expert, K, 0)
    sums = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    sums = multiply(sums, x_ptr, w_ptr, rows, row_of_weights, row_inside, column_inside, K, depth, BLOCK_K)

    sums *= tl.load(x_scale_ptr + rows, mask=row_inside & has_expert, other=0.0)[:, None]
    sums *= tl.load(w_scale_ptr + row_of_weights, mask=column_inside & has_expert, other=0.0)[None, :]
    if HAS_BIAS:
        bias = tl.load(bias_ptr + row_of_weights, mask=column_inside & has_expert, other=0.0)
        sums += bias.to(tl.float32)[None, :]
    y = activate(sums, ACTIVATION)  # 0 of 0, whichever it is
    store_tile(y_ptr, y, rows, columns, N, row_inside, column_inside)
