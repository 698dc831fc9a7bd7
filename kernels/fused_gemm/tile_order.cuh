// The order in which output tiles are worked on.
//
// Consecutive tile indices walk down GROUP rows of tiles before moving one tile to the right, so that the tiles in
// flight at one time form a compact patch of the output and share their rows of x and of w in the L2 cache:
//
//        GROUP = 3        0  3  6  9          a group is GROUP rows high (the last one may be lower)
//                         1  4  7 10          and as wide as the output
//                         2  5  8 11
//                        12 14 16 18
//                        13 15 17 19
#pragma once

struct tile_position {
    int row;
    int column;
};

template <int GROUP>
struct tile_order {
    int rows;
    int columns;

    __device__ __forceinline__ int count() const { return rows * columns; }

    __device__ __forceinline__ tile_position at(int index) const {
        const int group_tiles = GROUP * columns;
        const int first_row = index / group_tiles * GROUP;
        const int height = min(rows - first_row, GROUP);
        const int inside = index % group_tiles;
        return {first_row + inside % height, inside / height};
    }
};

__device__ __forceinline__ constexpr int ceil_div(int a, int b) {
    return a / b + (a % b != 0);
}
