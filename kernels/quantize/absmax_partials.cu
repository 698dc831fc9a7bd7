// First half of dynamic per-tensor quantization: largest finite magnitude of each of PARTS equal shares of x.
//
//   x [count] = | share 0 | share 1 | ... |       share = ceil(count / PARTS) rounded up to a multiple of SHARE_STEP elements
//                    |
//                    v   ITEMS x 16 bytes per thread and step -> registers -> warps -> shared memory --> partials [PARTS]
//
// A share beyond the end of x gives 0. The maximum does not depend on the order: the result is deterministic.
#include "common/reduce.cuh"
#include "common/quantize.cuh"
#include "common/vector_io.cuh"

using namespace forge;

constexpr int kLanes = VECTOR ? kVectorLanes<x_t> : 1;
static_assert(SHARE_STEP % kVectorLanes<x_t> == 0, "a share begins at a whole vector");

extern "C" __global__ void __launch_bounds__(THREADS)
absmax_partials(const x_t* __restrict__ x, int rows, int columns, float* __restrict__ partials) {
    __shared__ unsigned buffer[THREADS / kWarp];
    const size_t count = static_cast<size_t>(rows) * columns;
    const size_t even_share = (count - 1) / PARTS + 1;
    const size_t share = ((even_share - 1) / SHARE_STEP + 1) * SHARE_STEP;
    const size_t begin = blockIdx.x * share;
    const size_t end = min(begin + share, count);
    unsigned largest = 0u;
    for (size_t first = begin + threadIdx.x * kLanes; first < end; first += ITEMS * THREADS * kLanes) {
        Vector<x_t, kLanes> held[ITEMS];
#pragma unroll
        for (int i = 0; i < ITEMS; ++i) {
            const size_t index = first + i * (THREADS * kLanes);
            held[i] = load_vector<kLanes>(x + (index < end ? index : first));
        }
#pragma unroll
        for (int i = 0; i < ITEMS; ++i) {
#pragma unroll
            for (int j = 0; j < kLanes; ++j) largest = max(largest, finite_magnitude(to_float(held[i].at[j])));
        }
    }
    largest = group_max<THREADS, THREADS>(largest, buffer);
    if (threadIdx.x == 0) partials[blockIdx.x] = __uint_as_float(largest);
}
