// Which tiles a CTA works on, and what each of them has to visit. Producer and consumers walk the same list, each for
// itself: CTA c takes tiles c, c + grid, c + 2 grid, ... of the order in tile_order.cuh.
#pragma once

#include "sm90_config.cuh"
#include "tile_order.cuh"
#include "visibility.cuh"

namespace forge {

struct work_item {
    int head;         // batch * q_heads + query head: third coordinate of q and o
    int kv_head;      // batch * kv_heads + key head: third coordinate of k and v
    int first_query;  // of the tile
    int keys;         // valid keys of the sequence
    key_blocks blocks;
};

struct tile_schedule {
    // Kernel parameters, so that reading them costs no register; what could be derived would be kept in one.
    int heads, q_heads, kv_heads, queries, keys_in_memory;
    int section_heads, query_blocks, tiles, step;
    const int32_t* k_lengths;  // null: every sequence has all keys

    __device__ __forceinline__ work_item at(int tile) const {
        const tile_coordinates where = tile_of<IS_CAUSAL, PERSISTENT>(tile, query_blocks, heads, section_heads);
        const int batch = where.head / q_heads;
        work_item item;
        item.head = where.head;
        item.kv_head = batch * kv_heads + (where.head - batch * q_heads) / (q_heads / kv_heads);
        item.first_query = where.query_block * BLOCK_M;
        item.keys = keys_in_memory;
        if constexpr (HAS_K_LENGTHS) {
            item.keys = min(max(k_lengths[batch], 0), keys_in_memory);
        }
        const int last_query = min(item.first_query + BLOCK_M, queries) - 1;
        item.blocks = key_blocks::of<BLOCK_N>(visibility(item.keys, queries), item.first_query, last_query);
        return item;
    }
};

}  // namespace forge
