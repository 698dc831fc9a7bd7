// Consumer main loop: one warpgroup, 64 queries. The tensor cores multiply block j's scores and block j+1's values
// while the other warpgroup's softmax runs; in one warpgroup, softmax(j) overlaps P(j+1) V(j+1):
//
//   tensor cores   S(j) = Q K(j)^T │ O += P(j+1) V(j+1) ────────▶ │ S(j-1) = Q K(j-1)^T │ O += P(j) V(j) ───▶
//   other units                    └ wait S(j) │ mask │ softmax(j) ┘ wait O │ rescale O │ P(j) = 16-bit(S(j))
//
// S, P and O stay in registers: S's accumulator layout, packed in pairs, is the register layout of operand A.
//
// A persistent CTA runs the same loop across its tiles: the first block of a tile multiplies its scores while the last
// values of the tile before are added up, and that tile's output leaves the registers after the softmax:
//
//   tensor cores   S'(n) = Q' K'(n)^T │ O += P(0) V(0) ─────────▶ │ S'(n-1) │ O' = P'(n) V'(n) ───▶
//   other units                       └ wait S' │ mask │ softmax' ┘ wait O │ P'(n) = 16-bit(S'(n)) │ O / l ──▶ o
#pragma once

#include "common/numeric.cuh"
#if EIGHT_BIT
#include "common/quantize.cuh"
#include "common/wgmma_8bit.cuh"
#endif
#include "online_softmax.cuh"
#include "sm90_config.cuh"
#include "sm90_epilogue.cuh"
#include "sm90_schedule.cuh"
#include "visibility.cuh"

namespace forge {

struct consumer {
    float o[TILE_D / 2];
    float s[BLOCK_N / 2];
    uint32_t p[VALUE_STEPS][4];
#if SUM_BY_BLOCK
    float block_o[TILE_D / 2];  // P V of one block
    float owed_rescale[2];      // what O shrinks by before block_o is added
#endif
    online_softmax softmax;
    ring_position<STAGES> k_ring, v_ring;
    uint32_t q_parity = 0;
    uint64_t q_descriptor;

    const shared_layout& shared;
    const tile_schedule& schedule;
    const int warpgroup;  // among the consumers

    __device__ __forceinline__ consumer(const shared_layout& layout, const tile_schedule& tiles, int index)
        : shared(layout), schedule(tiles), warpgroup(index) {
        q_descriptor = swizzle128_k_major(layout.q_rows(index));
#pragma unroll
        for (int i = 0; i < TILE_D / 2; ++i) {
            o[i] = 0.0f;
        }
    }

    // All warps say for themselves that they have finished with a buffer.
    static __device__ __forceinline__ void release(uint32_t empty_barrier) {
        if (threadIdx.x % WARP_THREADS == 0) {
            mbarrier_arrive(empty_barrier);
        }
    }

    // S = Q K^T for the K tile at the head of its ring.
    __device__ __forceinline__ void issue_scores() {
        const uint64_t k_descriptor = swizzle128_k_major(shared.k_tile(k_ring.stage));
#pragma unroll
        for (int step = 0; step < SCORE_STEPS; ++step) {
            const uint32_t chunk = step / STEPS_PER_CHUNK;
            const uint32_t within = step % STEPS_PER_CHUNK * K_MAJOR_STEP_BYTES;
            wgmma_ss<q_t, BLOCK_N>(s, descriptor_advance(q_descriptor, chunk * Q_CHUNK_BYTES + within),
                                   descriptor_advance(k_descriptor, chunk * KV_CHUNK_BYTES + within), step != 0);
        }
        wgmma_commit();
    }

    // Where P V goes.
    __device__ __forceinline__ float (&products())[TILE_D / 2] {
#if SUM_BY_BLOCK
        return block_o;
#else
        return o;
#endif
    }

