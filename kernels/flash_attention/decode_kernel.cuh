// Attention of few queries over many keys: the keys are split over the CTAs of a cluster (Dao et al. 2023, "Flash-
// Decoding"), whose partial results meet in distributed shared memory. One launch, no scratch memory, no atomics.
//
//   cluster = BLOCK_ROWS packed rows of one key head;  CTA = a run of 16-key tiles;  warp = every WARPS-th of them
//
//           ┌ warp 0 ┐  own ring of STAGES tiles, no barrier in the loop
//   k, v ──cp.async──▶ K ──ldmatrix────────▶ A ┐
//                      │               q^T = B ┴▶ mma ▶ S^T ▶ soft cap ▶ mask ▶ softmax ▶ P^T ──movmatrix──▶ B ┐
//                      └▶ V ──ldmatrix.trans─────────────────────────────────────────────────────────────▶ A ┴▶ mma ▶ O^T
//           └ ...    ┘
//           warps ──▶ CTA ──▶ cluster ──▶ o        (decode_combine.cuh)
//
// Keys are the M of the products and packed rows their N: 8 rows fill an instruction, where rows as M would need 16. In
// flight are WARPS * STAGES tiles of K and V per CTA, and up to three CTAs on a multiprocessor (CTAS_PER_SM); a stage is
// refilled before its products where its tiles fit registers (EARLY_REFILL).
//
// The cache is k and v [B, Hkv, keys, D], or pages [pages, Hkv, page_size, D] and a table of page numbers. Page sizes
// are multiples of 16, so a tile lies in one page. Page numbers outside of the pool are clamped into it.
#pragma once

#include "common/warpgroup.cuh"
#include "decode_combine.cuh"
#include "decode_queries.cuh"
#include "decode_tiles.cuh"
#include "online_softmax.cuh"
#include "visibility.cuh"

namespace forge {

// Where the tiles of one key head lie. Without a table, page b is sequence b.
struct cache_pages {
    const int* table;      // of this sequence
    int pages, page_size;  // page_size in keys
    int kv_heads, kv_head, batch;

    // Byte offset in k and in v of the tile `inside` of a page.
    __device__ __forceinline__ long long offset(int page, int inside) const {
        const int held = min(max(page, 0), pages - 1);
        const long long first_row = (static_cast<long long>(held) * kv_heads + kv_head) * page_size;
        return (first_row + inside * TILE_KEYS) * HEAD_BYTES;
    }
};

// A warp's next tile to be copied: its page, whose number is read a tile ahead, and the tile in the page. Pages advance by
// addition: a division for every tile is 40 instructions.
struct cache_cursor {
    const cache_pages& cache;
    const int end;
    int tile, page, inside;
    int tiles_per_page, page_index, step_pages, step_tiles;

    __device__ __forceinline__ cache_cursor(const cache_pages& pages, int first, int end_tile)
        : cache(pages), end(end_tile), tile(first), page(pages.batch), inside(first) {
        if constexpr (HAS_BLOCK_TABLE) {
            tiles_per_page = cache.page_size / TILE_KEYS;
            page_index = first / tiles_per_page;
            inside = first % tiles_per_page;
            step_pages = WARPS / tiles_per_page;
            step_tiles = WARPS % tiles_per_page;
            read_page();
        }
    }
    __device__ __forceinline__ bool more() const { return tile < end; }
    __device__ __forceinline__ long long offset() const { return cache.offset(page, inside); }
    __device__ __forceinline__ void advance() {
        tile += WARPS;
        if constexpr (HAS_BLOCK_TABLE) {
            page_index += step_pages;
            inside += step_tiles;
            if (inside >= tiles_per_page) {
                inside -= tiles_per_page;
                ++page_index;
            }
            read_page();
        } else {
            inside = tile;
        }
    }

