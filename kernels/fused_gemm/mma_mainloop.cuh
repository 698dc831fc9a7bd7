// Main loop of the sm_80 GEMM kernels: STAGES - 1 stages in flight by cp.async, fragments by ldmatrix, mma.sync.
//
//   x [M, K]   --cp.async--> stage s: x panels  --ldmatrix.x4--> a (16 x 16) --\
//                                                                               mma.sync m16n8k16 --> acc (acc_t)
//   w_i [N, K] --cp.async--> stage s: w panels  --ldmatrix.x4--> b (16 x 16) --/
//
//   (fragments of 16 x 32 bytes: 8-bit elements are multiplied by m16n8k32, and everything else is the same)
//
//   step t:  wait for stage t  |  block barrier  |  start stage t + STAGES - 1 in place of t - 1  |  multiply t
#pragma once

#include "common/cp_async.cuh"
#include "common/ldmatrix.cuh"
#include "common/mma.cuh"
#include "common/swizzle.cuh"
#include "mma_tile.cuh"

using accumulator = acc_t[WEIGHTS][TILES_M][TILES_N][4];

struct warp_place {
    int m, n, k;

    __device__ __forceinline__ warp_place() {
        const int warp = threadIdx.x / WARP_SIZE;
        m = warp % WARPS_M;
        n = warp / WARPS_M % WARPS_N;
        k = warp / (WARPS_M * WARPS_N);
    }
};

// Byte offset of the chunk of elements from k on of a row in a tile of ROWS rows.
template <int ROWS>
__device__ __forceinline__ uint32_t tile_offset(int row, int k) {
    return k / PANEL_K * (ROWS * ROW_BYTES) + forge::swizzle128(row * ROW_BYTES + k % PANEL_K * ELEMENT_BYTES);
}

__device__ __forceinline__ void store_shared_chunk(uint32_t address, const uint32_t (&words)[4]) {
    asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(words[0]), "r"(words[1]), "r"(words[2]),
                 "r"(words[3])
                 : "memory");
}

__device__ __forceinline__ uint32_t element_bits(const x_t* row, int element) {
    if constexpr (ELEMENT_BYTES == 2) {
        return reinterpret_cast<const unsigned short*>(row)[element];
    } else {
        return reinterpret_cast<const unsigned char*>(row)[element];
    }
}

// Rows first .. first + ROWS, elements k .. k + BLOCK_K of a [rows, K] matrix; zeros outside of it.
template <int ROWS>
__device__ __forceinline__ void load_rows(uint32_t tile, const x_t* matrix, int first, int rows, int k, int K) {
    constexpr int ROW_CHUNKS = BLOCK_K / CHUNK;
    constexpr int CHUNKS = ROWS * ROW_CHUNKS;
#pragma unroll
    for (int base = 0; base < CHUNKS; base += THREADS) {
        const int index = base + threadIdx.x;
        if (CHUNKS % THREADS != 0 && index >= CHUNKS) break;
        const int row = index / ROW_CHUNKS;
        const int column = index % ROW_CHUNKS * CHUNK;
        const uint32_t target = tile + tile_offset<ROWS>(row, column);
        const bool row_inside = first + row < rows;
        const x_t* source = matrix + static_cast<size_t>(row_inside ? first + row : 0) * K;
#if WIDE
        const bool inside = row_inside && k + column < K;  // K % CHUNK == 0: a chunk is inside or outside as a whole
        forge::cp_async<16>(target, source + (inside ? k + column : 0), inside ? 16 : 0);
#else
        uint32_t words[4];
#pragma unroll
        for (int word = 0; word < 4; ++word) {
            constexpr int IN_WORD = 4 / ELEMENT_BYTES;
            words[word] = 0;
#pragma unroll
            for (int i = 0; i < IN_WORD; ++i) {
                const int element = k + column + IN_WORD * word + i;
                const bool inside = row_inside && element < K;
                words[word] |= (inside ? element_bits(source, element) : 0) << (8 * ELEMENT_BYTES * i);
            }
        }
        store_shared_chunk(target, words);
#endif
    }
}

__device__ __forceinline__ void load_stage(uint32_t stage, const x_t* x, const x_t* const (&weights)[WEIGHTS], int row,
                                           int column, int M, int N, int k, int K) {
    load_rows<BLOCK_M>(stage, x, row, M, k, K);
#pragma unroll
    for (int i = 0; i < WEIGHTS; ++i) {
        load_rows<BLOCK_N>(stage + X_BYTES + i * WEIGHT_BYTES, weights[i], column, N, k, K);
    }
}

