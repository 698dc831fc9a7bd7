// What every sm_90a GEMM kernel of the family has in common: operands of 128-byte rows, multiplied by warpgroups.
#pragma once

#include "common/accumulator.cuh"
#include "common/mbarrier.cuh"
#include "common/warpgroup.cuh"
#include "common/wgmma.cuh"

constexpr int WGMMA_M = 64;  // rows of a warpgroup's product
constexpr int ROW_BYTES = 128;
constexpr int BLOCK_K = ROW_BYTES / sizeof(x_t);  // depth of a stage: one row of elements
constexpr int WGMMA_K_BYTES = 32;                 // depth of one instruction
constexpr int WGMMA_STEPS = ROW_BYTES / WGMMA_K_BYTES;

using acc_t = forge::accumulator<x_t>::type;

// Dynamic shared memory from the first multiple of 1024 bytes on, the period of the 128-byte swizzle.
struct aligned_shared {
    uint32_t base;  // shared address
    unsigned char* bytes;

    __device__ __forceinline__ explicit aligned_shared(unsigned char* dynamic_shared) {
        const uint32_t start = forge::shared_address(dynamic_shared);
        base = (start + forge::SWIZZLE128_ATOM_BYTES - 1) & ~(forge::SWIZZLE128_ATOM_BYTES - 1);
        bytes = dynamic_shared + (base - start);
    }
};
