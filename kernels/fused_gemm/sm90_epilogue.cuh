// Epilogue of the sm_90a GEMM kernels: accumulators -> float32 function -> 16-bit -> shared box -> TMA store.
//
//   for every 64 columns of the warpgroup's 64-row slice
//     issuer: the box of two rounds ago has been read by the copy engine     (tma_store_wait_read)
//     barrier of the warpgroup
//     each warp: 4 x stmatrix.x4, 16 rows x 16 columns each, 128-byte swizzle (no bank conflicts)
//     fence.proxy.async, barrier
//     issuer: TMA store of the box; rows and columns past M and N are skipped by the copy engine
//
// A residual arrives in the box before: of the first two boxes during the main loop, of each other one, which waits in
// L2, as soon as the box has been stored from; ldmatrix at stmatrix's own addresses gives each thread the elements that
// it adds to.
//
// With WARP_STORES each warp stores its 16 rows of a box itself, as soon as they are there: no warp waits for another,
// and what waits and barriers say above is the warp's own. For epilogues that share nothing between warps.
#pragma once

#include "common/ldmatrix.cuh"
#include "common/numeric.cuh"
#include "common/tma.cuh"
#include "sm90_tile.cuh"

// The biases of a tile's MMA_N stacked columns, two to a word. Thread p of the warpgroup fetches pair p before the main
// loop, so that the latency hides there, keeps it in one register, and publishes it in shared memory afterwards; the
// first barrier of store_tile makes it visible to the warpgroup. N % 8 == 0: a pair is inside or outside as a whole.
struct column_biases {
    uint32_t* pairs;  // shared; biases have the output's type
    uint32_t mine = 0;

    // For the columns of weight matrix `weight`; a null vector gives zeros.
    __device__ __forceinline__ void fetch(const y_t* vector, int weight, int first_column, int N) {
        const int place = 2 * (threadIdx.x % forge::WARPGROUP_THREADS) - weight * BLOCK_N;
        if (place >= 0 && place < BLOCK_N) {
            const bool inside = vector != nullptr && first_column + place < N;
            mine = inside ? __ldg(reinterpret_cast<const unsigned int*>(vector + first_column + place)) : 0u;
        }
    }

    __device__ __forceinline__ void publish() const {
        const int place = threadIdx.x % forge::WARPGROUP_THREADS;
        if (place < MMA_N / 2) pairs[place] = mine;
    }

    // Of column 8 j + 2 (lane % 4) + e of the weight's columns.
    __device__ __forceinline__ float at(int weight, int j, int e) const {
        const float2 pair = forge::unpack2<y_t>(pairs[weight * (BLOCK_N / 2) + 4 * j + threadIdx.x % 4]);
        return e == 0 ? pair.x : pair.y;
    }
};

// Sends a full box to (row, column) of the output; the whole warpgroup calls it. An epilogue whose tiles may end
// within a box has its own form of it.
template <class Epilogue>
__device__ __forceinline__ void put_box(const Epilogue&, const forge::tensor_map* y, uint32_t box, int column, int row) {
    if (threadIdx.x % forge::WARPGROUP_THREADS == 0) forge::tma_store_2d(y, box, column, row);
}

// A box is about to be computed, from column 8 * first of the tile. An epilogue that fetches what the box's columns
// need has its own form of it.
template <class Epilogue>
__device__ __forceinline__ void begin_box(Epilogue&, int first) {}

constexpr int TILE_BOXES = BLOCK_N / OUT_COLUMNS;  // of a consumer's slice

#ifndef WARP_STORES
#define WARP_STORES 0
#endif
constexpr int WARP_ROWS = 16;  // of a box
constexpr int STORE_THREADS = WARP_STORES ? forge::WARP_THREADS : forge::WARPGROUP_THREADS;  // that store a box together

// One thread: the residual of box number `box`, whose first row and column these are, into shared memory.
__device__ __forceinline__ void load_residual(const forge::tensor_map* residual, const shared_plan& shared, int consumer,
                                              int box, int row, int column) {
    const uint32_t full = shared.residual_full(consumer, box);
    forge::mbarrier_arrive_expect_tx(full, OUT_BOX_BYTES);
    forge::tma_load_2d(shared.out(consumer, box), residual, full, column, row);
}

