// Which (query block, head) the n-th tile is.
//
//   full attention:    all query blocks of a head, then the next head: concurrent CTAs share one head's K and V
//   causal attention:  longest tiles first, so that the last wave is short:
//                      ┌ section: as many heads as keep K and V in L2 ┐┌ next section ┐
//                      │ last query block of each head, ..., first    ││ ...          │
//   and persistent:    every second section runs the other way, shortest tiles first, so that lengths never jump; the
//                      last section ends with the shortest. CTAs that take every grid-th tile of such a sequence get
//                      equal shares (docs/kernels/flash_attention_prefill.md has the simulation).
#pragma once

#include "common/shared_address.cuh"

namespace forge {

constexpr long long SECTION_BYTES = 32ll << 20;  // K and V of one section; well inside the L2 of sm_90 (50 or 60 MB)

// Heads of a section, from the bytes of one key head's K and V and the query heads that share it.
__device__ __forceinline__ int heads_of_section(int heads, int heads_per_kv_head, long long kv_head_bytes) {
    const long long kv_heads = max(1ll, SECTION_BYTES / kv_head_bytes);
    return static_cast<int>(min(static_cast<long long>(heads), kv_heads * heads_per_kv_head));
}

struct tile_coordinates {
    int query_block;
    int head;  // batch * q_heads + query head
};

template <bool LONGEST_FIRST, bool ALTERNATE>
__device__ __forceinline__ tile_coordinates tile_of(int tile, int query_blocks, int heads, int section_heads) {
    if constexpr (!LONGEST_FIRST) {
        return {tile % query_blocks, tile / query_blocks};
    } else {
        const int section_tiles = section_heads * query_blocks;
        const int section = tile / section_tiles;
        const int first_head = section * section_heads;
        const int within = tile - section * section_tiles;
        const int present_heads = min(section_heads, heads - first_head);
        const int nth = within / present_heads;
        const bool ascending = ALTERNATE && ((heads - 1) / section_heads - section) % 2 == 1;
        return {ascending ? nth : query_blocks - 1 - nth, first_head + within % present_heads};
    }
}

}  // namespace forge
