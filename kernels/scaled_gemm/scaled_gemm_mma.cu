// y = activate(x w^T * x_scale * w_scale + bias) with mma.sync for 8-bit x and w, any M, N and K: int8 from sm_80 on,
// fp8 e4m3 from sm_89 on.
//
//   x [M, K] --cp.async--> ring --ldmatrix--\
//                                            mma.sync m16n8k32 --> acc (int32, float32) --> * scales + bias --> activate
//   w [N, K] --cp.async--> ring --ldmatrix--/                                 ^                                    |
//   x_scale, w_scale, bias --> registers, once the sums are complete ---------+                                y [M, N]
//
// The main loop, ring and stores are the fused GEMM's (fused_gemm/mma_kernel.cuh): a pair of codes takes the place of a
// 16-bit element. x_scale_step and w_scale_step are 1, or 0 where the tensor has one scale.
//
// Compile-time: x_t, y_t, ACTIVATION, HAS_BIAS; tactic BLOCK_M, BLOCK_N, BLOCK_K, STAGES, WARPS_M, WARPS_N, WARPS_K;
// GROUP_M, WIDE (1 needs K % 16 == 0 and 16-byte aligned pointers), SHARED_BYTES.

constexpr int WEIGHTS = 1;

#include "common/mma_8bit.cuh"
#include "fused_gemm/mma_kernel.cuh"
#include "scaled_value.cuh"

constexpr int THREAD_ROWS = 2 * TILES_M;  // that a thread has elements of
constexpr int THREAD_COLUMNS = 2 * TILES_N;

struct scaled_finish {
    const float* x_scale;
    const float* w_scale;
    int x_scale_step, w_scale_step;
    float row_scale[THREAD_ROWS];
    float column_scale[THREAD_COLUMNS];
#if HAS_BIAS
    const y_t* bias;
    y_t column_bias[THREAD_COLUMNS];
#endif
};

// Rows and columns outside are not stored: the last ones' scales and biases will do.
__device__ __forceinline__ void begin_elements(scaled_finish& finish, int first_row, int first_column, int M, int N) {
#pragma unroll
    for (int i = 0; i < THREAD_ROWS; ++i) {
        finish.row_scale[i] = __ldg(finish.x_scale + min(first_row + 8 * i, M - 1) * finish.x_scale_step);
    }
#pragma unroll
    for (int j = 0; j < THREAD_COLUMNS; ++j) {
        const int column = min(first_column + j / 2 * MMA_N + j % 2, N - 1);
        finish.column_scale[j] = __ldg(finish.w_scale + column * finish.w_scale_step);
#if HAS_BIAS
        finish.column_bias[j] = finish.bias[column];
#endif
    }
}

__device__ __forceinline__ float finish_element(const scaled_finish& finish, const acc_t (&sums)[WEIGHTS],
                                                const element_place& place) {
    const float row_scale = finish.row_scale[place.thread_row];
    const float column_scale = finish.column_scale[place.thread_column];
#if HAS_BIAS
    return scaled_value(sums[0], row_scale, column_scale, forge::to_float(finish.column_bias[place.thread_column]));
#else
    return scaled_value(sums[0], row_scale, column_scale);
#endif
}

extern "C" __global__ void __launch_bounds__(THREADS)
    scaled_gemm_mma(const x_t* __restrict__ x, const x_t* __restrict__ w, const float* __restrict__ x_scale,
                    const float* __restrict__ w_scale,
#if HAS_BIAS
                    const y_t* __restrict__ bias,
#endif
                    int M, int N, int K, int x_scale_step, int w_scale_step, y_t* __restrict__ y) {
    scaled_finish finish;
    finish.x_scale = x_scale;
    finish.w_scale = w_scale;
    finish.x_scale_step = x_scale_step;
    finish.w_scale_step = w_scale_step;
#if HAS_BIAS
    finish.bias = bias;
#endif
    const x_t* const weights[WEIGHTS] = {w};
    run_gemm(x, weights, M, N, K, y, finish);
}
