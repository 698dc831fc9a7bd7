// Epilogue: o * 1/l -> 16 bit -> memory, in one of two ways.
//
//   one tile per CTA:  over the warpgroup's own rows of Q in shared memory (same swizzled chunks), then a TMA store; the
//                      copy engine drops rows past Sq and columns past D
//   persistent,        from registers, 16 bytes a lane, 64 bytes a row: needs no shared memory, in which the next tile's
//   VARLEN, EIGHT_BIT: Q, K and V arrive meanwhile, no barrier and no wait; of a packed sequence's rows just its own
#pragma once

#include "common/ldmatrix.cuh"
#include "common/numeric.cuh"
#include "common/quad_transpose.cuh"
#include "common/swizzle.cuh"
#include "online_softmax.cuh"
#include "sm90_config.cuh"
#include "sm90_schedule.cuh"

namespace forge {

// The first of the two queries whose rows a thread of a consumer warpgroup owns; the second lies eight further on.
__device__ __forceinline__ int first_query_of_thread(const work_item& item, int warpgroup) {
    const int thread = threadIdx.x % WARPGROUP_THREADS;
    return item.first_query + warpgroup * WARPGROUP_ROWS + thread / WARP_THREADS * 16 + thread % WARP_THREADS / 4;
}

// Where row `query` of the output begins for this lane, which stores columns 32 g + 8 (lane % 4) .. + 7 of it.
__device__ __forceinline__ o_t* lane_columns(o_t* output, const work_item& item, int queries, int query) {
    return output + item.output_row(queries, query) * HEAD_DIM + threadIdx.x % 4 * 8;
}

__device__ __forceinline__ void store_rows(const float (&o)[TILE_D / 2], const float (&factor)[2], o_t* output,
                                           const work_item& item, int warpgroup, int queries) {
    const int first_query = first_query_of_thread(item, warpgroup);
    const int lane_column = threadIdx.x % 4 * 8;
#pragma unroll
    for (int row = 0; row < 2; ++row) {
        const int query = first_query + 8 * row;
        uint4* const target = reinterpret_cast<uint4*>(lane_columns(output, item, queries, query));
#pragma unroll
        for (int group = 0; group < TILE_D / 32; ++group) {
            uint32_t packed[4];
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                const int at = 4 * (4 * group + j) + 2 * row;
                packed[j] = pack2<o_t>(o[at] * factor[row], o[at + 1] * factor[row]);
            }
            quad_transpose(packed);
            if (query < queries && 32 * group + lane_column < HEAD_DIM) {
                target[4 * group] = make_uint4(packed[0], packed[1], packed[2], packed[3]);
            }
        }
    }
}

// The log-sum-exp of the thread's two rows; one of the four lanes that share them writes it. Nothing without WITH_LSE.
__device__ __forceinline__ void store_lse(const float (&values)[2], float* lse, const work_item& item, int warpgroup,
                                          int queries) {
    if constexpr (WITH_LSE) {
#pragma unroll
        for (int row = 0; row < 2; ++row) {
            const int query = first_query_of_thread(item, warpgroup) + 8 * row;
            if (query < queries && threadIdx.x % 4 == 0) {
                lse[item.output_row(queries, query)] = values[row];
            }
        }
    }
}

// The output of a tile that sees no key.
__device__ __forceinline__ void store_zeros(o_t* output, const work_item& item, int warpgroup, int queries) {
    for (int row = 0; row < 2; ++row) {
        const int query = first_query_of_thread(item, warpgroup) + 8 * row;
        uint4* const target = reinterpret_cast<uint4*>(lane_columns(output, item, queries, query));
        for (int column = threadIdx.x % 4 * 8; query < queries && column < HEAD_DIM; column += 32) {
            target[column / 32 * 4] = make_uint4(0, 0, 0, 0);
        }
    }
}

__device__ __forceinline__ void store_output(float (&o)[TILE_D / 2], const online_softmax& softmax,
                                             const shared_layout& shared, const work_item& tile, int warpgroup,
                                             const tensor_map* o_map) {
    float inverse[2];
    softmax.reciprocals(inverse);
    scale_rows(o, inverse);

    const uint32_t rows = shared.q_rows(warpgroup);
    const int thread = threadIdx.x % WARPGROUP_THREADS;
    const int lane = thread % WARP_THREADS;
    // stmatrix: lanes 0-7 and 8-15 address rows 0-7 and 8-15 of an 8-column group, lanes 16-31 those of the next group.
    const uint32_t row = thread / WARP_THREADS * 16 + lane % 16;
    const uint32_t group = lane / 16;

    named_barrier_sync(WARPGROUP_BARRIER + warpgroup, WARPGROUP_THREADS);  // all four warps are done with Q
#pragma unroll
    for (int pair = 0; pair < TILE_D / 16; ++pair) {
        const uint32_t chunk = pair * 16 / CHUNK_COLUMNS;
        const uint32_t column_bytes = pair * 32 % SWIZZLE128_ROW_BYTES + group * 16;
        const uint32_t packed[4] = {
            pack2<o_t>(o[8 * pair + 0], o[8 * pair + 1]), pack2<o_t>(o[8 * pair + 2], o[8 * pair + 3]),
            pack2<o_t>(o[8 * pair + 4], o[8 * pair + 5]), pack2<o_t>(o[8 * pair + 6], o[8 * pair + 7])};
        stmatrix_x4(rows + chunk * Q_CHUNK_BYTES + swizzle128(row * SWIZZLE128_ROW_BYTES + column_bytes), packed);
    }
    fence_proxy_async_shared();
    named_barrier_sync(WARPGROUP_BARRIER + warpgroup, WARPGROUP_THREADS);
    if (thread == 0) {
#pragma unroll
        for (int chunk = 0; chunk < CHUNKS; ++chunk) {
            tma_store_3d(o_map, rows + chunk * Q_CHUNK_BYTES, chunk * CHUNK_COLUMNS,
                         tile.first_query + warpgroup * WARPGROUP_ROWS, tile.head);
        }
        tma_store_commit();
        tma_store_wait_read<0>();  // shared memory outlives the copy
    }
}

}  // namespace forge
