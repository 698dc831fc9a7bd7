// Tile constants and the shared-memory plan of the sm_90a GEMM kernels.
//
// From the tactic: BLOCK_M, BLOCK_N, STAGES, CLUSTER_M, GROUP_M, PINGPONG; WARP_STORES (sm90_epilogue.cuh) and
// WEIGHTS_AHEAD (sm90_load.cuh), 0 where absent. From the kernel: WEIGHTS, the number of weight matrices (1, or 2 for a
// gated product), whose boxes are stacked in one B operand of MMA_N = WEIGHTS * BLOCK_N rows.
//
//   shared memory, from a multiple of 1024 bytes:
//     ring   STAGES x [ A: BLOCK_M rows of 128 bytes | B: MMA_N rows of 128 bytes ]     128-byte swizzle
//     out    consumers x OUT_BOXES x [ 64 rows of 128 bytes ]                           128-byte swizzle
//     column vectors   consumers x [ MMA_N elements ]                                   biases of the tile's columns
//     full   STAGES mbarriers        empty  STAGES mbarriers        residual_full  one for each out box, if RESIDUAL
#pragma once

#include "sm90_operands.cuh"

constexpr int TILE_CONSUMERS = BLOCK_M / WGMMA_M;  // warpgroups that share a tile
constexpr int TURNS = PINGPONG ? 2 : 1;            // tiles in work at a time: one multiplies, the other is being stored
constexpr int CONSUMERS = TURNS * TILE_CONSUMERS;  // warpgroups that multiply; one more loads
constexpr int THREADS = (1 + CONSUMERS) * forge::WARPGROUP_THREADS;
constexpr int TILE_WARPS = TILE_CONSUMERS * forge::WARPGROUP_THREADS / forge::WARP_THREADS;
constexpr int MMA_N = WEIGHTS * BLOCK_N;
constexpr int ACCUMULATORS = MMA_N / 2;  // per thread

constexpr int A_BYTES = BLOCK_M * ROW_BYTES;
constexpr int WEIGHT_BYTES = BLOCK_N * ROW_BYTES;
constexpr int STAGE_BYTES = A_BYTES + WEIGHTS * WEIGHT_BYTES;

constexpr int OUT_COLUMNS = 64;  // of an output box: 128 bytes
constexpr int OUT_BOX_BYTES = WGMMA_M * ROW_BYTES;
constexpr int OUT_BOXES = 2;  // per consumer: one is filled while the other is being stored

// A residual (HAS_RESIDUAL) arrives in the boxes that the sums are added to and stored from.
#if defined(HAS_RESIDUAL) && HAS_RESIDUAL
constexpr bool RESIDUAL = true;
#else
constexpr bool RESIDUAL = false;
#endif
constexpr int RESIDUAL_BARRIERS = RESIDUAL ? CONSUMERS * OUT_BOXES : 0;

constexpr int OUT_OFFSET = STAGES * STAGE_BYTES;
constexpr int COLUMNS_OFFSET = OUT_OFFSET + CONSUMERS * OUT_BOXES * OUT_BOX_BYTES;
constexpr int BARRIER_OFFSET = COLUMNS_OFFSET + CONSUMERS * MMA_N * 2;
constexpr int BARRIERS = 2 * STAGES + RESIDUAL_BARRIERS;
constexpr int SHARED_NEEDED = BARRIER_OFFSET + BARRIERS * forge::MBARRIER_BYTES + forge::SWIZZLE128_ATOM_BYTES;

// The register file holds 64 Ki registers, 168 for each of 384 threads: the producer gives up what the accumulators of
// two consumer warpgroups need. With one consumer every thread may have 255.
constexpr bool MOVE_REGISTERS = CONSUMERS > 1;
constexpr int PRODUCER_REGISTERS = 40;
constexpr int CONSUMER_REGISTERS = 232;

static_assert(sizeof(x_t) <= 2 && sizeof(y_t) == 2, "8- or 16-bit elements in, 16-bit elements out");
static_assert(BLOCK_M == 64 || BLOCK_M == 128, "one or two consumer warpgroups of 64 rows");
static_assert(CONSUMERS <= 2, "the registers of a third consumer are not there");
static_assert(BLOCK_N % OUT_COLUMNS == 0 && MMA_N <= 256, "whole output boxes; wgmma is at most 256 wide");
static_assert(BLOCK_N % (8 * CLUSTER_M) == 0, "each CTA of a cluster loads whole swizzle atoms of the weights");
static_assert(SHARED_BYTES >= SHARED_NEEDED, "the launch's dynamic shared memory is too small for this tile");

struct shared_plan : aligned_shared {
    using aligned_shared::aligned_shared;

    __device__ __forceinline__ uint32_t a(int stage) const { return base + stage * STAGE_BYTES; }
    __device__ __forceinline__ uint32_t b(int stage) const { return a(stage) + A_BYTES; }
    __device__ __forceinline__ uint32_t out(int consumer, int box) const {
        return base + OUT_OFFSET + (consumer * OUT_BOXES + box % OUT_BOXES) * OUT_BOX_BYTES;
    }
    __device__ __forceinline__ uint32_t* column_pairs(int consumer) const {
        return reinterpret_cast<uint32_t*>(bytes + COLUMNS_OFFSET) + consumer * (MMA_N / 2);
    }
    __device__ __forceinline__ uint32_t full(int stage) const {
        return base + BARRIER_OFFSET + stage * forge::MBARRIER_BYTES;
    }
    __device__ __forceinline__ uint32_t empty(int stage) const { return full(STAGES + stage); }
    __device__ __forceinline__ uint32_t residual_full(int consumer, int box) const {
        return full(2 * STAGES + consumer * OUT_BOXES + box % OUT_BOXES);
    }
};
