// Tile constants and the shared-memory plan of the weight-only GEMM.
//
// From the launch: BITS (8 or 4), SHARED_BYTES. From the tactic: WARPS, ROW_TILES (of 16 weight rows for each warp),
// COLUMN_TILES (of 8 rows of x for each warp), STAGES.
//
//   a step    128 bytes of every weight row: 128 codes of 8 bits, or 256 of 4
//   a load    16 bytes of a row by one lane; the four lanes that share a row have 64 bytes together, which are one
//             group of 128 codes of 4 bits; two loads make a step
//   a chunk   8 codes of a load, and the 8 elements (16 bytes) of x that they multiply
//   a stage   [ weights: BLOCK_ROWS x 128 bytes | x: BLOCK_COLUMNS rows | scales: BLOCK_ROWS x 2 (4 bits) ]
//
//   weights   by warp, eight rows, load: 32 lanes x 16 bytes; a lane reads what it has copied itself
//   x         rows of a step; chunks lie so that the eight lanes of a 16-byte access (two rows, four chunks) meet all
//             banks: chunk i of load l and lane t at (l * CHUNKS + i) * 4 + t, odd rows with 4 exclusive-ored
#pragma once

#include "common/shared_address.cuh"

constexpr bool HAS_GROUPS = BITS == 4;

#include "codes.cuh"

constexpr int WARP_SIZE = 32;
constexpr int THREADS = WARPS * WARP_SIZE;

constexpr int MMA_M = 16, MMA_N = 8;  // mma.sync.m16n8k16: weight rows, rows of x
constexpr int WARP_ROWS = ROW_TILES * MMA_M;
constexpr int BLOCK_ROWS = WARPS * WARP_ROWS;
constexpr int BLOCK_COLUMNS = COLUMN_TILES * MMA_N;

constexpr int LOADS = 2;
constexpr int LOAD_BYTES = 16;
constexpr int ROW_LANES = 4;  // that share a row
constexpr int STEP_BYTES = LOADS * ROW_LANES * LOAD_BYTES;
constexpr int STEP_K = STEP_BYTES * 8 / BITS;
constexpr int LOAD_K = STEP_K / LOADS;

constexpr int CHUNKS = LOAD_BYTES * 8 / BITS / CHUNK;  // of a load
constexpr int ROW_CHUNKS = STEP_K / CHUNK;

constexpr int WEIGHT_BYTES = BLOCK_ROWS * STEP_BYTES;
constexpr int X_ROW_BYTES = STEP_K * 2;
constexpr int X_BYTES = BLOCK_COLUMNS * X_ROW_BYTES;
constexpr int GROUP = 128;
constexpr int SCALE_BYTES = HAS_GROUPS ? BLOCK_ROWS * LOADS * 4 : 0;
constexpr int STAGE_BYTES = WEIGHT_BYTES + X_BYTES + SCALE_BYTES;

constexpr int SUM_PITCH = BLOCK_ROWS + 4;  // floats; rows 2 t of lanes t then start in banks 8 t
constexpr int SUM_BYTES = BLOCK_COLUMNS * SUM_PITCH * 4;

static_assert(BITS == 8 || BITS == 4, "codes of 8 or 4 bits");
static_assert(!HAS_GROUPS || LOAD_K == GROUP, "four lanes hold one group");
static_assert(STAGES >= 2, "a stage is filled while another is read");
static_assert(SHARED_BYTES >= STAGES * STAGE_BYTES, "the launch's dynamic shared memory is too small for this tile");
static_assert(SHARED_BYTES >= SUM_BYTES, "sums take the place of the stages");

using accumulator = float[COLUMN_TILES][ROW_TILES][4];
