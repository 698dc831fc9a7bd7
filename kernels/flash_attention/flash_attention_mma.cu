// Flash attention with mma.sync: any GPU since sm_80, any head dimension up to 256, any number of queries and keys
// (Dao 2023, arXiv:2307.08691, describes the loop).
//
//   CTA = BLOCK_M packed rows of one key head. Packed row r is query r / group, query head r % group of the group that
//   shares the key head: K and V are read once for the whole group, and one query of many heads still fills a tile.
//
//   q ──cp.async──▶ Q tile ──ldmatrix──▶ A ─┐
//   k ──cp.async──▶ K tile ──ldmatrix──▶ B ─┴▶ mma ▶ S ▶ soft cap ▶ mask ▶ softmax ▶ P (registers) = A ─┐
//   v ──cp.async──▶ V tile ──ldmatrix.trans──────────────────────────────────────────────────────▶ B ─┴▶ mma ▶ O ▶ o
//
//   copies in flight:    V(j) during S = Q K(j)^T,   K(j-1) during softmax and O += P V(j)
//
// VARLEN: sequences of different lengths, packed one after another as [token, head, D] (packed_sequences.cuh).
//
// Compile-time inputs: HEAD_DIM; VARLEN; tactic WARPS, M_TILES (16-row tiles of a warp), BLOCK_N (keys of a block).
#include "common/mma.cuh"
#include "common/numeric.cuh"
#include "mma_tiles.cuh"
#include "online_softmax.cuh"
#include "packed_sequences.cuh"
#include "tile_order.cuh"
#include "visibility.cuh"

using namespace forge;

namespace {

// With few registers in use for O and S, Q's fragments stay in registers; else they are read again for each block.
constexpr bool Q_IN_REGISTERS = PADDED_D * M_TILES <= 128;
constexpr int SCORES = BLOCK_N / MMA_COLUMNS * 4;  // accumulators of one 16-row tile
constexpr int OUTPUTS = PADDED_D / MMA_COLUMNS * 4;
constexpr int D_STEPS = PADDED_D / MMA_DEPTH;
constexpr int KEY_STEPS = BLOCK_N / MMA_DEPTH;

// Four accumulators of an 8-column group.
template <int COUNT>
__device__ __forceinline__ float (&group_of(float (&tile)[COUNT], int index))[4] {
    return *reinterpret_cast<float(*)[4]>(&tile[4 * index]);
}

struct q_fragments {
    uint32_t held[Q_IN_REGISTERS ? D_STEPS : 1][M_TILES][4];

    __device__ __forceinline__ void load(uint32_t tile, int first_row) {
        if constexpr (Q_IN_REGISTERS) {
#pragma unroll
            for (int step = 0; step < D_STEPS; ++step) {
                load_step(held[step], tile, first_row, step);
            }
        }
    }

    __device__ __forceinline__ void get(uint32_t (&a)[M_TILES][4], uint32_t tile, int first_row, int step) const {
        if constexpr (Q_IN_REGISTERS) {
#pragma unroll
            for (int m = 0; m < M_TILES; ++m) {
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    a[m][i] = held[step][m][i];
                }
            }
        } else {
            load_step(a, tile, first_row, step);
        }
    }

   private:
    static __device__ __forceinline__ void load_step(uint32_t (&a)[M_TILES][4], uint32_t tile, int first_row,
                                                     int step) {
#pragma unroll
        for (int m = 0; m < M_TILES; ++m) {
            load_a(a[m], tile, first_row + m * MMA_ROWS, step * MMA_DEPTH);
        }
    }
};

// S = Q K^T
__device__ __forceinline__ void multiply_scores(float (&s)[M_TILES][SCORES], const q_fragments& q, uint32_t q_tile,
                                                uint32_t k_tile, int first_row) {
#pragma unroll
    for (int m = 0; m < M_TILES; ++m) {
#pragma unroll
        for (int i = 0; i < SCORES; ++i) {
            s[m][i] = 0.0f;
        }
    }
#pragma unroll
    for (int step = 0; step < D_STEPS; ++step) {
        uint32_t a[M_TILES][4];
        q.get(a, q_tile, first_row, step);
#pragma unroll
        for (int pair = 0; pair < BLOCK_N / 16; ++pair) {
            uint32_t b[4];
            load_b(b, k_tile, pair * 16, step * MMA_DEPTH);
#pragma unroll
            for (int m = 0; m < M_TILES; ++m) {
                mma_m16n8k16<q_t>(group_of(s[m], 2 * pair), a[m], b[0], b[1]);
                mma_m16n8k16<q_t>(group_of(s[m], 2 * pair + 1), a[m], b[2], b[3]);
            }
        }
    }
}

