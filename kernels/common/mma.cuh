// Warp-level tensor-core product m16n8k16 with float32 accumulation (sm_80+); of 8-bit elements: common/mma_8bit.cuh.
//
// Fragments, with g = lane / 4 and t = lane % 4 (two elements to a register, the lower column or row in the low half):
//
//      A 16x16, row-major      a[0]: row g,   columns 2t,2t+1      a[2]: row g,   columns 2t+8,2t+9
//                              a[1]: row g+8, columns 2t,2t+1      a[3]: row g+8, columns 2t+8,2t+9
//      B 16x8,  column-major   b0:   rows 2t,2t+1,   column g      b1:   rows 2t+8,2t+9, column g
//      D 16x8                  d[0], d[1]: row g,   columns 2t,2t+1
//                              d[2], d[3]: row g+8, columns 2t,2t+1
//
// Source: PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type".
#pragma once
#include "common/shared_address.cuh"
#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace forge {

// d += a * b. T is __half or __nv_bfloat16.
template <typename T>
__device__ __forceinline__ void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);

template <>
__device__ __forceinline__ void mma_m16n8k16<__half>(float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                                     uint32_t b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

template <>
__device__ __forceinline__ void mma_m16n8k16<__nv_bfloat16>(float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                                            uint32_t b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
                 "{%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// d += a * b of 8-bit elements. T is int8_t or __nv_fp8_e4m3, see common/mma_8bit.cuh.
template <typename T, typename Sum>
__device__ __forceinline__ void mma_m16n8k32(Sum (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);

}  // namespace forge
