// y = activate(x w_gate^T + bias_gate) * (x w_up^T + bias_up) with mma.sync, for sm_80 and later, any M, N and K.
//
//   x      [M, K] --cp.async--> ring --ldmatrix--> a --+--> mma.sync --> acc[0] --> activate --\
//   w_gate [N, K] --cp.async--> ring --ldmatrix--> b --/                                        * --> y [M, N]
//   w_up   [N, K] --cp.async--> ring --ldmatrix--> b -----> mma.sync --> acc[1] ---------------/
//                                                           (the same a)
//
// Compile-time: x_t, ACTIVATION, HAS_BIAS_GATE, HAS_BIAS_UP; tactic BLOCK_M, BLOCK_N, BLOCK_K, STAGES, WARPS_M,
// WARPS_N, WARPS_K, GROUP_M; WIDE (1 needs K % 8 == 0 and 16-byte aligned pointers), SHARED_BYTES.

constexpr int WEIGHTS = 2;

#include "activate.cuh"
#include "mma_kernel.cuh"

extern "C" __global__ void __launch_bounds__(THREADS)
    gated_gemm_mma(const x_t* __restrict__ x, const x_t* __restrict__ w_gate, const x_t* __restrict__ w_up,
#if HAS_BIAS_GATE
                   const x_t* __restrict__ bias_gate,
#endif
#if HAS_BIAS_UP
                   const x_t* __restrict__ bias_up,
#endif
                   int M, int N, int K, x_t* __restrict__ y) {
    const x_t* const weights[WEIGHTS] = {w_gate, w_up};
    run_gemm(x, weights, M, N, K, y, [&](const float (&sums)[WEIGHTS], int column) {
        float gate = sums[0];
        float up = sums[1];
#if HAS_BIAS_GATE
        gate += forge::to_float(bias_gate[column]);
#endif
#if HAS_BIAS_UP
        up += forge::to_float(bias_up[column]);
#endif
        return activate(gate) * up;
    });
}
