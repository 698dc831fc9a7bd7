// The sweep of the kernels that need no reduction: every element once, with the scale of its group.
//
//   [rows, columns], groups of GROUP_ROWS x GROUP_COLUMNS (0: all of them), scales row-major over the groups
//   block: (THREADS / COLUMN_THREADS) x ITEMS rows by COLUMN_THREADS vectors of Lanes elements
//   grid:  row blocks x column blocks, column blocks fastest, in one dimension
//
// A vector never straddles groups: the declaration asks for columns % Lanes == 0, and GROUP_COLUMNS is a multiple.
#pragma once

namespace forge {

constexpr int kRowThreads = THREADS / COLUMN_THREADS;

template <int Lanes>
struct Sweep {
    int rows, columns;
    int first_row, column;

    __device__ __forceinline__ Sweep(int rows, int columns) : rows(rows), columns(columns) {
        constexpr int kBlockColumns = COLUMN_THREADS * Lanes;
        const int blocks_across = (columns - 1) / kBlockColumns + 1;
        const int block = static_cast<int>(blockIdx.x);
        first_row = block / blocks_across * (kRowThreads * ITEMS) + threadIdx.x / COLUMN_THREADS;
        column = block % blocks_across * kBlockColumns + threadIdx.x % COLUMN_THREADS * Lanes;
    }

    __device__ __forceinline__ int row(int item) const { return first_row + item * kRowThreads; }
    __device__ __forceinline__ bool inside(int item) const { return column < columns && row(item) < rows; }
    __device__ __forceinline__ size_t index(int item) const {
        return static_cast<size_t>(row(item)) * columns + column;
    }

    __device__ __forceinline__ size_t group(int item) const {
        const int groups_across = GROUP_COLUMNS > 0 ? (columns - 1) / max(GROUP_COLUMNS, 1) + 1 : 1;
        const int down = GROUP_ROWS > 0 ? row(item) / max(GROUP_ROWS, 1) : 0;
        const int across = GROUP_COLUMNS > 0 ? column / max(GROUP_COLUMNS, 1) : 0;
        return static_cast<size_t>(down) * groups_across + across;
    }
};

}  // namespace forge
