// Flash attention of 8-bit q, k and v for sm_90a (Shah et al. 2024, arXiv:2407.08608, section 3.3): the schedule, main
// loop and epilogue are those of flash_attention_sm90.cu, with products of twice the rate, and V transposed on its way.
//
//   q, k ──TMA──▶ shared ─────────────────────────────┐
//   v    ──TMA──▶ shared ──transposer──▶ shared ──────┴─wgmma──▶ registers ──▶ o (16 bits)
//
//   warp 0 (one thread)     warps 2 and 3               consumer warpgroup 0, 1 (64 queries each)
//   ─────────────────────   ─────────────────────────   ────────────────────────────────────────
//   Q ── q_full ─────────────────────────────────────▶  S = Q K(j)^T
//   K(j) ── k_full[stage] ───────────────────────────▶  mask, softmax with c = scale q_scale k_scale
//   V(j) ── landed_full ──▶ V(j)^T ── v_full[stage] ─▶  P = e4m3(2^8 p), O += P V(j)
//        ◀─ landed_empty ──        ◀─ v_empty[stage] ─  O v_scale / l ──▶ o
//
// Compile-time inputs: HEAD_DIM; attributes CAUSAL, WINDOW, SCALE; tactic TILE_D, CONSUMERS, BLOCK_N, STAGES, PINGPONG,
// PERSISTENT, SUM_BY_BLOCK (flash_attention/eight_bit.cuh).
#include "common/mbarrier.cuh"
#include "common/tma.cuh"
#include "common/warpgroup.cuh"
#include "flash_attention/sm90_config.cuh"
#include "flash_attention/sm90_epilogue.cuh"
#include "flash_attention/sm90_mainloop.cuh"
#include "flash_attention/sm90_producer.cuh"
#include "flash_attention/sm90_schedule.cuh"
#include "value_transposer.cuh"

using namespace forge;

constexpr int FIRST_TRANSPOSER_WARP = 2;

extern "C" __global__ void __launch_bounds__(THREADS, 1)
flash_attention_fp8_sm90(const q_t* __restrict__, const k_t* __restrict__, const v_t* __restrict__,
                         const float* __restrict__ q_scale, const float* __restrict__ k_scale,
                         const float* __restrict__ v_scale, int heads, int q_heads, int kv_heads, int queries,
                         int keys_in_memory, int section_heads, int query_blocks, int tiles, int tile_step,
                         int scales_of_batches, o_t* __restrict__ output, const __grid_constant__ tensor_map q_map,
                         const __grid_constant__ tensor_map k_map, const __grid_constant__ tensor_map v_map) {
    extern __shared__ unsigned char dynamic_shared[];
    const shared_layout shared(dynamic_shared);
    const tile_schedule schedule{heads,         q_heads,      kv_heads, queries,   keys_in_memory,
                                 section_heads, query_blocks, tiles,    tile_step, nullptr,
                                 {q_scale, k_scale, v_scale, scales_of_batches}};

    const int warp = warp_index_uniform();
    if (threadIdx.x == 0) {
        tma_prefetch_descriptor(&q_map);
        tma_prefetch_descriptor(&k_map);
        tma_prefetch_descriptor(&v_map);
        shared.init_barriers();
    }
    __syncthreads();

    if (warp < WARPS_PER_WARPGROUP) {
        setmaxnreg_dec<PRODUCER_REGISTERS>();
        if (warp == 0) {
            if (elect_one()) {
                produce(shared, schedule, &q_map, &k_map, &v_map);
            }
        } else if (warp >= FIRST_TRANSPOSER_WARP) {
            transpose_values(shared, schedule, warp - FIRST_TRANSPOSER_WARP);
        }
    } else {
        setmaxnreg_inc<CONSUMER_REGISTERS>();
        const int warpgroup = warp / WARPS_PER_WARPGROUP - 1;
        consumer worker(shared, schedule, warpgroup);
#if PERSISTENT
        worker.run_all(output, nullptr);
#else
        const work_item item = schedule.at(blockIdx.x);
        worker.run(item);
        float factors[2];
        worker.softmax.reciprocals(factors, schedule.value_scale(item));
        store_rows(worker.o, factors, output, item, warpgroup, queries);
#endif
    }
}
