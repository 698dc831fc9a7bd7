// y = activate(x w^T * x_scale * w_scale + bias) on sm_90a for 8-bit x and w: TMA, wgmma, warp-specialized, persistent.
//
//   x [M, K] --TMA--> ring.A --\
//                               wgmma m64 nBLOCK_N k32 --> acc (float32, int32) --> * scales + bias --> activate
//   w [N, K] --TMA--> ring.B --/                                                                           |
//                                                     y [M, N] <--TMA-- out box <-- 16 bits <--------------+
//
// The main loop, ring and stores are the fused GEMM's (fused_gemm/sm90_kernel.cuh), the epilogue is
// scaled_epilogue.cuh's.
//
// Compile-time: x_t, y_t, ACTIVATION, HAS_BIAS; tactic BLOCK_M, BLOCK_N, STAGES, CLUSTER_M, GROUP_M, PINGPONG,
// WARP_STORES (0 where absent); SHARED_BYTES. Needs K % 16 == 0 and N % 8 == 0 (TMA) and 16-byte aligned pointers.

constexpr int WEIGHTS = 1;

#include "common/wgmma_8bit.cuh"
#include "scaled_epilogue.cuh"

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    scaled_gemm_sm90(const x_t* x, const x_t* w, const float* __restrict__ x_scale, const float* __restrict__ w_scale,
#if HAS_BIAS
                     const y_t* __restrict__ bias,
#endif
                     int M, int N, int K, int x_scale_step, int w_scale_step, y_t* y,
                     const __grid_constant__ forge::tensor_map x_map, const __grid_constant__ forge::tensor_map w_map,
                     const __grid_constant__ forge::tensor_map y_map) {
    scaled_activation epilogue;
    epilogue.x_scale = x_scale;
    epilogue.w_scale = w_scale;
    epilogue.x_scale_step = x_scale_step;
    epilogue.w_scale_step = w_scale_step;
#if HAS_BIAS
    epilogue.bias = bias;
#endif
    const forge::tensor_map* const weights[WEIGHTS] = {&w_map};
    run_gemm(epilogue, M, N, K, &x_map, weights, &y_map);
}
