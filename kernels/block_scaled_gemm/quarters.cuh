// The main loop of block-scaled products in quarters of 64 columns, with x in registers (tactic QUARTERS).
//
//   a (16 registers)    <--ldmatrix-- x of the stage, once for all four quarters
//   partial[q % 2]      <--4 x wgmma m64 n64 k32-- a, 64 rows of w
//
//   tensor cores | q0        | q1        | q2        | q3        | q0 of the next block ..
//   FMA pipe     | promote q3| promote q0| promote q1| promote q2| promote q3 ..
//
// Two sets of 32 partial sums in turns: a quarter is promoted while the next one is multiplied, so that a consumer never
// leaves the tensor cores without work but at the end of a block, when x of the next one is fetched. x is read from
// shared memory once instead of once for every group of columns, which a wgmma with both operands there would do.
//
// Include after `scaling`'s type: it has quartet_at(block), see block_scaled_gemm_sm90.cu.
#pragma once

#include "common/ldmatrix.cuh"

constexpr int QUARTER_COLUMNS = 64;
constexpr int QUARTER_SUMS = QUARTER_COLUMNS / 2;  // per thread
constexpr int TILE_QUARTERS = BLOCK_N / QUARTER_COLUMNS;
static_assert(TILE_QUARTERS % 2 == 0, "the last quarter of every block has the same set of partial sums");

// x of a stage as operand A of its four steps along K.
struct block_rows {
    uint32_t a[WGMMA_STEPS][4];

    // `rows`: shared address of the consumer's 64 rows, 128-byte swizzle.
    __device__ __forceinline__ void load(uint32_t rows) {
        const int thread = threadIdx.x % forge::WARPGROUP_THREADS, lane = thread % forge::WARP_THREADS;
        const int row = thread / forge::WARP_THREADS * 16 + lane % 16;
        const uint32_t first = rows + row * ROW_BYTES + ((lane / 16 ^ row % 8) * 16);
#pragma unroll
        for (int step = 0; step < WGMMA_STEPS; ++step) forge::ldmatrix_x4(a[step], first ^ (step * WGMMA_K_BYTES));
    }
};

__device__ __forceinline__ void start_quarter(float (&partial)[QUARTER_SUMS], block_rows& x, uint32_t weights) {
    const uint64_t b = forge::swizzle128_k_major(weights);
    forge::wgmma_hold(partial);
#pragma unroll
    for (int step = 0; step < WGMMA_STEPS; ++step) forge::wgmma_hold(x.a[step]);
    forge::wgmma_fence();
#pragma unroll
    for (int step = 0; step < WGMMA_STEPS; ++step) {
        forge::wgmma_rs<x_t, QUARTER_COLUMNS>(partial, x.a[step], forge::descriptor_advance(b, step * WGMMA_K_BYTES),
                                              step != 0);
    }
    forge::wgmma_commit();
}

// acc of one quarter += partial * scale of the row.
__device__ __forceinline__ void promote(float (&acc)[ACCUMULATORS], int quarter, float (&partial)[QUARTER_SUMS],
                                        float upper, float lower) {
    forge::wgmma_hold(partial);
#pragma unroll
    for (int i = 0; i < QUARTER_SUMS; ++i) {
        acc[quarter * QUARTER_SUMS + i] += (i / 2 % 2 == 0 ? upper : lower) * partial[i];
    }
}

template <class Scaling>
__device__ __forceinline__ void multiply_in_quarters(const Scaling& scaling, float (&acc)[ACCUMULATORS],
                                                     const shared_plan& shared, ring& position, int k_blocks,
                                                     int slice) {
    constexpr int LAST = TILE_QUARTERS - 1;
    float partial[2][QUARTER_SUMS];
#pragma unroll
    for (int i = 0; i < ACCUMULATORS; ++i) acc[i] = 0.0f;
#pragma unroll
    for (int i = 0; i < QUARTER_SUMS; ++i) partial[LAST % 2][i] = 0.0f;  // there is no block before the first
    block_rows x;
    auto quartet = scaling.quartet_at(0);
    auto scales = quartet.of(0);
    float late_upper = 0.0f, late_lower = 0.0f;  // scales of the last quarter of the block before
    forge::mbarrier_wait(shared.full(position.stage), position.round_parity);
    for (int block = 0; block < k_blocks; ++block) {
        const int stage = position.stage;
        x.load(shared.a(stage) + slice * WGMMA_M * ROW_BYTES);
        promote(acc, LAST, partial[LAST % 2], late_upper, late_lower);
#pragma unroll
        for (int quarter = 0; quarter < TILE_QUARTERS; ++quarter) {
            start_quarter(partial[quarter % 2], x, shared.b(stage) + quarter * QUARTER_COLUMNS * ROW_BYTES);
            if (quarter > 0) {
                const float columns = scales.columns[(quarter - 1) * QUARTER_COLUMNS / SCALE_BLOCK];
                forge::wgmma_wait<1>();
                promote(acc, quarter - 1, partial[(quarter - 1) % 2], scales.row[0] * columns, scales.row[1] * columns);
            }
        }
        late_upper = scales.row[0] * scales.columns[HALVES - 1];
        late_lower = scales.row[1] * scales.columns[HALVES - 1];
        scales = quartet.of(block + 1);
        if (block % QUARTET == QUARTET - 2) quartet = scaling.quartet_at(block + 2);
        position.advance();
        if (block + 1 < k_blocks) forge::mbarrier_wait(shared.full(position.stage), position.round_parity);
        forge::wgmma_wait<0>();  // x in registers may be overwritten
        __syncwarp();            // every lane has its x
        release(shared, stage);
    }
    promote(acc, LAST, partial[LAST % 2], late_upper, late_lower);
}
