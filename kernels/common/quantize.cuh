// Float <-> 8-bit and 4-bit codes, and the scales that go with them. One definition for every kernel that quantizes.
//
//   code  = saturate(round_to_nearest_even(x / scale))           x / scale is the correctly rounded float32 quotient
//   scale = max(absmax / qmax, 2^-126)                           absmax over the finite elements of the group
//   x     = float(code) * scale
//
//   format   qmax    range           NaN          +-infinity
//   int8      127    -128 .. 127     0            saturates
//   e4m3      448    -448 .. 448     code 0x7f    saturates      (OCP 8-bit floating point, revision 1.0)
//   e5m2    57344    +-57344         code 0x7f    saturates
//   int4        7    -7 .. 7         0            saturates      two per byte, even index in the low nibble
#pragma once

#include <cuda_fp8.h>

#include "common/numeric.cuh"

namespace forge {

// Tag for two signed 4-bit integers in one byte.
struct Int4Pair {};

template <class Code>
struct Format;
template <>
struct Format<signed char> { static constexpr float kMax = 127.0f; };
template <>
struct Format<__nv_fp8_e4m3> { static constexpr float kMax = 448.0f; static constexpr int kMantissa = 3, kExponentMin = -6; };
template <>
struct Format<__nv_fp8_e5m2> { static constexpr float kMax = 57344.0f; static constexpr int kMantissa = 2, kExponentMin = -14; };
template <>
struct Format<Int4Pair> { static constexpr float kMax = 7.0f; };

constexpr unsigned kInfinityBits = 0x7f800000u;
constexpr unsigned kSmallestNormalBits = 0x00800000u;  // 2^-126

// |x| as an integer that orders like the float; 0 for NaN and infinities, which set no scale.
__device__ __forceinline__ unsigned finite_magnitude(float x) {
    const unsigned magnitude = __float_as_uint(x) & 0x7fffffffu;
    return magnitude < kInfinityBits ? magnitude : 0u;
}

// As finite_magnitude, in one shift and addition: the sign is shifted out, and what is added makes infinities and NaN
// wrap around to less than the order of zero. A group's largest order names its largest finite magnitude.
constexpr unsigned kOrderOfZero = 0x01000000u;
__device__ __forceinline__ unsigned finite_order(float x) { return (__float_as_uint(x) << 1) + kOrderOfZero; }

// The magnitude of a largest order; 0 where there was no finite number.
__device__ __forceinline__ float magnitude_of_order(unsigned order) {
    return order < kOrderOfZero ? 0.0f : __uint_as_float((order - kOrderOfZero) >> 1);
}

// The scale of a group whose largest finite magnitude has these bits: never zero, subnormal, infinite or NaN. The
// division by the constant is a product and one residual correction, away from underflow; equal to the rounded
// quotient for every float32 (all 2^31 were tried for each format).
template <class Code>
__device__ __forceinline__ float scale_of(unsigned magnitude) {
    constexpr float kMax = Format<Code>::kMax;
    constexpr float kReciprocal = 1.0f / kMax;
    const float absmax = __uint_as_float(magnitude);
    const bool small = absmax < 1.0f;
    const float raised = __fmul_rn(absmax, small ? 0x1p64f : 1.0f);
    const float product = __fmul_rn(raised, kReciprocal);
    const float quotient = __fmaf_rn(__fmaf_rn(-product, kMax, raised), kReciprocal, product);
    return fmaxf(__fmul_rn(quotient, small ? 0x1p-64f : 1.0f), __uint_as_float(kSmallestNormalBits));
}

__device__ __forceinline__ float rcp_approx_ftz_f32(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// 1 / x correctly rounded, for x = 0, 2^-80 <= x <= 2^80, infinity or NaN: what __frcp_rn gives, without its call for
// subnormal numbers. Two Newton steps from an approximation within 3 units end at the rounded value for every
// significand but the all-ones one, which comes within one unit (tried for all of them).
__device__ __forceinline__ float reciprocal(float x) {
    constexpr unsigned kSignificand = 0x007fffffu;
    const unsigned bits = __float_as_uint(x);
    const float start = rcp_approx_ftz_f32(x);
    const float once = __fmaf_rn(start, __fmaf_rn(-x, start, 1.0f), start);
    const float twice = __fmaf_rn(once, __fmaf_rn(-x, once, 1.0f), once);
    const float finite = (bits & kSignificand) == kSignificand ? __uint_as_float(0x7e800001u - (bits & ~kSignificand)) : twice;
    return bits - 1u < kInfinityBits - 1u ? finite : start;
}

// x / scale for many x, without a division each: one reciprocal, then a product and one residual correction
// (Markstein, "Computation of elementary functions on the IBM RISC System/6000 processor", 1990):
//
//   x' = x * exact power of two;  q = x' * r;  q - (q * s' - x') * r         with r = 1 / s', s' the scale brought near 1
//
// Every code that comes out equals the one of the correctly rounded quotient: for each of the 2^23 significands of a
// scale and each rounding threshold of the formats above (odd multiples of a power of two, up to 255), every float32
// within 6 units of scale * threshold was tried, 1.4e10 in all. Quotients of 2^17 and more saturate in every format:
// they, infinities and NaN keep the plain product. A zero keeps its sign: q * s' - x' of zeros is +0, and -0 is added.
// Every float32 is accepted as scale and behaves as in IEEE 754 division.
class Divisor {
  public:
    __device__ __forceinline__ explicit Divisor(float scale) {
        const float magnitude = fabsf(scale);
        const float factor = magnitude < 0x1p-80f ? 0x1p96f : magnitude > 0x1p80f ? 0x1p-64f : 1.0f;
        const float near_one = magnitude * factor;  // exact: 2^-80 .. 2^80, or 0, infinity, NaN
        reciprocal_ = reciprocal(near_one);
        divisor_ = near_one < __uint_as_float(kInfinityBits) ? near_one : 0.0f;  // infinity: x * 0 needs no correction
        factor_ = copysignf(factor, scale);
    }

    __device__ __forceinline__ float divide(float x) const {
        const float scaled = __fmul_rn(x, factor_);
        const float product = __fmul_rn(scaled, reciprocal_);
        const float excess = __fmaf_rn(product, divisor_, -scaled);
        const float corrected = __fmaf_rn(excess, -reciprocal_, product);
        return fabsf(product) < 0x1p17f ? corrected : product;
    }

  protected:
    float divisor_, reciprocal_, factor_;
};

// The same for a scale that was taken from the data (see scale_of): no quotient but those of infinities and NaN
// reaches 2^17. An infinity's excess is NaN, of which fmaxf makes a number too small to come from anything else; what
// it is multiplied by and added to the infinity leaves it as it is.
class OwnDivisor : Divisor {
  public:
    __device__ __forceinline__ explicit OwnDivisor(float scale) : Divisor(scale) {}

    __device__ __forceinline__ float divide(float x) const {
        const float scaled = __fmul_rn(x, factor_);
        const float product = __fmul_rn(scaled, reciprocal_);
        const float excess = fmaxf(__fmaf_rn(product, divisor_, -scaled), -0x1p96f);
        return __fmaf_rn(excess, -reciprocal_, product);
    }
};

// Round to nearest even with saturation in integer and float32 arithmetic, for architectures without the instruction.
// Normal results: the kept bits of the float32 significand, rounded by an integer addition that may carry into the
// exponent. Subnormal results: adding 2^23 units of the smallest code leaves the rounded code in the low bits.
template <class Code>
__device__ __forceinline__ unsigned round_to_fp8(float value) {
    constexpr int kDropped = 23 - Format<Code>::kMantissa;
    constexpr int kExponentMin = Format<Code>::kExponentMin;
    constexpr unsigned kSmallestNormal = static_cast<unsigned>(127 + kExponentMin) << 23;
    constexpr unsigned kAligned = static_cast<unsigned>(127 + kExponentMin + kDropped) << 23;
    constexpr unsigned kRebias = static_cast<unsigned>(127 + kExponentMin - 1) << Format<Code>::kMantissa;
    const unsigned bits = __float_as_uint(value);
    const float magnitude = fminf(fabsf(value), Format<Code>::kMax);
    const unsigned kept = __float_as_uint(magnitude);
    const unsigned rounded = kept + ((kept >> kDropped) & 1u) + ((1u << (kDropped - 1)) - 1u);
    const unsigned normal = (rounded >> kDropped) - kRebias;
    const unsigned subnormal = __float_as_uint(magnitude + __uint_as_float(kAligned)) - kAligned;
    const unsigned code = (kept < kSmallestNormal ? subnormal : normal) | ((bits >> 24) & 0x80u);
    return (bits & 0x7fffffffu) > kInfinityBits ? 0x7fu : code;
}

// Two codes in 16 bits, the first one low.
template <class Code>
__device__ __forceinline__ unsigned encode2(float low, float high) {
#if __CUDA_ARCH__ >= 890
    constexpr __nv_fp8_interpretation_t kFormat = Format<Code>::kMantissa == 3 ? __NV_E4M3 : __NV_E5M2;
    return __nv_cvt_float2_to_fp8x2(make_float2(low, high), __NV_SATFINITE, kFormat);  // cvt.rn.satfinite.*x2.f32
#else
    return round_to_fp8<Code>(low) | round_to_fp8<Code>(high) << 8;
#endif
}

// Nearest integer, ties to even, clamped; NaN gives 0 (cvt.rni.s32.f32).
template <int Lowest, int Highest>
__device__ __forceinline__ unsigned round_to_integer(float value) {
    return static_cast<unsigned>(max(Lowest, min(Highest, __float2int_rn(value))));
}

template <>
__device__ __forceinline__ unsigned encode2<signed char>(float low, float high) {
    return (round_to_integer<-128, 127>(low) & 0xffu) | (round_to_integer<-128, 127>(high) & 0xffu) << 8;
}

// One code in the low 8 bits.
template <class Code>
__device__ __forceinline__ unsigned encode(float value) { return encode2<Code>(value, 0.0f) & 0xffu; }
template <>
__device__ __forceinline__ unsigned encode<signed char>(float value) {
    return round_to_integer<-128, 127>(value) & 0xffu;
}

// Four codes in 32 bits, the first one lowest.
template <class Code>
__device__ __forceinline__ unsigned encode4(float a, float b, float c, float d) {
    const ushort2 pairs = make_ushort2(static_cast<unsigned short>(encode2<Code>(a, b)),
                                       static_cast<unsigned short>(encode2<Code>(c, d)));  // not |: cvt merges halves
    return *reinterpret_cast<const unsigned*>(&pairs);
}

// Two 4-bit codes in the low 8 bits, the first one in the low nibble.
__device__ __forceinline__ unsigned encode_int4_pair(float low, float high) {
    return (round_to_integer<-7, 7>(low) & 0xfu) | (round_to_integer<-7, 7>(high) & 0xfu) << 4;
}

// The value of the code in the low 8 bits, exact.
template <class Code>
__device__ __forceinline__ float decode(unsigned code);
template <>
__device__ __forceinline__ float decode<signed char>(unsigned code) {
    return static_cast<float>(static_cast<signed char>(code));
}
template <>
__device__ __forceinline__ float decode<__nv_fp8_e4m3>(unsigned code) {
    const __half_raw half = __nv_cvt_fp8_to_halfraw(static_cast<__nv_fp8_storage_t>(code), __NV_E4M3);
    return __half2float(__half(half));
}
template <>
__device__ __forceinline__ float decode<__nv_fp8_e5m2>(unsigned code) {
    const __half_raw half = __nv_cvt_fp8_to_halfraw(static_cast<__nv_fp8_storage_t>(code), __NV_E5M2);
    return __half2float(__half(half));
}

// The signed 4-bit integer in the low nibble.
__device__ __forceinline__ int decode_int4(unsigned nibble) {
    return static_cast<int>(nibble << 28) >> 28;
}

}  // namespace forge
