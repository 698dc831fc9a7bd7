// Softmax over a row of scores that arrives block by block (Milakov & Gimelshein 2018, arXiv:1805.02867), in base two.
//
//   s ──(soft cap)──▶ s ──▶ m' = max(m, row max)     p = 2^(c s - c m')     rescale = 2^(c m - c m')
//                          l' = l * rescale + sum p                         o' = o * rescale + p v
//
//   c = scale * log2(e); with a soft cap the scores are first tanh(s * scale / cap), and c = cap * log2(e).
//   with scales of heads (eight_bit.cuh) c is a run-time value, and p is 2^8 times as large
//
// A thread owns two rows of the tile (see row_limits); four neighboring lanes share them. The maximum is reduced over
// the four lanes for every block, the sum only at the end. Compile-time inputs: SCALE > 0, SOFT_CAP >= 0.
#pragma once

#include "common/exp2.cuh"
#include "common/shared_address.cuh"
#include "eight_bit.cuh"

// How many of 16 exponentials of a row run as polynomials on the FMA pipe, in blocks without a mask.
#ifndef EXP_FMA
#define EXP_FMA 0
#endif

// Not 0: m stays while it is at most so many powers of two below the row's maximum, and earlier sums with it; then
// p <= 2^LAZY_RESCALE, and most blocks rescale nothing. 0: m is the row's maximum.
#ifndef LAZY_RESCALE
#define LAZY_RESCALE 0
#endif

// 1: in blocks without a mask maxima are found by the bits of the scores, three at a time.
#ifndef INTEGER_MAXIMUM
#define INTEGER_MAXIMUM 0
#endif

namespace forge {

static_assert(EXP_FMA >= 0 && EXP_FMA <= 16, "EXP_FMA counts elements of 16");
static_assert(LAZY_RESCALE >= 0 && LAZY_RESCALE < 16, "16-bit probabilities, and exp2_polynomial, reach 2^16");
static_assert(!EIGHT_BIT || (EXP_FMA == 0 && LAZY_RESCALE == 0), "e4m3 probabilities have no room above 2^8");

constexpr float LOG2_E = 1.44269504088896340736f;
constexpr float LN_2 = 0.69314718055994530942f;
constexpr bool HAS_SOFT_CAP = SOFT_CAP > 0.0f;
static_assert(!HAS_SOFT_CAP || !EIGHT_BIT, "a soft cap needs the scale of the scores when this is compiled");
constexpr float EXPONENT_SCALE = (HAS_SOFT_CAP ? SOFT_CAP : SCALE) * LOG2_E;
constexpr float NO_MAXIMUM = -1.0e30f;  // finite, so that a row with no visible key yet gives 2^(-inf) = 0, not NaN
constexpr uint32_t ALL_LANES = 0xffffffffu;

// ex2.approx: 2 ulp; 2^-inf = 0.
__device__ __forceinline__ float exp2_approximate(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// lg2.approx: absolute error below 2^-22 near 1, a relative one of the same size elsewhere.
__device__ __forceinline__ float log2_approximate(float x) {
    float y;
    asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ __forceinline__ float reciprocal_approximate(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// tanh(x) = 1 - 2 / (2^(2 x log2 e) + 1): absolute error near 1e-7, where tanh.approx has 5e-4.
__device__ __forceinline__ float tanh_accurate(float x) {
    return fmaf(-2.0f, reciprocal_approximate(exp2_approximate(2.0f * LOG2_E * x) + 1.0f), 1.0f);
}

template <int COUNT>
__device__ __forceinline__ void soft_cap(float (&s)[COUNT]) {
    if constexpr (HAS_SOFT_CAP) {
        constexpr float INTO_CAP = SCALE / SOFT_CAP;
#pragma unroll
        for (int i = 0; i < COUNT; ++i) {
            s[i] = tanh_accurate(s[i] * INTO_CAP);
        }
    }
}

__device__ __forceinline__ float quad_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, 1));
    return fmaxf(x, __shfl_xor_sync(ALL_LANES, x, 2));
}

__device__ __forceinline__ float quad_sum(float x) {
    x += __shfl_xor_sync(ALL_LANES, x, 1);
    return x + __shfl_xor_sync(ALL_LANES, x, 2);
}

__device__ __forceinline__ int quad_max(int x) {
    x = max(x, __shfl_xor_sync(ALL_LANES, x, 1));
    return max(x, __shfl_xor_sync(ALL_LANES, x, 2));
}

struct online_softmax {
#if EIGHT_BIT
    float exponent_scale = 0.0f;  // from a score of codes to an exponent of two, for the tile's heads
#else
    static constexpr float exponent_scale = EXPONENT_SCALE;
#endif
    float maximum[2] = {NO_MAXIMUM, NO_MAXIMUM};  // m; with LAZY_RESCALE what stands for it
    float sum[2] = {0.0f, 0.0f};  // of this lane's columns

