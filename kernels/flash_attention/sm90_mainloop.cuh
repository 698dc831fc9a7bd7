// Consumer main loop: one warpgroup, 64 queries. The tensor cores multiply block j's scores and block j+1's values
// while the other warpgroup's softmax runs; in one warpgroup, softmax(j) overlaps P(j+1) V(j+1):
//
//   tensor cores   S(j) = Q K(j)^T │ O += P(j+1) V(j+1) ────────▶ │ S(j-1) = Q K(j-1)^T │ O += P(j) V(j) ───▶
//   other units                    └ wait S(j) │ mask │ softmax(j) ┘ wait O │ rescale O │ P(j) = 16-bit(S(j))
//
// S, P and O stay in registers: S's accumulator layout, packed in pairs, is the register layout of operand A.
#pragma once

#include "common/numeric.cuh"
#include "online_softmax.cuh"
#include "sm90_config.cuh"
#include "visibility.cuh"

namespace forge {

struct consumer {
    float o[TILE_D / 2];
    float s[BLOCK_N / 2];
    uint32_t p[VALUE_STEPS][4];
    online_softmax softmax;
    ring_position<STAGES> k_ring, v_ring;
    uint64_t q_descriptor;

    const shared_layout& shared;
    const int warpgroup;  // among the consumers
    const row_limits& limits;

    __device__ __forceinline__ consumer(const shared_layout& layout, int index, const row_limits& rows)
        : shared(layout), warpgroup(index), limits(rows) {
        q_descriptor = swizzle128_k_major(layout.q + index * WARPGROUP_ROWS * SWIZZLE128_ROW_BYTES);
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

    // O += P V for the V tile at the head of its ring. V is stored key by key, so the product's K runs across rows.
    __device__ __forceinline__ void issue_output() {
        const uint64_t v_descriptor = swizzle128_mn_major(shared.v_tile(v_ring.stage), KV_CHUNK_BYTES);
#pragma unroll
        for (int step = 0; step < VALUE_STEPS; ++step) {
            wgmma_rs<q_t, TILE_D, 1>(o, p[step], descriptor_advance(v_descriptor, step * MN_MAJOR_STEP_BYTES), 1);
        }
        wgmma_commit();
    }

    __device__ __forceinline__ void pack_probabilities() {
#pragma unroll
        for (int step = 0; step < VALUE_STEPS; ++step) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                p[step][i] = pack2<q_t>(s[8 * step + 2 * i], s[8 * step + 2 * i + 1]);
            }
        }
    }

    __device__ __forceinline__ void hold_operands() {
        wgmma_hold(o);
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

    // The first block visited: there is no earlier P V to overlap with, and it is always masked.
    __device__ __forceinline__ void first_block(int block, bool more, int keys, int keys_in_memory) {
        mbarrier_wait(shared.q_full(), 0);
        await_keys(true);
        wgmma_hold(s);
        wgmma_fence();
        issue_scores();
        wgmma_wait<0>();
        wgmma_hold(s);
        release(shared.k_empty(k_ring.stage));
        k_ring.advance();
        soft_cap(s);
        limits.apply(s, block * BLOCK_N);
        float rescale[2];
        softmax.update(s, rescale);
        pack_probabilities();
        if (HAS_K_LENGTHS && keys < keys_in_memory && keys < (block + 1) * BLOCK_N) {
            clear_hidden_values(keys - block * BLOCK_N);
        }
        await_keys(more);
    }

    // Scores of `block`, whose K tile has been awaited; values of the block before it in visiting order (block + 1).
    template <bool MASKED>
    __device__ __forceinline__ void next_block(int block, bool more) {
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
        release(shared.k_empty(k_ring.stage));
        k_ring.advance();
        soft_cap(s);
        if constexpr (MASKED) {
            limits.apply(s, block * BLOCK_N);
        }
        float rescale[2];
        softmax.update(s, rescale);
        wgmma_hold(s);
        await_keys(more);
        wgmma_wait<0>();
        hold_operands();
        release(shared.v_empty(v_ring.stage));
        v_ring.advance();
        scale_rows(o, rescale);
        pack_probabilities();
    }

    __device__ __forceinline__ void last_values() {
        mbarrier_wait(shared.v_full(v_ring.stage), v_ring.round_parity);
        hold_operands();
        wgmma_fence();
        issue_output();
        wgmma_wait<0>();
        wgmma_hold(o);
    }

    // After this, o holds the unnormalized output and softmax the row sums.
    __device__ __forceinline__ void run(const key_blocks& blocks, int keys, int keys_in_memory) {
        if (blocks.begin == blocks.end) {
            return;
        }
        if constexpr (PINGPONG) {  // the first turn is warpgroup 0's
            if (warpgroup == CONSUMERS - 1) {
                named_barrier_arrive(TURN_BARRIER, 2 * WARPGROUP_THREADS);
            }
        }
        int block = blocks.end - 1;
        first_block(block, block > blocks.begin, keys, keys_in_memory);
        --block;
        for (; block >= blocks.full_end; --block) {
            next_block<true>(block, block > blocks.begin);
        }
        for (; block >= blocks.full_begin; --block) {
            next_block<false>(block, block > blocks.begin);
        }
        if constexpr (HAS_WINDOW) {
            for (; block >= blocks.begin; --block) {
                next_block<true>(block, block > blocks.begin);
            }
        }
        last_values();
        if constexpr (PINGPONG) {  // take the turn that nobody will use, so that no barrier is left half full
            if (warpgroup == 0) {
                named_barrier_sync(TURN_BARRIER, 2 * WARPGROUP_THREADS);
            }
        }
    }
};

}  // namespace forge
