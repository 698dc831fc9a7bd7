// y = activate(x w^T + bias) + residual on sm_90a for few rows of x: a cluster of blocks shares a tile, and K.
//
//   w [N, K] --TMA--> ring.A --\
//                               wgmma m64 nTILE_M k16 --> acc (float32) --> partial sums --distributed shared memory--\
//   x [M, K] --TMA--> ring.B --/                                                                                     |
//                                 y [M, N] <-- 16 bytes <-- + residual <-- activate <-- + bias <-- sum over the cluster
//
// Compile-time: x_t, ACTIVATION, HAS_BIAS, HAS_RESIDUAL; tactic TILE_M, TILE_N, STAGES, SPLIT_K; SHARED_BYTES.
// Needs K % 8 == 0 and N % 8 == 0 (rows of 16-byte multiples) and 16-byte aligned pointers.

constexpr int WEIGHTS = 1;

#include "activate.cuh"
#include "sm90_split_kernel.cuh"

struct bias_activation_residual {
    struct operands {
        added_run<HAS_BIAS> bias;
        added_run<HAS_RESIDUAL> residual;
    };
    const x_t* bias = nullptr;
    const x_t* residual = nullptr;
    int N;

    __device__ __forceinline__ operands fetch(int row, int column) const {
        operands found;
        found.bias.load(bias, column);
        found.residual.load(residual, static_cast<size_t>(row) * N + column);
        return found;
    }

    __device__ __forceinline__ float value(const float (&sums)[WEIGHTS][RUN], const operands& with, int i) const {
        return with.residual.to(activate(with.bias.to(sums[0][i], i)), i);
    }
};

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    fused_gemm_sm90_split(const x_t* x, const x_t* w,
#if HAS_BIAS
                          const x_t* __restrict__ bias,
#endif
#if HAS_RESIDUAL
                          const x_t* __restrict__ residual,
#endif
                          int M, int N, int K, x_t* __restrict__ y, const __grid_constant__ forge::tensor_map x_map,
                          const __grid_constant__ forge::tensor_map w_map) {
    bias_activation_residual finish;
    finish.N = N;
#if HAS_BIAS
    finish.bias = bias;
#endif
#if HAS_RESIDUAL
    finish.residual = residual;
#endif
    const forge::tensor_map* const weights[WEIGHTS] = {&w_map};
    run_gemm(finish, M, N, K, &x_map, weights, y);
}
