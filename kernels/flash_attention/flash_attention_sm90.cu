// Flash attention for sm_90a: TMA, wgmma, warp-specialized (Shah et al. 2024, arXiv:2407.08608, describes the schedule).
//
//   CTA = one tile of BLOCK_M = 64 * CONSUMERS queries of one head
//
//   q, k, v ──TMA──▶ shared ──wgmma──▶ registers ──stmatrix──▶ shared ──TMA──▶ o
//
//   producer warpgroup (one thread)       consumer warpgroup 0..CONSUMERS-1 (64 queries each)
//   ───────────────────────────────       ───────────────────────────────────────────────────
//   Q ─────────────── q_full ──────────▶  S = Q K(j)^T                    sm90_mainloop.cuh
//   K(j) ── k_full[stage] ─────────────▶  mask, softmax                   visibility.cuh, online_softmax.cuh
//        ◀── k_empty[stage] ────────────  P = 16-bit(S), in registers
//   V(j) ── v_full[stage] ─────────────▶  O += P V(j)
//        ◀── v_empty[stage] ────────────  O / l ──▶ o                     sm90_epilogue.cuh
//
// Heads never mix: tensor maps have three dimensions (column, row, batch * head), so a box that reaches past the last
// row of its head is filled with zeros (loads) or clipped (stores). The key range is known per CTA, all roles derive it.
#include "common/mbarrier.cuh"
#include "common/tma.cuh"
#include "common/warpgroup.cuh"
#include "sm90_config.cuh"
#include "sm90_epilogue.cuh"
#include "sm90_mainloop.cuh"
#include "sm90_producer.cuh"
#include "tile_order.cuh"
#include "visibility.cuh"

using namespace forge;

extern "C" __global__ void __launch_bounds__(THREADS, 1)
flash_attention_sm90(const q_t* __restrict__, const q_t* __restrict__, const q_t* __restrict__,
#if HAS_K_LENGTHS
                     const int32_t* __restrict__ k_lengths,
#endif
                     int heads, int q_heads, int kv_heads, int queries, int keys_in_memory, q_t* __restrict__,
                     const __grid_constant__ tensor_map q_map, const __grid_constant__ tensor_map k_map,
                     const __grid_constant__ tensor_map v_map, const __grid_constant__ tensor_map o_map) {
    extern __shared__ unsigned char dynamic_shared[];
    const shared_layout shared(dynamic_shared);

    const int query_blocks = (queries + BLOCK_M - 1) / BLOCK_M;
    const int heads_per_kv_head = q_heads / kv_heads;
    const long long kv_head_bytes = 2ll * keys_in_memory * HEAD_DIM * static_cast<int>(sizeof(q_t));
    const tile_coordinates where =
        tile_of<IS_CAUSAL>(blockIdx.x, query_blocks, heads, heads_per_kv_head, kv_head_bytes);
    const int batch = where.head / q_heads;
    const attention_tile tile{where.head, batch * kv_heads + where.head % q_heads / heads_per_kv_head,
                              where.query_block * BLOCK_M};
#if HAS_K_LENGTHS
    const int keys = min(max(k_lengths[batch], 0), keys_in_memory);
#else
    const int keys = keys_in_memory;
#endif
    const visibility visible(keys, queries);
    const int last_query = min(tile.first_query + BLOCK_M, queries) - 1;
    const key_blocks blocks = key_blocks::of<BLOCK_N>(visible, tile.first_query, last_query);

    const int warp = warp_index_uniform();
    if (threadIdx.x == 0) {
        tma_prefetch_descriptor(&q_map);
        tma_prefetch_descriptor(&k_map);
        tma_prefetch_descriptor(&v_map);
        tma_prefetch_descriptor(&o_map);
        shared.init_barriers();
    }
    __syncthreads();

    if (warp < WARPS_PER_WARPGROUP) {
        setmaxnreg_dec<PRODUCER_REGISTERS>();
        if (warp == 0 && elect_one()) {
            produce(shared, tile, blocks, &q_map, &k_map, &v_map);
        }
    } else {
        setmaxnreg_inc<CONSUMER_REGISTERS>();
        const int warpgroup = warp / WARPS_PER_WARPGROUP - 1;
        const int lane = threadIdx.x % WARP_THREADS;
        const int query = tile.first_query + warpgroup * WARPGROUP_ROWS + warp % WARPS_PER_WARPGROUP * 16 + lane / 4;
        const row_limits limits(visible, query, query + 8);
        consumer worker(shared, warpgroup, limits);
        worker.run(blocks, keys, keys_in_memory);
        store_output(worker.o, worker.softmax, shared, tile, warpgroup, &o_map);
    }
}
