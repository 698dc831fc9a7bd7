// Tile sizes, shared memory and barriers of the sm_90a flash-attention kernel.
//
//   shared memory (1024-byte aligned; each tile is chunks, a chunk is rows of 128 bytes, 128-byte swizzle)
//   ┌───────────────┬───────────────────────┬───────────────────────┬──────────┐
//   │ Q (later O)   │ K stage 0 .. STAGES-1 │ V stage 0 .. STAGES-1 │ barriers │
//   │ BLOCK_M x D   │ BLOCK_N x D each      │ BLOCK_N x D each      │          │
//   └───────────────┴───────────────────────┴───────────────────────┴──────────┘
//   EIGHT_BIT: the V stages hold V transposed, D x BLOCK_N, chunks of 128 keys; V lands in further stages before the
//   barriers, from where it is transposed.
//
// From the tactic: CONSUMERS (warpgroups), BLOCK_N, STAGES, TILE_D (HEAD_DIM rounded up to 64), PINGPONG (0/1),
// PERSISTENT (0/1); of some tactics PREFETCH_Q, HOST_INVERSES, HANDED_OUT (below), and those of online_softmax.cuh.
#pragma once

#include "common/mbarrier.cuh"
#include "common/tma.cuh"
#include "common/warpgroup.cuh"
#include "common/wgmma.cuh"
#include "eight_bit.cuh"

// 1: a persistent CTA's producer fetches the next tile's Q into L2 while this tile's blocks are multiplied. Its load can
// begin only when Q's buffer is free, at the end of this tile; each row of Q is read once, so it would come from memory.
#ifndef PREFETCH_Q
#define PREFETCH_Q 0
#endif

// 1: the host passes what saves the divisions in the order of tiles (tile_order.cuh), which no product hides.
#ifndef HOST_INVERSES
#define HOST_INVERSES 0
#endif

// Not 0: the walk of the persistent CTAs stops before the last HANDED_OUT rounds (the broken one counts). Each of the
// tiles left has a CTA of its own, which the hardware starts wherever a walk has ended.
#ifndef HANDED_OUT
#define HANDED_OUT 0
#endif

namespace forge {

constexpr int WARPGROUP_ROWS = 64;  // the M of one wgmma
constexpr int ELEMENT_BYTES = sizeof(q_t);
constexpr int K_STEP = 32 / ELEMENT_BYTES;  // the K of one wgmma
constexpr int BLOCK_M = CONSUMERS * WARPGROUP_ROWS;
constexpr int THREADS = (CONSUMERS + 1) * WARPGROUP_THREADS;
constexpr int WARPS_PER_WARPGROUP = WARPGROUP_THREADS / WARP_THREADS;

constexpr int CHUNK_COLUMNS = static_cast<int>(SWIZZLE128_ROW_BYTES) / ELEMENT_BYTES;
constexpr int CHUNKS = (TILE_D + CHUNK_COLUMNS - 1) / CHUNK_COLUMNS;
constexpr uint32_t Q_CHUNK_BYTES = BLOCK_M * SWIZZLE128_ROW_BYTES;
constexpr uint32_t WARPGROUP_CHUNK_BYTES = WARPGROUP_ROWS * SWIZZLE128_ROW_BYTES;
constexpr uint32_t KV_CHUNK_BYTES = BLOCK_N * SWIZZLE128_ROW_BYTES;
constexpr uint32_t Q_BYTES = CHUNKS * Q_CHUNK_BYTES;
constexpr uint32_t KV_BYTES = CHUNKS * KV_CHUNK_BYTES;
// V transposed.
constexpr uint32_t VALUE_CHUNK_BYTES = TILE_D * SWIZZLE128_ROW_BYTES;
constexpr uint32_t VALUE_BYTES = (BLOCK_N + CHUNK_COLUMNS - 1) / CHUNK_COLUMNS * VALUE_CHUNK_BYTES;
constexpr int TRANSPOSER_WARPS = 2;

constexpr int SCORE_STEPS = (HEAD_DIM + K_STEP - 1) / K_STEP;  // k-steps of Q K^T
constexpr int STEPS_PER_CHUNK = CHUNK_COLUMNS / K_STEP;
constexpr uint32_t K_MAJOR_STEP_BYTES = 32;
constexpr uint32_t MN_MAJOR_STEP_BYTES = K_STEP * SWIZZLE128_ROW_BYTES;
constexpr int VALUE_STEPS = BLOCK_N / K_STEP;  // k-steps of P V

// setmaxnreg budgets; (CONSUMERS * consumer + producer) * 128 fits what the launch bound gives (168 or 128 a thread).
constexpr int PRODUCER_REGISTERS = CONSUMERS == 2 ? (EIGHT_BIT ? 40 : 24) : 32;
constexpr int CONSUMER_REGISTERS = CONSUMERS == 2 ? (EIGHT_BIT ? 232 : 240) : 160;

// Named barriers: one per consumer warpgroup, one per turn of the ping-pong order, one for all consumers.
constexpr int WARPGROUP_BARRIER = 1;
constexpr int TURN_BARRIER = WARPGROUP_BARRIER + CONSUMERS;
constexpr int CONSUMER_BARRIER = TURN_BARRIER + CONSUMERS;

static_assert(CONSUMERS == 2 || CONSUMERS == 3, "two or three consumer warpgroups");
static_assert(TILE_D % 64 == 0 && TILE_D >= HEAD_DIM && TILE_D <= 256, "TILE_D is HEAD_DIM rounded up to 64");
static_assert(HEAD_DIM * ELEMENT_BYTES % 16 == 0, "tensor maps need row pitches that are multiples of 16 bytes");
static_assert(!SUM_BY_BLOCK || (EIGHT_BIT && !PERSISTENT), "a change of tiles adds no block to the sums");
static_assert(PERSISTENT || (PREFETCH_Q == 0 && HANDED_OUT == 0), "a CTA has no further tile");
static_assert(STAGES >= 2, "the loop holds one K and one V tile while it waits for the next");
static_assert(BLOCK_N % K_STEP == 0 && BLOCK_N <= 256, "BLOCK_N is made of k-steps, at most 256");

// Shared addresses of everything, from the dynamic base rounded up to 1024 bytes.
struct shared_layout {
    uint32_t q, k, v, landed, barriers;

