// y = activate(x w^T + bias) + residual with mma.sync, for sm_80 and later, any M, N and K.
//
//   x [M, K] --cp.async--> ring --ldmatrix--\
//                                            mma.sync m16n8k16 --> acc (float32) --> + bias --> activate --> + residual
//   w [N, K] --cp.async--> ring --ldmatrix--/                                                                   |
//                                                                                                           y [M, N]
//
// Compile-time: x_t, ACTIVATION, HAS_BIAS, HAS_RESIDUAL; tactic BLOCK_M, BLOCK_N, BLOCK_K, STAGES, WARPS_M,
// WARPS_N, WARPS_K, GROUP_M; WIDE (1 needs K % 8 == 0 and 16-byte aligned pointers), SHARED_BYTES.

constexpr int WEIGHTS = 1;

#include "activate.cuh"
#include "mma_kernel.cuh"

extern "C" __global__ void __launch_bounds__(THREADS)
    fused_gemm_mma(const x_t* __restrict__ x, const x_t* __restrict__ w,
#if HAS_BIAS
                   const x_t* __restrict__ bias,
#endif
#if HAS_RESIDUAL
                   const x_t* __restrict__ residual,
#endif
                   int M, int N, int K, x_t* __restrict__ y) {
    const x_t* const weights[WEIGHTS] = {w};
    const auto finish = [&](const float (&sums)[WEIGHTS], int column) {
        float sum = sums[0];
#if HAS_BIAS
        sum += forge::to_float(bias[column]);
#endif
        return activate(sum);
    };
#if HAS_RESIDUAL
    run_gemm(x, weights, M, N, K, y, finish, residual);
#else
    run_gemm(x, weights, M, N, K, y, finish);
#endif
}
