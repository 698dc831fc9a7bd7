// Bulk tensor copies between global and shared memory (PTX ISA, "cp.async.bulk.tensor"), sm_90 and later.
//
//      global tensor --(tensor_map: shape, pitch, box, swizzle)--> cp.async.bulk.tensor --> shared box
//                                                                        |
//                                                            complete_tx(box bytes) on an mbarrier
//      shared box --> cp.async.bulk.tensor (store) --> global tensor; tracked by commit / wait groups
//
// Coordinates count elements, innermost dimension first. Elements outside the tensor load as zero (and still count
// as transaction bytes); stores skip them. With 128-byte swizzle the box must start at a multiple of 1024 bytes and
// its inner extent is at most 128 bytes: 16-byte chunk c of row r lies at chunk (c ^ (r % 8)).
// One thread issues; loads need the mbarrier's expect_tx to have been announced by the same phase.
#pragma once

#include "common/shared_address.cuh"

namespace forge {

// The opaque 128-byte descriptor that the host encodes; passed as `const __grid_constant__ tensor_map`. Where kernels
// build their descriptors themselves (tensor_map_device.cuh), it says where that lies.
#if TENSOR_MAPS_ON_DEVICE
struct tensor_map {
    const void* descriptor;
};
#else
struct alignas(64) tensor_map {
    unsigned char opaque[128];
};
#endif

__device__ __forceinline__ uint64_t tensor_map_address(const tensor_map* map) {
#if TENSOR_MAPS_ON_DEVICE
    return reinterpret_cast<uint64_t>(map->descriptor);
#else
    return reinterpret_cast<uint64_t>(map);
#endif
}

__device__ __forceinline__ void tma_prefetch_descriptor(const tensor_map* map) {
    asm volatile("prefetch.tensormap [%0];" ::"l"(tensor_map_address(map)) : "memory");
}

// The box into L2 only.
__device__ __forceinline__ void tma_prefetch_2d(const tensor_map* map, int c0, int c1) {
    asm volatile("cp.async.bulk.prefetch.tensor.2d.L2.global.tile [%0, {%1, %2}];" ::"l"(tensor_map_address(map)),
                 "r"(c0), "r"(c1)
                 : "memory");
}

__device__ __forceinline__ void tma_prefetch_3d(const tensor_map* map, int c0, int c1, int c2) {
    asm volatile("cp.async.bulk.prefetch.tensor.3d.L2.global.tile [%0, {%1, %2, %3}];" ::"l"(tensor_map_address(map)),
                 "r"(c0), "r"(c1), "r"(c2)
                 : "memory");
}

// ---- loads: global -> shared, completing on the mbarrier `bar` ---------------------------------------------------

#define TMA_LOAD(DIM) "cp.async.bulk.tensor." DIM ".shared::cluster.global.tile.mbarrier::complete_tx::bytes"

__device__ __forceinline__ void tma_load_2d(uint32_t dst, const tensor_map* map, uint32_t bar, int c0, int c1) {
    asm volatile(TMA_LOAD("2d") " [%0], [%1, {%3, %4}], [%2];" ::"r"(dst), "l"(tensor_map_address(map)), "r"(bar),
                 "r"(c0), "r"(c1)
                 : "memory");
}

__device__ __forceinline__ void tma_load_3d(uint32_t dst, const tensor_map* map, uint32_t bar, int c0, int c1, int c2) {
    asm volatile(TMA_LOAD("3d") " [%0], [%1, {%3, %4, %5}], [%2];" ::"r"(dst), "l"(tensor_map_address(map)), "r"(bar),
                 "r"(c0), "r"(c1), "r"(c2)
                 : "memory");
}

// The box lands at the same offset in every CTA whose bit is set in `ctas`, and completes on the mbarrier at the same
// offset there: each of those CTAs announces the bytes on its own barrier.
__device__ __forceinline__ void tma_load_2d_multicast(uint32_t dst, const tensor_map* map, uint32_t bar, uint16_t ctas,
                                                      int c0, int c1) {
    asm volatile(TMA_LOAD("2d") ".multicast::cluster [%0], [%1, {%3, %4}], [%2], %5;" ::"r"(dst),
                 "l"(tensor_map_address(map)), "r"(bar), "r"(c0), "r"(c1), "h"(ctas)
                 : "memory");
}

#undef TMA_LOAD

// ---- stores: shared -> global, tracked by the issuing thread's bulk groups ----------------------------------------

#define TMA_STORE(DIM) "cp.async.bulk.tensor." DIM ".global.shared::cta.tile.bulk_group"

__device__ __forceinline__ void tma_store_2d(const tensor_map* map, uint32_t src, int c0, int c1) {
    asm volatile(TMA_STORE("2d") " [%0, {%2, %3}], [%1];" ::"l"(tensor_map_address(map)), "r"(src), "r"(c0), "r"(c1)
                 : "memory");
}

__device__ __forceinline__ void tma_store_3d(const tensor_map* map, uint32_t src, int c0, int c1, int c2) {
    asm volatile(TMA_STORE("3d") " [%0, {%2, %3, %4}], [%1];" ::"l"(tensor_map_address(map)), "r"(src), "r"(c0),
                 "r"(c1), "r"(c2)
                 : "memory");
}

#undef TMA_STORE

__device__ __forceinline__ void tma_store_commit() {
    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}

// Until at most PENDING of the thread's groups have not yet *read* their shared source (the buffer may be reused).
template <int PENDING>
__device__ __forceinline__ void tma_store_wait_read() {
    asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(PENDING) : "memory");
}

// Until at most PENDING of the thread's groups are incomplete (the writes are visible).
template <int PENDING>
__device__ __forceinline__ void tma_store_wait() {
    asm volatile("cp.async.bulk.wait_group %0;" ::"n"(PENDING) : "memory");
}

// Orders this thread's ordinary accesses to shared memory before later ones by the copy engine and the tensor cores:
// writes before these read, and reads before copies overwrite what was read. Every thread with such accesses calls it,
// then a barrier, then one thread issues.
__device__ __forceinline__ void fence_proxy_async_shared() {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

}  // namespace forge