    __device__ __forceinline__ explicit shared_layout(const void* dynamic_base) {
        q = (shared_address(dynamic_base) + SWIZZLE128_ATOM_BYTES - 1) & ~(SWIZZLE128_ATOM_BYTES - 1);
        k = q + Q_BYTES;
        v = k + STAGES * KV_BYTES;
        landed = EIGHT_BIT ? v + STAGES * VALUE_BYTES : v;
        barriers = landed + STAGES * KV_BYTES;
    }

    __device__ __forceinline__ uint32_t k_tile(int stage) const { return k + stage * KV_BYTES; }
    __device__ __forceinline__ uint32_t v_tile(int stage) const {
        return v + stage * (EIGHT_BIT ? VALUE_BYTES : KV_BYTES);
    }
    // Where the producer puts V: the tiles that are multiplied by, or those that are to be transposed.
    __device__ __forceinline__ uint32_t landed_tile(int stage) const { return landed + stage * KV_BYTES; }
    // Each consumer warpgroup's 64 rows of Q come and go by themselves: chunk c lies Q_CHUNK_BYTES * c further on.
    __device__ __forceinline__ uint32_t q_rows(int warpgroup) const { return q + warpgroup * WARPGROUP_CHUNK_BYTES; }
    __device__ __forceinline__ uint32_t k_full(int stage) const { return barrier(stage); }
    __device__ __forceinline__ uint32_t k_empty(int stage) const { return barrier(STAGES + stage); }
    __device__ __forceinline__ uint32_t v_full(int stage) const { return barrier(2 * STAGES + stage); }
    __device__ __forceinline__ uint32_t v_empty(int stage) const { return barrier(3 * STAGES + stage); }
    __device__ __forceinline__ uint32_t q_full(int warpgroup) const { return barrier(4 * STAGES + warpgroup); }
    __device__ __forceinline__ uint32_t q_empty(int warpgroup) const {
        return barrier(4 * STAGES + CONSUMERS + warpgroup);
    }
    __device__ __forceinline__ uint32_t landed_full(int stage) const {
        return EIGHT_BIT ? barrier(4 * STAGES + 2 * CONSUMERS + stage) : v_full(stage);
    }
    __device__ __forceinline__ uint32_t landed_empty(int stage) const {
        return EIGHT_BIT ? barrier(5 * STAGES + 2 * CONSUMERS + stage) : v_empty(stage);
    }

    // One thread, before the CTA's first __syncthreads.
    __device__ __forceinline__ void init_barriers() const {
        constexpr uint32_t CONSUMER_WARPS = CONSUMERS * WARPS_PER_WARPGROUP;
        for (int warpgroup = 0; warpgroup < CONSUMERS; ++warpgroup) {
            mbarrier_init(q_full(warpgroup), 1);
            mbarrier_init(q_empty(warpgroup), WARPS_PER_WARPGROUP);
        }
        for (int stage = 0; stage < STAGES; ++stage) {
            mbarrier_init(k_full(stage), 1);
            mbarrier_init(v_full(stage), EIGHT_BIT ? TRANSPOSER_WARPS : 1);
            mbarrier_init(k_empty(stage), CONSUMER_WARPS);
            mbarrier_init(v_empty(stage), CONSUMER_WARPS);
            if constexpr (EIGHT_BIT) {
                mbarrier_init(landed_full(stage), 1);
                mbarrier_init(landed_empty(stage), TRANSPOSER_WARPS);
            }
        }
        mbarrier_init_fence();
    }

   private:
    __device__ __forceinline__ uint32_t barrier(int index) const { return barriers + index * MBARRIER_BYTES; }
};

}  // namespace forge
