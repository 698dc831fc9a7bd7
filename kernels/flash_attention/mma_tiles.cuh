// Shared-memory tiles of the mma flash-attention kernel: how rows get in (cp.async) and fragments get out (ldmatrix).
//
//   row of a tile: HEAD_DIM elements, zeros up to PADDED_D (a multiple of 16), 16 bytes of padding
//   ROW_BYTES is an odd number of 16-byte units, so the eight rows of an ldmatrix lie in different banks.
//
// The widest copy that HEAD_DIM keeps aligned is used: 16, 8 or 4 bytes by cp.async, 2 bytes by ordinary moves.
#pragma once

#include "common/cp_async.cuh"
#include "common/ldmatrix.cuh"
#include "common/shared_address.cuh"

namespace forge {

constexpr int THREADS = WARPS * 32;
constexpr int MMA_ROWS = 16;     // the M of mma.m16n8k16
constexpr int MMA_COLUMNS = 8;   // its N
constexpr int MMA_DEPTH = 16;    // its K
constexpr int WARP_ROWS = M_TILES * MMA_ROWS;
constexpr int BLOCK_M = WARPS * WARP_ROWS;

constexpr int ELEMENT_BYTES = 2;
constexpr int PADDED_D = (HEAD_DIM + MMA_DEPTH - 1) / MMA_DEPTH * MMA_DEPTH;
constexpr int ROW_BYTES = PADDED_D * ELEMENT_BYTES + 16;
constexpr int COPY_BYTES = HEAD_DIM % 8 == 0 ? 16 : HEAD_DIM % 4 == 0 ? 8 : HEAD_DIM % 2 == 0 ? 4 : 2;
constexpr int COPY_ELEMENTS = COPY_BYTES / ELEMENT_BYTES;
constexpr int COPIES_PER_ROW = PADDED_D / COPY_ELEMENTS;
constexpr uint32_t Q_TILE_BYTES = BLOCK_M * ROW_BYTES;
constexpr uint32_t KV_TILE_BYTES = BLOCK_N * ROW_BYTES;

// One copy unit, or zeros where there is nothing to copy; `anywhere` is a readable address for the empty copy.
__device__ __forceinline__ void copy_or_clear(uint32_t destination, const q_t* source, bool present,
                                              const q_t* anywhere) {
    if constexpr (COPY_BYTES >= 4) {
        cp_async<COPY_BYTES>(destination, present ? source : anywhere, present ? COPY_BYTES : 0);
    } else {
        const unsigned short bits = present ? *reinterpret_cast<const unsigned short*>(source) : 0;
        asm volatile("st.shared.b16 [%0], %1;" ::"r"(destination), "h"(bits) : "memory");
    }
}

// Rows 0..ROWS-1 of a tile by all threads of the block. offset_of(row) is where the row starts in `memory`, in
// elements, or negative for a row of zeros.
template <int ROWS, class Offset>
__device__ __forceinline__ void load_rows(uint32_t tile, const q_t* memory, Offset offset_of) {
    constexpr int COPIES = ROWS * COPIES_PER_ROW;
#pragma unroll 4
    for (int i = threadIdx.x; i < COPIES; i += THREADS) {
        const int row = i / COPIES_PER_ROW;
        const int column = i % COPIES_PER_ROW * COPY_ELEMENTS;
        const long long offset = offset_of(row);
        copy_or_clear(tile + row * ROW_BYTES + column * ELEMENT_BYTES, memory + offset + column,
                      offset >= 0 && column < HEAD_DIM, memory);
    }
}

// Operand A: 16 rows from first_row, 16 columns from first_column. Lanes 0-15 address the rows of the left half.
__device__ __forceinline__ void load_a(uint32_t (&a)[4], uint32_t tile, int first_row, int first_column) {
    const int lane = threadIdx.x % 32;
    const int row = first_row + lane % 16;
    const int column = first_column + lane / 16 * 8;
    ldmatrix_x4(a, tile + row * ROW_BYTES + column * ELEMENT_BYTES);
}

// Operand B from a tile whose rows are B's columns (K in Q K^T): b[0], b[1] belong to tile rows first_row + 0..7,
// b[2], b[3] to rows + 8..15; depth from first_column.
__device__ __forceinline__ void load_b(uint32_t (&b)[4], uint32_t tile, int first_row, int first_column) {
    const int lane = threadIdx.x % 32;
    const int row = first_row + lane / 16 * 8 + lane % 8;
    const int column = first_column + lane / 8 % 2 * 8;
    ldmatrix_x4(b, tile + row * ROW_BYTES + column * ELEMENT_BYTES);
}

// Operand B from a tile whose rows are the depth (V in P V): b[0], b[1] belong to columns first_column + 0..7,
// b[2], b[3] to columns + 8..15; depth from first_row.
__device__ __forceinline__ void load_b_transposed(uint32_t (&b)[4], uint32_t tile, int first_row, int first_column) {
    const int lane = threadIdx.x % 32;
    const int row = first_row + lane % 16;
    const int column = first_column + lane / 16 * 8;
    ldmatrix_x4_trans(b, tile + row * ROW_BYTES + column * ELEMENT_BYTES);
}

}  // namespace forge