// Before a tile's main loop: the residual of its first boxes, behind the stores of the tile before, the others' to L2.
__device__ __forceinline__ void start_residual(const forge::tensor_map* residual, const shared_plan& shared, int consumer,
                                               int box, int row, int column) {
    if (threadIdx.x % forge::WARPGROUP_THREADS != 0) return;
    forge::tma_store_wait_read<0>();
#pragma unroll
    for (int i = 0; i < (OUT_BOXES < TILE_BOXES ? OUT_BOXES : TILE_BOXES); ++i) {
        load_residual(residual, shared, consumer, box + i, row, column + i * OUT_COLUMNS);
    }
#pragma unroll
    for (int i = OUT_BOXES; i < TILE_BOXES; ++i) forge::tma_prefetch_2d(residual, column + i * OUT_COLUMNS, row);
}

// Writes the consumer's 64 x BLOCK_N slice of the output at (row, column). epilogue.value(acc, j, h, e) is the
// finished element in row 16 w + lane / 4 + 8 h and column 8 j + 2 (lane % 4) + e of the slice. `box` counts boxes
// over all tiles.
template <class Epilogue>
__device__ __forceinline__ void store_tile(Epilogue& epilogue, acc_t (&acc)[ACCUMULATORS],
                                           const forge::tensor_map* y, const shared_plan& shared, int& box, int row,
                                           int column, int consumer) {
    static_assert(OUT_BOXES == 2, "a box is loaded while the other is worked on");
    static_assert(!(WARP_STORES && RESIDUAL), "a residual's box is loaded for the warpgroup");
    const int thread = threadIdx.x % forge::WARPGROUP_THREADS;
    const int warp = thread / forge::WARP_THREADS;
    const int lane = thread % forge::WARP_THREADS;
    const bool issuer = thread % STORE_THREADS == 0;
    const auto meet = [&] {
        if constexpr (WARP_STORES) {
            __syncwarp();
        } else {
            forge::named_barrier_sync(1 + consumer, forge::WARPGROUP_THREADS);
        }
    };
    // stmatrix: lane 8 i + r addresses row r of matrix i. Matrices 0 and 1 are rows 0-7 and 8-15 of eight columns,
    // 2 and 3 those of the next eight.
    const int box_row = WARP_ROWS * warp + lane % WARP_ROWS;
    const int half = lane / WARP_ROWS;

#pragma unroll
    for (int i = 0; i < TILE_BOXES; ++i) {
        const int first = i * (OUT_COLUMNS / 8);
        const uint32_t target = shared.out(consumer, box);
        begin_box(epilogue, first);
        if constexpr (RESIDUAL) {
            if (issuer && i > 0 && i + 1 < TILE_BOXES) {  // the box before has been stored from: it is the next one's
                forge::tma_store_wait_read<0>();
                load_residual(epilogue.residual, shared, consumer, box + 1, row, column + (i + 1) * OUT_COLUMNS);
            }
        } else if (issuer) {
            forge::tma_store_wait_read<OUT_BOXES - 1>();
        }
        meet();
        forge::wgmma_hold(acc);  // one box at a time: computing several at once would cost registers
        if constexpr (RESIDUAL) forge::mbarrier_wait(shared.residual_full(consumer, box), box / OUT_BOXES & 1);
        const auto value = [&](int j, int h, int e) { return epilogue.value(acc, j, h, e); };
#pragma unroll
        for (int pair = 0; pair < OUT_COLUMNS / 16; ++pair) {
            const int j = first + 2 * pair;
            const int chunk = 2 * pair + half;  // 16-byte column of the box
            const uint32_t place = target + box_row * ROW_BYTES + ((chunk ^ (box_row % 8)) * 16);
            uint32_t matrices[4];
            if constexpr (RESIDUAL) forge::ldmatrix_x4(matrices, place);
#pragma unroll
            for (int matrix = 0; matrix < 4; ++matrix) {
                float low = value(j + matrix / 2, matrix % 2, 0);
                float high = value(j + matrix / 2, matrix % 2, 1);
                if constexpr (RESIDUAL) {
                    const float2 residual = forge::unpack2<y_t>(matrices[matrix]);
                    low += residual.x;
                    high += residual.y;
                }
                matrices[matrix] = forge::pack2<y_t>(low, high);
            }
            forge::stmatrix_x4(place, matrices);
        }
        forge::fence_proxy_async_shared();
        meet();
        if constexpr (WARP_STORES) {
            const int place = WARP_ROWS * warp;
            if (issuer) forge::tma_store_2d(y, target + place * ROW_BYTES, column + 8 * first, row + place);
        } else {
            put_box(epilogue, y, target, column + 8 * first, row);
        }
        if (issuer) forge::tma_store_commit();  // also when nothing was issued: the wait above counts groups
        ++box;
    }
}
