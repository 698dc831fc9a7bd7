// Flash attention for sm_90a: TMA, wgmma, warp-specialized (Shah et al. 2024, arXiv:2407.08608, describes the schedule).
//
//   tile = BLOCK_M = 64 * CONSUMERS queries of one head. PERSISTENT: one CTA per multiprocessor walks over many tiles,
//   loads and products of the next tile beside the end of the last (sm90_schedule.cuh); else one CTA per tile.
//
//   q, k, v ──TMA──▶ shared ──wgmma──▶ registers ──▶ o
//
//   producer warpgroup (one thread)       consumer warpgroup 0..CONSUMERS-1 (64 queries each)
//   ───────────────────────────────       ───────────────────────────────────────────────────
//   Q ── q_full[warpgroup] ────────────▶  S = Q K(j)^T                    sm90_mainloop.cuh
//        ◀── q_empty[warpgroup] ────────
//   K(j) ── k_full[stage] ─────────────▶  mask, softmax                   visibility.cuh, online_softmax.cuh
//        ◀── k_empty[stage] ────────────  P = 16-bit(S), in registers
//   V(j) ── v_full[stage] ─────────────▶  O += P V(j)
//        ◀── v_empty[stage] ────────────  O / l ──▶ o, m + log l ──▶ lse  sm90_epilogue.cuh
//
// Heads never mix: tensor maps have three dimensions (column, row, batch * head), so a box that reaches past the last
// row of its head is filled with zeros. The key range follows from the tile, all roles derive it.
//
// VARLEN: sequences of different lengths, packed one after another as [token, head, D]. A box that reaches past the end
// of its sequence brings rows of the next: as keys they are masked, as values cleared, as queries not stored.
#include "common/mbarrier.cuh"
#include "common/tma.cuh"
#include "common/warpgroup.cuh"
#include "sm90_config.cuh"
#include "sm90_epilogue.cuh"
#include "sm90_mainloop.cuh"
#include "sm90_producer.cuh"
#include "sm90_schedule.cuh"

using namespace forge;

extern "C" __global__ void __launch_bounds__(THREADS, 1)
flash_attention_sm90(const q_t* __restrict__, const q_t* __restrict__, const q_t* __restrict__,
#if HAS_K_LENGTHS
                     const int32_t* __restrict__ k_lengths,
#endif
#if VARLEN
                     const int32_t* __restrict__ q_offsets, const int32_t* __restrict__ k_offsets, int sequences,
                     int q_heads, int kv_heads, int q_tokens, int k_tokens, q_t* __restrict__ output,
#else
                     int heads, int q_heads, int kv_heads, int queries, int keys_in_memory, int section_heads,
                     int query_blocks, int tiles, int tile_step,
#if HOST_INVERSES
                     int inverse_query_blocks, int inverse_section_tiles, int inverse_section_heads,
                     int inverse_last_heads, int last_section,
#endif
                     q_t* __restrict__ output,
#endif
#if WITH_LSE
                     float* __restrict__ lse,
#endif
                     const __grid_constant__ tensor_map q_map,
                     const __grid_constant__ tensor_map k_map, const __grid_constant__ tensor_map v_map
#if !PERSISTENT && !VARLEN
                     , const __grid_constant__ tensor_map o_map
#endif
) {
    extern __shared__ unsigned char dynamic_shared[];
    const shared_layout shared(dynamic_shared);
#if !HAS_K_LENGTHS
    constexpr const int32_t* k_lengths = nullptr;
#endif
#if !WITH_LSE
    constexpr float* lse = nullptr;
#endif
#if VARLEN
    const packed_sequences packed{q_offsets, k_offsets, sequences, q_tokens, k_tokens};
    const int slots = packed.slots<BLOCK_M>(1);
    const packed_tile tile = packed.tile_at<BLOCK_M>(blockIdx.x % slots, 1);
    if (tile.rows == 0) {
        return;
    }
    const tile_schedule schedule(tile, q_heads, kv_heads, blockIdx.x / slots, k_tokens);
#else
    const tile_schedule schedule{heads,         q_heads,      kv_heads, queries,   keys_in_memory,
                                 section_heads, query_blocks, tiles,    tile_step, k_lengths,
#if HOST_INVERSES
                                 {inverse_query_blocks, inverse_section_tiles, inverse_section_heads,
                                  inverse_last_heads, last_section}
#endif
    };
#endif

    const int warp = warp_index_uniform();
    if (threadIdx.x == 0) {
        tma_prefetch_descriptor(&q_map);
        tma_prefetch_descriptor(&k_map);
        tma_prefetch_descriptor(&v_map);
#if !PERSISTENT && !VARLEN
        tma_prefetch_descriptor(&o_map);
#endif
        shared.init_barriers();
    }
    __syncthreads();

    if (warp < WARPS_PER_WARPGROUP) {
        setmaxnreg_dec<PRODUCER_REGISTERS>();
        if (warp == 0 && elect_one()) {
            produce(shared, schedule, &q_map, &k_map, &v_map);
        }
    } else {
        setmaxnreg_inc<CONSUMER_REGISTERS>();
        const int warpgroup = warp / WARPS_PER_WARPGROUP - 1;
        consumer worker(shared, schedule, warpgroup);
#if PERSISTENT
        worker.run_all(output, lse);
#else
        const work_item item = schedule.at(blockIdx.x);
        worker.run(item);
        float sums[2];
        worker.softmax.log_sum_exp(sums);
        store_lse(sums, lse, item, warpgroup, schedule.queries);
#if VARLEN
        float inverse[2];
        worker.softmax.reciprocals(inverse);
        store_rows(worker.o, inverse, output, item, warpgroup, schedule.queries);
#else
        store_output(worker.o, worker.softmax, shared, item, warpgroup, &o_map);
#endif
#endif
    }
}
