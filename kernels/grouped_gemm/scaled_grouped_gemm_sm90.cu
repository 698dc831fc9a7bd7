// y = activate((x w[expert]^T) * x_scale * w_scale[expert] + bias[expert]) on sm_90a, for fp8 tokens sorted by expert.
//
//   offsets [E] --> tiles of expert 0, 1, ..
//
//   x [M, K] rows of the tile ----TMA--> ring.A --\
//                                                  wgmma m64 nBLOCK_N k32 --> acc (float32) --> * scales + bias
//   w [E N, K] rows of the expert -TMA-> ring.B --/                                                  |
//                     y [M, N] <--TMA, or up to the expert's last row-- out box <-- 16 bits <-- activate
//
// The main loop, ring and stores are the fused GEMM's (fused_gemm/sm90_kernel.cuh), the epilogue the scaled GEMM's
// (scaled_gemm/scaled_epilogue.cuh) with the expert's scales and biases.
//
// Compile-time: x_t, y_t, ACTIVATION, HAS_BIAS; tactic BLOCK_M, BLOCK_N, STAGES, CLUSTER_M, GROUP_M, PINGPONG;
// SHARED_BYTES. Needs K % 16 == 0 and N % 8 == 0 (TMA) and 16-byte aligned pointers.

constexpr int WEIGHTS = 1;

#include "common/wgmma_8bit.cuh"
#include "scaled_gemm/scaled_epilogue.cuh"
#include "sm90_grouped.cuh"

struct expert_scales : scaled_activation {
    int expert;
    const float* every_w_scale;
#if HAS_BIAS
    const y_t* every_bias;
#endif

    __device__ __forceinline__ void prepare(int row, int column, int M, int N) {
        const size_t first = static_cast<size_t>(expert) * N;
        w_scale = every_w_scale + first;
#if HAS_BIAS
        bias = every_bias + first;
#endif
        scaled_activation::prepare(row, column, M, N);
    }
};

__device__ __forceinline__ void begin_box(expert_scales& epilogue, int first) {
    begin_box(static_cast<scaled_activation&>(epilogue), first);
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    scaled_grouped_gemm_sm90(const x_t* x, const x_t* w, const int* __restrict__ offsets,
                             const float* __restrict__ x_scale, const float* __restrict__ w_scale,
#if HAS_BIAS
                             const y_t* __restrict__ bias,
#endif
                             int M, int N, int K, int E, y_t* y, const __grid_constant__ forge::tensor_map x_map,
                             const __grid_constant__ forge::tensor_map w_map,
                             const __grid_constant__ forge::tensor_map y_map) {
    expert_scales finish;
    finish.x_scale = x_scale;
    finish.every_w_scale = w_scale;
    finish.x_scale_step = 1;
    finish.w_scale_step = 1;
#if HAS_BIAS
    finish.every_bias = bias;
#endif
    run_grouped_gemm(finish, offsets, E, M, N, K, &x_map, &w_map, y, &y_map);
}
