// Tiles of the decode kernel: 16 keys of one key head in a warp's own ring, copied by cp.async, read by ldmatrix.
//
//   stage of a ring   ┌ K: 16 rows ┐┌ V: 16 rows ┐      row: HEAD_DIM elements, zeros up to PADDED_D
//
//   Eight rows of an ldmatrix must lie in different banks. Where rows fill lines of 128 bytes, their 16-byte units are
//   exchanged inside each line (SWIZZLED), so that a line of memory becomes one line of shared memory: copies that straddle
//   two, as with padding between rows, were seen to read memory at 90 % of the rate. Rows of other lengths are padded to an
//   odd number of units. A *block* is 16 rows of 32 bytes, what one ldmatrix.x4 reads:
//
//                     first 16 bytes   second 16 bytes
//      keys 0 ..  7       r[0]             r[2]
//      keys 8 .. 15       r[1]             r[3]
//
// 16-bit elements are operands as they are. 8-bit elements become float16 in registers: ldmatrix moves them as pairs,
// so a register holds bytes (0, 1, 2, 3), and splitting it into (0, 2) and (1, 3) gives two operand registers. For K
// that permutes the head dimension inside each 16 elements, which the queries repeat; for V, whose pairs are two columns
// of one key, it puts column 2 r into row r of the product and column 2 r + 1 into row r + 8.
//
// A stage is refilled as soon as its tiles are in registers (EARLY_REFILL), where there are enough: the products and the
// softmax then run beside STAGES tiles on their way, not STAGES - 1.
//
// Compile-time inputs: HEAD_DIM (a multiple of 8), cache_t; tactic WARPS, STAGES, ROW_TILES (8 packed rows each), SPLITS.
#pragma once

#include "common/cp_async.cuh"
#include "common/ldmatrix.cuh"
#include "common/mma.cuh"
#include "common/numeric.cuh"
#include "common/shared_address.cuh"

#include <cuda_fp8.h>

namespace forge {

constexpr int THREADS = WARPS * 32;
constexpr int TILE_KEYS = 16;
constexpr int TILE_ROWS = 8;  // packed rows of one tile: the N of mma.m16n8k16
constexpr int BLOCK_ROWS = ROW_TILES * TILE_ROWS;

constexpr int ELEMENT_BYTES = sizeof(cache_t);
constexpr bool IS_WIDENED = ELEMENT_BYTES == 1;
constexpr int HEAD_BYTES = HEAD_DIM * ELEMENT_BYTES;
constexpr int BLOCK_BYTES = 32;
constexpr int BLOCKS = (HEAD_BYTES + BLOCK_BYTES - 1) / BLOCK_BYTES;
constexpr int PADDED_BYTES = BLOCKS * BLOCK_BYTES;
constexpr int PADDED_D = PADDED_BYTES / ELEMENT_BYTES;
constexpr int D_TILES = PADDED_D / 16;  // k-steps of K q^T, and 16-row tiles of V^T p^T
constexpr int TILES_PER_BLOCK = D_TILES / BLOCKS;

constexpr int MOST_TILE_REGISTERS = 192;  // of operands and sums, a thread
constexpr bool EARLY_REFILL = 2 * BLOCKS * 4 + ROW_TILES * D_TILES * (4 + 2) <= MOST_TILE_REGISTERS;

constexpr int LINE_BYTES = 128, UNIT_BYTES = 16;
constexpr bool SWIZZLED = PADDED_BYTES % LINE_BYTES == 0 || LINE_BYTES % PADDED_BYTES == 0;
// Three CTAs of four warps, 168 registers a thread, on GPUs that have the shared memory for them.
#if __CUDA_ARCH__ >= 900 && __CUDA_ARCH__ < 1200
constexpr int CTAS_PER_SM = WARPS == 4 && ROW_TILES == 1 && HEAD_DIM <= 128 ? 3 : 1;
#else
constexpr int CTAS_PER_SM = 1;
#endif

constexpr uint32_t ROW_BYTES = PADDED_BYTES + (SWIZZLED ? 0 : UNIT_BYTES);
constexpr uint32_t TILE_BYTES = TILE_KEYS * ROW_BYTES;
constexpr uint32_t STAGE_BYTES = 2 * TILE_BYTES;
constexpr uint32_t RING_BYTES = STAGES * STAGE_BYTES;  // of one warp

constexpr int COPY_BYTES = HEAD_BYTES % 16 == 0 ? 16 : 8;
constexpr int COPIES_PER_ROW = PADDED_BYTES / COPY_BYTES;
constexpr int COPIES_PER_LANE = TILE_KEYS * COPIES_PER_ROW / 32;
static_assert(HEAD_BYTES % 8 == 0, "rows are copied in units of 8 or 16 bytes");

template <class T>
struct operand_of {
    using type = T;
    static constexpr float UNIT = 1.0f;
};
template <>
struct operand_of<__nv_fp8_e4m3> {
    using type = __half;
    static constexpr float UNIT = 256.0f;  // the exponents' biases differ by 8
};
template <>
struct operand_of<signed char> {
    using type = __half;
    static constexpr float UNIT = 1.0f;
};
using operand_t = typename operand_of<cache_t>::type;
constexpr float CACHE_UNIT = operand_of<cache_t>::UNIT;  // value of an element / the float16 it becomes

// Where byte `column` of a row lies in the row.
__device__ __forceinline__ uint32_t swizzled(int row, int column) {
    if constexpr (!SWIZZLED) return column;
    constexpr int ROWS_PER_LINE = PADDED_BYTES < LINE_BYTES ? LINE_BYTES / PADDED_BYTES : 1;
    constexpr int UNITS_PER_LINE_OF_ROW = LINE_BYTES / ROWS_PER_LINE / UNIT_BYTES;
    return column ^ row / ROWS_PER_LINE % UNITS_PER_LINE_OF_ROW * UNIT_BYTES;
}

// A tile of K and its tile of V into a stage, by one warp: row r starts r * HEAD_BYTES after k and v; rows from `present`
// on become zeros and are not read. One path for whole and partial tiles: the code is read from memory as well, and a
// short call waits for it longer than for its keys.
__device__ __forceinline__ void copy_stage(uint32_t stage, const unsigned char* k, const unsigned char* v, int present) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < COPIES_PER_LANE; ++i) {
        const int row = (lane + 32 * i) / COPIES_PER_ROW;
        const int column = (lane + 32 * i) % COPIES_PER_ROW * COPY_BYTES;
        const bool inside = row < present && (PADDED_BYTES == HEAD_BYTES || column < HEAD_BYTES);
        const int offset = inside ? row * HEAD_BYTES + column : 0;
        const int bytes = inside ? COPY_BYTES : 0;
        const uint32_t destination = stage + row * ROW_BYTES + swizzled(row, column);
        cp_async<COPY_BYTES>(destination, k + offset, bytes);
        cp_async<COPY_BYTES>(destination + TILE_BYTES, v + offset, bytes);
    }
}

