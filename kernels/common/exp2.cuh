// 2^t on the FMA pipe, for a share of the exponentials where the special-function unit (16 a clock and multiprocessor)
// is what a kernel waits for. Range reduction and polynomial as FlashAttention-4 describes them for its softmax.
//
//   x = sat(t / 128 + 7/8)     one fused multiply-add that saturates to [0, 1]: t from -112 to 16
//   r = x + (98304 - 7/8)      in [2^16, 2^17) a step is 2^-7: the low bits of r are n, the integer nearest to t
//   g = x - (r - ...)          (t - n) / 128, exact, at most 2^-8
//   2^t = 2^n * p(g)           p of degree 3; n is added to the exponent's bits
//
// Eight instructions (seven on the FMA pipe) for two of ex2.approx. Relative error at most 2^-13.6: the minimax polynomial
// of 2^u on [-1/2, 1/2] for the relative error (Remez exchange, solved in double, rounded to float) has 7.48e-5, and the
// rounding of x leaves 2^-18. Rounding a probability to float16 costs up to 2^-11, to bfloat16 2^-8.
//
// Below -112 the result is 2^-112, never 0 (take ex2.approx where -infinity marks what is hidden); above 16 it is 2^16;
// NaN becomes 2^-112, since saturation drops it.
#pragma once

namespace forge {

struct exp2_polynomial {
    static constexpr float STEPS = 128.0f;    // x is in units of this
    static constexpr float SHIFT = 0.875f;    // t = -112 becomes x = 0
    static constexpr float ROUND = 98304.0f - SHIFT;
    static constexpr float C0 = 0.99992807f;  // 2^u = C0 + C1 u + C2 u^2 + C3 u^3
    static constexpr float C1 = 0.69326098f;
    static constexpr float C2 = 0.24261112f;
    static constexpr float C3 = 0.05517167f;

    // What `offset` becomes in x = value * scale / STEPS + fold(offset).
    static __device__ __forceinline__ float fold(float offset) { return fmaf(offset, 1.0f / STEPS, SHIFT); }

    // 2^(value * scale + offset).
    static __device__ __forceinline__ float of(float value, float scale, float folded_offset) {
        const float x = __saturatef(fmaf(value, scale * (1.0f / STEPS), folded_offset));
        const float r = x + ROUND;
        const float g = x - (r - ROUND);
        float p = fmaf(g, C3 * STEPS * STEPS * STEPS, C2 * STEPS * STEPS);
        p = fmaf(g, p, C1 * STEPS);
        p = fmaf(g, p, C0);
        return __int_as_float(__float_as_int(p) + static_cast<int>(__float_as_uint(r) << 23));
    }
};

}  // namespace forge
