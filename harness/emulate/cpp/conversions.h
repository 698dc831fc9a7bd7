// Float32 to and from the short formats, bit for bit as the cvt instructions do it (PTX ISA, "cvt"): round to nearest
// even, NaN to the canonical NaN of the format. One routine for all formats, from their parameters alone.
#pragma once

#include <cstdint>
#include <cstring>

namespace emulate {

inline std::uint32_t bits_of(float value) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof(bits));
    return bits;
}
inline float float_from_bits(std::uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof(value));
    return value;
}

// A sign, EXPONENT bits and FRACTION bits. With `infinity`, the largest exponent is kept for infinities and NaN as in
// IEEE 754; without, only the all-ones code is NaN (e4m3 of the OCP 8-bit formats, which has no infinity).
struct Format {
    int exponent, fraction;
    bool infinity;
    std::uint32_t canonical_nan;

    constexpr int bias() const { return (1 << (exponent - 1)) - 1; }
    constexpr std::uint32_t sign() const { return 1u << (exponent + fraction); }
    constexpr std::uint32_t infinity_code() const { return ((1u << exponent) - 1u) << fraction; }
    constexpr std::uint32_t largest() const { return infinity ? infinity_code() - 1u : sign() - 2u; }
};
constexpr Format HALF_FORMAT{5, 10, true, 0x7fffu};
constexpr Format BFLOAT16_FORMAT{8, 7, true, 0x7fffu};
constexpr Format E4M3_FORMAT{4, 3, false, 0x7fu};
constexpr Format E5M2_FORMAT{5, 2, true, 0x7fu};

// `saturate`: beyond the largest finite value, infinities too, comes the largest finite value (cvt.satfinite).
inline std::uint32_t encode(float value, const Format& format, bool saturate) {
    const std::uint32_t bits = bits_of(value);
    const std::uint32_t sign = bits >> 31 != 0 ? format.sign() : 0u;
    const std::uint32_t magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return format.canonical_nan;
    const std::uint32_t overflow = saturate          ? format.largest()
                                   : format.infinity ? format.infinity_code()
                                                     : format.canonical_nan;
    if (magnitude == 0x7f800000u) return sign | overflow;
    const int biased = static_cast<int>(magnitude >> 23);
    if (biased == 0 && format.exponent < 8) return sign;  // below 2^-126: nothing of it is left
    std::uint64_t significand = biased == 0 ? magnitude : (magnitude & 0x7fffffu) | 0x800000u;
    const int exponent = (biased == 0 ? 1 : biased) - 127 + format.bias();  // in the target's bias
    int dropped = 23 - format.fraction;
    if (exponent < 1) dropped += 1 - exponent;
    if (dropped > 40) return sign;
    const std::uint64_t half = 1ull << (dropped - 1), rest = significand & ((half << 1) - 1);
    std::uint64_t kept = significand >> dropped;
    kept += rest > half || (rest == half && (kept & 1) != 0);
    // A normal significand carries its leading bit: one unit of the exponent field, hence the minus one.
    const std::uint64_t code = kept + (exponent > 1 ? static_cast<std::uint64_t>(exponent - 1) << format.fraction : 0);
    return sign | (code > format.largest() ? overflow : static_cast<std::uint32_t>(code));
}

inline float decode(std::uint32_t code, const Format& format) {
    const std::uint32_t sign = (code & format.sign()) != 0 ? 0x80000000u : 0u;
    const std::uint32_t magnitude = code & (format.sign() - 1u);
    const std::uint32_t fraction = magnitude & ((1u << format.fraction) - 1u);
    const std::uint32_t exponent = magnitude >> format.fraction;
    if (!format.infinity && magnitude == format.sign() - 1u) return float_from_bits(sign | 0x7fc00000u);
    if (format.infinity && magnitude >= format.infinity_code()) {
        return float_from_bits(sign | 0x7f800000u | fraction << (23 - format.fraction));
    }
    const int unit = 1 - format.bias() - format.fraction;  // exponent of the smallest subnormal
    float value = static_cast<float>(exponent == 0 ? fraction : fraction | 1u << format.fraction);
    int power = unit + (exponent == 0 ? 0 : static_cast<int>(exponent) - 1);
    for (; power > 0; --power) value *= 2.0f;
    for (; power < 0; ++power) value *= 0.5f;
    return float_from_bits(bits_of(value) | sign);
}

}  // namespace emulate
