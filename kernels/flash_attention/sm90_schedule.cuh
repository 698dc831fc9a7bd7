// Which tiles a CTA works on, and what each of them has to visit. Producer and consumers walk the same list, each for
// itself: CTA c takes tiles c, c + step, c + 2 step, ... of the order in tile_order.cuh, where step CTAs walk.
//
//   HANDED_OUT:   CTA 0 .. step-1 walk over tiles 0 .. tiles-1 ┐ CTA step: tile `tiles` │ step+1: `tiles`+1 │ ...
//
// VARLEN: one tile per CTA, found by all warps before their roles part (packed_sequences.cuh); the tensor maps have the
// dimensions column, token, head.
#pragma once

#include "eight_bit.cuh"
#include "online_softmax.cuh"
#include "packed_sequences.cuh"
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
#if VARLEN
    int q_heads;
    int q_begin, k_begin;  // first token of the sequence
#else
    static constexpr int q_begin = 0, k_begin = 0;
#endif

    // Rows of the tensor maps: of a query and of a key.
    __device__ __forceinline__ int q_row(int query) const { return q_begin + query; }
    __device__ __forceinline__ int k_row(int key) const { return k_begin + key; }

    // Which row of D elements of the output a query's is.
    __device__ __forceinline__ long long output_row(int queries, int query) const {
#if VARLEN
        return static_cast<long long>(q_begin + query) * q_heads + head;
#else
        return static_cast<long long>(head) * queries + query;
#endif
    }
};

#if VARLEN

struct tile_schedule {
    int tiles, step;     // the walk over tiles ends after one
    int queries;         // of the sequence
    int keys_in_memory;  // from the sequence's first to the last of all
    work_item item;

    __device__ __forceinline__ tile_schedule(const packed_tile& tile, int q_heads, int kv_heads, int head, int k_tokens)
        : tiles(gridDim.x), step(gridDim.x), queries(tile.queries), keys_in_memory(k_tokens - tile.k_begin) {
        item.head = head;
        item.kv_head = head / (q_heads / kv_heads);
        item.first_query = tile.first_row;
        item.keys = tile.keys;
        const int last_query = min(tile.first_row + BLOCK_M, tile.rows) - 1;
        item.blocks = key_blocks::of<BLOCK_N>(visibility(tile.keys, tile.queries), tile.first_row, last_query);
        item.q_heads = q_heads;
        item.q_begin = tile.q_begin;
        item.k_begin = tile.k_begin;
    }

    __device__ __forceinline__ int first_tile() const { return blockIdx.x; }
    __device__ __forceinline__ bool is_mine(int tile) const { return tile < tiles; }
    __device__ __forceinline__ work_item at(int) const { return item; }
    __device__ __forceinline__ online_softmax softmax_of(const work_item&) const { return online_softmax(); }
    __device__ __forceinline__ float value_scale(const work_item&) const { return 1.0f; }
};

#else

struct tile_schedule {
    // Kernel parameters, so that reading them costs no register; what could be derived would be kept in one.
    int heads, q_heads, kv_heads, queries, keys_in_memory;
    int section_heads, query_blocks, tiles, step;
    const int32_t* k_lengths;  // null: every sequence has all keys
#if HOST_INVERSES
    order_inverses inverses;
#endif
#if EIGHT_BIT
    head_scales scales;

    // A fresh softmax for the rows of a tile.
    __device__ __forceinline__ online_softmax softmax_of(const work_item& item) const {
        const int q_head = scales.of_batches ? item.head : item.head % q_heads;
        const float scale = __ldg(scales.q + q_head) * __ldg(scales.k + kv_scale_index(item)) * EXPONENT_SCALE;
        online_softmax softmax;
        softmax.exponent_scale = fmaxf(scale, SMALLEST_EXPONENT_SCALE);
        return softmax;
    }

    // What the values of a tile are multiples of.
    __device__ __forceinline__ float value_scale(const work_item& item) const {
        return __ldg(scales.v + kv_scale_index(item));
    }

    __device__ __forceinline__ int kv_scale_index(const work_item& item) const {
        return scales.of_batches ? item.kv_head : item.kv_head % kv_heads;
    }
#else
    __device__ __forceinline__ online_softmax softmax_of(const work_item&) const { return online_softmax(); }
    __device__ __forceinline__ float value_scale(const work_item&) const { return 1.0f; }
#endif

    __device__ __forceinline__ int first_tile() const {
        const int cta = static_cast<int>(blockIdx.x);
        return HANDED_OUT && cta >= step ? cta - step + tiles : cta;
    }

    // Whether a tile, the first one or `step` after one that is, belongs to this CTA.
    __device__ __forceinline__ bool is_mine(int tile) const {
        return tile < tiles || (HANDED_OUT && tile == first_tile());
    }

    __device__ __forceinline__ work_item at(int tile) const {
#if HOST_INVERSES
        const tile_coordinates where =
            tile_of<IS_CAUSAL, PERSISTENT>(tile, query_blocks, heads, section_heads, inverses);
#else
        const tile_coordinates where = tile_of<IS_CAUSAL, PERSISTENT>(tile, query_blocks, heads, section_heads);
#endif
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

#endif

}  // namespace forge
