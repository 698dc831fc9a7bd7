// Quantization with given scales: y = codes of x / scale[group]. See sweep.cuh for who does what.
//
//   x --16 bytes per thread--> registers --/ scale[group]--> codes --> y
#include "quantize/codes.cuh"
#include "quantize/sweep.cuh"

using namespace forge;

extern "C" __global__ void __launch_bounds__(THREADS)
quantize_static(const x_t* __restrict__ x, const float* __restrict__ scale, int rows, int columns,
                y_t* __restrict__ y) {
    const Sweep<kLanes> sweep(rows, columns);
    Vector<x_t, kLanes> held[ITEMS];
    float divisor[ITEMS];
#pragma unroll
    for (int i = 0; i < ITEMS; ++i) {
        if (sweep.inside(i)) {
            held[i] = load_lanes(x + sweep.index(i));
            divisor[i] = __ldg(scale + sweep.group(i));
        }
    }
#pragma unroll
    for (int i = 0; i < ITEMS; ++i) {
        if (sweep.inside(i)) store_codes(y, sweep.index(i), held[i], Divisor(divisor[i]));
    }
}
