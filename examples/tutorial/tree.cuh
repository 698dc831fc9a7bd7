// Sum and maximum of a block the way they are first written: a tree in shared memory, one barrier per level.
//
//   THREADS values --> half add the other half --> quarter --> ... --> values[0], read by every thread
//
// log2(THREADS) + 2 barriers for each call.
#pragma once

template <class T, class Combine>
__device__ __forceinline__ T tree_reduce(T value, Combine combine) {
    __shared__ T values[THREADS];
    __syncthreads();  // the call before may still be read
    values[threadIdx.x] = value;
    __syncthreads();
    for (int half = THREADS / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) values[threadIdx.x] = combine(values[threadIdx.x], values[threadIdx.x + half]);
        __syncthreads();
    }
    return values[0];
}

__device__ __forceinline__ float tree_sum(float value) {
    return tree_reduce(value, [](float a, float b) { return a + b; });
}

__device__ __forceinline__ unsigned tree_max(unsigned value) {
    return tree_reduce(value, [](unsigned a, unsigned b) { return a > b ? a : b; });
}
