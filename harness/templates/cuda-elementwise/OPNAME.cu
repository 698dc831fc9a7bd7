// y = formula(x), for every element.
//
//   global x ──reads of LANES elements──▶ registers ──formula, in float32──▶ registers ──writes of LANES──▶ global y
//                                         VECTORS x LANES per thread
//
// Compile-time: x_t, y_t, BETA (attribute), THREADS, VECTORS (tactic), LANES (launch): 8 elements are an access of
// 16 bytes, which needs M * N % 8 == 0 and aligned pointers; 1 serves every size and alignment.

#include "common/numeric.cuh"
#include "common/vector_io.cuh"

// ==== THE FORMULA: edit it here and in op.py ====
__device__ __forceinline__ float formula(float x) {
    return x / (1.0f + __expf(-BETA * x));
}
// ================================================

extern "C" __global__ void __launch_bounds__(THREADS)
    OPNAME_kernel(const x_t* __restrict__ x, int M, int N, y_t* __restrict__ y) {
    const long long count = static_cast<long long>(M) * N;
    const long long first = (static_cast<long long>(blockIdx.x) * VECTORS * THREADS + threadIdx.x) * LANES;
    constexpr int STEP = THREADS * LANES;

    forge::Vector<x_t, LANES> in[VECTORS];
#pragma unroll
    for (int v = 0; v < VECTORS; ++v) {  // every read is under way before the first result is needed
        if (first + v * STEP < count) in[v] = forge::load_vector<LANES>(x + first + v * STEP);
    }
#pragma unroll
    for (int v = 0; v < VECTORS; ++v) {
        if (first + v * STEP >= count) return;
        forge::Vector<y_t, LANES> out;
#pragma unroll
        for (int i = 0; i < LANES; ++i) out.at[i] = forge::from_float<y_t>(formula(forge::to_float(in[v].at[i])));
        forge::store_vector(y + first + v * STEP, out);
    }
}
