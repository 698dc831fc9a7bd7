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

// Division of n by a number of which the host knows inverse = (2^31 - 1) / divisor, rounded down: for all n from 0 to
// 2^31 - 2 the product is the quotient or one less. A third of the latency of a division.
__device__ __forceinline__ int divide(int n, int divisor, int inverse, int& remainder) {
    int quotient = static_cast<int>(__umulhi(2u * static_cast<uint32_t>(n + 1), static_cast<uint32_t>(inverse)));
    remainder = n - quotient * divisor;
    if (remainder >= divisor) {
        remainder -= divisor;
        ++quotient;
    }
    return quotient;
}

// Inverses for `divide`; the last section may have fewer heads.
struct order_inverses {
    int query_blocks, section_tiles, section_heads, last_heads;
    int last_section;  // its number
};

// tile_of, below, without a division: beside it, since the machine code of what was measured is kept.
template <bool LONGEST_FIRST, bool ALTERNATE>
__device__ __forceinline__ tile_coordinates tile_of(int tile, int query_blocks, int heads, int section_heads,
                                                    const order_inverses& inverses) {
    tile_coordinates where;
    if constexpr (!LONGEST_FIRST) {
        where.head = divide(tile, query_blocks, inverses.query_blocks, where.query_block);
    } else {
        int within, head;
        const int section = divide(tile, section_heads * query_blocks, inverses.section_tiles, within);
        const bool last = section == inverses.last_section;
        const int first_head = section * section_heads;
        const int present_heads = last ? heads - first_head : section_heads;
        const int nth = divide(within, present_heads, last ? inverses.last_heads : inverses.section_heads, head);
        const bool ascending = ALTERNATE && (inverses.last_section - section) % 2 == 1;
        where.query_block = ascending ? nth : query_blocks - 1 - nth;
        where.head = first_head + head;
    }
    return where;
}

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
