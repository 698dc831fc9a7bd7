"""The tiles of every expert's product for Triton programs: those of ``grouped_gemm/expert_tiles.cuh``."""

import triton
import triton.language as tl

from trtforge.kernels.common.tile_order_triton import grouped_tile


@triton.jit
def find_expert(offsets_ptr, index, experts, M, columns, BLOCK_M: tl.constexpr):
    """Of tile ``index``: its expert (``experts`` for rows of none), the expert's rows [begin, end), its first tile.

    Offsets that descend are taken as the largest so far, and those outside of 0 to M as the nearer of the two.
    """
    expert = experts
    begin = 0
    end = M
    first = 0
    row = 0  # after the experts so far
    tile = 0
    for e in range(0, experts):
        next_row = tl.minimum(tl.maximum(tl.load(offsets_ptr + e), row), M)
        next_tile = tile + tl.cdiv(next_row - row, BLOCK_M) * columns
        mine = (index >= tile) & (index < next_tile)
        expert = tl.where(mine, e, expert)
        begin = tl.where(mine, row, begin)
        end = tl.where(mine, next_row, end)
        first = tl.where(mine, tile, first)
        row = next_row
        tile = next_tile
    none = expert == experts
    return expert, tl.where(none, row, begin), end, tl.where(none, tile, first)


@triton.jit
def expert_tile(offsets_ptr, index, experts, M, N, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP_M: tl.constexpr):
    """The tile's expert, or ``experts``; its first row and column; and where its rows end."""
    columns = tl.cdiv(N, BLOCK_N)
    expert, begin, end, first = find_expert(offsets_ptr, index, experts, M, columns, BLOCK_M)
    rows = tl.maximum(tl.cdiv(end - begin, BLOCK_M), 1)
    place = tl.minimum(index - first, rows * columns - 1)  # programs too many repeat the last tile
    tile_m, tile_n = grouped_tile(place, rows, columns, GROUP_M)
    return expert, begin + tile_m * BLOCK_M, tile_n * BLOCK_N, end
