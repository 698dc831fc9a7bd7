// y = activate(sum over blocks b of K of (x_b w_b^T) * x_scale[row, b] * w_scale[column / 128, b], + bias) on sm_90a:
// fp8 with scales of 1 x 128 and 128 x 128 blocks, promoted to float32 as DeepSeek-V3 does (arXiv:2412.19437, 3.3.2).
//
//   ring stage = one block of K (128 bytes)
//     A: 64 rows --\
//                   4 x wgmma m64 n128 k32 --> partial (64 registers) --> acc += partial * x_scale * w_scale (float32)
//     B: 128 rows -/                          one half of the tile's columns after the other
//
//   consumer 0   | wgmma left  | promote |  wgmma right | promote | ...         the tensor cores work for one consumer
//   consumer 1   | promote | wgmma left  | promote |  wgmma right | ...         while the other promotes
//
// The ring, its loads and the stores are the fused GEMM's (fused_gemm/sm90_kernel.cuh). Half a tile's columns share
// their weight scale; a thread has two rows. The four lanes that share the rows hold a quartet of blocks of scales
// between them, lane q block 4 i + q; shuffles behind a block's first products bring every lane the block's own. The
// next quartet is asked for behind the last shuffles of this one, a block before it is needed.
//
// With IN_ORDER the consumers issue their halves in turns (left 0, left 1, right 0, right 1, ..): queued side by side,
// the tensor cores may take instructions from both, and then both would promote at the same time.
//
// With QUARTERS the main loop is another, see quarters.cuh.
//
// Compile-time: x_t, y_t, ACTIVATION, HAS_BIAS; tactic BLOCK_M, BLOCK_N (128 or 256), STAGES, CLUSTER_M, GROUP_M,
// PINGPONG = 0, IN_ORDER, QUARTERS (0 where absent); SHARED_BYTES.
// Needs K % 16 == 0 and N % 8 == 0 (TMA) and 16-byte aligned pointers.

constexpr int WEIGHTS = 1;

#include "common/wgmma_8bit.cuh"
#include "fused_gemm/activate.cuh"
#include "fused_gemm/sm90_kernel.cuh"

constexpr int SCALE_BLOCK = 128;  // elements of K, and columns, that share a scale
constexpr int HALVES = BLOCK_N / SCALE_BLOCK;
constexpr int PARTIALS = SCALE_BLOCK / 2;  // sums of a half, per thread
constexpr int QUARTET = 4;                 // blocks of K whose scales the lanes of a row hold between them

#ifndef IN_ORDER
#define IN_ORDER 0
#endif
#ifndef QUARTERS
#define QUARTERS 0
#endif

static_assert(BLOCK_K == SCALE_BLOCK && BLOCK_N % SCALE_BLOCK == 0, "a stage is a block of K, a half a block of columns");

// Of one block of K, or of the lane's block of a quartet.
struct block_scales {
    float row[2];
    float columns[HALVES];

    // Of block `block` of the quartet that the lanes of a row hold.
    __device__ __forceinline__ block_scales of(int block) const {
        constexpr unsigned int WARP = 0xffffffffu;
        const int holder = block % QUARTET;
        block_scales found;
#pragma unroll
        for (int h = 0; h < 2; ++h) found.row[h] = __shfl_sync(WARP, row[h], holder, QUARTET);
#pragma unroll
        for (int half = 0; half < HALVES; ++half) {
            found.columns[half] = __shfl_sync(WARP, columns[half], holder, QUARTET);
        }
        return found;
    }
};

// The order in which the consumers issue their products, half after half of a tile. Consumer 0 begins a tile unasked
// and consumer 1 ends it untold, so that no barrier is left half full.
struct issue_order {
    static constexpr bool USED = IN_ORDER && CONSUMERS == 2;
    static constexpr int FIRST_BARRIER = 1 + CONSUMERS;  // after the epilogue's
    static constexpr int THREADS_OF_TURN = 2 * forge::WARPGROUP_THREADS;
    const int consumer;

    __device__ __forceinline__ void take(bool first) const {
        if (USED && !(first && consumer == 0)) forge::named_barrier_sync(FIRST_BARRIER + consumer, THREADS_OF_TURN);
    }
    __device__ __forceinline__ void pass(bool last) const {
        if (USED && !(last && consumer == 1)) forge::named_barrier_arrive(FIRST_BARRIER + 1 - consumer, THREADS_OF_TURN);
    }
};

struct block_scaled_activation {
    const float* x_scale;
    const float* w_scale;
    int blocks;         // of K: the length of a row of scales
    int column_blocks;  // of N
    const float* row_scales[2];
    const float* column_scales[HALVES];
#if HAS_BIAS
    const y_t* bias;
    column_biases biases;
#endif

    __device__ __forceinline__ void start(uint32_t* pairs) {
#if HAS_BIAS
        biases.pairs = pairs;
#endif
    }

