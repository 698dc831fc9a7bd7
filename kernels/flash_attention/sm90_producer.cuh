// Producer: one thread feeds the rings of K and V tiles, blocks from the last visible to the first.
//
//   Q, K(n-1) │ K(n-2), V(n-1) │ K(n-3), V(n-2) │ ... │ V(0)        K runs one block ahead, as its consumers do
#pragma once

#include "sm90_config.cuh"
#include "visibility.cuh"

namespace forge {

__device__ __forceinline__ void load_tile(uint32_t destination, const tensor_map* map, uint32_t full_barrier,
                                          uint32_t chunk_bytes, int first_row, int head) {
    mbarrier_arrive_expect_tx(full_barrier, CHUNKS * chunk_bytes);  // zero-filled elements count as well
#pragma unroll
    for (int chunk = 0; chunk < CHUNKS; ++chunk) {
        tma_load_3d(destination + chunk * chunk_bytes, map, full_barrier, chunk * CHUNK_COLUMNS, first_row, head);
    }
}

__device__ __forceinline__ void produce(const shared_layout& shared, const attention_tile& tile,
                                        const key_blocks& blocks, const tensor_map* q_map, const tensor_map* k_map,
                                        const tensor_map* v_map) {
    if (blocks.begin == blocks.end) {
        return;
    }
    ring_position<STAGES> k_ring, v_ring;
    auto load_k = [&](int block) {
        mbarrier_wait(shared.k_empty(k_ring.stage), k_ring.round_parity ^ 1);
        load_tile(shared.k_tile(k_ring.stage), k_map, shared.k_full(k_ring.stage), KV_CHUNK_BYTES, block * BLOCK_N,
                  tile.kv_head);
        k_ring.advance();
    };
    auto load_v = [&](int block) {
        mbarrier_wait(shared.v_empty(v_ring.stage), v_ring.round_parity ^ 1);
        load_tile(shared.v_tile(v_ring.stage), v_map, shared.v_full(v_ring.stage), KV_CHUNK_BYTES, block * BLOCK_N,
                  tile.kv_head);
        v_ring.advance();
    };
    load_tile(shared.q, q_map, shared.q_full(), Q_CHUNK_BYTES, tile.first_query, tile.head);
    load_k(blocks.end - 1);
    for (int block = blocks.end - 2; block >= blocks.begin; --block) {
        load_k(block);
        load_v(block + 1);
    }
    load_v(blocks.begin);
}

}  // namespace forge
