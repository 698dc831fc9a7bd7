// Asynchronous 4-, 8- and 16-byte copies from global to shared memory (sm_80+).
//
//   global ──cp.async──▶ shared      one thread moves BYTES; what lies past `valid_bytes` is written as zeros
//   cp_async_commit()                closes a group of copies
//   cp_async_wait<n>()               returns when at most n of this thread's youngest groups are still in flight;
//                                    a block barrier then makes the data visible to the other threads
//
// Source: PTX ISA, "Data Movement and Conversion Instructions: cp.async".
#pragma once
#include "common/shared_address.cuh"

namespace forge {

// Copy BYTES from `source` (global) to the shared address `destination`; both are aligned to BYTES. Only the first
// `valid_bytes` are read, the rest is zero-filled; with valid_bytes = 0 nothing is read, but `source` must still be
// an address inside the allocation.
template <int BYTES>
__device__ __forceinline__ void cp_async(uint32_t destination, const void* source, int valid_bytes = BYTES) {
    static_assert(BYTES == 4 || BYTES == 8 || BYTES == 16, "cp.async moves 4, 8 or 16 bytes");
    if constexpr (BYTES == 16) {  // .cg: around L1, which only 16-byte copies may do
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                     :: "r"(destination), "l"(__cvta_generic_to_global(source)), "r"(valid_bytes) : "memory");
    } else {
        asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;"
                     :: "r"(destination), "l"(__cvta_generic_to_global(source)), "n"(BYTES), "r"(valid_bytes)
                     : "memory");
    }
}

__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

template <int PENDING>
__device__ __forceinline__ void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" :: "n"(PENDING) : "memory");
}

}  // namespace forge
