// Main loop of the sm_90a GEMM kernels: one thread loads, the consumer warpgroups multiply.
//
//   producer thread                          ring of STAGES                       consumer warpgroup c
//   wait empty[s] ------------------------------------------------------------->  wait full[s]
//   expect STAGE_BYTES on full[s]     A: BLOCK_M, B: MMA_N rows of 128 bytes      4 x wgmma m64 n(MMA_N), 32 bytes deep:
//   TMA x box, w boxes -> stage s --> complete_tx on full[s] ------------------->    acc += A[64 c ..][k] B[..][k]^T
//   next s                                                                        products of the stage before done:
//        ^------------------- empty[s - 1] <- one arrival per warp of the tile --  release it; next s
//
// With CLUSTER_M > 1, that many CTAs work on vertically neighboring tiles: each loads its own rows of x and its share
// (one CLUSTER_M-th) of the rows of each weight box, which TMA multicasts to all. A stage is then free when the consumers
// of all have released it.
//
// Include the plan of shared memory and its constants before: sm90_tile.cuh, or another with the same names.
#pragma once

#include "common/tma.cuh"

using ring = forge::ring_position<STAGES>;

__device__ __forceinline__ void init_barriers(const shared_plan& shared) {
    if (threadIdx.x == 0) {
        for (int stage = 0; stage < STAGES; ++stage) {
            forge::mbarrier_init(shared.full(stage), 1);
            forge::mbarrier_init(shared.empty(stage), CLUSTER_M * TILE_WARPS);
        }
        forge::mbarrier_init_fence();
    }
    __syncthreads();
    if constexpr (CLUSTER_M > 1) {
        forge::cluster_arrive();
        forge::cluster_wait();
    }
}

// No CTA may leave while another still arrives at its barriers or multicasts into its memory. All threads call it.
__device__ __forceinline__ void leave_cluster() {
    if constexpr (CLUSTER_M > 1) {
        __syncwarp();
        forge::cluster_arrive();
        forge::cluster_wait();
    }
}

// Fills the ring with the stages first_block .. first_block + k_blocks of a tile: load(stage, full, k) starts the copies
// of elements k .. k + BLOCK_K, STAGE_BYTES in all, which complete on the barrier `full`.
template <class Load>
__device__ __forceinline__ void fill_ring(const shared_plan& shared, ring& position, int first_block, int k_blocks,
                                          const Load& load) {
    for (int block = first_block; block < first_block + k_blocks; ++block) {
        const uint32_t full = shared.full(position.stage);
        forge::mbarrier_wait(shared.empty(position.stage), position.round_parity ^ 1);
        forge::mbarrier_arrive_expect_tx(full, STAGE_BYTES);
        load(position.stage, full, block * BLOCK_K);
        position.advance();
    }
}

// One warp has finished reading the stage: tells the producers of every CTA that writes into it.
__device__ __forceinline__ void release(const shared_plan& shared, int stage) {
    const int lane = threadIdx.x % forge::WARP_THREADS;
    if constexpr (CLUSTER_M > 1) {
        if (lane < CLUSTER_M) forge::mbarrier_arrive_cluster(shared.empty(stage), lane);
    } else {
        if (lane == 0) forge::mbarrier_arrive(shared.empty(stage));
    }
}

// acc = A B^T over k_blocks stages, for rows 64 * slice .. of the tile. Layout of acc: see common/wgmma.cuh.
__device__ __forceinline__ void multiply_tile(acc_t (&acc)[ACCUMULATORS], const shared_plan& shared, ring& position,
                                              int k_blocks, int slice) {
    int previous = 0;
    for (int block = 0; block < k_blocks; ++block) {
        forge::mbarrier_wait(shared.full(position.stage), position.round_parity);
        const uint64_t a = forge::swizzle128_k_major(shared.a(position.stage) + slice * WGMMA_M * ROW_BYTES);
        const uint64_t b = forge::swizzle128_k_major(shared.b(position.stage));
        forge::wgmma_fence();
#pragma unroll
        for (int step = 0; step < WGMMA_STEPS; ++step) {
            forge::wgmma_ss<x_t, MMA_N>(acc, forge::descriptor_advance(a, step * WGMMA_K_BYTES),
                                        forge::descriptor_advance(b, step * WGMMA_K_BYTES), (block | step) != 0);
        }
        forge::wgmma_commit();
        forge::wgmma_wait<1>();  // all but the products just issued: the previous stage has been read
        if (block > 0) release(shared, previous);
        previous = position.stage;
        position.advance();
    }
    forge::wgmma_wait<0>();
    forge::wgmma_hold(acc);
    release(shared, previous);
}
