// Attention of few queries over a cache in pages [pages, Hkv, page_size, D], 16-bit or 8-bit with one scale per key
// head. The loop is that of flash_attention/decode_kernel.cuh; what differs is where a tile of 16 keys lies:
//
//   tile ──▶ block_table[sequence, tile * 16 / page_size] = page ──▶ 16 rows of k_cache[page, head], contiguous
//
// Compile-time inputs: HEAD_DIM, HAS_SCALES; tactic SPLITS (CTAs of a cluster), WARPS, STAGES, ROW_TILES.
#include "common/numeric.cuh"
#include <cuda_fp8.h>

using cache_t = k_cache_t;
#include "flash_attention/decode_kernel.cuh"

using namespace forge;

extern "C" __global__ void __launch_bounds__(THREADS, CTAS_PER_SM)
paged_attention(const q_t* __restrict__ q, const k_cache_t* __restrict__ k_cache,
                const v_cache_t* __restrict__ v_cache,
#if HAS_SCALES
                const float* __restrict__ k_scale, const float* __restrict__ v_scale,
#endif
#if HAS_K_LENGTHS
                const int32_t* __restrict__ k_lengths,
#endif
#if HAS_BLOCK_TABLE
                const int32_t* __restrict__ block_table,
#endif
                int q_heads, int kv_heads, int queries, int pages, int page_size, int pages_per_sequence,
                q_t* __restrict__ o) {
    extern __shared__ __align__(128) unsigned char dynamic_shared[];
    const int group = q_heads / kv_heads;
    const int rows = queries * group;
    const int row_blocks = (rows + BLOCK_ROWS - 1) / BLOCK_ROWS;
    const int cluster = blockIdx.x / SPLITS;
    const int batch = cluster / row_blocks / kv_heads;
    const int kv_head = cluster / row_blocks % kv_heads;
    const int capacity = pages_per_sequence * page_size;
#if HAS_K_LENGTHS
    const int keys = min(max(k_lengths[batch], 0), capacity);
#else
    const int keys = capacity;
#endif
#if HAS_BLOCK_TABLE
    const int32_t* table = block_table + static_cast<long long>(batch) * pages_per_sequence;
#else
    const int32_t* table = nullptr;
#endif
#if HAS_SCALES
    const float key_scale = k_scale[kv_head], value_scale = v_scale[kv_head];
#else
    const float key_scale = 1.0f, value_scale = 1.0f;
#endif
    const cache_pages cache{table, pages, page_size, kv_heads, kv_head, batch};
    const packed_rows packed{group, queries, rows, static_cast<long long>(batch) * q_heads + kv_head * group};
    attend(dynamic_shared, q, k_cache, v_cache, o, cache, packed, keys, cluster % row_blocks * BLOCK_ROWS, key_scale,
           value_scale);
}