   private:
    __device__ __forceinline__ void read_page() {
        if (more()) page = cache.table[page_index];
    }
};

// S^T: 16 keys by BLOCK_ROWS rows. Two accumulators each, so that products need not wait for one another.
__device__ __forceinline__ void multiply_scores(float (&s)[ROW_TILES][4], const query_operand& q,
                                                const tile_registers& k) {
    float parts[ROW_TILES][2][4] = {};
#pragma unroll
    for (int block = 0; block < BLOCKS; ++block) {
        uint32_t a[TILES_PER_BLOCK][4];
        operand_of_keys<cache_t>(a, k.r[block]);
#pragma unroll
        for (int i = 0; i < TILES_PER_BLOCK; ++i) {
            const int step = block * TILES_PER_BLOCK + i;
#pragma unroll
            for (int m = 0; m < ROW_TILES; ++m) {
                mma_m16n8k16<operand_t>(parts[m][step % 2], a[i], q.b[m][step][0], q.b[m][step][1]);
            }
        }
    }
#pragma unroll
    for (int m = 0; m < ROW_TILES; ++m) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            s[m][i] = parts[m][0][i] + parts[m][1][i];
        }
    }
}

// O^T += V^T P^T. P^T, packed in pairs of rows, is turned into pairs of keys.
__device__ __forceinline__ void multiply_values(float (&o)[ROW_TILES][D_TILES][4], const float (&p)[ROW_TILES][4],
                                                const tile_registers& v) {
    uint32_t b[ROW_TILES][2];
#pragma unroll
    for (int m = 0; m < ROW_TILES; ++m) {
        b[m][0] = movmatrix_trans(pack2<operand_t>(p[m][0], p[m][1]));
        b[m][1] = movmatrix_trans(pack2<operand_t>(p[m][2], p[m][3]));
    }
#pragma unroll
    for (int block = 0; block < BLOCKS; ++block) {
        uint32_t a[TILES_PER_BLOCK][4];
        operand_of_values<cache_t>(a, v.r[block]);
#pragma unroll
        for (int i = 0; i < TILES_PER_BLOCK; ++i) {
#pragma unroll
            for (int m = 0; m < ROW_TILES; ++m) {
                mma_m16n8k16<operand_t>(o[m][block * TILES_PER_BLOCK + i], a[i], b[m][0], b[m][1]);
            }
        }
    }
}

// Reductions over the eight lanes that hold the keys of the same two rows.
__device__ __forceinline__ float keys_max(float x) {
#pragma unroll
    for (int distance = 4; distance < 32; distance *= 2) {
        x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, distance));
    }
    return x;
}

__device__ __forceinline__ float keys_sum(float x) {
#pragma unroll
    for (int distance = 4; distance < 32; distance *= 2) {
        x += __shfl_xor_sync(ALL_LANES, x, distance);
    }
    return x;
}

// Hides the keys that a row may not see: s[i] is key `lane_key` + 8 * (i / 2) of the lane's row i % 2.
__device__ __forceinline__ void hide(float (&s)[4], const visibility& visible, const int (&query)[2], int lane_key) {
#pragma unroll
    for (int row = 0; row < 2; ++row) {
        const int end = visible.end(query[row]), first = visible.first(query[row]);
#pragma unroll
        for (int i = row; i < 4; i += 2) {
            const int key = lane_key + i / 2 * 8;
            s[i] = key >= end || (HAS_WINDOW && key < first) ? __int_as_float(MINUS_INFINITY_BITS) : s[i];
        }
    }
}

