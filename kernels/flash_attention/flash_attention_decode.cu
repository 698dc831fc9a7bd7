// Flash attention for few queries and a cache in one piece: k and v [B, Hkv, Sk, D]. See decode_kernel.cuh.
//
// Compile-time inputs: HEAD_DIM; tactic SPLITS (CTAs of a cluster), WARPS, STAGES, ROW_TILES.
#include "common/numeric.cuh"

#define HAS_BLOCK_TABLE 0
using cache_t = k_t;
#include "decode_kernel.cuh"

using namespace forge;

extern "C" __global__ void __launch_bounds__(THREADS, CTAS_PER_SM)
flash_attention_decode(const q_t* __restrict__ q, const k_t* __restrict__ k, const v_t* __restrict__ v,
#if HAS_K_LENGTHS
                       const int32_t* __restrict__ k_lengths,
#endif
                       int q_heads, int kv_heads, int queries, int keys_in_memory, int batches, q_t* __restrict__ o) {
    extern __shared__ __align__(128) unsigned char dynamic_shared[];
    const int group = q_heads / kv_heads;
    const int rows = queries * group;
    const int row_blocks = (rows + BLOCK_ROWS - 1) / BLOCK_ROWS;
    const int cluster = blockIdx.x / SPLITS;
    const int batch = cluster / row_blocks / kv_heads;
    const int kv_head = cluster / row_blocks % kv_heads;
#if HAS_K_LENGTHS
    const int keys = min(max(k_lengths[batch], 0), keys_in_memory);
#else
    const int keys = keys_in_memory;
#endif
    const cache_pages cache{nullptr, batches, keys_in_memory, kv_heads, kv_head, batch};
    const packed_rows packed{group, queries, rows, static_cast<long long>(batch) * q_heads + kv_head * group};
    attend(dynamic_shared, q, k, v, o, cache, packed, keys, cluster % row_blocks * BLOCK_ROWS, 1.0f, 1.0f);
}
