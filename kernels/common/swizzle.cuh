// The 128-byte swizzle of tensor maps, wgmma descriptors and bank-conflict-free ldmatrix tiles.
//
//   A tile is rows of 128 bytes; within each group of eight rows the 16-byte column c of row r lies in column c ^ (r % 8):
//
//      offset bits   ... r2 r1 r0 | c2 c1 c0 | b3 b2 b1 b0        c' = c ^ r
//
// Source: PTX ISA, "Tensor swizzling modes", and the CUDA driver API, CU_TENSOR_MAP_SWIZZLE_128B. Offsets are counted
// from an address aligned to 1024 bytes.
#pragma once
#include "common/shared_address.cuh"

namespace forge {

// Byte offset in the swizzled tile of what an unswizzled tile of 128-byte rows keeps at `offset`.
__device__ __forceinline__ constexpr uint32_t swizzle128(uint32_t offset) {
    return offset ^ ((offset >> 3) & 0x70u);
}

}  // namespace forge
