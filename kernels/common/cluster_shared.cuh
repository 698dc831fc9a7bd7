// Shared memory of the other CTAs of a cluster (PTX ISA, "mapa", "st", "st.async", "ld", state space .shared::cluster),
// sm_90 and later.
//
// A shared address of this CTA names the same offset in CTA `rank` after mapping. Its stores are seen by a remote load
// after a cluster barrier (arrive.release there, wait.acquire here); the CTA must have started before the access, and
// must not have ended.
//
// st_async also tells a barrier of the receiving CTA how many bytes have come: the receiver waits for them alone, and no
// barrier of the cluster, with its MEMBAR.ALL.GPU, is needed.
#pragma once

#include "common/shared_address.cuh"

namespace forge {

__device__ __forceinline__ uint32_t mapa_shared_cluster(uint32_t address, uint32_t rank) {
    uint32_t remote;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote) : "r"(address), "r"(rank));
    return remote;
}

// Two words into another CTA (common/row_reduction.cuh); a cluster barrier (arrive.release here, wait.acquire there)
// makes them seen.
__device__ __forceinline__ void st_shared_cluster_v2(uint32_t remote, uint32_t first, uint32_t second) {
    asm volatile("st.shared::cluster.v2.b32 [%0], {%1, %2};" ::"r"(remote), "r"(first), "r"(second) : "memory");
}

// `remote` and `bar` are addresses of the same CTA, mapped; the bytes complete on `bar`.
__device__ __forceinline__ void st_async_v2(uint32_t remote, uint32_t bar, uint32_t first, uint32_t second) {
    asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v2.b32 [%0], {%2, %3}, [%1];" ::"r"(remote),
                 "r"(bar), "r"(first), "r"(second)
                 : "memory");
}

__device__ __forceinline__ void st_async_v4(uint32_t remote, uint32_t bar, const float4& value) {
    asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%2, %3, %4, %5}, [%1];" ::"r"(
                     remote),
                 "r"(bar), "f"(value.x), "f"(value.y), "f"(value.z), "f"(value.w)
                 : "memory");
}

__device__ __forceinline__ float4 ld_shared_cluster_v4(uint32_t remote) {
    float4 value;
    asm volatile("ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(value.x), "=f"(value.y), "=f"(value.z), "=f"(value.w)
                 : "r"(remote)
                 : "memory");
    return value;
}

}  // namespace forge
