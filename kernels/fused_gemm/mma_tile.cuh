// Tile constants and the shared-memory plan of the sm_80 GEMM kernels.
//
// Elements have 16 or 8 bits.
//
//   from the tactic   BLOCK_M, BLOCK_N, BLOCK_K, STAGES, WARPS_M, WARPS_N, WARPS_K
//   from the launch   GROUP_M, WIDE (1: rows of 16-byte multiples, copied by cp.async; 0: any K and any alignment,
//                     element by element) and SHARED_BYTES
//   from the kernel   WEIGHTS, the number of weight matrices that one pass over x multiplies with
//
//   a stage   [ x: BLOCK_M rows | w_0: BLOCK_N rows | w_1: BLOCK_N rows ], rows of BLOCK_K elements, kept as
//             panels of 128-byte rows in 128-byte swizzle: eight rows have no bank conflicts
//   warps     WARPS_M x WARPS_N over the tile, WARPS_K over the depth of a stage (their sums are added at the end)
#pragma once

#include "common/accumulator.cuh"
#include "common/shared_address.cuh"

constexpr int WARP_SIZE = 32;
constexpr int WARPS = WARPS_M * WARPS_N * WARPS_K;
constexpr int THREADS = WARPS * WARP_SIZE;

using acc_t = forge::accumulator<x_t>::type;
constexpr int ELEMENT_BYTES = sizeof(x_t);

// mma.sync.m16n8k16; of 8-bit elements m16n8k32, whose fragments have the same bytes.
constexpr int MMA_M = 16, MMA_N = 8;
constexpr int MMA_K = 32 / ELEMENT_BYTES;
constexpr int WARP_M = BLOCK_M / WARPS_M;
constexpr int WARP_N = BLOCK_N / WARPS_N;
constexpr int TILES_M = WARP_M / MMA_M;
constexpr int TILES_N = WARP_N / MMA_N;

// Elements of 16 bytes, the unit of copies, of ldmatrix rows and of the swizzle.
constexpr int CHUNK = 16 / ELEMENT_BYTES;
constexpr int ROW_BYTES = 128;
constexpr int PANEL_K = ROW_BYTES / ELEMENT_BYTES;
constexpr int X_BYTES = BLOCK_M * BLOCK_K * ELEMENT_BYTES;
constexpr int WEIGHT_BYTES = BLOCK_N * BLOCK_K * ELEMENT_BYTES;
constexpr int STAGE_BYTES = X_BYTES + WEIGHTS * WEIGHT_BYTES;

constexpr int ACCUMULATORS = WEIGHTS * TILES_M * TILES_N * 4;  // per thread
constexpr int PARTIAL_SUM_BYTES = (WARPS_K - 1) * WARPS_M * WARPS_N * ACCUMULATORS * WARP_SIZE * 4;

static_assert(ELEMENT_BYTES <= 2, "16- or 8-bit elements");
static_assert(BLOCK_K % PANEL_K == 0, "stages of whole 128-byte panels");
static_assert(WARP_M % MMA_M == 0 && WARP_N % (2 * MMA_N) == 0, "ldmatrix.x4 brings 16 rows of x and of w");
static_assert(BLOCK_K / MMA_K % WARPS_K == 0, "the depth of a stage is shared evenly");
static_assert(STAGES >= 2, "a stage is filled while another is read");
static_assert(SHARED_BYTES >= STAGES * STAGE_BYTES, "the launch's dynamic shared memory is too small for this tile");
static_assert(PARTIAL_SUM_BYTES <= STAGES * STAGE_BYTES, "partial sums reuse the stages");