    // Of a row's elements, counted within the thread: EXP_FMA of 16, evenly spread.
    static __device__ constexpr bool on_fma_pipe(int element) { return element * EXP_FMA % 16 < EXP_FMA; }

    // The row's maximum so far and of a block's scores, in all four lanes that share the row.
    template <int COUNT>
    __device__ __forceinline__ float highest_of(const float (&s)[COUNT], int row) const {
        float highest = maximum[row];
#pragma unroll
        for (int i = 0; i < COUNT; i += 4) {
            highest = fmaxf(highest, fmaxf(s[i + 2 * row], s[i + 2 * row + 1]));
        }
        return quad_max(highest);
    }

    // The same for both rows. As integers, numbers from 0 up are ordered as they are as floats, and every number below 0
    // comes before them: the greatest integer is the maximum unless it is below 0, which is looked into again.
    template <int COUNT>
    __device__ __forceinline__ void highest_by_bits(const float (&s)[COUNT], float (&highest)[2]) const {
        int bits[2];
#pragma unroll
        for (int row = 0; row < 2; ++row) {
            bits[row] = __float_as_int(maximum[row]);
#pragma unroll
            for (int i = 0; i < COUNT; i += 4) {
                bits[row] = max(bits[row], max(__float_as_int(s[i + 2 * row]), __float_as_int(s[i + 2 * row + 1])));
            }
            bits[row] = quad_max(bits[row]);
            highest[row] = __int_as_float(bits[row]);
        }
        if (__any_sync(ALL_LANES, (bits[0] | bits[1]) < 0)) {
            highest[0] = highest_of(s, 0);
            highest[1] = highest_of(s, 1);
        }
    }

    // Turns a block's scores into unnormalized probabilities; rescale[h] is what earlier sums of row h shrink by.
    // MAY_HIDE: scores may be -infinity.
    template <bool MAY_HIDE = true, int COUNT>
    __device__ __forceinline__ void update(float (&s)[COUNT], float (&rescale)[2]) {
#if INTEGER_MAXIMUM
        float maxima[2];
        if constexpr (!MAY_HIDE) {
            highest_by_bits(s, maxima);
        }
#endif
#pragma unroll
        for (int row = 0; row < 2; ++row) {
#if INTEGER_MAXIMUM
            float highest = MAY_HIDE ? highest_of(s, row) : maxima[row];
#else
            float highest = highest_of(s, row);
#endif
#if LAZY_RESCALE
            const float change = (maximum[row] - highest) * exponent_scale;
            const bool raise = change < -static_cast<float>(LAZY_RESCALE);
            highest = raise ? highest : maximum[row];
            rescale[row] = exp2_approximate(raise ? change : 0.0f);
#else
            rescale[row] = exp2_approximate((maximum[row] - highest) * exponent_scale);
#endif
            maximum[row] = highest;
            const float offset = EIGHT_BIT ? fmaf(-highest, exponent_scale, PROBABILITY_EXPONENT)
                                           : -highest * exponent_scale;
            float block_sum = 0.0f;
#pragma unroll
            for (int i = 0; i < COUNT; i += 4) {
#pragma unroll
                for (int e = 0; e < 2; ++e) {
                    float& value = s[i + 2 * row + e];
                    if (!MAY_HIDE && on_fma_pipe(i / 2 + e)) {
                        value = exp2_polynomial::of(value, exponent_scale, exp2_polynomial::fold(offset));
                    } else {
                        value = exp2_approximate(fmaf(value, exponent_scale, offset));
                    }
                    block_sum += value;
                }
            }
            sum[row] = fmaf(sum[row], rescale[row], block_sum);
        }
    }

    // numerator / (sum over the whole row); 0 for a row that saw no key, whose output is then zero.
    __device__ __forceinline__ void reciprocals(float (&inverse)[2], float numerator = 1.0f) const {
#pragma unroll
        for (int row = 0; row < 2; ++row) {
            const float total = quad_sum(sum[row]);
            inverse[row] = total == 0.0f ? 0.0f : numerator / total;
        }
    }

    // Natural logarithm of the sum of exponentials of the row's scores; -infinity for a row that saw no key.
    __device__ __forceinline__ void log_sum_exp(float (&lse)[2]) const {
#pragma unroll
        for (int row = 0; row < 2; ++row) {
            const float total = quad_sum(sum[row]);
            lse[row] = total == 0.0f ? __int_as_float(static_cast<int>(0xff800000u))
                                     : fmaf(maximum[row], exponent_scale, log2_approximate(total) - PROBABILITY_EXPONENT) * LN_2;
        }
    }
};

// Multiplies an accumulator tile (s or o, same layout) by one factor per row.
template <int COUNT>
__device__ __forceinline__ void scale_rows(float (&o)[COUNT], const float (&factor)[2]) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
        o[i] *= factor[(i / 2) % 2];
    }
}

}  // namespace forge
