// Dynamic quantization of groups that lie within a row: the whole row (per token, GROUP = 0) or GROUP neighbors (per
// block; 4-bit weights). Each group is read once and held in registers.
//
//   x [rows, columns]   GROUP_THREADS threads per group, THREADS / GROUP_THREADS groups per block
//   +---------------------+   thread t of a group holds vectors t, t + GROUP_THREADS, ... (ITEMS of them)
//   | group 0 | group 1 | |        |
//   +---------------------+        v   largest finite magnitude: registers -> warp -> shared memory
//   | group 2 | group 3 | |   scale = max(absmax / qmax, 2^-126)  ------------------------> scale [groups]
//   +---------------------+        |
//                                  v   registers / scale -> codes ------------------------> y [rows, columns]
//
// A group longer than ITEMS * GROUP_THREADS vectors is still right: what does not fit is read a second time.
#include "common/reduce.cuh"
#include "quantize/codes.cuh"

using namespace forge;

constexpr int kGroupsPerBlock = THREADS / GROUP_THREADS;

extern "C" __global__ void __launch_bounds__(THREADS)
quantize_row(const x_t* __restrict__ x, int rows, int columns, y_t* __restrict__ y, float* __restrict__ scale) {
    __shared__ unsigned buffer[THREADS / kWarp];
    const int width = GROUP > 0 ? GROUP : columns;
    const unsigned groups_per_row = GROUP > 0 ? (columns - 1) / width + 1 : 1;
    const unsigned group = blockIdx.x * kGroupsPerBlock + threadIdx.x / GROUP_THREADS;
    const unsigned row = group / groups_per_row;
    const int begin = static_cast<int>(group % groups_per_row) * width;
    const int vectors = row < static_cast<unsigned>(rows) ? min(width, columns - begin) / kLanes : 0;
    const size_t base = static_cast<size_t>(row) * columns + begin;
    const int lane = threadIdx.x % GROUP_THREADS;

    Vector<x_t, kLanes> held[ITEMS];
    unsigned largest = 0u;
#pragma unroll
    for (int i = 0; i < ITEMS; ++i) {
        const int v = lane + i * GROUP_THREADS;
        if (v < vectors) held[i] = load_lanes(x + base + static_cast<size_t>(v) * kLanes);
    }
#pragma unroll
    for (int i = 0; i < ITEMS; ++i) {
        if (lane + i * GROUP_THREADS < vectors) largest = max(largest, magnitude_of(held[i]));
    }
    for (int v = lane + ITEMS * GROUP_THREADS; v < vectors; v += GROUP_THREADS) {
        largest = max(largest, magnitude_of(load_lanes(x + base + static_cast<size_t>(v) * kLanes)));
    }

    largest = group_max<GROUP_THREADS, THREADS>(largest, buffer);
    const float group_scale = scale_of<code_t>(largest);
    const Divisor divisor(group_scale);
    if (lane == 0 && vectors > 0) scale[group] = group_scale;

#pragma unroll
    for (int i = 0; i < ITEMS; ++i) {
        const int v = lane + i * GROUP_THREADS;
        if (v < vectors) store_codes(y, base + static_cast<size_t>(v) * kLanes, held[i], divisor);
    }
    for (int v = lane + ITEMS * GROUP_THREADS; v < vectors; v += GROUP_THREADS) {
        const size_t index = base + static_cast<size_t>(v) * kLanes;
        store_codes(y, index, load_lanes(x + index), divisor);
    }
}
