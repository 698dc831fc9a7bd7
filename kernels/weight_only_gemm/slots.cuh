// A slot: 128 bytes of each of 16 weight rows, on their way through shared memory to operand A of one warp.
//
//   global --cp.async--> slot: rows of 128 bytes, 16-byte piece p of row r at p ^ (r % 2 * 4); then (4 bits) two scales
//                              and 8 bytes around the two zero points of every row, whole words
//          --ld.shared--> lane 4 g + t has 16 bytes of rows g and g + 8 at a time: half a slot, 64 bytes of each row
//
// Copies take whole 128-byte lines of a row; reads meet all banks. Half a slot is one group of 128 codes of 4 bits.
#pragma once

#include "common/cp_async.cuh"

constexpr int WARP_SIZE = 32;
constexpr int MMA_M = 16, MMA_N = 8;
constexpr int GROUP = 128;

constexpr int SLOT_BYTES = 128;  // of a row
constexpr int SLOT_K = SLOT_BYTES * 8 / BITS;
constexpr int HALVES = 2;
constexpr int LANE_K = 16 * 8 / BITS;  // of a lane in half a slot, neighbors along K
constexpr int CHUNKS = LANE_K / CHUNK;
constexpr int CODE_BYTES = MMA_M * SLOT_BYTES;
constexpr int SCALE_BYTES = HAS_GROUPS ? MMA_M * HALVES * 4 : 0;
constexpr int ZERO_WORDS = 2;  // of a row: its two zero points can lie in different words
#if HAS_ZERO
constexpr int ZERO_BYTES = MMA_M * ZERO_WORDS * 4;
#else
constexpr int ZERO_BYTES = 0;
#endif
constexpr int RING_BYTES = CODE_BYTES + SCALE_BYTES + ZERO_BYTES;

struct weight_rows {
    const unsigned char* w;
    const float* scale;
#if HAS_ZERO
    const int8_t* zero;
#endif
    int N, row_bytes;

    __device__ __forceinline__ int groups() const { return row_bytes * 2 / GROUP; }

    // Where a lane's copies of a slot begin; `group`, of 4 bits only: among all groups, the first one of row lane / 2.
    struct place {
        const unsigned char* codes;
        int group;  // 2^31 of them have 137 GB of codes

        __device__ __forceinline__ void move(ptrdiff_t bytes, int groups) {
            codes += bytes;
            if constexpr (HAS_GROUPS) group += groups;
        }
    };

    __device__ __forceinline__ place at(int first_row, int slot) const {
        const int lane = threadIdx.x % WARP_SIZE;
        return {w + static_cast<size_t>(first_row + lane / 8) * row_bytes + slot * SLOT_BYTES + lane % 8 * 16,
                (first_row + lane / HALVES) * groups() + slot * HALVES};
    }

    // Starts the copies of slot `slot` of the rows from first_row on. Rows that do not exist keep whatever was there: nobody
    // stores their sums. Beyond K: scales are 0, codes are whatever lies there, and x is 0.
    __device__ __forceinline__ void copy(uint32_t target, const place& from, int first_row, int slot) const {
        constexpr int ROW_STEP = WARP_SIZE * 16 / SLOT_BYTES;
        const int lane = threadIdx.x % WARP_SIZE;
        const int rows = N - first_row - lane / 8;  // from the lane's first one on
        const uint32_t codes = target + lane / 8 * SLOT_BYTES + (lane % 8 ^ lane / 8 % 2 * 4) * 16;
        if (slot * SLOT_BYTES + lane % 8 * 16 < row_bytes) {
            const unsigned char* source = from.codes;
#pragma unroll
            for (int i = 0; i < MMA_M / ROW_STEP; ++i) {
                if (i * ROW_STEP < rows) forge::cp_async<16>(codes + i * ROW_STEP * SLOT_BYTES, source);
                source += static_cast<ptrdiff_t>(ROW_STEP) * row_bytes;
            }
        }
        if constexpr (HAS_GROUPS) {
            const uint32_t scales = target + CODE_BYTES + lane * 4;
            if (first_row + lane / HALVES < N && slot * HALVES + lane % HALVES < groups()) {
                forge::cp_async<4>(scales, scale + from.group + lane % HALVES);
            } else {
                forge::st_shared(scales, 0);  // a group of zeros
            }
#if HAS_ZERO
            const int word = (from.group / 4 + lane % ZERO_WORDS) * 4, left = min(N * groups() - word, 4);
            if (left > 0) forge::cp_async<4>(target + CODE_BYTES + SCALE_BYTES + lane * 4, zero + word, left);
#endif
        }
    }

