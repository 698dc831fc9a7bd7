// The body of the sm_80 GEMM kernels: one tile per block, then the epilogue straight from registers.
//
//   blockIdx.x --tile_order--> row, column --mma_mainloop.cuh--> acc --finish(sums, column)--> + residual --> y, by pairs
#pragma once

#include "common/numeric.cuh"
#include "mma_mainloop.cuh"
#include "tile_order.cuh"

// values += the element at `source` and, where it is inside, the next one. aligned: both are one word.
__device__ __forceinline__ void add_pair(float (&values)[2], const y_t* source, bool aligned, bool both) {
    if (aligned) {
        const float2 pair = forge::unpack2<y_t>(__ldg(reinterpret_cast<const unsigned int*>(source)));
        values[0] += pair.x;
        values[1] += pair.y;
    } else {
        values[0] += forge::to_float(source[0]);
        if (both) values[1] += forge::to_float(source[1]);
    }
}

// An element of a thread's part of the tile: its column, and which of the thread's rows and columns it lies in.
struct element_place {
    int column;
    int thread_row, thread_column;
};

// A finish that fetches what belongs to the thread's rows and columns once, before the first element, has an overload
// of these two. The thread's rows are first_row + 8 i, its columns first_column + 8 (j / 2) + j % 2.
template <class Finish>
__device__ __forceinline__ void begin_elements(Finish&, int first_row, int first_column, int M, int N) {}

template <class Finish>
__device__ __forceinline__ float finish_element(const Finish& finish, const acc_t (&sums)[WEIGHTS],
                                                const element_place& place) {
    return finish(sums, place.column);
}

// The tile at (row, column). finish(sums, column) is the output element, given the sums of every weight matrix and the
// element's column; `residual`, laid out like y, is added to it unless it is null.
template <class Finish>
__device__ __forceinline__ void run_tile(const x_t* x, const x_t* const (&weights)[WEIGHTS], int row, int column, int M,
                                         int N, int K, y_t* y, Finish finish, const y_t* residual = nullptr) {
    extern __shared__ __align__(128) unsigned char dynamic_shared[];
    const warp_place warp;
    accumulator acc;
    multiply_tile(acc, dynamic_shared, warp, x, weights, row, column, M, N, K);
    if (warp.k > 0) return;

    // acc[i][m][n][2 h + e]: row 16 m + lane / 4 + 8 h, column 8 n + 2 (lane % 4) + e of the warp's part
    const int lane = threadIdx.x % WARP_SIZE;
    const int first_row = row + warp.m * WARP_M + lane / 4;
    const int first_column = column + warp.n * WARP_N + 2 * (lane % 4);
    begin_elements(finish, first_row, first_column, M, N);
    const bool pairs_aligned = WIDE && N % 2 == 0;
#pragma unroll
    for (int n = 0; n < TILES_N; ++n) {
        const int c = first_column + n * MMA_N;
#pragma unroll
        for (int m = 0; m < TILES_M; ++m) {
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                const int r = first_row + m * MMA_M + 8 * h;
                if (r >= M || c >= N) continue;
                float values[2];
#pragma unroll
                for (int e = 0; e < 2; ++e) {
                    acc_t sums[WEIGHTS];
#pragma unroll
                    for (int i = 0; i < WEIGHTS; ++i) sums[i] = acc[i][m][n][2 * h + e];
                    const element_place at = {c + e, 2 * m + h, 2 * n + e};
                    values[e] = c + e < N ? finish_element(finish, sums, at) : 0.0f;
                }
                const size_t place = static_cast<size_t>(r) * N + c;
                if (residual != nullptr) add_pair(values, residual + place, pairs_aligned, c + 1 < N);
                y_t* target = y + place;
                if (pairs_aligned) {
                    *reinterpret_cast<uint32_t*>(target) = forge::pack2<y_t>(values[0], values[1]);
                } else {
                    target[0] = forge::from_float<y_t>(values[0]);
                    if (c + 1 < N) target[1] = forge::from_float<y_t>(values[1]);
                }
            }
        }
    }
}

// The block's tile of x w^T.
template <class Finish>
__device__ __forceinline__ void run_gemm(const x_t* x, const x_t* const (&weights)[WEIGHTS], int M, int N, int K,
                                         y_t* y, Finish finish, const y_t* residual = nullptr) {
    const tile_order<GROUP_M> order = {ceil_div(M, BLOCK_M), ceil_div(N, BLOCK_N)};
    const tile_position tile = order.at(blockIdx.x);
    run_tile(x, weights, tile.row * BLOCK_M, tile.column * BLOCK_N, M, N, K, y, finish, residual);
}
