// Producer: one thread feeds Q and the rings of K and V tiles, blocks from the last visible to the first.
//
//   K(n-1), Q │ K(n-2), V(n-1) │ K(n-3), V(n-2) │ ... │ K(0), V(1) ┆ K'(n-1), V(0), Q' │ K'(n-2), V'(n-1) │ ... │ V'(0)
//                                                     tile after tile ┘
//
// K runs one block ahead of V, as its consumers do, and so from a tile into the next. Q comes last at a tile's start:
// its buffer is the last to become free.
#pragma once

#include "sm90_config.cuh"
#include "sm90_schedule.cuh"

namespace forge {

template <uint32_t BOX_BYTES>
__device__ __forceinline__ void load_tile(uint32_t destination, const tensor_map* map, uint32_t full_barrier,
                                          uint32_t chunk_bytes, int first_row, int head) {
    mbarrier_arrive_expect_tx(full_barrier, CHUNKS * BOX_BYTES);  // zero-filled elements count as well
#pragma unroll
    for (int chunk = 0; chunk < CHUNKS; ++chunk) {
        tma_load_3d(destination + chunk * chunk_bytes, map, full_barrier, chunk * CHUNK_COLUMNS, first_row, head);
    }
}

__device__ __forceinline__ void produce(const shared_layout& shared, const tile_schedule& schedule,
                                        const tensor_map* q_map, const tensor_map* k_map, const tensor_map* v_map) {
    ring_position<STAGES> k_ring, v_ring;
    uint32_t q_parity = 0;
    auto load_k = [&](int row, int head) {
        mbarrier_wait(shared.k_empty(k_ring.stage), k_ring.round_parity ^ 1);
        load_tile<KV_CHUNK_BYTES>(shared.k_tile(k_ring.stage), k_map, shared.k_full(k_ring.stage), KV_CHUNK_BYTES,
                                  row, head);
        k_ring.advance();
    };
    auto load_v = [&](int row, int head) {
        mbarrier_wait(shared.landed_empty(v_ring.stage), v_ring.round_parity ^ 1);
        load_tile<KV_CHUNK_BYTES>(shared.landed_tile(v_ring.stage), v_map, shared.landed_full(v_ring.stage),
                                  KV_CHUNK_BYTES, row, head);
        v_ring.advance();
    };
    auto load_q = [&](const work_item& item) {
#pragma unroll 1
        for (int warpgroup = 0; warpgroup < CONSUMERS; ++warpgroup) {
            mbarrier_wait(shared.q_empty(warpgroup), q_parity ^ 1);
            load_tile<WARPGROUP_CHUNK_BYTES>(shared.q_rows(warpgroup), q_map, shared.q_full(warpgroup), Q_CHUNK_BYTES,
                                             item.q_row(item.first_query + warpgroup * WARPGROUP_ROWS), item.head);
        }
        q_parity ^= 1;
    };
    auto prefetch_q = [&](const work_item& item) {
#pragma unroll 1
        for (int warpgroup = 0; warpgroup < CONSUMERS; ++warpgroup) {
#pragma unroll
            for (int chunk = 0; chunk < CHUNKS; ++chunk) {
                tma_prefetch_3d(q_map, chunk * CHUNK_COLUMNS,
                                item.q_row(item.first_query + warpgroup * WARPGROUP_ROWS), item.head);
            }
        }
    };
    int owed_row = -1;  // of V, whose K has been loaded
    int owed_head = 0;
    for (int tile = schedule.first_tile(); schedule.is_mine(tile); tile += schedule.step) {
        const work_item item = schedule.at(tile);
        for (int block = item.blocks.end - 1; block >= item.blocks.begin; --block) {
            const int row = item.k_row(block * BLOCK_N);
            load_k(row, item.kv_head);
            if (owed_row >= 0) {
                load_v(owed_row, owed_head);
            }
            if (block == item.blocks.end - 1) {
                load_q(item);
                if (PREFETCH_Q && schedule.is_mine(tile + schedule.step)) {
                    prefetch_q(schedule.at(tile + schedule.step));
                }
            }
            owed_row = row;
            owed_head = item.kv_head;
        }
    }
    if (owed_row >= 0) {
        load_v(owed_row, owed_head);
    }
}

}  // namespace forge
