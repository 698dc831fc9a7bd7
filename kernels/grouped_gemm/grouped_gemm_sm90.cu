// y = activate(x w[expert]^T + bias[expert]) on sm_90a, tokens sorted by expert: TMA, wgmma, warp-specialized,
// persistent.
//
//   offsets [E] --> tiles of expert 0, 1, ..  (found by the loading thread and by every consumer, each for itself)
//
//   x [M, K] rows of the tile ----TMA--> ring.A --\
//                                                  wgmma m64 nBLOCK_N k16 --> acc (float32) --> + bias --> activate
//   w [E N, K] rows of the expert -TMA-> ring.B --/                                                           |
//                                  y [M, N] <--TMA, or up to the expert's last row-- out box <-- x_t <--------+
//
// The main loop, ring and stores are the fused GEMM's (fused_gemm/sm90_kernel.cuh). A tile that is cut by its expert's
// end multiplies rows of the next expert too; their sums go nowhere.
//
// Compile-time: x_t, ACTIVATION, HAS_BIAS; tactic BLOCK_M, BLOCK_N, STAGES, CLUSTER_M, GROUP_M, PINGPONG,
// WEIGHTS_AHEAD (0 where absent); SHARED_BYTES.
// Needs K % 8 == 0 and N % 8 == 0 (rows of 16-byte multiples, for TMA) and 16-byte aligned pointers.

constexpr int WEIGHTS = 1;

#include "fused_gemm/sm90_bias.cuh"
#include "sm90_grouped.cuh"

struct expert_bias_activation : bias_activation {
    int expert;
#if HAS_BIAS
    __device__ __forceinline__ void prepare(int, int column, int, int N) {
        columns.fetch(bias + static_cast<size_t>(expert) * N, 0, column, N);
    }
#endif
};

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    grouped_gemm_sm90(const x_t* x, const x_t* w, const int* __restrict__ offsets,
#if HAS_BIAS
                      const x_t* __restrict__ bias,
#endif
                      int M, int N, int K, int E, x_t* y, const __grid_constant__ forge::tensor_map x_map,
                      const __grid_constant__ forge::tensor_map w_map, const __grid_constant__ forge::tensor_map y_map) {
    expert_bias_activation finish;
#if HAS_BIAS
    finish.bias = bias;
#endif
    run_grouped_gemm(finish, offsets, E, M, N, K, &x_map, &w_map, y, &y_map);
}
