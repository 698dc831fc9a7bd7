"""The order in which Triton programs take output tiles: that of ``fused_gemm/tile_order.cuh``."""

import triton
import triton.language as tl


@triton.jit
def grouped_tile(index, rows, columns, GROUP_M: tl.constexpr):
    """Row and column of the index-th tile, down groups of GROUP_M rows first: tiles in flight share rows in L2."""
    group_tiles = GROUP_M * columns
    first_row = index // group_tiles * GROUP_M
    height = tl.minimum(rows - first_row, GROUP_M)
    inside = index % group_tiles
    return first_row + inside % height, inside // height
