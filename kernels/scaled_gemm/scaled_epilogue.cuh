// The epilogue of scaled products: activate(sum * x_scale[row] * w_scale[column] + bias[column]), in float32.
//
//   before the main loop     lane l of each warp asks for the scales and biases of columns 64 b + 2 l and + 1 of every
//                            output box b; nothing reads them yet, so that their latency hides in the main loop
//   before a box             8 x 2 + 8 shuffles bring a thread the scales and biases of its 16 columns of the box:
//                            pair p of the box (columns 2 p, 2 p + 1) is held by lane p
//   in the box               two multiplications and an addition per element; no memory is read
//
// x_scale_step and w_scale_step are 1, or 0 where the tensor has one scale.
#pragma once

#include "fused_gemm/sm90_kernel.cuh"
#include "scaled_value.cuh"

struct scaled_activation {
    static constexpr int BOXES = BLOCK_N / OUT_COLUMNS;
    static constexpr int GROUPS = OUT_COLUMNS / 8;  // of eight columns in a box; a thread has two of each

    const float* x_scale;
    const float* w_scale;
    int x_scale_step, w_scale_step;
    float row_scale[2];
    float2 held_scales[BOXES];
    float2 scales[GROUPS];  // of the box at hand
#if HAS_BIAS
    const y_t* bias;
    uint32_t held_biases[BOXES];
    uint32_t biases[GROUPS];
#endif

    __device__ __forceinline__ void start(uint32_t*) {}

    __device__ __forceinline__ void prepare(int row, int column, int M, int N) {
        const int thread = threadIdx.x % forge::WARPGROUP_THREADS;
        const int lane = thread % forge::WARP_THREADS;
        const int first_row = row + thread / forge::WARP_THREADS * 16 + lane / 4;
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            // Rows and columns outside are not stored: any scale will do, and the last one can be read.
            row_scale[h] = __ldg(x_scale + min(first_row + 8 * h, M - 1) * x_scale_step);
        }
#pragma unroll
        for (int b = 0; b < BOXES; ++b) {
            const int mine = min(column + b * OUT_COLUMNS + 2 * lane, N - 2);
            held_scales[b].x = __ldg(w_scale + mine * w_scale_step);
            held_scales[b].y = __ldg(w_scale + (mine + 1) * w_scale_step);
#if HAS_BIAS
            held_biases[b] = __ldg(reinterpret_cast<const unsigned int*>(bias + mine));  // N is even, so is the column
#endif
        }
    }
    __device__ __forceinline__ void settle() {}

    __device__ __forceinline__ void enter_box(int b) {
        constexpr unsigned int WARP = 0xffffffffu;
#pragma unroll
        for (int j = 0; j < GROUPS; ++j) {
            const int holder = 4 * j + threadIdx.x % 4;
            scales[j].x = __shfl_sync(WARP, held_scales[b].x, holder);
            scales[j].y = __shfl_sync(WARP, held_scales[b].y, holder);
#if HAS_BIAS
            biases[j] = __shfl_sync(WARP, held_biases[b], holder);
#endif
        }
    }

    __device__ __forceinline__ float value(const acc_t (&acc)[ACCUMULATORS], int j, int h, int e) const {
        const float2 pair = scales[j % GROUPS];
        const acc_t sum = acc[4 * j + 2 * h + e];
        const float column_scale = e == 0 ? pair.x : pair.y;
#if HAS_BIAS
        const float2 added = forge::unpack2<y_t>(biases[j % GROUPS]);
        return scaled_value(sum, row_scale[h], column_scale, e == 0 ? added.x : added.y);
#else
        return scaled_value(sum, row_scale[h], column_scale);
#endif
    }
};

__device__ __forceinline__ void begin_box(scaled_activation& epilogue, int first) {
    epilogue.enter_box(first / scaled_activation::GROUPS);
}
