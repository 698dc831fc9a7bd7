// Activation functions on float32 values, for epilogues.
//   gelu: Hendrycks & Gimpel 2016, arXiv:1606.08415 (through erf, and the tanh form of its section 2)
//   silu: Elfwing et al. 2017, arXiv:1702.03118 (also called swish-1)
// All are finite for every finite input: no intermediate overflows into NaN.
#pragma once

namespace forge {

constexpr float SQRT_HALF = 0.70710678118654752f;
constexpr float ERFC_T = 0.3275911f;
constexpr float ERFC_1 = 0.254829592f, ERFC_2 = -0.284496736f, ERFC_3 = 1.421413741f;
constexpr float ERFC_4 = -1.453152027f, ERFC_5 = 1.061405429f;
constexpr float SQRT_TWO_OVER_PI = 0.79788456080286536f;
constexpr float GELU_TANH_CUBIC = 0.044715f;

__device__ __forceinline__ float relu(float x) {
    return x < 0.0f ? 0.0f : x;  // NaN stays NaN
}

// 1 / (1 + e^-x); e^-x may be +inf (x < -88), whose reciprocal is the correct limit 0.
__device__ __forceinline__ float sigmoid(float x) {
    return __fdividef(1.0f, 1.0f + __expf(-x));
}

__device__ __forceinline__ float silu(float x) {
    return x * sigmoid(x);
}

// x times the normal distribution function, from erfc(z) = e^(-z^2) (c1 t + ... + c5 t^5), t = 1 / (1 + 0.3275911 z),
// z >= 0 (Abramowitz and Stegun 1964, 7.1.26; the error of erfc is below 1.5e-7): fewer registers than erff.
__device__ __forceinline__ float gelu_erf(float x) {
    const float z = fabsf(x) * SQRT_HALF;
    const float t = __fdividef(1.0f, fmaf(ERFC_T, z, 1.0f));
    const float series = t * fmaf(t, fmaf(t, fmaf(t, fmaf(t, ERFC_5, ERFC_4), ERFC_3), ERFC_2), ERFC_1);
    const float tail = 0.5f * series * __expf(-z * z);
    return x * (x < 0.0f ? tail : 1.0f - tail);
}

// (1 + tanh u) / 2 = sigmoid(2u), with u = sqrt(2/pi) (x + 0.044715 x^3)
__device__ __forceinline__ float gelu_tanh(float x) {
    return x * sigmoid(2.0f * SQRT_TWO_OVER_PI * x * (1.0f + GELU_TANH_CUBIC * x * x));
}

}  // namespace forge
