// Dynamic quantization of square tiles (weights): one block per TILE x TILE tile, held in registers.
//
//   x [rows, columns]        THREADS = TILE_LANES * ROWS_AT_ONCE; thread (r, c) holds vector c of rows r, r + ROWS_AT_ONCE, ...
//   +-------+-------+-+          |
//   | tile  | tile  | |          v   largest finite magnitude: registers -> warps -> shared memory
//   +-------+-------+-+     scale = max(absmax / qmax, 2^-126) --------> scale [rows / TILE, columns / TILE], rounded up
//   | tile  | tile  | |          |
//   +-------+-------+-+          v   registers / scale -> codes -------> y [rows, columns]
#include "common/reduce.cuh"
#include "quantize/codes.cuh"

using namespace forge;

constexpr int kTileLanes = TILE / kLanes;  // vectors across one tile
constexpr int kRowsAtOnce = THREADS / kTileLanes;
constexpr int kItems = TILE / kRowsAtOnce;
static_assert(THREADS % kTileLanes == 0 && TILE % kRowsAtOnce == 0, "the block covers the tile evenly");

extern "C" __global__ void __launch_bounds__(THREADS)
quantize_tile(const x_t* __restrict__ x, int rows, int columns, y_t* __restrict__ y, float* __restrict__ scale) {
    __shared__ unsigned buffer[THREADS / kWarp];
    const int tiles_across = (columns + TILE - 1) / TILE;
    const int first_row = static_cast<int>(blockIdx.x) / tiles_across * TILE + threadIdx.x / kTileLanes;
    const int column = static_cast<int>(blockIdx.x) % tiles_across * TILE + threadIdx.x % kTileLanes * kLanes;
    const x_t* from = x + static_cast<size_t>(first_row) * columns + column;
    const int count = column < columns ? (rows - first_row + kRowsAtOnce - 1) / kRowsAtOnce : 0;

    Vector<x_t, kLanes> held[kItems];
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
        load_if(held[i], i < count, from + static_cast<size_t>(i) * kRowsAtOnce * columns);
    }

    const unsigned largest = group_max<THREADS, THREADS>(largest_magnitude(held), buffer);
    const float tile_scale = scale_of<code_t>(largest);
    const OwnDivisor divisor(tile_scale);
    if (threadIdx.x == 0) scale[blockIdx.x] = tile_scale;

#pragma unroll
    for (int i = 0; i < kItems; ++i) {
        const size_t row = static_cast<size_t>(first_row) + static_cast<size_t>(i) * kRowsAtOnce;
        if (i < count) store_codes(y, row * columns + column, held[i], divisor);
    }
}
