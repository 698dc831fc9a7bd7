// The persistent body of the sm_90a GEMM kernels: each cluster takes every (number of clusters)-th tile.
//
//   warpgroup 0              producer: one thread runs ahead over the tiles' stages
//   warpgroups 1, 2          consumers: main loop of a tile, then its epilogue, while the producer already
//                            fills the ring with the next tile's first stages
#pragma once

#include "sm90_epilogue.cuh"
#include "sm90_mainloop.cuh"
#include "tile_order.cuh"

// Epilogue: a type with start(column_pairs), called once, prepare(first_column, N) and settle(), called before and
// after a tile's main loop, and value(acc, j, h, e), the finished element of common/wgmma.cuh's accumulator layout.
template <class Epilogue>
__device__ __forceinline__ void run_gemm(Epilogue epilogue, int M, int N, int K, const forge::tensor_map* x,
                                         const forge::tensor_map* const (&weights)[WEIGHTS],
                                         const forge::tensor_map* y) {
    extern __shared__ unsigned char dynamic_shared[];
    const shared_plan shared(dynamic_shared);
    const int warpgroup = forge::warp_index_uniform() / (forge::WARPGROUP_THREADS / forge::WARP_THREADS);
    const int cta = CLUSTER_M > 1 ? forge::cluster_rank() : 0;

    if (threadIdx.x == 0) {
        forge::tma_prefetch_descriptor(x);
        forge::tma_prefetch_descriptor(y);
        for (int i = 0; i < WEIGHTS; ++i) forge::tma_prefetch_descriptor(weights[i]);
    }
    init_barriers(shared);

    const tile_order<GROUP_M> order = {ceil_div(M, CLUSTER_M * BLOCK_M), ceil_div(N, BLOCK_N)};
    const int first_tile = blockIdx.x / CLUSTER_M;
    const int tile_step = gridDim.x / CLUSTER_M;
    const int k_blocks = ceil_div(K, BLOCK_K);
    ring position;

    if (warpgroup == 0) {
        if constexpr (MOVE_REGISTERS) forge::setmaxnreg_dec<PRODUCER_REGISTERS>();
        if (threadIdx.x == 0) {
            for (int tile = first_tile; tile < order.count(); tile += tile_step) {
                const tile_position at = order.at(tile);
                load_tile(shared, position, k_blocks, x, weights, (at.row * CLUSTER_M + cta) * BLOCK_M,
                          at.column * BLOCK_N, cta);
            }
        }
    } else {
        if constexpr (MOVE_REGISTERS) forge::setmaxnreg_inc<CONSUMER_REGISTERS>();
        const int consumer = warpgroup - 1;
        int box = 0;
        epilogue.start(shared.column_pairs(consumer));
        for (int tile = first_tile; tile < order.count(); tile += tile_step) {
            const tile_position at = order.at(tile);
            const int row = (at.row * CLUSTER_M + cta) * BLOCK_M + consumer * WGMMA_M;
            const int column = at.column * BLOCK_N;
            float acc[ACCUMULATORS];
            epilogue.prepare(column, N);
            multiply_tile(acc, shared, position, k_blocks, consumer);
            epilogue.settle();
            store_tile(epilogue, acc, y, shared.out(consumer), box, row, column, consumer);
        }
        if (threadIdx.x % forge::WARPGROUP_THREADS == 0) forge::tma_store_wait<0>();
    }
    leave_cluster();
}