    // O += P V for the V tile at the head of its ring. 16-bit V is stored key by key, so the product's K runs across rows.
    __device__ __forceinline__ void issue_output() {
#if EIGHT_BIT
        const uint64_t v_descriptor = swizzle128_k_major(shared.v_tile(v_ring.stage));
#pragma unroll
        for (int step = 0; step < VALUE_STEPS; ++step) {
            const uint32_t chunk = step / STEPS_PER_CHUNK;
            const uint32_t within = step % STEPS_PER_CHUNK * K_MAJOR_STEP_BYTES;
            wgmma_rs<q_t, TILE_D>(products(), p[step],
                                  descriptor_advance(v_descriptor, chunk * VALUE_CHUNK_BYTES + within),
                                  SUM_BY_BLOCK ? step != 0 : 1);
        }
#else
        const uint64_t v_descriptor = swizzle128_mn_major(shared.v_tile(v_ring.stage), KV_CHUNK_BYTES);
#pragma unroll
        for (int step = 0; step < VALUE_STEPS; ++step) {
            wgmma_rs<q_t, TILE_D, 1>(o, p[step], descriptor_advance(v_descriptor, step * MN_MAJOR_STEP_BYTES), 1);
        }
#endif
        wgmma_commit();
    }

    __device__ __forceinline__ void pack_probabilities() {
#pragma unroll
        for (int step = 0; step < VALUE_STEPS; ++step) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
#if EIGHT_BIT  // two neighboring keys, and those eight further on: the order that V's transposition gives to keys
                const float* const low = &s[16 * step + 8 * (i / 2) + 2 * (i % 2)];
                p[step][i] = encode4<q_t>(low[0], low[1], low[4], low[5]);
#else
                p[step][i] = pack2<q_t>(s[8 * step + 2 * i], s[8 * step + 2 * i + 1]);
#endif
            }
        }
    }

    // When the values of a block have been multiplied, and the maxima have moved on by `rescale`.
    __device__ __forceinline__ void settle_output(const float (&rescale)[2]) {
#if SUM_BY_BLOCK
        add_block();
        owe(rescale);
#elif LAZY_RESCALE
        if (__any_sync(ALL_LANES, rescale[0] != 1.0f || rescale[1] != 1.0f)) {
            scale_rows(o, rescale);
        }
#else
        scale_rows(o, rescale);
#endif
    }

    // O in terms of the maxima that block_o is in terms of, and block_o. What the latest maxima ask for is owed.
    __device__ __forceinline__ void add_block() {
#if SUM_BY_BLOCK
#pragma unroll
        for (int i = 0; i < TILE_D / 2; ++i) {
            o[i] = fmaf(o[i], owed_rescale[(i / 2) % 2], block_o[i]);
        }
#endif
    }

    __device__ __forceinline__ void owe(const float (&rescale)[2]) {
#if SUM_BY_BLOCK
        owed_rescale[0] = rescale[0];
        owed_rescale[1] = rescale[1];
#endif
    }

    __device__ __forceinline__ void hold_operands() {
        wgmma_hold(products());
#pragma unroll
        for (int step = 0; step < VALUE_STEPS; ++step) {
            wgmma_hold(p[step]);
        }
    }

    // V rows past the sequence's keys may hold anything, NaN included, and 0 * NaN would reach the output: clear them.
    // The consumers share the work; none multiplies by V before all have finished. Rows past Sk are zeros already.
    __device__ __forceinline__ void clear_hidden_values(int valid_rows) {
        mbarrier_wait(shared.v_full(v_ring.stage), v_ring.round_parity);
        constexpr int WORDS_PER_ROW = SWIZZLE128_ROW_BYTES / 16;
        constexpr int CONSUMER_THREADS = CONSUMERS * WARPGROUP_THREADS;
        const int first_word = valid_rows * WORDS_PER_ROW + (threadIdx.x - WARPGROUP_THREADS);
        for (int chunk = 0; chunk < CHUNKS; ++chunk) {
            const uint32_t base = shared.v_tile(v_ring.stage) + chunk * KV_CHUNK_BYTES;
            for (int word = first_word; word < BLOCK_N * WORDS_PER_ROW; word += CONSUMER_THREADS) {
                asm volatile("st.shared.v4.b32 [%0], {%1, %1, %1, %1};" ::"r"(base + word * 16), "r"(0) : "memory");
            }
        }
        fence_proxy_async_shared();
        named_barrier_sync(CONSUMER_BARRIER, CONSUMER_THREADS);
    }

    // Waits for the next K tile, if there is one. In next_block this stands between the softmax and the wait for P V
    // on purpose: as a loop it ends a basic block, and within one basic block ptxas sinks the exponentials past the
    // wait, which would leave the tensor cores idle during the softmax.
    __device__ __forceinline__ void await_keys(bool more) {
        if (more) {
            mbarrier_wait(shared.k_full(k_ring.stage), k_ring.round_parity);
        }
    }

    // Hides what the thread's two queries do not see; the block is known to need it, or not to, per tile.
    __device__ __forceinline__ void mask(const work_item& item, int block) {
        const int query = first_query_of_thread(item, warpgroup);
        row_limits(visibility(item.keys, schedule.queries), query, query + 8).apply(s, block * BLOCK_N);
    }

    // Scores to probabilities. Without MAY_HIDE no block is masked.
    template <bool MAY_HIDE>
    __device__ __forceinline__ void exponentiate(const work_item& item, int block, bool masked, float (&rescale)[2]) {
        soft_cap(s);
        if (masked) {
            mask(item, block);
        }
        softmax.update<MAY_HIDE>(s, rescale);
    }

    __device__ __forceinline__ void release_keys(bool last_of_tile) {
        release(shared.k_empty(k_ring.stage));
        k_ring.advance();
        if (PERSISTENT && last_of_tile) {
            release(shared.q_empty(warpgroup));
        }
    }

    __device__ __forceinline__ void release_values() {
        release(shared.v_empty(v_ring.stage));
        v_ring.advance();
    }

    __device__ __forceinline__ void clear_hidden_values_of(const work_item& item, int block) {
        if ((HAS_K_LENGTHS || VARLEN) && item.keys < schedule.keys_in_memory && item.keys < (block + 1) * BLOCK_N) {
            clear_hidden_values(item.keys - block * BLOCK_N);
        }
    }

    __device__ __forceinline__ void await_queries() {
        mbarrier_wait(shared.q_full(warpgroup), q_parity);
        q_parity ^= 1;
    }

    // The first block of the CTA's first tile: there is no earlier P V to overlap with.
    __device__ __forceinline__ void first_block(const work_item& item) {
        const int block = item.blocks.end - 1;
        softmax = schedule.softmax_of(item);
        await_queries();
        await_keys(true);
        wgmma_hold(s);
        wgmma_fence();
        issue_scores();
        wgmma_wait<0>();
        wgmma_hold(s);
        release_keys(block == item.blocks.begin);
        float rescale[2];
        exponentiate<true>(item, block, true, rescale);
        owe(rescale);
        pack_probabilities();
        clear_hidden_values_of(item, block);
        await_keys(block > item.blocks.begin);
    }

    // Scores of the K tile at the head of its ring, and values of the block before it in visiting order; waits for the
    // scores. One way for all blocks: where ways part or meet between a fence and the wait that belongs to it, ptxas waits
    // after every single wgmma (C7520).
    __device__ __forceinline__ void issue_scores_and_output() {
        if constexpr (PINGPONG) {  // warpgroups issue in turn: one multiplies while the others exponentiate
            named_barrier_sync(TURN_BARRIER + warpgroup, 2 * WARPGROUP_THREADS);
        }
        hold_operands();
        wgmma_hold(s);
        wgmma_fence();
        issue_scores();
        mbarrier_wait(shared.v_full(v_ring.stage), v_ring.round_parity);
        wgmma_fence();  // P and O: the wait above is a loop, across which the compiler does not carry the first fence
        issue_output();
        if constexpr (PINGPONG) {
            named_barrier_arrive(TURN_BARRIER + (warpgroup + 1) % CONSUMERS, 2 * WARPGROUP_THREADS);
        }
        wgmma_wait<1>();
        wgmma_hold(s);
    }

    // A further block of a tile, whose K has been awaited.
    template <bool MASKED>
    __device__ __forceinline__ void next_block(const work_item& item, int block) {
        const bool more = block > item.blocks.begin;
        issue_scores_and_output();
        release_keys(!more);
        float rescale[2];
        exponentiate<MASKED>(item, block, MASKED, rescale);
        wgmma_hold(s);
        await_keys(more);
        wgmma_wait<0>();
        hold_operands();
        release_values();
        settle_output(rescale);
        pack_probabilities();
    }

    __device__ __forceinline__ void last_values() {
        mbarrier_wait(shared.v_full(v_ring.stage), v_ring.round_parity);
        hold_operands();
        wgmma_fence();
        issue_output();
        wgmma_wait<0>();
        wgmma_hold(products());
        add_block();
    }

    // The blocks of a tile after its first.
    __device__ __forceinline__ void remaining_blocks(const work_item& item) {
        int block = item.blocks.end - 2;
        if constexpr (IS_CAUSAL) {  // otherwise the first block is the only one that the end of the keys cuts
            for (; block >= item.blocks.full_end; --block) {
                next_block<true>(item, block);
            }
        }
        for (; block >= item.blocks.full_begin; --block) {
            next_block<false>(item, block);
        }
        if constexpr (HAS_WINDOW) {
            for (; block >= item.blocks.begin; --block) {
                next_block<true>(item, block);
            }
        }
    }

    __device__ __forceinline__ void open_turns() {
        if (PINGPONG && warpgroup == CONSUMERS - 1) {  // the first turn is warpgroup 0's
            named_barrier_arrive(TURN_BARRIER, 2 * WARPGROUP_THREADS);
        }
    }

    __device__ __forceinline__ void close_turns() {
        if (PINGPONG && warpgroup == 0) {  // take the turn that nobody will use, so that no barrier is left half full
            named_barrier_sync(TURN_BARRIER, 2 * WARPGROUP_THREADS);
        }
    }

    // One tile. After this, o holds the unnormalized output and softmax the row sums.
    __device__ __forceinline__ void run(const work_item& item) {
        if (item.blocks.begin == item.blocks.end) {
            return;
        }
        open_turns();
        first_block(item);
        remaining_blocks(item);
        last_values();
        close_turns();
    }

    // The first tile of this CTA, from `tile` on, that sees any key; the others' outputs are zeros. False: there is none.
    __device__ __forceinline__ bool next_item(work_item& item, int& tile, o_t* output, float* lse) {
        for (; schedule.is_mine(tile); tile += schedule.step) {
            item = schedule.at(tile);
            if (item.blocks.begin < item.blocks.end) {
                return true;
            }
            store_zeros(output, item, warpgroup, schedule.queries);
            float nothing[2];
            online_softmax().log_sum_exp(nothing);
            store_lse(nothing, lse, item, warpgroup, schedule.queries);
        }
        return false;
    }

    // The first block of `item`, and the last values and the output of the tile before, number `done` (whose place is
    // derived again: that costs less than the registers to keep it).
    __device__ __forceinline__ void change_tile(int done, const work_item& item, o_t* output, float* lse) {
        const int block = item.blocks.end - 1;
        const online_softmax fresh = schedule.softmax_of(item);
        const float value_scale = schedule.value_scale(schedule.at(done));
        await_queries();
        await_keys(true);
        issue_scores_and_output();
        release_keys(block == item.blocks.begin);
        float inverse[2], sums[2], rescale[2];
        softmax.reciprocals(inverse, value_scale);
        softmax.log_sum_exp(sums);
        softmax = fresh;
        const bool masked = block >= item.blocks.full_end || block < item.blocks.full_begin;
        exponentiate<true>(item, block, masked, rescale);
        wgmma_hold(s);
        await_keys(block > item.blocks.begin);
        wgmma_wait<0>();
        hold_operands();
        release_values();
        pack_probabilities();
        store_rows(o, inverse, output, schedule.at(done), warpgroup, schedule.queries);
        store_lse(sums, lse, schedule.at(done), warpgroup, schedule.queries);
#pragma unroll
        for (int i = 0; i < TILE_D / 2; ++i) {
            o[i] = 0.0f;
        }
        clear_hidden_values_of(item, block);
    }

    // All tiles of this CTA.
    __device__ __forceinline__ void run_all(o_t* output, float* lse) {
        int tile = schedule.first_tile();
        work_item item;
        if (!next_item(item, tile, output, lse)) {
            return;
        }
        open_turns();
        first_block(item);
        int done = tile;
        while (true) {
            remaining_blocks(item);
            tile += schedule.step;
            if (!next_item(item, tile, output, lse)) {
                break;
            }
            change_tile(done, item, output, lse);
            done = tile;
        }
        last_values();
        close_turns();
        float inverse[2], sums[2];
        softmax.reciprocals(inverse, schedule.value_scale(schedule.at(done)));
        store_rows(o, inverse, output, schedule.at(done), warpgroup, schedule.queries);
        softmax.log_sum_exp(sums);
        store_lse(sums, lse, schedule.at(done), warpgroup, schedule.queries);
    }
};

}  // namespace forge