    __device__ __forceinline__ void copy(uint32_t target, int first_row, int slot) const {
        copy(target, at(first_row, slot), first_row, slot);
    }

    // The same where all rows of the tile and all of the slot exist, with places counted from the tile's first row, which is
    // the same for all lanes. The groups of a row are an even number: the zero points of a slot lie in one word.
    __device__ __forceinline__ void copy_whole(uint32_t target, int first_row, int slot) const {
        constexpr int ROW_STEP = WARP_SIZE * 16 / SLOT_BYTES;
        const int lane = threadIdx.x % WARP_SIZE;
        const unsigned char* tile = w + static_cast<size_t>(first_row) * row_bytes + slot * SLOT_BYTES;
        const unsigned char* source = tile + (lane / 8 * row_bytes + lane % 8 * 16);
        const uint32_t codes = target + lane / 8 * SLOT_BYTES + (lane % 8 ^ lane / 8 % 2 * 4) * 16;
#pragma unroll
        for (int i = 0; i < MMA_M / ROW_STEP; ++i) {
            forge::cp_async<16>(codes + i * ROW_STEP * SLOT_BYTES, source);
            source += static_cast<ptrdiff_t>(ROW_STEP) * row_bytes;
        }
        if constexpr (HAS_GROUPS) {
            const size_t group = static_cast<size_t>(first_row) * groups() + slot * HALVES;
            forge::cp_async<4>(target + CODE_BYTES + lane * 4, scale + group + (lane / HALVES * groups() + lane % HALVES));
#if HAS_ZERO
            if (lane < MMA_M) {
                const size_t word = (group + static_cast<size_t>(lane) * groups()) / 4;
                forge::cp_async<4>(target + CODE_BYTES + SCALE_BYTES + lane * ZERO_WORDS * 4, zero + word * 4);
            }
#endif
        }
    }

    // Zero points of the rows first_row + lane / 4 (+ 8) in half `half` of slot `slot`, which lies at `ring`. A group behind
    // the last one has some zero point and the scale 0.
    __device__ __forceinline__ void zeros(int (&of)[2], const unsigned char* ring, int first_row, int slot,
                                          int half) const {
#pragma unroll
        for (int eight = 0; eight < 2; ++eight) {
            of[eight] = 0;
#if HAS_ZERO
            const int row = eight * 8 + static_cast<int>(threadIdx.x) % WARP_SIZE / 4;
            const int byte = ((first_row + row) * groups() + slot * HALVES) % 4;
            const unsigned char* words = ring + CODE_BYTES + SCALE_BYTES + row * ZERO_WORDS * 4;
            of[eight] = static_cast<int8_t>(words[byte + half]);
#endif
        }
    }
};

// A lane's part of half a slot: rows lane / 4 and lane / 4 + 8.
struct half_slot : lane_codes {
    float scales[2];

    __device__ __forceinline__ half_slot(const unsigned char* slot, int half) {
        const int g = threadIdx.x % WARP_SIZE / 4, t = threadIdx.x % 4;
        const int even = g * SLOT_BYTES + (t ^ g % 2 * 4) * 16;
#pragma unroll
        for (int eight = 0; eight < 2; ++eight) {
            const int place = (even ^ half * 64) + eight * 8 * SLOT_BYTES;
            const uint4 loaded = *reinterpret_cast<const uint4*>(slot + place);
            words[eight][0] = loaded.x, words[eight][1] = loaded.y;
            words[eight][2] = loaded.z, words[eight][3] = loaded.w;
            if constexpr (HAS_GROUPS) {
                scales[eight] = reinterpret_cast<const float*>(slot + CODE_BYTES)[(eight * 8 + g) * HALVES + half];
            } else {
                scales[eight] = 1.0f;
            }
        }
    }
};
