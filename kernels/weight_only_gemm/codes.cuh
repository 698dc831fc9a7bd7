// Codes of a lane's 16 bytes to operand registers, and x in the same order. Eight codes at a time (a chunk):
//
//   4 bits   one word of codes:   (0, 4) (1, 5) (2, 6) (3, 7)
//   8 bits   two words of codes:  (0, 2) (1, 3) (4, 6) (5, 7)
//
// Which elements along K meet in a product does not matter as long as both operands agree.
#pragma once

#include "common/widen.cuh"

constexpr int CHUNK = 8;
constexpr int CHUNK_BYTES = 16;  // of x

// Chunk `i` of a lane's 16 bytes; `offset` from offset_of (4 bits).
__device__ __forceinline__ void widen_chunk(const uint32_t (&words)[4], int i, forge::int4_offset<x_t> offset,
                                            uint32_t (&pairs)[4]) {
    if constexpr (BITS == 4) {
        forge::widen_int4<x_t>(words[i], offset, pairs);
    } else {
        uint32_t low[2], high[2];
        forge::widen_int8<x_t>(words[2 * i], low);
        forge::widen_int8<x_t>(words[2 * i + 1], high);
        pairs[0] = low[0], pairs[1] = low[1], pairs[2] = high[0], pairs[3] = high[1];
    }
}

// Eight neighbors of x in the order of a chunk.
__device__ __forceinline__ uint4 arranged(const uint4& pairs) {  // (0, 1) (2, 3) (4, 5) (6, 7)
    constexpr uint32_t LOW = 0x5410, HIGH = 0x7632;
    if constexpr (BITS == 4) {
        return make_uint4(__byte_perm(pairs.x, pairs.z, LOW), __byte_perm(pairs.x, pairs.z, HIGH),
                          __byte_perm(pairs.y, pairs.w, LOW), __byte_perm(pairs.y, pairs.w, HIGH));
    } else {
        return make_uint4(__byte_perm(pairs.x, pairs.y, LOW), __byte_perm(pairs.x, pairs.y, HIGH),
                          __byte_perm(pairs.z, pairs.w, LOW), __byte_perm(pairs.z, pairs.w, HIGH));
    }
}

// A lane's 16 bytes of each of two weight rows, eight rows apart.
struct lane_codes {
    uint32_t words[2][4];

    // Operand A of both products along K of chunk `i`, less zero points: a[product][register].
    __device__ __forceinline__ void widen(int i, const int (&zeros)[2], uint32_t (&a)[2][4]) const {
#pragma unroll
        for (int eight = 0; eight < 2; ++eight) {
            uint32_t pairs[4];
            widen_chunk(words[eight], i, forge::int4_offset<x_t>(zeros[eight]), pairs);
            place(pairs, eight, a);
        }
    }

    // The same of 4-bit codes plus forge::int4_bias.
    __device__ __forceinline__ void biased(int i, uint32_t (&a)[2][4]) const {
#pragma unroll
        for (int eight = 0; eight < 2; ++eight) {
            uint32_t pairs[4];
            forge::biased_int4<x_t>(words[eight][i], pairs);
            place(pairs, eight, a);
        }
    }

    static __device__ __forceinline__ void place(const uint32_t (&pairs)[4], int eight, uint32_t (&a)[2][4]) {
#pragma unroll
        for (int pair = 0; pair < 4; ++pair) a[pair / 2][pair % 2 * 2 + eight] = pairs[pair];
    }
};
