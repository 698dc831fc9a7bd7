// What every kernel of this family does with one vector of elements: largest magnitude, codes, store.
//
// Compile-time constants from the declaration: VECTOR (1: 16-byte accesses, 0: element by element), INT4 (two codes
// per byte), x_t and y_t. kLanes elements are handled together; a pair is the least that 4-bit codes allow.
#pragma once

#include "common/quantize.cuh"
#include "common/vector_io.cuh"

namespace forge {

#if INT4
using code_t = Int4Pair;
constexpr int kCodesPerByte = 2;
#else
using code_t = y_t;
constexpr int kCodesPerByte = 1;
#endif
constexpr int kLanes = VECTOR ? kVectorLanes<x_t> : kCodesPerByte;

__device__ __forceinline__ Vector<x_t, kLanes> load_lanes(const x_t* from) {
    if constexpr (VECTOR) return load_vector<kLanes>(from);
    return load_elements<kLanes>(from);
}

__device__ __forceinline__ unsigned magnitude_of(const Vector<x_t, kLanes>& v) {
    unsigned largest = 0u;
#pragma unroll
    for (int i = 0; i < kLanes; ++i) largest = max(largest, finite_magnitude(to_float(v.at[i])));
    return largest;
}

// Stores the codes of v; `index` counts elements of x.
__device__ __forceinline__ void store_codes(y_t* y, size_t index, const Vector<x_t, kLanes>& v, const Divisor& divisor) {
    Vector<unsigned char, kLanes / kCodesPerByte> codes;
    float quotient[kLanes];
#pragma unroll
    for (int i = 0; i < kLanes; ++i) quotient[i] = divisor.divide(to_float(v.at[i]));
#if INT4
#pragma unroll
    for (int i = 0; i < kLanes; i += 2) {
        codes.at[i / 2] = static_cast<unsigned char>(encode_int4_pair(quotient[i], quotient[i + 1]));
    }
#else
    if constexpr (kLanes == 1) {
        codes.at[0] = static_cast<unsigned char>(encode<y_t>(quotient[0]));
    } else {
#pragma unroll
        for (int i = 0; i < kLanes; i += 2) {
            const unsigned pair = encode2<y_t>(quotient[i], quotient[i + 1]);
            codes.at[i] = static_cast<unsigned char>(pair);
            codes.at[i + 1] = static_cast<unsigned char>(pair >> 8);
        }
    }
#endif
    store_vector(reinterpret_cast<unsigned char*>(y) + index / kCodesPerByte, codes);
}

}  // namespace forge
