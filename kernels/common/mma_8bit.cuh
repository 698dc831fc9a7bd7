// Warp-level tensor-core product m16n8k32 of 8-bit elements: int8 with int32 sums (sm_80+), fp8 e4m3 with float32 sums
// (sm_89+), beside common/mma.cuh.
//
// Fragments, with g = lane / 4 and t = lane % 4. Their bytes lie as those of m16n8k16 do: four elements to a register in
// place of two, the lowest column or row in the lowest byte, so the same ldmatrix brings them.
//
//      A 16x32, row-major      a[0]: row g,   columns 4t .. 4t+3      a[2]: row g,   columns 4t+16 .. 4t+19
//                              a[1]: row g+8, columns 4t .. 4t+3      a[3]: row g+8, columns 4t+16 .. 4t+19
//      B 32x8,  column-major   b0:   rows 4t .. 4t+3, column g        b1:   rows 4t+16 .. 4t+19, column g
//      D 16x8                  as m16n8k16's
//
// int8 sums are exact and wrap around beyond 32 bits (K up to 131,071 cannot reach that). The sums of fp8 products keep
// fewer bits than float32's 24.
//
// Source: PTX ISA, "Matrix Fragments for mma.m16n8k32".
#pragma once
#include <cuda_fp8.h>

#include "common/mma.cuh"

namespace forge {

template <>
__device__ __forceinline__ void mma_m16n8k32<int8_t, int32_t>(int32_t (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                                              uint32_t b1) {
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

template <>
__device__ __forceinline__ void mma_m16n8k32<__nv_fp8_e4m3, float>(float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                                                   uint32_t b1) {
    asm volatile("mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

}  // namespace forge
