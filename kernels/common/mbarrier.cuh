// mbarrier: the 8-byte shared-memory barrier object of sm_90 (PTX ISA, "Parallel Synchronization: mbarrier").
//
// A barrier runs through phases 0, 1, 2, ...; a phase completes when the pending arrivals and the pending
// transaction bytes are both zero. `mbarrier_wait(bar, parity)` returns once the phase of that parity has completed:
//
//      ring of STAGES buffers, round r = 0, 1, 2, ...          full[s]   producer -> consumers (bytes have landed)
//      consumer waits full[s]  with parity  r & 1              empty[s]  consumers -> producer (buffer is free)
//      producer waits empty[s] with parity (r & 1) ^ 1         (passes at once in round 0: "phase -1" is complete)
//
// Barriers are named by their 32-bit shared address.
#pragma once

#include "common/shared_address.cuh"

namespace forge {

constexpr uint32_t MBARRIER_BYTES = 8;

__device__ __forceinline__ void mbarrier_init(uint32_t bar, uint32_t arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(bar), "r"(arrivals) : "memory");
}

// Makes the initialized barriers visible to the async proxy and to the cluster; one thread, before the CTA's barrier.
__device__ __forceinline__ void mbarrier_init_fence() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ __forceinline__ void mbarrier_arrive(uint32_t bar) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(bar) : "memory");
}

// Arrives at the barrier that lies at the same offset in the shared memory of CTA `cta` of the cluster. Without a scope,
// which means the CTA's: it orders nothing between CTAs but the arrival. That is enough for a buffer that only the async
// proxy writes and reads (TMA, wgmma), as in a ring; with .release.cluster, each arrival would cost a MEMBAR.ALL.GPU, and
// each wait with .acquire.cluster would empty the L1 cache.
__device__ __forceinline__ void mbarrier_arrive_cluster(uint32_t bar, uint32_t cta) {
    asm volatile(
        "{\n"
        ".reg .b32 remote;\n"
        "mapa.shared::cluster.u32 remote, %0, %1;\n"
        "mbarrier.arrive.shared::cluster.b64 _, [remote];\n"
        "}" ::"r"(bar),
        "r"(cta)
        : "memory");
}

// One arrival that also announces `bytes` of asynchronous copies which complete on this barrier.
__device__ __forceinline__ void mbarrier_arrive_expect_tx(uint32_t bar, uint32_t bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(bar), "r"(bytes) : "memory");
}

// True once the phase of this parity has completed; may suspend the thread for a system-dependent time.
__device__ __forceinline__ bool mbarrier_try_wait(uint32_t bar, uint32_t parity) {
    uint32_t complete;
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
        "selp.u32 %0, 1, 0, p;\n"
        "}"
        : "=r"(complete)
        : "r"(bar), "r"(parity)
        : "memory");
    return complete != 0;
}

__device__ __forceinline__ void mbarrier_wait(uint32_t bar, uint32_t parity) {
    while (!mbarrier_try_wait(bar, parity)) {
    }
}

// Waits for what other CTAs of the cluster have sent with st.async; what they wrote is then visible here.
__device__ __forceinline__ void mbarrier_wait_cluster(uint32_t bar, uint32_t parity) {
    uint32_t complete = 0;
    while (complete == 0) {
        asm volatile(
            "{\n"
            ".reg .pred p;\n"
            "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2;\n"
            "selp.u32 %0, 1, 0, p;\n"
            "}"
            : "=r"(complete)
            : "r"(bar), "r"(parity)
            : "memory");
    }
}

// Position in a ring of DEPTH buffers and the parity of the current round; `advance` after each buffer.
template <int DEPTH>
struct ring_position {
    int stage = 0;
    uint32_t round_parity = 0;

    __device__ __forceinline__ void advance() {
        if (++stage == DEPTH) {
            stage = 0;
            round_parity ^= 1;
        }
    }

    // By many stages at once.
    __device__ __forceinline__ void advance(int stages) {
        const int sum = stage + stages;
        stage = sum % DEPTH;
        round_parity ^= sum / DEPTH & 1;
    }
};

}  // namespace forge
