// Second half of dynamic per-tensor quantization: every block reduces the partial maxima to the one scale, then sweeps
// its part of x (see sweep.cuh). Block 0 writes the scale.
//
//   partials [parts] --> registers -> warps -> shared memory --> scale = max(absmax / qmax, 2^-126) --> scale [1]
//                                                                   |
//   x --16 bytes per thread, loaded before the reduction--> registers / scale --> codes --> y
#include "common/reduce.cuh"
#include "quantize/codes.cuh"
#include "quantize/sweep.cuh"

using namespace forge;

extern "C" __global__ void __launch_bounds__(THREADS)
quantize_tensor(const x_t* __restrict__ x, const float* __restrict__ partials, int rows, int columns, int parts,
                y_t* __restrict__ y, float* __restrict__ scale) {
    __shared__ unsigned buffer[THREADS / kWarp];
    const Sweep<kLanes> sweep(rows, columns);
    Vector<x_t, kLanes> held[ITEMS];
#pragma unroll
    for (int i = 0; i < ITEMS; ++i) {
        if (sweep.inside(i)) held[i] = load_lanes(x + sweep.index(i));
    }

    unsigned largest = 0u;
    for (int p = threadIdx.x; p < parts; p += THREADS) largest = max(largest, finite_magnitude(__ldg(partials + p)));
    largest = group_max<THREADS, THREADS>(largest, buffer);
    const float tensor_scale = scale_of<code_t>(largest);
    const Divisor divisor(tensor_scale);
    if (blockIdx.x == 0 && threadIdx.x == 0) scale[0] = tensor_scale;

#pragma unroll
    for (int i = 0; i < ITEMS; ++i) {
        if (sweep.inside(i)) store_codes(y, sweep.index(i), held[i], divisor);
    }
}
