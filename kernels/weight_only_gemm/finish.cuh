// What follows the sums: parts of a cluster together, the scale of a row (8 bits), bias, activation, rounding, y.
#pragma once

#if SPLITS > 1
#include "common/cluster_shared.cuh"
#endif
#include "common/numeric.cuh"
#include "fused_gemm/activate.cuh"

constexpr int UNIT = 4;  // neighboring columns of y that a thread finishes at a time

// Four sums at `offset` of `shared`, over all CTAs of the cluster, part 0 first: always the same bits.
__device__ __forceinline__ float4 add_parts(const float* shared, int offset) {
    float4 total = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll
    for (int part = 0; part < SPLITS; ++part) {
#if SPLITS > 1
        const uint32_t here = forge::shared_address(shared + offset);
        const float4 one = forge::ld_shared_cluster_v4(forge::mapa_shared_cluster(here, part));
#else
        const float4 one = *reinterpret_cast<const float4*>(shared + offset);
#endif
        total.x += one.x, total.y += one.y, total.z += one.z, total.w += one.w;
    }
    return total;
}

struct finisher {
    const float* scale;  // of rows of w; 8 bits
    const x_t* bias;
    int N;
    x_t* y;

    // From a sum to the element of column n of y.
    __device__ __forceinline__ void complete(float& sum, int n) const {
        if constexpr (!HAS_GROUPS) sum *= __ldg(scale + n);
#if HAS_BIAS
        sum += forge::to_float(bias[n]);
#endif
        sum = activate(sum);
    }

    // Column n of row m of y.
    __device__ __forceinline__ void operator()(int m, int n, float sum) const {
        if (n >= N) return;
        complete(sum, n);
        y[static_cast<size_t>(m) * N + n] = forge::from_float<x_t>(sum);
    }

    // Columns n .. n + 3 of row m of y, those that exist; n is a multiple of four.
    __device__ __forceinline__ void operator()(int m, int n, const float4& sums) const {
        if (n >= N) return;
        float values[UNIT] = {sums.x, sums.y, sums.z, sums.w};
#pragma unroll
        for (int i = 0; i < UNIT; ++i) {
            if (n + i < N) complete(values[i], n + i);
        }
        x_t* target = y + static_cast<size_t>(m) * N + n;
        if (N % UNIT == 0) {
            *reinterpret_cast<uint2*>(target) =
                make_uint2(forge::pack2<x_t>(values[0], values[1]), forge::pack2<x_t>(values[2], values[3]));
        } else {
#pragma unroll
            for (int i = 0; i < UNIT; ++i) {
                if (n + i < N) target[i] = forge::from_float<x_t>(values[i]);
            }
        }
    }
};
