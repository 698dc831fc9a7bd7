// 8-bit floats: e4m3 and e5m2 codes, and their conversions (CUDA Math API, "FP8 Conversion and Data Movement").
#pragma once

#include "cuda_bf16.h"

using __nv_fp8_storage_t = unsigned char;
using __nv_fp8x2_storage_t = unsigned short;
using __nv_fp8x4_storage_t = unsigned int;
enum __nv_saturation_t { __NV_NOSAT, __NV_SATFINITE };
enum __nv_fp8_interpretation_t { __NV_E4M3, __NV_E5M2 };

namespace emulate {
inline const Format& fp8_format(__nv_fp8_interpretation_t kind) {
    return kind == __NV_E4M3 ? E4M3_FORMAT : E5M2_FORMAT;
}
}  // namespace emulate

inline __nv_fp8_storage_t __nv_cvt_float_to_fp8(float value, __nv_saturation_t saturation,
                                                __nv_fp8_interpretation_t kind) {
    return static_cast<__nv_fp8_storage_t>(
        emulate::encode(value, emulate::fp8_format(kind), saturation == __NV_SATFINITE));
}
inline __nv_fp8x2_storage_t __nv_cvt_float2_to_fp8x2(float2 pair, __nv_saturation_t saturation,
                                                     __nv_fp8_interpretation_t kind) {
    return static_cast<__nv_fp8x2_storage_t>(__nv_cvt_float_to_fp8(pair.x, saturation, kind) |
                                             __nv_cvt_float_to_fp8(pair.y, saturation, kind) << 8);
}
inline __half_raw __nv_cvt_fp8_to_halfraw(__nv_fp8_storage_t code, __nv_fp8_interpretation_t kind) {
    return __half(emulate::decode(code, emulate::fp8_format(kind)));
}

#define EMULATE_FP8(NAME, KIND)                                                                                    \
    struct NAME {                                                                                                  \
        __nv_fp8_storage_t __x;                                                                                    \
        NAME() = default;                                                                                          \
        explicit NAME(float value) : __x(__nv_cvt_float_to_fp8(value, __NV_SATFINITE, KIND)) {}                    \
        explicit NAME(__half value) : NAME(static_cast<float>(value)) {}                                           \
        explicit NAME(__nv_bfloat16 value) : NAME(static_cast<float>(value)) {}                                    \
        explicit operator float() const { return emulate::decode(__x, emulate::fp8_format(KIND)); }                \
        explicit operator __half() const { return __half(static_cast<float>(*this)); }                             \
    };

EMULATE_FP8(__nv_fp8_e4m3, __NV_E4M3)
EMULATE_FP8(__nv_fp8_e5m2, __NV_E5M2)
#undef EMULATE_FP8
