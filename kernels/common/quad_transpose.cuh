// A 4 x 4 transpose of 32-bit registers among the four neighboring lanes that share the rows of an accumulator tile.
//
//   before: lane q holds a[j] = row q of column j          after: lane q holds a[j] = row j of column q
//
// For 16-bit values packed in pairs: lane q's pairs 4 q' + q (q' = 0..3) become eight values that lie side by side, one
// 16-byte access. Two rounds of exchange between lanes that differ in one bit, as in a recursive matrix transpose.
#pragma once

#include "common/shared_address.cuh"

namespace forge {

// All 32 lanes of the warp call it.
__device__ __forceinline__ void quad_transpose(uint32_t (&a)[4]) {
    const int lane = threadIdx.x % 4;
#pragma unroll
    for (int bit = 1; bit <= 2; bit *= 2) {
        const bool upper = (lane & bit) != 0;
#pragma unroll
        for (int low = 0; low < 4; ++low) {
            if ((low & bit) == 0) {
                const int high = low + bit;
                const uint32_t given = upper ? a[low] : a[high];
                const uint32_t taken = __shfl_xor_sync(0xffffffffu, given, bit);
                a[low] = upper ? taken : a[low];
                a[high] = upper ? a[high] : taken;
            }
        }
    }
}

}  // namespace forge