// O += P V; the accumulators of P, packed in pairs, are operand A.
__device__ __forceinline__ void multiply_values(float (&o)[M_TILES][OUTPUTS], const float (&p)[M_TILES][SCORES],
                                                uint32_t v_tile) {
#pragma unroll
    for (int step = 0; step < KEY_STEPS; ++step) {
        uint32_t a[M_TILES][4];
#pragma unroll
        for (int m = 0; m < M_TILES; ++m) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                a[m][i] = pack2<q_t>(p[m][8 * step + 2 * i], p[m][8 * step + 2 * i + 1]);
            }
        }
#pragma unroll
        for (int pair = 0; pair < PADDED_D / 16; ++pair) {
            uint32_t b[4];
            load_b_transposed(b, v_tile, step * MMA_DEPTH, pair * 16);
#pragma unroll
            for (int m = 0; m < M_TILES; ++m) {
                mma_m16n8k16<q_t>(group_of(o[m], 2 * pair), a[m], b[0], b[1]);
                mma_m16n8k16<q_t>(group_of(o[m], 2 * pair + 1), a[m], b[2], b[3]);
            }
        }
    }
}

// Two neighboring columns of one row; HEAD_DIM may end between them.
__device__ __forceinline__ void store_pair(q_t* row, int column, float low, float high) {
    if constexpr (HEAD_DIM % 2 == 0) {
        if (column < HEAD_DIM) {
            *reinterpret_cast<uint32_t*>(row + column) = pack2<q_t>(low, high);
        }
    } else {
        if (column < HEAD_DIM) {
            row[column] = from_float<q_t>(low);
        }
        if (column + 1 < HEAD_DIM) {
            row[column + 1] = from_float<q_t>(high);
        }
    }
}

}  // namespace

