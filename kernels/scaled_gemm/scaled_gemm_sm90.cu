// y = activate(x w^T * x_scale * w_scale + bias) on sm_90a for 8-bit x and w: TMA, wgmma, warp-specialized, persistent.
//
//   x [M, K] --TMA--> ring.A --\
//                               wgmma m64 nBLOCK_N k32 --> acc (float32, int32) --> * scales + bias --> activate
//   w [N, K] --TMA--> ring.B --/                                                                           |
//                                                     y [M, N] <--TMA-- out box <-- 16 bits <--------------+
//
// The main loop, ring and stores are the fused GEMM's (fused_gemm/sm90_kernel.cuh). A thread's rows have two scales,
// fetched before the main loop; the scales and biases of its columns are read where they are used, which the other
// consumer's main loop hides when they take turns.
//
// x_scale_step and w_scale_step are 1, or 0 where the tensor has one scale.
//
// Compile-time: x_t, y_t, ACTIVATION, HAS_BIAS; tactic BLOCK_M, BLOCK_N, STAGES,
// CLUSTER_M, GROUP_M, PINGPONG; SHARED_BYTES. Needs K % 16 == 0 and N % 8 == 0 (TMA) and 16-byte aligned pointers.

constexpr int WEIGHTS = 1;

#include "common/wgmma_8bit.cuh"
#include "fused_gemm/activate.cuh"
#include "fused_gemm/sm90_kernel.cuh"

struct scaled_activation {
    const float* x_scale;
    const float* w_scale;
    int x_scale_step, w_scale_step;
#if HAS_BIAS
    const y_t* bias;
#endif
    float row_scale[2];
    int first_column;
    int columns;

    __device__ __forceinline__ void start(uint32_t*) {}

    __device__ __forceinline__ void prepare(int row, int column, int M, int N) {
        const int thread = threadIdx.x % forge::WARPGROUP_THREADS;
        const int mine = row + thread / forge::WARP_THREADS * 16 + thread % forge::WARP_THREADS / 4;
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            row_scale[h] = mine + 8 * h < M ? __ldg(x_scale + (mine + 8 * h) * x_scale_step) : 0.0f;
            if (w_scale_step == 0) row_scale[h] *= __ldg(w_scale);
        }
        first_column = column + 2 * (thread % 4);
        columns = N;
    }
    __device__ __forceinline__ void settle() {}

    __device__ __forceinline__ float value(const acc_t (&acc)[ACCUMULATORS], int j, int h, int e) const {
        const int column = first_column + 8 * j;  // and column + 1: N % 8 == 0, so both are inside or neither is
        const bool inside = column < columns;
        float sum = static_cast<float>(acc[4 * j + 2 * h + e]) * row_scale[h];
        if (w_scale_step != 0) {
            const float2 scales = inside ? __ldg(reinterpret_cast<const float2*>(w_scale + column)) : float2{0.0f, 0.0f};
            sum *= e == 0 ? scales.x : scales.y;
        }
#if HAS_BIAS
        const unsigned int pair = inside ? __ldg(reinterpret_cast<const unsigned int*>(bias + column)) : 0u;
        const float2 biases = forge::unpack2<y_t>(pair);
        sum += e == 0 ? biases.x : biases.y;
#endif
        return activate(sum);
    }
};

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    scaled_gemm_sm90(const x_t* x, const x_t* w, const float* __restrict__ x_scale, const float* __restrict__ w_scale,
#if HAS_BIAS
                     const y_t* __restrict__ bias,
#endif
                     int M, int N, int K, int x_scale_step, int w_scale_step, y_t* y,
                     const __grid_constant__ forge::tensor_map x_map, const __grid_constant__ forge::tensor_map w_map, const __grid_constant__ forge::tensor_map y_map) {
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
