// The body of the sm_80 GEMM kernels: one tile per block, then the epilogue straight from registers.
#pragma once

#include "common/numeric.cuh"
#include "mma_mainloop.cuh"
#include "tile_order.cuh"

// finish(sums, column) is the output element, given the sums of every weight matrix and the element's column.
template <class Finish>
__device__ __forceinline__ void run_gemm(const x_t* x, const x_t* const (&weights)[WEIGHTS], int M, int N, int K,
                                         x_t* y, Finish finish) {
    extern __shared__ __align__(128) unsigned char dynamic_shared[];
    const tile_order<GROUP_M> order = {ceil_div(M, BLOCK_M), ceil_div(N, BLOCK_N)};
    const tile_position tile = order.at(blockIdx.x);
    const int row = tile.row * BLOCK_M;
    const int column = tile.column * BLOCK_N;
    const warp_place warp;
    accumulator acc;
    multiply_tile(acc, dynamic_shared, warp, x, weights, row, column, M, N, K);
    if (warp.k > 0) return;

    // acc[i][m][n][2 h + e]: row 16 m + lane / 4 + 8 h, column 8 n + 2 (lane % 4) + e of the warp's part
    const int lane = threadIdx.x % WARP_SIZE;
    const int first_row = row + warp.m * WARP_M + lane / 4;
    const int first_column = column + warp.n * WARP_N + 2 * (lane % 4);
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
                    float sums[WEIGHTS];
#pragma unroll
                    for (int i = 0; i < WEIGHTS; ++i) sums[i] = acc[i][m][n][2 * h + e];
                    values[e] = c + e < N ? finish(sums, c + e) : 0.0f;
                }
                x_t* target = y + static_cast<size_t>(r) * N + c;
                if (pairs_aligned) {
                    *reinterpret_cast<uint32_t*>(target) = forge::pack2<x_t>(values[0], values[1]);
                } else {
                    target[0] = forge::from_float<x_t>(values[0]);
                    if (c + 1 < N) target[1] = forge::from_float<x_t>(values[1]);
                }
            }
        }
    }
}
