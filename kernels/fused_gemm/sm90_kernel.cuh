// The persistent body of the sm_90a GEMM kernels: each cluster takes every (number of clusters)-th tile.
//
//   warpgroup 0              producer: one thread runs ahead over the tiles' stages
//   warpgroups 1, 2          consumers: main loop of a tile, then its epilogue, while the producer already
//                            fills the ring with the next tile's first stages
//
// PINGPONG = 0: the consumers share a tile, 64 rows each. PINGPONG = 1: they take turns with tiles of 64 rows, so that
// one's epilogue runs beside the other's main loop:
//
//   ring         | tile 0 ........ | tile 1 ........ | tile 2 ........ |
//   consumer 0   | multiply 0      | store 0         | multiply 2      | store 2
//   consumer 1                     | multiply 1      | store 1         | multiply 3
//
// A named barrier hands the turn over. Without it a consumer could wait for a stage several rounds ahead, and the
// parity of its barrier cannot tell such rounds apart.
#pragma once

#include "sm90_epilogue.cuh"
#include "sm90_mainloop.cuh"
#include "tile_order.cuh"

// The consumers' turns at the ring, when they take turns. Barrier TURN_BARRIER + i: it is consumer i's turn.
struct turns {
    static constexpr int TURN_BARRIER = 1 + CONSUMERS;  // after the epilogue's
    static constexpr int THREADS_OF_TURN = 2 * forge::WARPGROUP_THREADS;
    const int turn;

    __device__ __forceinline__ explicit turns(int index) : turn(index) {
        if constexpr (PINGPONG) {
            if (turn == 1) forge::named_barrier_arrive(TURN_BARRIER, THREADS_OF_TURN);
        }
    }
    __device__ __forceinline__ void take() const {
        if constexpr (PINGPONG) forge::named_barrier_sync(TURN_BARRIER + turn, THREADS_OF_TURN);
    }
    __device__ __forceinline__ void pass() const {
        if constexpr (PINGPONG) forge::named_barrier_arrive(TURN_BARRIER + 1 - turn, THREADS_OF_TURN);
    }
    // Take the turn that nobody will use after `tiles` of them, so that no barrier is left half full.
    __device__ __forceinline__ void finish(int tiles) const {
        if constexpr (PINGPONG) {
            if (tiles % 2 == turn) forge::named_barrier_sync(TURN_BARRIER + turn, THREADS_OF_TURN);
        }
    }
};

// Epilogue: a type with start(column_pairs), called once, prepare(first_row, first_column, M, N) and settle(), called
// before and after a tile's main loop, and value(acc, j, h, e), the finished element of common/wgmma.cuh's accumulator layout.
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
        const int turn = consumer / TILE_CONSUMERS;
        const int slice = consumer % TILE_CONSUMERS;
        int box = 0;
        epilogue.start(shared.column_pairs(consumer));
        position.advance(turn * k_blocks);
        const turns order_of_tiles(turn);
        for (int tile = first_tile + turn * tile_step; tile < order.count(); tile += TURNS * tile_step) {
            const tile_position at = order.at(tile);
            const int row = (at.row * CLUSTER_M + cta) * BLOCK_M + slice * WGMMA_M;
            const int column = at.column * BLOCK_N;
            acc_t acc[ACCUMULATORS];
            epilogue.prepare(row, column, M, N);
            order_of_tiles.take();
            multiply_tile(acc, shared, position, k_blocks, slice);
            order_of_tiles.pass();
            position.advance((TURNS - 1) * k_blocks);
            epilogue.settle();
            store_tile(epilogue, acc, y, shared.out(consumer), box, row, column, consumer);
        }
        order_of_tiles.finish(ceil_div(order.count() - first_tile, tile_step));
        if (threadIdx.x % forge::WARPGROUP_THREADS == 0) forge::tma_store_wait<0>();
    }
    leave_cluster();
}
