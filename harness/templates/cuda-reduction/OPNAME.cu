// y[m] = finish(term(x[m, 0]) combined with term(x[m, 1]) ...): one number for every row, one block per row, any N.
//
//   global x row ──reads of LANES elements──▶ term ──combine──▶ one float32 per thread
//                                                                   │ warp shuffles
//   global y[m] ◀── finish ◀── combine ◀── one float32 per warp, in shared memory
//
// Compile-time: x_t, THREADS (tactic), LANES (launch): 8 elements are a read of 16 bytes, which needs N % 8 == 0 and
// an aligned pointer; 1 serves every size and alignment.

#include "common/numeric.cuh"
#include "common/vector_io.cuh"

// ==== THE FORMULA: edit it here and in op.py ====
constexpr float START = 0.0f;  // combine(START, value) is value

__device__ __forceinline__ float term(float x) {
    return x * x;
}

__device__ __forceinline__ float combine(float a, float b) {
    return a + b;
}

__device__ __forceinline__ float finish(float total, int N) {
    return sqrtf(total);
}
// ================================================

constexpr int WARP_SIZE = 32;
constexpr int WARPS = THREADS / WARP_SIZE;

// The combined value of all threads, known to each of them.
__device__ __forceinline__ float combine_block(float value) {
    __shared__ float of_warp[WARPS];
#pragma unroll
    for (int offset = WARP_SIZE / 2; offset > 0; offset /= 2) {
        value = combine(value, __shfl_xor_sync(0xffffffffu, value, offset));
    }
    if (threadIdx.x % WARP_SIZE == 0) of_warp[threadIdx.x / WARP_SIZE] = value;
    __syncthreads();
    value = of_warp[0];
#pragma unroll
    for (int w = 1; w < WARPS; ++w) value = combine(value, of_warp[w]);
    return value;
}

extern "C" __global__ void __launch_bounds__(THREADS)
    OPNAME_kernel(const x_t* __restrict__ x, int N, float* __restrict__ y) {
    const x_t* row = x + static_cast<long long>(blockIdx.x) * N;
    float value = START;
#pragma unroll 4
    for (long long n = threadIdx.x * LANES; n < N; n += THREADS * LANES) {
        const forge::Vector<x_t, LANES> in = forge::load_vector<LANES>(row + n);
#pragma unroll
        for (int i = 0; i < LANES; ++i) value = combine(value, term(forge::to_float(in.at[i])));
    }
    value = combine_block(value);
    if (threadIdx.x == 0) y[blockIdx.x] = finish(value, N);
}
