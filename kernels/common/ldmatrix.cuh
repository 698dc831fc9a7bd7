// Matrix fragments between shared memory and registers: ldmatrix (sm_75+) and stmatrix (sm_90+).
//
// Each 8x8 matrix of 2-byte elements is eight rows of 16 bytes; lane 8*i + r gives the shared address of row r of
// matrix i. Afterwards lane l holds, of matrix i, in register i:
//
//      plain:  row l/4, columns 2*(l%4) and 2*(l%4)+1          .trans:  column l/4, rows 2*(l%4) and 2*(l%4)+1
//
// Source: PTX ISA, "Warp-level matrix load instruction: ldmatrix", "Warp-level matrix store instruction: stmatrix",
// "Warp-level matrix transpose instruction: movmatrix".
#pragma once
#include "common/shared_address.cuh"

namespace forge {

__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], uint32_t row_address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(row_address) : "memory");
}

__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t (&r)[4], uint32_t row_address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(row_address) : "memory");
}

// Transposes one 8x8 matrix that lies in the plain layout across the warp's registers (movmatrix, sm_75+).
__device__ __forceinline__ uint32_t movmatrix_trans(uint32_t matrix) {
    uint32_t transposed;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(transposed) : "r"(matrix));
    return transposed;
}

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
__device__ __forceinline__ void stmatrix_x4(uint32_t row_address, const uint32_t (&r)[4]) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};"
                 :: "r"(row_address), "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3]) : "memory");
}
#endif

}  // namespace forge
