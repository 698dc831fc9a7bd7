"""y = activate(x w[expert]ᵀ + bias[expert]) in Triton, tokens sorted by expert: one program per tile, any M, N and K.

Programs find their tile from the offsets. The grid has one for every tile that any offsets can make; those that find
none put zeros into the rows after the last expert's. N and K come as multiples of VECTOR, so that the compiler knows
the alignment of rows: 8 elements (16 bytes), or 1.
"""

import triton
import triton.language as tl

from trtforge.kernels.common.activation_triton import activate
from trtforge.kernels.common.expert_tiles_triton import expert_tile
from trtforge.kernels.common.gemm_triton import multiply, store_tile


@triton.jit
def grouped_gemm(
    x_ptr,
    w_ptr,
    offsets_ptr,
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
    row_of_weights = tl.where(has_expert, expert, 0).to(tl.int64) * N

    depth = tl.where(has_expert, K, 0)
    sums = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    sums = multiply(sums, x_ptr, w_ptr, rows, row_of_weights + columns, row_inside, column_inside, K, depth, BLOCK_K)

    if HAS_BIAS:
        bias = tl.load(bias_ptr + row_of_weights + columns, mask=column_inside & has_expert, other=0.0)
        sums += bias.to(tl.float32)[None, :]
    y = activate(sums, ACTIVATION)  # 0 of 0, whichever it is
    store_tile(y_ptr, y, rows, columns, N, row_inside, column_inside)
