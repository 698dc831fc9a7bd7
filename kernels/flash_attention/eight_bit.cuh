// What changes where q, k and v have 8 bits (EIGHT_BIT, 0 unless a kernel sets it): probabilities as codes, and one scale
// for each head of q, k and v.
//
//   s = q k^T of codes      exponent of p = c s - c m + 8,   c = scale * q_scale * k_scale * log2(e)
//   p, times 2^8, as e4m3   at most 2^8; the error is at most 2^-4 of p down to p = 2^-14, below at most 2^-18
//   o = v_scale * (p v) / l the factor 2^8 is in l too
#pragma once

#include "common/shared_address.cuh"

#ifndef EIGHT_BIT
#define EIGHT_BIT 0
#endif
#if EIGHT_BIT
#include <cuda_fp8.h>
#endif

// 1: the tensor cores sum up one key block, registers sum up the blocks, in float32. 0: the tensor cores sum up everything,
// and drop 2^-11 of it every 32 keys: for few keys only.
#ifndef SUM_BY_BLOCK
#define SUM_BY_BLOCK 0
#endif

namespace forge {

constexpr float PROBABILITY_EXPONENT = EIGHT_BIT ? 8.0f : 0.0f;  // 2^8 is below 448, the largest e4m3 number
constexpr float SMALLEST_EXPONENT_SCALE = 0x1p-120f;             // not 0: hidden scores are -infinity

struct head_scales {
    const float* __restrict__ q;  // [batch or 1, q_heads]
    const float* __restrict__ k;  // [batch or 1, kv_heads]
    const float* __restrict__ v;
    int of_batches;  // 1: one for each sequence and head; 0: one for each head
};

}  // namespace forge
