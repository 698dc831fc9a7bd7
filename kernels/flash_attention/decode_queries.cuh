// Queries of the decode kernel: packed rows, as operand B of K q^T, in registers for the whole loop.
//
//   packed row r = query r / group, head r % group of the query heads that share the key head
//
// With an 8-bit cache the products are float16, and a row of bfloat16 may not fit: each row is divided by the power of
// two below its largest magnitude, and `unit` is what its scores are multiplied by again.
#pragma once

#include "decode_tiles.cuh"

namespace forge {

struct packed_rows {
    int group, queries, rows;   // rows = queries * group
    long long first_head;       // batch * q_heads + first query head of the group

    // Where a packed row starts in q and o, in elements.
    __device__ __forceinline__ long long offset(int row) const {
        return ((first_head + row % group) * queries + row / group) * HEAD_DIM;
    }
};

struct query_operand {
    uint32_t b[ROW_TILES][D_TILES][2];
    float unit[ROW_TILES][2];  // of the two rows whose scores this lane owns; 1 where the cache has 16 bits

    __device__ __forceinline__ void load(const q_t* q, const packed_rows& packed, int first_row) {
#pragma unroll
        for (int m = 0; m < ROW_TILES; ++m) {
            const int row = first_row + m * TILE_ROWS + static_cast<int>(threadIdx.x) % 32 / 4;
            const q_t* source = row < packed.rows ? q + packed.offset(row) : nullptr;
            if constexpr (IS_WIDENED) {
                load_scaled(m, source);
            } else {
                load_plain(m, source);
            }
        }
    }

   private:
    __device__ __forceinline__ void load_plain(int m, const q_t* source) {
        const int lane_column = threadIdx.x % 4 * 2;
#pragma unroll
        for (int step = 0; step < D_TILES; ++step) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int column = step * 16 + half * 8 + lane_column;
                const bool inside = source != nullptr && column < HEAD_DIM;
                b[m][step][half] = inside ? *reinterpret_cast<const uint32_t*>(source + column) : 0u;
            }
        }
        unit[m][0] = unit[m][1] = 1.0f;
    }

    __device__ __forceinline__ void load_scaled(int m, const q_t* source) {
        constexpr uint32_t ALL = 0xffffffffu;
        const int lane_column = threadIdx.x % 4 * 4;
        float largest = 0.0f;
#pragma unroll
        for (int step = 0; step < D_TILES; ++step) {
            const int column = step * 16 + lane_column;
            const bool inside = source != nullptr && column < HEAD_DIM;
            const uint2 four = inside ? *reinterpret_cast<const uint2*>(source + column) : make_uint2(0u, 0u);
            b[m][step][0] = four.x;
            b[m][step][1] = four.y;
            const float2 low = unpack2<q_t>(four.x), high = unpack2<q_t>(four.y);
            largest = fmaxf(largest, fmaxf(fmaxf(fabsf(low.x), fabsf(low.y)), fmaxf(fabsf(high.x), fabsf(high.y))));
        }
        largest = fmaxf(largest, __shfl_xor_sync(ALL, largest, 1));
        largest = fmaxf(largest, __shfl_xor_sync(ALL, largest, 2));
        const uint32_t exponent = min(max(__float_as_uint(largest) >> 23, 1u), 253u);
        const float divide = __uint_as_float((254u - exponent) << 23);
        const float multiply = __uint_as_float(exponent << 23);
#pragma unroll
        for (int step = 0; step < D_TILES; ++step) {  // (0, 1), (2, 3) become (0, 2), (1, 3), as the keys do
            const float2 low = unpack2<q_t>(b[m][step][0]), high = unpack2<q_t>(b[m][step][1]);
            b[m][step][0] = pack2<__half>(low.x * divide, high.x * divide);
            b[m][step][1] = pack2<__half>(low.y * divide, high.y * divide);
        }
        const int owned = static_cast<int>(threadIdx.x) % 4 * 2;  // row r of the tile is held by lanes 4 r .. 4 r + 3
        unit[m][0] = __shfl_sync(ALL, multiply, 4 * owned);
        unit[m][1] = __shfl_sync(ALL, multiply, 4 * owned + 4);
    }
};

}  // namespace forge
