// The epilogue of the 16-bit sm_90a products: activate(sum + bias of the column). What it gives, store_tile adds a
// residual to.
//
// Where the bias begins with the rows of an expert, `prepare` is given by what derives from this.
#pragma once

#include "activate.cuh"
#include "sm90_epilogue.cuh"

struct bias_activation {
#if HAS_BIAS
    static_assert(!WARP_STORES, "the warps of a consumer share its biases, so they must meet before they read them");
    const x_t* bias;
    column_biases columns;

    __device__ __forceinline__ void start(uint32_t* pairs) { columns.pairs = pairs; }
    __device__ __forceinline__ void prepare(int, int column, int, int N) { columns.fetch(bias, 0, column, N); }
    __device__ __forceinline__ void settle() { columns.publish(); }
    __device__ __forceinline__ float bias_at(int j, int e) const { return columns.at(0, j, e); }
#else
    __device__ __forceinline__ void start(uint32_t*) {}
    __device__ __forceinline__ void prepare(int, int, int, int) {}
    __device__ __forceinline__ void settle() {}
    __device__ __forceinline__ float bias_at(int, int) const { return -0.0f; }  // adding -0 changes nothing
#endif

    __device__ __forceinline__ float value(const float (&acc)[ACCUMULATORS], int j, int h, int e) const {
        return activate(acc[4 * j + 2 * h + e] + bias_at(j, e));
    }
};
