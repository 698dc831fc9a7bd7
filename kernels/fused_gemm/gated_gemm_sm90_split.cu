// y = activate(x w_gate^T + bias_gate) * (x w_up^T + bias_up) on sm_90a for few rows of x: a cluster of blocks shares a
// tile, and K.
//
//   w_gate [N, K] --TMA--> ring.A rows 0 ..    \
//                                               wgmma m64 nTILE_M k16 --> acc (float32) --> partial sums: gate | up
//   w_up   [N, K] --TMA--> ring.A rows TILE_N / (a warpgroup each)                                        |
//   x      [M, K] --TMA--> ring.B ------------/                                   distributed shared memory
//                                                                                                         |
//                                y [M, N] <-- 16 bytes <-- activate(gate) * up <-- sums over the cluster -+
//
// Compile-time: x_t, ACTIVATION, HAS_BIAS_GATE, HAS_BIAS_UP; tactic TILE_M, TILE_N, STAGES, SPLIT_K; SHARED_BYTES.
// Needs K % 8 == 0 and N % 8 == 0 (rows of 16-byte multiples) and 16-byte aligned pointers.

constexpr int WEIGHTS = 2;

#include "activate.cuh"
#include "sm90_split_kernel.cuh"

struct gated_product {
    struct operands {
        added_run<HAS_BIAS_GATE> gate;
        added_run<HAS_BIAS_UP> up;
    };
    const x_t* bias_gate = nullptr;
    const x_t* bias_up = nullptr;

    __device__ __forceinline__ operands fetch(int, int column) const {
        operands found;
        found.gate.load(bias_gate, column);
        found.up.load(bias_up, column);
        return found;
    }

    __device__ __forceinline__ float value(const float (&sums)[WEIGHTS][RUN], const operands& with, int i) const {
        const float gate = with.gate.to(sums[0][i], i);
        const float up = with.up.to(sums[1][i], i);
        return activate(gate) * up;
    }
};

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    gated_gemm_sm90_split(const x_t* x, const x_t* w_gate, const x_t* w_up,
#if HAS_BIAS_GATE
                          const x_t* __restrict__ bias_gate,
#endif
#if HAS_BIAS_UP
                          const x_t* __restrict__ bias_up,
#endif
                          int M, int N, int K, x_t* __restrict__ y, const __grid_constant__ forge::tensor_map x_map,
                          const __grid_constant__ forge::tensor_map gate_map,
                          const __grid_constant__ forge::tensor_map up_map) {
    gated_product finish;
#if HAS_BIAS_GATE
    finish.bias_gate = bias_gate;
#endif
#if HAS_BIAS_UP
    finish.bias_up = bias_up;
#endif
    const forge::tensor_map* const weights[WEIGHTS] = {&gate_map, &up_map};
    run_gemm(finish, M, N, K, &x_map, weights, y);
}
