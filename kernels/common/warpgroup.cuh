// Roles inside a CTA: register budgets of warpgroups, named barriers, one elected thread, the cluster's barrier.
#pragma once

#include "common/shared_address.cuh"

namespace forge {

constexpr int WARP_THREADS = 32;
constexpr int WARPGROUP_THREADS = 128;

// The calling warp's index as a value the compiler knows to be equal in all lanes (roles branch on it).
__device__ __forceinline__ int warp_index_uniform() {
    return __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / WARP_THREADS, 0);
}

// True in exactly one lane of a converged warp (elect.sync).
__device__ __forceinline__ bool elect_one() {
    uint32_t elected;
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "elect.sync _|p, 0xffffffff;\n"
        "selp.u32 %0, 1, 0, p;\n"
        "}"
        : "=r"(elected));
    return elected != 0;
}

// Registers per thread of the calling warpgroup: a multiple of 8 in 24..256; all its warps must call.
template <int REGISTERS>
__device__ __forceinline__ void setmaxnreg_inc() {
    static_assert(REGISTERS % 8 == 0 && REGISTERS >= 24 && REGISTERS <= 256, "setmaxnreg takes multiples of 8");
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}

template <int REGISTERS>
__device__ __forceinline__ void setmaxnreg_dec() {
    static_assert(REGISTERS % 8 == 0 && REGISTERS >= 24 && REGISTERS <= 256, "setmaxnreg takes multiples of 8");
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}

// Named barriers 1..15 (0 belongs to __syncthreads); `threads` counts all who sync or arrive, whole warps.
__device__ __forceinline__ void named_barrier_sync(int id, int threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

__device__ __forceinline__ void named_barrier_arrive(int id, int threads) {
    asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

__device__ __forceinline__ uint32_t cluster_rank() {
    uint32_t rank;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}

__device__ __forceinline__ void cluster_arrive() {
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}

// Arrives without ordering memory: enough to tell that this CTA has started. (.release is a MEMBAR.ALL.GPU.)
__device__ __forceinline__ void cluster_arrive_relaxed() {
    asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
}

__device__ __forceinline__ void cluster_wait() {
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

}  // namespace forge
