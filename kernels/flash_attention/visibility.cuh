// Which keys a query sees, and which key blocks a tile of queries has to visit.
//
//   keys 0 ........................ keys-1 | hidden: past the sequence's length
//   query i  . . . . [first(i) ... end(i))      diagonal of query i: key i + keys - queries (aligned to the end)
//
//   blocks of a tile:   begin        full_begin            full_end         end
//                         │  masked      │     no mask         │   masked    │      visited from the right
//
// Compile-time inputs: CAUSAL (0/1), WINDOW (most recent keys counted from the diagonal, -1 = all).
#pragma once

#include "common/shared_address.cuh"

namespace forge {

constexpr bool HAS_WINDOW = WINDOW > 0;
constexpr bool IS_CAUSAL = CAUSAL != 0;
constexpr int MINUS_INFINITY_BITS = static_cast<int>(0xff800000u);

struct visibility {
    int keys;      // valid keys of this sequence
    int diagonal;  // key on the diagonal of query 0 (negative when there are more queries than keys)

    __device__ __forceinline__ visibility(int valid_keys, int queries)
        : keys(valid_keys), diagonal(valid_keys - queries) {}

    // First visible key of a query.
    __device__ __forceinline__ int first(int query) const {
        return HAS_WINDOW ? max(0, query + diagonal - (WINDOW - 1)) : 0;
    }

    // One past the last visible key of a query; not above first(query) when it sees none.
    __device__ __forceinline__ int end(int query) const {
        return IS_CAUSAL ? min(keys, query + diagonal + 1) : keys;
    }
};

// Key blocks of BLOCK keys that the queries first_query..last_query (first and last included) have to visit.
struct key_blocks {
    int begin, full_begin, full_end, end;

    template <int BLOCK>
    static __device__ __forceinline__ key_blocks of(const visibility& visible, int first_query, int last_query) {
        key_blocks blocks;
        const int first_key = visible.first(first_query);
        const int end_key = visible.end(last_query);
        const bool any = first_key < end_key;
        blocks.begin = any ? first_key / BLOCK : 0;
        blocks.end = any ? (end_key + BLOCK - 1) / BLOCK : 0;
        // A block needs no mask when the last query already sees its first key and the first query its last key.
        const int full_begin = (visible.first(last_query) + BLOCK - 1) / BLOCK;
        const int full_end = max(0, visible.end(first_query)) / BLOCK;
        blocks.full_begin = min(max(full_begin, blocks.begin), blocks.end);
        blocks.full_end = min(max(full_end, blocks.full_begin), blocks.end);
        return blocks;
    }
};

// The two rows that a thread owns in an accumulator tile of 16 rows, row l/4 and row l/4 + 8 of lane l, as queries.
// Their limits are derived again for each masked block: that costs less than the registers to keep them.
struct row_limits {
    visibility visible;
    int query[2];

    __device__ __forceinline__ row_limits(const visibility& sequence, int query_low, int query_high)
        : visible(sequence), query{query_low, query_high} {}

    // Scores of hidden keys become -infinity. s[4 * j + 2 * h + e] belongs to row h and key
    // first_key + 8 * j + 2 * (lane % 4) + e: the accumulator layout of mma.m16n8 and of wgmma alike.
    template <int COUNT>
    __device__ __forceinline__ void apply(float (&s)[COUNT], int first_key) const {
        const int lane_key = first_key + 2 * (static_cast<int>(threadIdx.x) % 4);
        const int hidden_from[2] = {visible.end(query[0]) - lane_key, visible.end(query[1]) - lane_key};
        const int visible_from[2] = {visible.first(query[0]) - lane_key, visible.first(query[1]) - lane_key};
#pragma unroll
        for (int i = 0; i < COUNT; ++i) {
            const int row = (i / 2) % 2;
            const int key = 8 * (i / 4) + i % 2;
            const bool hidden = key >= hidden_from[row] || (HAS_WINDOW && key < visible_from[row]);
            s[i] = hidden ? __int_as_float(MINUS_INFINITY_BITS) : s[i];
        }
    }
};

}  // namespace forge