extern "C" __global__ void __launch_bounds__(THREADS, 1)
flash_attention_mma(const q_t* __restrict__ q, const q_t* __restrict__ k, const q_t* __restrict__ v,
#if HAS_K_LENGTHS
                    const int32_t* __restrict__ k_lengths,
#endif
#if VARLEN
                    const int32_t* __restrict__ q_offsets, const int32_t* __restrict__ k_offsets, int sequences,
                    int q_heads, int kv_heads, int q_tokens, int k_tokens, q_t* __restrict__ o
#else
                    int q_heads, int kv_heads, int queries, int keys_in_memory, q_t* __restrict__ o
#endif
#if WITH_LSE
                    , float* __restrict__ lse
#endif
) {
    extern __shared__ __align__(16) unsigned char dynamic_shared[];
    const uint32_t q_tile = shared_address(dynamic_shared);
    const uint32_t k_tile = q_tile + Q_TILE_BYTES;
    const uint32_t v_tile = k_tile + KV_TILE_BYTES;

    const int group = q_heads / kv_heads;
#if VARLEN
    const packed_sequences packed{q_offsets, k_offsets, sequences, q_tokens, k_tokens};
    const int slots = packed.slots<BLOCK_M>(group);
    const int kv_head = blockIdx.x / slots;
    const packed_tile tile = packed.tile_at<BLOCK_M>(blockIdx.x % slots, group);
    if (tile.rows == 0) {
        return;
    }
    const int rows = tile.rows, queries = tile.queries, keys = tile.keys, first_row = tile.first_row;
    auto q_offset = [&](int row) -> long long {
        const long long token = tile.q_begin + row / group;
        return (token * q_heads + kv_head * group + row % group) * HEAD_DIM;
    };
    const int key_pitch = kv_heads * HEAD_DIM;
    const long long kv_offset = (static_cast<long long>(tile.k_begin) * kv_heads + kv_head) * HEAD_DIM;
#else
    const int rows = queries * group;
    const int row_blocks = (rows + BLOCK_M - 1) / BLOCK_M;
    const long long kv_head_bytes = 2ll * keys_in_memory * HEAD_DIM * ELEMENT_BYTES;
    const int heads = gridDim.x / row_blocks;
    const tile_coordinates tile =
        tile_of<IS_CAUSAL, false>(blockIdx.x, row_blocks, heads, heads_of_section(heads, 1, kv_head_bytes));
    const int batch = tile.head / kv_heads;
    const int first_row = tile.query_block * BLOCK_M;
#if HAS_K_LENGTHS
    const int keys = min(max(k_lengths[batch], 0), keys_in_memory);
#else
    const int keys = keys_in_memory;
#endif
    const long long first_q_head = static_cast<long long>(batch) * q_heads + tile.head % kv_heads * group;
    auto q_offset = [&](int row) -> long long {
        return ((first_q_head + row % group) * queries + row / group) * HEAD_DIM;
    };
    const long long kv_offset = static_cast<long long>(tile.head) * keys_in_memory * HEAD_DIM;
    constexpr int key_pitch = HEAD_DIM;
#endif
    const int last_row = min(first_row + BLOCK_M, rows) - 1;
    const visibility visible(keys, queries);
    const key_blocks blocks = key_blocks::of<BLOCK_N>(visible, first_row / group, last_row / group);

    auto load_block = [&](uint32_t shared, const q_t* memory, int block) {
        load_rows<BLOCK_N>(shared, memory, [&](int row) -> long long {
            const int key = block * BLOCK_N + row;
            return key < keys ? kv_offset + static_cast<long long>(key) * key_pitch : -1;
        });
        cp_async_commit();
    };

    const int lane = threadIdx.x % 32;
    const int warp_row = threadIdx.x / 32 * WARP_ROWS;  // in the tile
    const int lane_row = first_row + warp_row + lane / 4;

    float o_tile[M_TILES][OUTPUTS] = {};
    online_softmax softmax[M_TILES];

    if (blocks.begin < blocks.end) {
        load_rows<BLOCK_M>(q_tile, q, [&](int row) -> long long {
            return first_row + row < rows ? q_offset(first_row + row) : -1;
        });
        load_block(k_tile, k, blocks.end - 1);
        cp_async_wait<0>();
        __syncthreads();
        q_fragments q_held;
        q_held.load(q_tile, warp_row);

        for (int block = blocks.end - 1; block >= blocks.begin; --block) {
            load_block(v_tile, v, block);
            float s[M_TILES][SCORES];
            multiply_scores(s, q_held, q_tile, k_tile, warp_row);
            cp_async_wait<0>();
            __syncthreads();  // V(block) has landed, and nobody reads K(block) any more
            if (block > blocks.begin) {
                load_block(k_tile, k, block - 1);
            }
            const bool masked = block >= blocks.full_end || block < blocks.full_begin;
#pragma unroll
            for (int m = 0; m < M_TILES; ++m) {
                soft_cap(s[m]);
                if (masked) {
                    const int row = lane_row + m * MMA_ROWS;
                    row_limits(visible, row / group, (row + 8) / group).apply(s[m], block * BLOCK_N);
                }
                float rescale[2];
                softmax[m].update(s[m], rescale);
                scale_rows(o_tile[m], rescale);
            }
            multiply_values(o_tile, s, v_tile);
            cp_async_wait<0>();
            __syncthreads();  // K(block - 1) has landed, and nobody reads V(block) any more
        }
    }

#pragma unroll
    for (int m = 0; m < M_TILES; ++m) {
        float inverse[2];
        softmax[m].reciprocals(inverse);
        scale_rows(o_tile[m], inverse);
#if WITH_LSE
        float sums[2];
        softmax[m].log_sum_exp(sums);
#endif
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int row = lane_row + m * MMA_ROWS + 8 * half;
            if (row < rows) {
#if WITH_LSE
                if (lane % 4 == 0) {
                    lse[q_offset(row) / HEAD_DIM] = sums[half];
                }
#endif
                q_t* destination = o + q_offset(row);
#pragma unroll
                for (int column = 0; column < PADDED_D; column += MMA_COLUMNS) {
                    store_pair(destination, column + 2 * (lane % 4), o_tile[m][column / 2 + 2 * half],
                               o_tile[m][column / 2 + 2 * half + 1]);
                }
            }
        }
    }
}