    // Rows and columns outside are not stored: any scale will do, and the last one can be read.
    __device__ __forceinline__ void prepare(int row, int column, int M, int N) {
        const int thread = threadIdx.x % forge::WARPGROUP_THREADS;
        const int first_row = row + thread / forge::WARP_THREADS * 16 + thread % forge::WARP_THREADS / 4;
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            row_scales[h] = x_scale + static_cast<size_t>(min(first_row + 8 * h, M - 1)) * blocks;
        }
#pragma unroll
        for (int half = 0; half < HALVES; ++half) {
            column_scales[half] = w_scale + min(column / SCALE_BLOCK + half, column_blocks - 1) * blocks;
        }
#if HAS_BIAS
        biases.fetch(bias, 0, column, N);
#endif
    }

    __device__ __forceinline__ void settle() {
#if HAS_BIAS
        biases.publish();
#endif
    }

    // The lane's of the quartet that begins with `block`.
    __device__ __forceinline__ block_scales quartet_at(int block) const {
        const int index = min(block + static_cast<int>(threadIdx.x % QUARTET), blocks - 1);
        block_scales found;
#pragma unroll
        for (int h = 0; h < 2; ++h) found.row[h] = __ldg(row_scales[h] + index);
#pragma unroll
        for (int half = 0; half < HALVES; ++half) found.columns[half] = __ldg(column_scales[half] + index);
        return found;
    }

    __device__ __forceinline__ float value(const float (&acc)[ACCUMULATORS], int j, int h, int e) const {
        float sum = acc[4 * j + 2 * h + e];
#if HAS_BIAS
        sum += biases.at(0, j, e);
#endif
        return activate(sum);
    }
};

#if QUARTERS
#include "quarters.cuh"
#endif

// acc = the scaled sums, for rows 64 * slice .. of the tile. k_blocks is the number of blocks of K.
__device__ __forceinline__ void multiply(block_scaled_activation& scaling, float (&acc)[ACCUMULATORS],
                                         const shared_plan& shared, ring& position, int k_blocks, int slice) {
#if QUARTERS
    multiply_in_quarters(scaling, acc, shared, position, k_blocks, slice);
#else
#pragma unroll
    for (int i = 0; i < ACCUMULATORS; ++i) acc[i] = 0.0f;
    float partial[PARTIALS];
    const issue_order order = {slice};
    block_scales quartet = scaling.quartet_at(0);
    for (int block = 0; block < k_blocks; ++block) {
        forge::mbarrier_wait(shared.full(position.stage), position.round_parity);
        const uint64_t a = forge::swizzle128_k_major(shared.a(position.stage) + slice * WGMMA_M * ROW_BYTES);
        block_scales scales;
#pragma unroll
        for (int half = 0; half < HALVES; ++half) {
            const uint64_t b = forge::swizzle128_k_major(shared.b(position.stage) + half * SCALE_BLOCK * ROW_BYTES);
            order.take(block == 0 && half == 0);
            forge::wgmma_hold(partial);
            forge::wgmma_fence();
#pragma unroll
            for (int step = 0; step < WGMMA_STEPS; ++step) {
                forge::wgmma_ss<x_t, SCALE_BLOCK>(partial, forge::descriptor_advance(a, step * WGMMA_K_BYTES),
                                                  forge::descriptor_advance(b, step * WGMMA_K_BYTES), step != 0);
            }
            forge::wgmma_commit();
            order.pass(block + 1 == k_blocks && half == HALVES - 1);
            if (half == 0) {
                scales = quartet.of(block);
                if (block % QUARTET == QUARTET - 1) quartet = scaling.quartet_at(block + 1);
            }
            const float scale[2] = {scales.row[0] * scales.columns[half], scales.row[1] * scales.columns[half]};
            forge::wgmma_wait<0>();
            forge::wgmma_hold(partial);
            if (half == HALVES - 1) release(shared, position.stage);
#pragma unroll
            for (int i = 0; i < PARTIALS; ++i) acc[half * PARTIALS + i] += scale[i / 2 % 2] * partial[i];
        }
        position.advance();
    }
#endif
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    block_scaled_gemm_sm90(const x_t* x, const x_t* w, const float* __restrict__ x_scale,
                           const float* __restrict__ w_scale,
#if HAS_BIAS
                           const y_t* __restrict__ bias,
#endif
                           int M, int N, int K, y_t* y, const __grid_constant__ forge::tensor_map x_map,
                           const __grid_constant__ forge::tensor_map w_map,
                           const __grid_constant__ forge::tensor_map y_map) {
    block_scaled_activation epilogue;
    epilogue.x_scale = x_scale;
    epilogue.w_scale = w_scale;
    epilogue.blocks = ceil_div(K, SCALE_BLOCK);
    epilogue.column_blocks = ceil_div(N, SCALE_BLOCK);
#if HAS_BIAS
    epilogue.bias = bias;
#endif
    const forge::tensor_map* const weights[WEIGHTS] = {&w_map};
    run_gemm(epilogue, M, N, K, &x_map, weights, &y_map);
}
