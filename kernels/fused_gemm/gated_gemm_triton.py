"""y = activate(x w_gateᵀ + bias_gate) · (x w_upᵀ + bias_up) in Triton: both products share each tile of x.

N and K come as multiples of VECTOR, so that the compiler knows the alignment of rows: 8 elements (16 bytes), or 1.
"""

import triton
import triton.language as tl

from trtforge.kernels.common.activation_triton import activate
from trtforge.kernels.common.gemm_triton import add_bias, store_tile, tile_rows_and_columns


@triton.jit
def gated_gemm(
    x_ptr,
    w_gate_ptr,
    w_up_ptr,
    bias_gate_ptr,
    bias_up_ptr,
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
    HAS_BIAS_GATE: tl.constexpr,
    HAS_BIAS_UP: tl.constexpr,
):
    K = K_vectors * VECTOR
    N = N_vectors * VECTOR
    rows, columns = tile_rows_and_columns(M, N, BLOCK_M, BLOCK_N, GROUP_M)
    depth = tl.arange(0, BLOCK_K)
    row_inside = rows < M
    column_inside = columns < N

    x_tile = x_ptr + rows.to(tl.int64)[:, None] * K + depth[None, :]
    w_offset = columns.to(tl.int64)[None, :] * K + depth[:, None]
    gate_tile = w_gate_ptr + w_offset
    up_tile = w_up_ptr + w_offset
    gate = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    up = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for k in range(0, K, BLOCK_K):
        depth_inside = depth < K - k
        w_inside = column_inside[None, :] & depth_inside[:, None]
        x = tl.load(x_tile, mask=row_inside[:, None] & depth_inside[None, :], other=0.0)
        gate = tl.dot(x, tl.load(gate_tile, mask=w_inside, other=0.0), gate)
        up = tl.dot(x, tl.load(up_tile, mask=w_inside, other=0.0), up)
        x_tile += BLOCK_K
        gate_tile += BLOCK_K
        up_tile += BLOCK_K

    if HAS_BIAS_GATE:
        gate = add_bias(gate, bias_gate_ptr, columns, column_inside)
    if HAS_BIAS_UP:
        up = add_bias(up, bias_up_ptr, columns, column_inside)
    y = activate(gate, ACTIVATION) * up
    store_tile(y_ptr, y, rows, columns, N, row_inside, column_inside)
