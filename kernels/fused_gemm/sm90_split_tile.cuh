// Tile constants and the shared-memory plan of the sm_90a GEMM kernels for few rows of x: the blocks of a cluster share
// a tile of y, each multiplies its own part of K.
//
// The operands are swapped: rows of the weights are the 64 rows of wgmma, rows of x its columns, which may be as few as
// 8.
//
// From the tactic: TILE_M rows of x, TILE_N columns of y, STAGES, SPLIT_K. From the kernel: WEIGHTS, whose boxes are
// stacked in one A operand of A_ROWS = WEIGHTS * TILE_N rows.
//
//   shared memory, from a multiple of 1024 bytes:
//     ring       STAGES x [ A: A_ROWS rows of 128 bytes | B: TILE_M rows of 128 bytes ]     128-byte swizzle
//     partial    TILE_M x [ A_ROWS float32 sums, PAD ]         in place of the ring, after the main loop
//     full       STAGES mbarriers        empty  STAGES mbarriers
#pragma once

#include "sm90_operands.cuh"

constexpr int CLUSTER_M = 1;  // the blocks of a cluster share no stage
constexpr int A_ROWS = WEIGHTS * TILE_N;
constexpr int TILE_CONSUMERS = A_ROWS / WGMMA_M;  // warpgroups that multiply; one more loads
constexpr int THREADS = (1 + TILE_CONSUMERS) * forge::WARPGROUP_THREADS;
constexpr int TILE_WARPS = TILE_CONSUMERS * forge::WARPGROUP_THREADS / forge::WARP_THREADS;
constexpr int MMA_N = TILE_M;
constexpr int ACCUMULATORS = MMA_N / 2;  // per thread

constexpr int WEIGHT_BYTES = TILE_N * ROW_BYTES;
constexpr int A_BYTES = A_ROWS * ROW_BYTES;
constexpr int STAGE_BYTES = A_BYTES + TILE_M * ROW_BYTES;
constexpr int BARRIER_OFFSET = STAGES * STAGE_BYTES;
constexpr int SHARED_NEEDED = BARRIER_OFFSET + 2 * STAGES * forge::MBARRIER_BYTES + forge::SWIZZLE128_ATOM_BYTES;

// A warp writes sums of 8 rows of the weights and every other one of 8 rows of x: with this pitch into 32 banks.
constexpr int PAD = 4;
constexpr int PITCH = A_ROWS + PAD;
constexpr int PARTIAL_BYTES = TILE_M * PITCH * static_cast<int>(sizeof(float));

static_assert(sizeof(x_t) == 2 && sizeof(y_t) == 2, "16-bit elements in and out");
static_assert(A_ROWS % WGMMA_M == 0 && TILE_CONSUMERS <= 2, "one or two consumer warpgroups of 64 rows");
static_assert(TILE_M % 8 == 0 && TILE_M <= 256, "wgmma is 8 to 256 wide");
static_assert((2 * PITCH) % 32 == 8, "the writes of partial sums have no bank conflicts");
static_assert(PARTIAL_BYTES <= STAGES * STAGE_BYTES, "partial sums reuse the ring");
static_assert(SHARED_BYTES >= SHARED_NEEDED, "the launch's dynamic shared memory is too small for this tile");

struct shared_plan : aligned_shared {
    using aligned_shared::aligned_shared;

    __device__ __forceinline__ uint32_t a(int stage) const { return base + stage * STAGE_BYTES; }
    __device__ __forceinline__ uint32_t b(int stage) const { return a(stage) + A_BYTES; }
    __device__ __forceinline__ float* partial() const { return reinterpret_cast<float*>(bytes); }
    __device__ __forceinline__ uint32_t full(int stage) const {
        return base + BARRIER_OFFSET + stage * forge::MBARRIER_BYTES;
    }
    __device__ __forceinline__ uint32_t empty(int stage) const { return full(STAGES + stage); }
};
