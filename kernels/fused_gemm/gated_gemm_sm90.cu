// y = activate(x w_gate^T + bias_gate) * (x w_up^T + bias_up) on sm_90a: TMA, wgmma, warp-specialized, persistent.
//
//   x      [M, K] --TMA--> ring.A ------------\
//   w_gate [N, K] --TMA--> ring.B rows 0 ..    \
//                                               wgmma m64 n(2 BLOCK_N) k16 --> acc: gate | up, same thread, same place
//   w_up   [N, K] --TMA--> ring.B rows BLOCK_N /                                      |
//                                                         y [M, N] <--TMA-- out box <-- activate(gate) * up
//
// Stacking the two weight boxes in one B operand leaves element (m, n) of both products in one thread: accumulator
// 4 j + 2 h + e is the gate's, 4 (j + BLOCK_N / 8) + 2 h + e the up projection's.
//
// Compile-time: x_t, ACTIVATION, HAS_BIAS_GATE, HAS_BIAS_UP; tactic BLOCK_M, BLOCK_N, STAGES, CLUSTER_M, GROUP_M,
// PINGPONG; SHARED_BYTES.
// Needs K % 8 == 0 and N % 8 == 0 (rows of 16-byte multiples, for TMA) and 16-byte aligned pointers.

constexpr int WEIGHTS = 2;

#include "activate.cuh"
#include "sm90_kernel.cuh"

struct gated_activation {
    const x_t* bias_gate = nullptr;
    const x_t* bias_up = nullptr;
#if HAS_BIAS_GATE || HAS_BIAS_UP
    column_biases columns;

    __device__ __forceinline__ void start(uint32_t* pairs) { columns.pairs = pairs; }
    __device__ __forceinline__ void prepare(int, int column, int, int N) {
        columns.fetch(bias_gate, 0, column, N);
        columns.fetch(bias_up, 1, column, N);
    }
    __device__ __forceinline__ void settle() { columns.publish(); }
    __device__ __forceinline__ float bias_at(int weight, int j, int e) const { return columns.at(weight, j, e); }
#else
    __device__ __forceinline__ void start(uint32_t*) {}
    __device__ __forceinline__ void prepare(int, int, int, int) {}
    __device__ __forceinline__ void settle() {}
    __device__ __forceinline__ float bias_at(int, int, int) const { return -0.0f; }  // adding -0 changes nothing
#endif

    __device__ __forceinline__ float value(const float (&acc)[ACCUMULATORS], int j, int h, int e) const {
        const float gate = acc[4 * j + 2 * h + e] + bias_at(0, j, e);
        const float up = acc[4 * (j + BLOCK_N / 8) + 2 * h + e] + bias_at(1, j, e);
        return activate(gate) * up;
    }
};

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    gated_gemm_sm90(const x_t* x, const x_t* w_gate, const x_t* w_up,
#if HAS_BIAS_GATE
                    const x_t* __restrict__ bias_gate,
#endif
#if HAS_BIAS_UP
                    const x_t* __restrict__ bias_up,
#endif
                    int M, int N, int K, x_t* y, const __grid_constant__ forge::tensor_map x_map,
                    const __grid_constant__ forge::tensor_map gate_map,
                    const __grid_constant__ forge::tensor_map up_map,
                    const __grid_constant__ forge::tensor_map y_map) {
    gated_activation epilogue;
#if HAS_BIAS_GATE
    epilogue.bias_gate = bias_gate;
#endif
#if HAS_BIAS_UP
    epilogue.bias_up = bias_up;
#endif
    const forge::tensor_map* const weights[WEIGHTS] = {&gate_map, &up_map};
    run_gemm(epilogue, M, N, K, &x_map, weights, &y_map);
}
