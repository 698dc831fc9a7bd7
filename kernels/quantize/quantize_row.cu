// Dynamic quantization of groups that lie within a row: the whole row (per token, GROUP = 0) or GROUP neighbors (per
// block; 4-bit weights). Each group is read once and held in registers.
//
//   x [rows, columns]   GROUP_THREADS threads per group, THREADS / GROUP_THREADS groups per block (or CLUSTER blocks per row)
//   +---------------------+   thread t of a group holds vectors t, t + kStride, ... (ITEMS of them)
//   | group 0 | group 1 | |        |
//   +---------------------+        v   largest finite magnitude: registers -> warp -> shared memory (-> cluster)
//   | group 2 | group 3 | |   scale = max(absmax / qmax, 2^-126)  ------------------------> scale [groups]
//   +---------------------+        |
//                                  v   registers / scale -> codes ------------------------> y [rows, columns]
//
// OVERFLOW: a group may be longer than ITEMS * GROUP_THREADS vectors; what does not fit is read a second time. Registers
// are kept few enough for 48 warps on a multiprocessor (32 where a thread holds more than four vectors, or reads more).
#include "common/row_reduction.cuh"
#include "quantize/codes.cuh"

using namespace forge;

constexpr int kGroupsPerBlock = THREADS / GROUP_THREADS;
constexpr int kStride = GROUP_THREADS * CLUSTER;
constexpr int kHeldRegisters = ITEMS * (VECTOR ? 4 : 1);
constexpr int kResident = (!OVERFLOW && kHeldRegisters <= 16 ? 48 : 32) * kWarp / THREADS;
static_assert(CLUSTER == 1 || GROUP == 0, "a cluster takes a whole row");

using Reduction = RowReduction<GROUP_THREADS, THREADS, CLUSTER>;

extern "C" __global__ void __launch_bounds__(THREADS, kResident)
quantize_row(const x_t* __restrict__ x, int rows, int columns, y_t* __restrict__ y, float* __restrict__ scale) {
    __shared__ Reduction::Slots slots;
    Reduction reduction(slots);
    const int width = GROUP > 0 ? GROUP : columns;
    const unsigned groups_per_row = GROUP > 0 ? (columns - 1) / width + 1 : 1;
    const unsigned group = blockIdx.x / CLUSTER * kGroupsPerBlock + threadIdx.x / GROUP_THREADS;
    const unsigned row = group / groups_per_row;
    const int begin = static_cast<int>(group % groups_per_row) * width;
    const int vectors = row < static_cast<unsigned>(rows) ? min(width, columns - begin) / kLanes : 0;
    const size_t base = static_cast<size_t>(row) * columns + begin;
    const int lane = threadIdx.x % GROUP_THREADS + (CLUSTER > 1 ? static_cast<int>(cluster_rank()) * GROUP_THREADS : 0);
    const size_t origin = base + static_cast<size_t>(lane) * kLanes;

    Vector<x_t, kLanes> held[ITEMS];
#pragma unroll
    for (int i = 0; i < ITEMS; ++i) {
        load_if(held[i], lane + i * kStride < vectors, x + origin + i * (kStride * kLanes));
    }
    unsigned largest = largest_magnitude(held);
#if OVERFLOW
    for (int v = lane + ITEMS * kStride; v < vectors; v += kStride) {
        largest = max(largest, magnitude_of(load_lanes(x + base + static_cast<size_t>(v) * kLanes)));
    }
#endif

    reduction.start();
    largest = reduction.max(largest);
    const float group_scale = scale_of<code_t>(largest);
    const OwnDivisor divisor(group_scale);
    if (lane == 0 && vectors > 0) scale[group] = group_scale;

#pragma unroll
    for (int i = 0; i < ITEMS; ++i) {
        if (lane + i * kStride < vectors) store_codes(y, origin + i * (kStride * kLanes), held[i], divisor);
    }
#if OVERFLOW
    for (int v = lane + ITEMS * kStride; v < vectors; v += kStride) {
        const size_t index = base + static_cast<size_t>(v) * kLanes;
        store_codes(y, index, load_lanes(x + index), divisor);
    }
#endif
}
