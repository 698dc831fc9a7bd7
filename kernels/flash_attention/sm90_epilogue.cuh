// Epilogue: o * 1/l -> 16 bit -> shared memory (over the warpgroup's own rows of Q, same swizzled chunks) -> TMA store.
// The copy engine drops rows past Sq and columns past D.
#pragma once

#include "common/ldmatrix.cuh"
#include "common/numeric.cuh"
#include "common/swizzle.cuh"
#include "online_softmax.cuh"
#include "sm90_config.cuh"

namespace forge {

__device__ __forceinline__ void store_output(float (&o)[TILE_D / 2], const online_softmax& softmax,
                                             const shared_layout& shared, const attention_tile& tile, int warpgroup,
                                             const tensor_map* o_map) {
    float inverse[2];
    softmax.reciprocals(inverse);
    scale_rows(o, inverse);

    const uint32_t rows = shared.q + warpgroup * WARPGROUP_ROWS * SWIZZLE128_ROW_BYTES;
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
            pack2<q_t>(o[8 * pair + 0], o[8 * pair + 1]), pack2<q_t>(o[8 * pair + 2], o[8 * pair + 3]),
            pack2<q_t>(o[8 * pair + 4], o[8 * pair + 5]), pack2<q_t>(o[8 * pair + 6], o[8 * pair + 7])};
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
