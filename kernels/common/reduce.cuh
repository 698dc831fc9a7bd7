// Maximum over groups of threads: part of a warp, a warp, several warps. Unsigned integers, so that the result does
// not depend on the order (the bit patterns of non-negative floats order like the floats).
#pragma once

namespace forge {

constexpr int kWarp = 32;

// Maximum over Width neighboring lanes, known to all of them. Every lane of the warp must call it.
template <int Width>
__device__ __forceinline__ unsigned warp_max(unsigned value) {
    static_assert(Width > 0 && Width <= kWarp && (Width & (Width - 1)) == 0, "a power of two up to a warp");
    if constexpr (Width == kWarp) {
        return __reduce_max_sync(0xffffffffu, value);  // redux.sync.max.u32
    } else {
#pragma unroll
        for (int offset = Width / 2; offset > 0; offset /= 2) {
            value = max(value, __shfl_xor_sync(0xffffffffu, value, offset));
        }
        return value;
    }
}

// Maximum over each run of Width threads in a block of Threads, known to all of the run. Every thread of the block
// must call it, once: `buffer` (Threads / 32 words of shared memory, used when Width is more than a warp) is not
// protected against a second call.
template <int Width, int Threads>
__device__ __forceinline__ unsigned group_max(unsigned value, unsigned* buffer) {
    if constexpr (Width <= kWarp) {
        return warp_max<Width>(value);
    } else {
        static_assert(Width % kWarp == 0 && Threads % Width == 0, "groups are whole warps and fill the block");
        constexpr int kWarps = Width / kWarp;
        static_assert(kWarps <= kWarp, "one warp combines the maxima");
        value = warp_max<kWarp>(value);
        if (threadIdx.x % kWarp == 0) buffer[threadIdx.x / kWarp] = value;
        __syncthreads();
        const int first = threadIdx.x / Width * kWarps;
        return warp_max<kWarp>(buffer[first + threadIdx.x % kWarp % kWarps]);
    }
}

}  // namespace forge