// ---- 8 bits to float16, four elements of a register: (0, 2) and (1, 3) ----

template <class T>
__device__ __forceinline__ void widen(uint32_t packed, uint32_t& even, uint32_t& odd);

// The bits of an e4m3 number, moved under the exponent of a float16, are the number times 2^-8, subnormals included.
// (The NaN codes 0x7f and 0xff become +-480.)
template <>
__device__ __forceinline__ void widen<__nv_fp8_e4m3>(uint32_t packed, uint32_t& even, uint32_t& odd) {
    even = ((packed & 0x00800080u) << 8) | ((packed & 0x007f007fu) << 7);
    odd = (packed & 0x80008000u) | ((packed & 0x7f007f00u) >> 1);
}

__device__ __forceinline__ uint32_t sub_f16x2(uint32_t a, uint32_t b) {
    uint32_t difference;
    asm("sub.f16x2 %0, %1, %2;" : "=r"(difference) : "r"(a), "r"(b));
    return difference;
}

// x + 128 as the low byte of a float16 between 1024 and 2048 is 1024 + x + 128, exactly.
template <>
__device__ __forceinline__ void widen<signed char>(uint32_t packed, uint32_t& even, uint32_t& odd) {
    constexpr uint32_t HIGH_BYTES = 0x64646464u;  // of 1024
    constexpr uint32_t OFFSET = 0x64806480u;      // 1152, twice
    const uint32_t biased = packed ^ 0x80808080u;
    even = sub_f16x2(__byte_perm(biased, HIGH_BYTES, 0x4240), OFFSET);
    odd = sub_f16x2(__byte_perm(biased, HIGH_BYTES, 0x4341), OFFSET);
}

// ---- operands ----

__device__ __forceinline__ uint32_t block_address(uint32_t tile, int block) {
    const int lane = threadIdx.x % 32;
    return tile + lane % 16 * ROW_BYTES + swizzled(lane % 16, block * BLOCK_BYTES + lane / 16 * UNIT_BYTES);
}

// A tile as ldmatrix gives it, in the registers of a warp; TRANSPOSED for V.
struct tile_registers {
    uint32_t r[BLOCKS][4];

    template <bool TRANSPOSED>
    __device__ __forceinline__ void load(uint32_t tile) {
#pragma unroll
        for (int block = 0; block < BLOCKS; ++block) {
            if constexpr (TRANSPOSED) {
                ldmatrix_x4_trans(r[block], block_address(tile, block));
            } else {
                ldmatrix_x4(r[block], block_address(tile, block));
            }
        }
    }
};

// Operand A of K q^T from one block: 16 keys, and the block's k-steps.
template <class T, int TILES>
__device__ __forceinline__ void operand_of_keys(uint32_t (&a)[TILES][4], const uint32_t (&r)[4]) {
    if constexpr (TILES == 2) {  // 8-bit elements
        widen<T>(r[0], a[0][0], a[0][2]);
        widen<T>(r[1], a[0][1], a[0][3]);
        widen<T>(r[2], a[1][0], a[1][2]);
        widen<T>(r[3], a[1][1], a[1][3]);
    } else {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            a[0][i] = r[i];
        }
    }
}

// Operand A of V^T p^T from one block: its 16-row tiles, and 16 keys.
template <class T, int TILES>
__device__ __forceinline__ void operand_of_values(uint32_t (&a)[TILES][4], const uint32_t (&r)[4]) {
    if constexpr (TILES == 2) {  // 8-bit elements
        widen<T>(r[0], a[0][0], a[0][1]);
        widen<T>(r[1], a[0][2], a[0][3]);
        widen<T>(r[2], a[1][0], a[1][1]);
        widen<T>(r[3], a[1][2], a[1][3]);
    } else {
        a[0][0] = r[0];
        a[0][1] = r[2];
        a[0][2] = r[1];
        a[0][3] = r[3];
    }
}

// Column of the head that row `row` (0..15) of tile `tile` of V^T p^T is.
__device__ __forceinline__ int head_column(int tile, int row) {
    return tile * 16 + (IS_WIDENED ? row % 8 * 2 + row / 8 : row);
}

}  // namespace forge
