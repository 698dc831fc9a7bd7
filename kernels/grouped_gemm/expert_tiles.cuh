// The tiles of every expert's product, found on the device: only there is it known where an expert's rows end.
//
//   x [M, K]   | expert 0 | expert 1      | expert 3 |  rows of none |     offsets: end 0, end 1, end 2 = end 1, end 3
//   tiles      | 0  1     | 2  3  4       | 5        |                     (one column of tiles drawn)
//
// An expert's tiles begin at its first row, so only its last row of tiles is partly empty. They come in tile_order's
// sequence, expert after expert: the tiles in flight share weights in L2.
//
// Offsets that descend or lie outside of 0 to M are taken as the largest so far, and as the nearer of 0 and M: whatever
// they hold, every row belongs to one expert at most, and nothing outside of the tensors is touched.
#pragma once

#include "fused_gemm/tile_order.cuh"

struct expert_tile {
    int expert;
    int row, column;  // the first ones
    int end;          // of the expert's rows
};

template <int TILE_ROWS, int TILE_COLUMNS, int GROUP>
struct expert_walk {
    const int* offsets;
    int experts, M, N;

    int expert = -1;
    int begin = 0, end = 0;    // its rows
    int first = 0, tiles = 0;  // its first tile, and how many

    __device__ __forceinline__ expert_walk(const int* offsets, int experts, int M, int N)
        : offsets(offsets), experts(experts), M(M), N(N) {}

    // The tile of that index, or false where there are fewer. Indices must ascend.
    __device__ __forceinline__ bool find(int index, expert_tile& found) {
        const int columns = ceil_div(N, TILE_COLUMNS);
        while (index >= first + tiles) {
            if (expert + 1 >= experts) return false;
            ++expert;
            begin = end;
            end = min(max(__ldg(offsets + expert), begin), M);
            first += tiles;
            tiles = ceil_div(end - begin, TILE_ROWS) * columns;
        }
        const tile_order<GROUP> order = {tiles / columns, columns};
        const tile_position at = order.at(index - first);
        found = {expert, begin + at.row * TILE_ROWS, at.column * TILE_COLUMNS, end};
        return true;
    }

    // Of all experts; after find has said false, when `end` is the last expert's.
    __device__ __forceinline__ int count() const { return first + tiles; }
};