// The whole kernel. `k_scale` and `v_scale` are those of this key head (1 for a 16-bit cache).
__device__ __forceinline__ void attend(unsigned char* shared, const q_t* q, const cache_t* k, const cache_t* v, q_t* o,
                                       const cache_pages& cache, const packed_rows& packed, int keys, int first_row,
                                       float k_scale, float v_scale) {
    open_inbox(shared, min(BLOCK_ROWS, packed.rows - first_row));
    const int warp = warp_index_uniform();
    const int lane = threadIdx.x % 32;
    const int last_row = min(first_row + BLOCK_ROWS, packed.rows) - 1;
    const visibility visible(keys, packed.queries);
    const key_blocks tiles = key_blocks::of<TILE_KEYS>(visible, first_row / packed.group, last_row / packed.group);

    const int per_cta = (tiles.end - tiles.begin + SPLITS - 1) / SPLITS;
    const int first_tile = tiles.begin + per_cta * (static_cast<int>(blockIdx.x) % SPLITS) + warp;
    const int end_tile = min(tiles.begin + per_cta * (static_cast<int>(blockIdx.x) % SPLITS + 1), tiles.end);

    const uint32_t ring = shared_address(shared) + warp * RING_BYTES;
    const unsigned char* k_bytes = reinterpret_cast<const unsigned char*>(k);
    const unsigned char* v_bytes = reinterpret_cast<const unsigned char*>(v);
    cache_cursor next(cache, first_tile, end_tile);
    auto copy_next = [&](int stage) {
        if (next.more()) {
            const long long offset = next.offset();
            copy_stage(ring + stage * STAGE_BYTES, k_bytes + offset, v_bytes + offset, keys - next.tile * TILE_KEYS);
            next.advance();
        }
        cp_async_commit();
    };
#pragma unroll 1
    for (int stage = 0; stage < STAGES; ++stage) {
        copy_next(stage);
    }

    query_operand queries;
    queries.load(q, packed, first_row);
    float o_tile[ROW_TILES][D_TILES][4] = {};
    float maximum[ROW_TILES][2], sum[ROW_TILES][2];
    int query[ROW_TILES][2];
#pragma unroll
    for (int m = 0; m < ROW_TILES; ++m) {
#pragma unroll
        for (int row = 0; row < 2; ++row) {
            maximum[m][row] = NO_MAXIMUM;
            sum[m][row] = 0.0f;
            query[m][row] = (first_row + m * TILE_ROWS + lane % 4 * 2 + row) / packed.group;
            queries.unit[m][row] *= k_scale * CACHE_UNIT;
        }
    }

    int stage = 0;
    for (int tile = first_tile; tile < end_tile; tile += WARPS) {
        cp_async_wait<STAGES - 1>();
        __syncwarp();
        const uint32_t k_tile = ring + stage * STAGE_BYTES;
        tile_registers k_registers, v_registers;
        k_registers.load<false>(k_tile);
        if constexpr (EARLY_REFILL) {
            v_registers.load<true>(k_tile + TILE_BYTES);
            __syncwarp();  // every lane has read the stage
            copy_next(stage);
        }
        float s[ROW_TILES][4];
        multiply_scores(s, queries, k_registers);
        const bool masked = tile >= tiles.full_end || tile < tiles.full_begin;
        float rescale[ROW_TILES][2];
        bool changed = false;
#pragma unroll
        for (int m = 0; m < ROW_TILES; ++m) {
            if constexpr (IS_WIDENED) {
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    s[m][i] *= queries.unit[m][i % 2];
                }
            }
            soft_cap(s[m]);
            if (masked) {
                hide(s[m], visible, query[m], tile * TILE_KEYS + lane / 4);
            }
#pragma unroll
            for (int row = 0; row < 2; ++row) {
                const float highest = keys_max(fmaxf(maximum[m][row], fmaxf(s[m][row], s[m][row + 2])));
                rescale[m][row] = exp2_approximate((maximum[m][row] - highest) * EXPONENT_SCALE);
                changed |= highest != maximum[m][row];
                maximum[m][row] = highest;
                const float offset = -highest * EXPONENT_SCALE;
                s[m][row] = exp2_approximate(fmaf(s[m][row], EXPONENT_SCALE, offset));
                s[m][row + 2] = exp2_approximate(fmaf(s[m][row + 2], EXPONENT_SCALE, offset));
                sum[m][row] = fmaf(sum[m][row], rescale[m][row], s[m][row] + s[m][row + 2]);
            }
        }
        if (__any_sync(ALL_LANES, changed)) {
#pragma unroll
            for (int m = 0; m < ROW_TILES; ++m) {
#pragma unroll
                for (int d = 0; d < D_TILES; ++d) {
#pragma unroll
                    for (int i = 0; i < 4; ++i) {
                        o_tile[m][d][i] *= rescale[m][i % 2];
                    }
                }
            }
        }
        if constexpr (!EARLY_REFILL) {
            v_registers.load<true>(k_tile + TILE_BYTES);
            __syncwarp();
            copy_next(stage);
        }
        multiply_values(o_tile, s, v_registers);
        stage = stage + 1 == STAGES ? 0 : stage + 1;
    }

#pragma unroll
    for (int m = 0; m < ROW_TILES; ++m) {
#pragma unroll
        for (int row = 0; row < 2; ++row) {
            sum[m][row] = keys_sum(sum[m][row]);
        }
    }
    __syncthreads();  // the rings are free
    store_partial(shared, o_tile, maximum, sum);
    combine(shared, o, packed, first_row, v_scale * CACHE_UNIT);
}

}  // namespace forge
