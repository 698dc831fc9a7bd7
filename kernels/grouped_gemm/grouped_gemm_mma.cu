// y = activate(x w[expert]^T + bias[expert]) with mma.sync, tokens sorted by expert, for sm_80 and later, any M, N, K.
//
//   offsets [E] --> this block's tile: expert, rows, columns
//
//   x [M, K] rows of the tile --cp.async--> ring --ldmatrix--\
//                                                             mma.sync m16n8k16 --> acc (float32) --> + bias
//   w [expert]                --cp.async--> ring --ldmatrix--/                                          |
//                                                       y [M, N], up to the expert's last row <-- activate
//
// The grid has a block for every tile that any offsets can make. Those that find none put zeros into the rows after the
// last expert's.
//
// Compile-time: x_t, ACTIVATION, HAS_BIAS; tactic BLOCK_M, BLOCK_N, BLOCK_K, STAGES, WARPS_M, WARPS_N, WARPS_K;
// GROUP_M, WIDE (1 needs K % 8 == 0 and 16-byte aligned pointers), SHARED_BYTES.

constexpr int WEIGHTS = 1;

#include "fused_gemm/activate.cuh"
#include "fused_gemm/mma_kernel.cuh"
#include "expert_tiles.cuh"

extern "C" __global__ void __launch_bounds__(THREADS)
    grouped_gemm_mma(const x_t* __restrict__ x, const x_t* __restrict__ w, const int* __restrict__ offsets,
#if HAS_BIAS
                     const x_t* __restrict__ bias,
#endif
                     int M, int N, int K, int E, x_t* __restrict__ y) {
    __shared__ expert_tile tile;  // here and not in registers, which the main loop has use for
    __shared__ int zeros;         // without a tile: which piece of the rows of no expert is this block's
    if (threadIdx.x == 0) {
        expert_walk<BLOCK_M, BLOCK_N, GROUP_M> walk(offsets, E, M, N);
        expert_tile found;
        const bool any = walk.find(blockIdx.x, found);
        zeros = any ? -1 : static_cast<int>(blockIdx.x) - walk.count();
        if (!any) found.end = walk.end;
        tile = found;
    }
    __syncthreads();
    if (zeros >= 0) {
        constexpr int PIECE = BLOCK_M * BLOCK_N;
        const size_t first = static_cast<size_t>(tile.end) * N + static_cast<size_t>(zeros) * PIECE;
        const size_t end = static_cast<size_t>(M) * N;
        for (int i = threadIdx.x; i < PIECE && first + i < end; i += THREADS) y[first + i] = forge::from_float<x_t>(0.0f);
        return;
    }
    const x_t* const weights[WEIGHTS] = {w + static_cast<size_t>(tile.expert) * N * K};
    run_tile(x, weights, tile.row, tile.column, tile.end, N, K, y, [&](const float (&sums)[WEIGHTS], int column) {
        float sum = sums[0];
#if HAS_BIAS
        sum += forge::to_float(bias[static_cast<size_t>(tile.expert) * N + column]);
#endif
        return activate(sum);
    });
}
