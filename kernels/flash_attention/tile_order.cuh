// Which (query block, head) the n-th CTA works on.
//
//   full attention:    all query blocks of a head, then the next head: concurrent CTAs share one head's K and V
//   causal attention:  longest tiles first, so that the last wave is short:
//                      ┌ section: as many heads as keep K and V in L2 ┐┌ next section ┐
//                      │ last query block of each head, ..., first    ││ ...          │
#pragma once

#include "common/shared_address.cuh"

namespace forge {

constexpr long long SECTION_BYTES = 32ll << 20;  // K and V of one section; well inside the L2 of sm_90 (50 or 60 MB)

struct tile_coordinates {
    int query_block;
    int head;  // batch * q_heads + query head
};

template <bool LONGEST_FIRST>
__device__ __forceinline__ tile_coordinates tile_of(int linear, int query_blocks, int heads, int heads_per_kv_head,
                                                    long long kv_head_bytes) {
    if constexpr (!LONGEST_FIRST) {
        return {linear % query_blocks, linear / query_blocks};
    } else {
        const long long kv_heads = max(1ll, SECTION_BYTES / kv_head_bytes);
        const int section_heads = static_cast<int>(min(static_cast<long long>(heads), kv_heads * heads_per_kv_head));
        const int section_tiles = section_heads * query_blocks;  // at most the grid's size
        const int first_head = linear / section_tiles * section_heads;
        const int within = linear % section_tiles;
        const int present_heads = min(section_heads, heads - first_head);
        return {query_blocks - 1 - within / present_heads, first_head + within % present_heads};
    }
}

}  // namespace forge
