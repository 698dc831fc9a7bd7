// Epilogue of the sm_90a GEMM kernels: accumulators -> float32 function -> 16-bit -> shared box -> TMA store.
//
//   for every 64 columns of the warpgroup's 64-row slice
//     issuer: the box of two rounds ago has been read by the copy engine     (tma_store_wait_read)
//     barrier of the warpgroup
//     each warp: 4 x stmatrix.x4, 16 rows x 16 columns each, 128-byte swizzle (no bank conflicts)
//     fence.proxy.async, barrier
//     issuer: TMA store of the box; rows and columns past M and N are skipped by the copy engine
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

// Writes the consumer's 64 x BLOCK_N slice of the output at (row, column). epilogue.value(acc, j, h, e) is the
// finished element in row 16 w + lane / 4 + 8 h and column 8 j + 2 (lane % 4) + e of the slice. `box` counts boxes
// over all tiles.
template <class Epilogue>
__device__ __forceinline__ void store_tile(const Epilogue& epilogue, acc_t (&acc)[ACCUMULATORS],
                                           const forge::tensor_map* y, uint32_t out, int& box, int row, int column,
                                           int consumer) {
    const int thread = threadIdx.x % forge::WARPGROUP_THREADS;
    const int warp = thread / forge::WARP_THREADS;
    const int lane = thread % forge::WARP_THREADS;
    const bool issuer = thread == 0;
    const int barrier = 1 + consumer;
    // stmatrix: lane 8 i + r addresses row r of matrix i. Matrices 0 and 1 are rows 0-7 and 8-15 of eight columns,
    // 2 and 3 those of the next eight.
    const int box_row = 16 * warp + lane % 16;
    const int half = lane / 16;

#pragma unroll
    for (int first = 0; first < BLOCK_N / 8; first += OUT_COLUMNS / 8) {
        const uint32_t target = out + (box % OUT_BOXES) * OUT_BOX_BYTES;
        if (issuer) forge::tma_store_wait_read<OUT_BOXES - 1>();
        forge::named_barrier_sync(barrier, forge::WARPGROUP_THREADS);
        forge::wgmma_hold(acc);  // one box at a time: computing several at once would cost registers
        const auto value = [&](int j, int h, int e) { return epilogue.value(acc, j, h, e); };
#pragma unroll
        for (int pair = 0; pair < OUT_COLUMNS / 16; ++pair) {
            const int j = first + 2 * pair;
            const uint32_t matrices[4] = {
                forge::pack2<y_t>(value(j, 0, 0), value(j, 0, 1)),
                forge::pack2<y_t>(value(j, 1, 0), value(j, 1, 1)),
                forge::pack2<y_t>(value(j + 1, 0, 0), value(j + 1, 0, 1)),
                forge::pack2<y_t>(value(j + 1, 1, 0), value(j + 1, 1, 1)),
            };
            const int chunk = 2 * pair + half;  // 16-byte column of the box
            forge::stmatrix_x4(target + box_row * ROW_BYTES + ((chunk ^ (box_row % 8)) * 16), matrices);
        }
        forge::fence_proxy_async_shared();
        forge::named_barrier_sync(barrier, forge::WARPGROUP_THREADS);
        if (issuer) {
            forge::tma_store_2d(y, target, column + 8 * first, row);
            forge::tma_store_commit();
        }
        ++box;
    }
}
