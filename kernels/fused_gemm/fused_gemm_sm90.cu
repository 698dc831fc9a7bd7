// y = activate(x w^T + bias) + residual on sm_90a: TMA, wgmma, warp-specialized, persistent.
//
//   x [M, K] --TMA--> ring.A --\
//                               wgmma m64 nBLOCK_N k16 --> acc (float32) --> + bias --> activate --> +
//   w [N, K] --TMA--> ring.B --/                                                                     |
//   residual [M, N] --TMA--> out box ----------------------------------------------------------------+
//                               y [M, N] <--TMA-- out box (the same place) <-- x_t <-----------------+
//
// Compile-time: x_t, ACTIVATION, HAS_BIAS, HAS_RESIDUAL; tactic BLOCK_M, BLOCK_N, STAGES, CLUSTER_M, GROUP_M, PINGPONG;
// SHARED_BYTES.
// Needs K % 8 == 0 and N % 8 == 0 (rows of 16-byte multiples, for TMA) and 16-byte aligned pointers.

constexpr int WEIGHTS = 1;

#include "sm90_bias.cuh"
#include "sm90_kernel.cuh"

struct bias_activation_residual : bias_activation {
#if HAS_RESIDUAL
    const forge::tensor_map* residual;
#endif
};

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    fused_gemm_sm90(const x_t* x, const x_t* w,
#if HAS_BIAS
                    const x_t* __restrict__ bias,
#endif
#if HAS_RESIDUAL
                    const x_t* residual,
#endif
                    int M, int N, int K, x_t* y, const __grid_constant__ forge::tensor_map x_map,
                    const __grid_constant__ forge::tensor_map w_map,
#if HAS_RESIDUAL
                    const __grid_constant__ forge::tensor_map residual_map,
#endif
                    const __grid_constant__ forge::tensor_map y_map) {
    bias_activation_residual epilogue;
#if HAS_BIAS
    epilogue.bias = bias;
#endif
#if HAS_RESIDUAL
    epilogue.residual = &residual_map;
#endif
    const forge::tensor_map* const weights[WEIGHTS] = {&w_map};
    run_gemm(epilogue, M, N, K, &x_map, weights, &y_map);
}