template <class T, class Sum>
__device__ __forceinline__ void multiply_fragments(Sum (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    if constexpr (sizeof(T) == 2) {
        forge::mma_m16n8k16<T>(d, a, b0, b1);
    } else {
        forge::mma_m16n8k32<T>(d, a, b0, b1);
    }
}

// acc += the stage's product, for this warp's part of the tile and of the depth.
__device__ __forceinline__ void multiply_stage(accumulator& acc, uint32_t stage, const warp_place& warp) {
    const int lane = threadIdx.x % WARP_SIZE;
    // ldmatrix.x4: lane 8 i + r addresses row r of matrix i.
    //   x: matrices 0..3 are rows 0-7 of chunk 0, rows 8-15 of chunk 0, rows 0-7 of chunk 1, rows 8-15 of chunk 1
    //   w: matrices 0..3 are rows 0-7 of chunk 0, rows 0-7 of chunk 1, rows 8-15 of chunk 0, rows 8-15 of chunk 1
    const int x_row = warp.m * WARP_M + lane % 16;
    const int x_k = lane / 16 * CHUNK;
    const int w_row = warp.n * WARP_N + lane / 16 * 8 + lane % 8;
    const int w_k = lane / 8 % 2 * CHUNK;
#pragma unroll
    for (int step = 0; step < BLOCK_K / MMA_K / WARPS_K; ++step) {
        const int k = (step * WARPS_K + warp.k) * MMA_K;
        uint32_t a[TILES_M][4];
#pragma unroll
        for (int m = 0; m < TILES_M; ++m) {
            forge::ldmatrix_x4(a[m], stage + tile_offset<BLOCK_M>(x_row + m * MMA_M, k + x_k));
        }
#pragma unroll
        for (int i = 0; i < WEIGHTS; ++i) {
            const uint32_t weight = stage + X_BYTES + i * WEIGHT_BYTES;
#pragma unroll
            for (int n = 0; n < TILES_N; n += 2) {
                uint32_t b[4];
                forge::ldmatrix_x4(b, weight + tile_offset<BLOCK_N>(w_row + n * MMA_N, k + w_k));
#pragma unroll
                for (int m = 0; m < TILES_M; ++m) {
                    multiply_fragments<x_t>(acc[i][m][n], a[m], b[0], b[1]);
                    multiply_fragments<x_t>(acc[i][m][n + 1], a[m], b[2], b[3]);
                }
            }
        }
    }
}

// Adds the sums of the warps that took other parts of the depth to those with warp.k == 0. The stages are free.
__device__ __forceinline__ void add_depth_parts(accumulator& acc, const warp_place& warp, unsigned char* shared) {
    if constexpr (WARPS_K > 1) {
        acc_t* parts = reinterpret_cast<acc_t*>(shared);
        const int lane = threadIdx.x % WARP_SIZE;
        const int place = warp.n * WARPS_M + warp.m;
        const auto part = [&](int k, int i) -> acc_t& {
            return parts[(((k - 1) * WARPS_M * WARPS_N + place) * ACCUMULATORS + i) * WARP_SIZE + lane];
        };
        acc_t* mine = &acc[0][0][0][0];
        __syncthreads();
        if (warp.k > 0) {
#pragma unroll
            for (int i = 0; i < ACCUMULATORS; ++i) part(warp.k, i) = mine[i];
        }
        __syncthreads();
        if (warp.k == 0) {
#pragma unroll
            for (int k = 1; k < WARPS_K; ++k) {
#pragma unroll
                for (int i = 0; i < ACCUMULATORS; ++i) mine[i] += part(k, i);
            }
        }
    }
}

// acc = x[row .., :] w_i[column .., :]^T for every weight; complete in the warps with warp.k == 0.
__device__ __forceinline__ void multiply_tile(accumulator& acc, unsigned char* shared, const warp_place& warp,
                                              const x_t* x, const x_t* const (&weights)[WEIGHTS], int row, int column,
                                              int M, int N, int K) {
    const uint32_t ring = forge::shared_address(shared);
    const int steps = K / BLOCK_K + (K % BLOCK_K != 0);
    acc_t* sums = &acc[0][0][0][0];
#pragma unroll
    for (int i = 0; i < ACCUMULATORS; ++i) sums[i] = 0;

#pragma unroll
    for (int step = 0; step < STAGES - 1; ++step) {
        if (step < steps) load_stage(ring + step * STAGE_BYTES, x, weights, row, column, M, N, step * BLOCK_K, K);
        forge::cp_async_commit();
    }
    int reading = 0;
    int filling = STAGES - 1;
    for (int step = 0; step < steps; ++step) {
        forge::cp_async_wait<STAGES - 2>();
        __syncthreads();  // stage `step` has arrived for everyone, and everyone has read stage step - 1
        const int next = step + STAGES - 1;
        if (next < steps) load_stage(ring + filling * STAGE_BYTES, x, weights, row, column, M, N, next * BLOCK_K, K);
        forge::cp_async_commit();  // also when empty: the wait above counts groups
        multiply_stage(acc, ring + reading * STAGE_BYTES, warp);
        reading = reading + 1 == STAGES ? 0 : reading + 1;
        filling = filling + 1 == STAGES ? 0 : filling + 1;
    }
    forge::cp_async_wait<0>();
    add_depth_parts(acc, warp, shared);
}
