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
#include "sm90_load.cuh"
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

// A cluster's tile: its first row and column in the output, and the row of the weights that makes the first column.
struct gemm_tile {
    int row;
    int column;
    int weight_row;
};

// The tiles of one product.
struct product_tiles {
    using tile = gemm_tile;
    tile_order<GROUP_M> order;

    // The tile of that index, or false where there are fewer; asked for in ascending order.
    __device__ __forceinline__ bool find(int index, tile& found) {
        if (index >= order.count()) return false;
        const tile_position at = order.at(index);
        found = {at.row * CLUSTER_M * BLOCK_M, at.column * BLOCK_N, at.column * BLOCK_N};
        return true;
    }
    // How many there are; asked for when find has said false.
    __device__ __forceinline__ int count() const { return order.count(); }
    // What the three warps that have nothing to load do meanwhile.
    __device__ __forceinline__ void beside_loads() const {}
};

// A tile is about to be multiplied. An epilogue that must know more of it than its place has its own form of this.
template <class Epilogue>
__device__ __forceinline__ void begin_tile(Epilogue&, const gemm_tile&) {}

// The main loop of a tile. An epilogue that scales parts of the sums has its own form of it.
template <class Epilogue>
__device__ __forceinline__ void multiply(Epilogue&, acc_t (&acc)[ACCUMULATORS], const shared_plan& shared, ring& position,
                                         int k_blocks, int slice) {
    multiply_tile(acc, shared, position, k_blocks, slice);
}

// Tiles: see product_tiles. Epilogue: a type with start(column_pairs), called once, prepare(first_row, first_column, M,
// N) and settle(), called before and after a tile's main loop, and value(acc, j, h, e), the finished element of
// common/wgmma.cuh's accumulator layout; with RESIDUAL also the tensor map `residual`, laid out like y.
template <class Epilogue, class Tiles>
__device__ __forceinline__ void run_tiles(Epilogue epilogue, Tiles tiles, int M, int N, int K,
                                          const forge::tensor_map* x,
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
        for (int i = 0; i < RESIDUAL_BARRIERS; ++i) forge::mbarrier_init(shared.full(2 * STAGES + i), 1);
    }
    init_barriers(shared);

    const int first_tile = blockIdx.x / CLUSTER_M;
    const int tile_step = gridDim.x / CLUSTER_M;
    const int k_blocks = ceil_div(K, BLOCK_K);
    ring position;
    typename Tiles::tile tile;

    if (warpgroup == 0) {
        if constexpr (MOVE_REGISTERS) forge::setmaxnreg_dec<PRODUCER_REGISTERS>();
        if (threadIdx.x == 0) {
            for (int index = first_tile; tiles.find(index, tile); index += tile_step) {
                load_tile(shared, position, k_blocks, x, weights, tile.row + cta * BLOCK_M, tile.weight_row, cta);
            }
        } else if (threadIdx.x >= forge::WARP_THREADS) {
            tiles.beside_loads();
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
        for (int index = first_tile + turn * tile_step; tiles.find(index, tile); index += TURNS * tile_step) {
            const int row = tile.row + cta * BLOCK_M + slice * WGMMA_M;
            acc_t acc[ACCUMULATORS];
            begin_tile(epilogue, tile);
            epilogue.prepare(row, tile.column, M, N);
            if constexpr (RESIDUAL) start_residual(epilogue.residual, shared, consumer, box, row, tile.column);
            order_of_tiles.take();
            multiply(epilogue, acc, shared, position, k_blocks, slice);
            order_of_tiles.pass();
            position.advance((TURNS - 1) * k_blocks);
            epilogue.settle();
            store_tile(epilogue, acc, y, shared, box, row, tile.column, consumer);
        }
        order_of_tiles.finish(ceil_div(max(tiles.count() - first_tile, 0), tile_step));
        if (threadIdx.x % STORE_THREADS == 0) forge::tma_store_wait<0>();
    }
    leave_cluster();
}

// y [M, N] of one product.
template <class Epilogue>
__device__ __forceinline__ void run_gemm(const Epilogue& epilogue, int M, int N, int K, const forge::tensor_map* x,
                                         const forge::tensor_map* const (&weights)[WEIGHTS],
                                         const forge::tensor_map* y) {
    const product_tiles tiles = {{ceil_div(M, CLUSTER_M * BLOCK_M), ceil_div(N, BLOCK_N)}};
    run_tiles(epilogue, tiles, M, N, K, x, weights, y);
}
