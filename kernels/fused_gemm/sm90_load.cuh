// The loads of the sm_90a GEMM kernels that multiply rows of x (operand A) with rows of the weights (operand B).
//
//   x        rows row .. of the tile --TMA--> stage.A of this CTA
//   weights  this CTA's share of the tile's rows --TMA, in a cluster multicast--> stage.B of every CTA of the cluster
//            the same share, WEIGHTS_AHEAD stages later in K --TMA prefetch--> L2
#pragma once

#include "sm90_mainloop.cuh"

// How many stages ahead of the ring the weights are asked into L2: their way from memory is longer than from there.
// 0: they are not.
#ifndef WEIGHTS_AHEAD
#define WEIGHTS_AHEAD 0
#endif

// Asks for the weights of stage `block` of a tile, the CTA's share of them, if the tile has such a stage.
__device__ __forceinline__ void prefetch_weights(const forge::tensor_map* const (&weights)[WEIGHTS], int block, int k_blocks,
                                                 int first_row) {
    if (block < k_blocks) {
#pragma unroll
        for (int i = 0; i < WEIGHTS; ++i) forge::tma_prefetch_2d(weights[i], block * BLOCK_K, first_row);
    }
}

// Loads the k_blocks stages of the tile whose first row of x is `row` and whose first row of every matrix of weights is
// `weight_row`. In a cluster, CTA `cta` loads its share of the weights' rows for all.
__device__ __forceinline__ void load_tile(const shared_plan& shared, ring& position, int k_blocks,
                                          const forge::tensor_map* x,
                                          const forge::tensor_map* const (&weights)[WEIGHTS], int row, int weight_row,
                                          int cta) {
    constexpr int SHARE_ROWS = BLOCK_N / CLUSTER_M;  // of each weight box, loaded by this CTA
    for (int block = 0; block < WEIGHTS_AHEAD; ++block) {
        prefetch_weights(weights, block, k_blocks, weight_row + cta * SHARE_ROWS);
    }
    fill_ring(shared, position, 0, k_blocks, [&](int stage, uint32_t full, int k) {
        if constexpr (WEIGHTS_AHEAD > 0) {
            prefetch_weights(weights, k / BLOCK_K + WEIGHTS_AHEAD, k_blocks, weight_row + cta * SHARE_ROWS);
        }
        forge::tma_load_2d(shared.a(stage), x, full, k, row);
#pragma unroll
        for (int i = 0; i < WEIGHTS; ++i) {
            const uint32_t share = shared.b(stage) + i * WEIGHT_BYTES + cta * SHARE_ROWS * ROW_BYTES;
            if constexpr (CLUSTER_M > 1) {
                constexpr uint16_t EVERY_CTA = (1 << CLUSTER_M) - 1;
                forge::tma_load_2d_multicast(share, weights[i], full, EVERY_CTA, k, weight_row + cta * SHARE_ROWS);
            } else {
                forge::tma_load_2d(share, weights[i], full, k, weight_row);
            }
        }
    });
}
