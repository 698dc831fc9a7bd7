// What every kernel of this family does with one vector of elements: largest magnitude, codes, store.
//
// Compile-time constants from the declaration: VECTOR (1: 16-byte accesses, 0: element by element), INT4 (two codes
// per byte), x_t and y_t. kLanes elements are handled together; a pair is the least that 4-bit codes allow.
#pragma once

#include "common/quantize.cuh"
#include "common/vector_io.cuh"
#include "common/widen.cuh"

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

// Vectors of 16-bit numbers are handled as 32-bit words throughout: taken apart element by element, they would be held
// as halves, and put together again for every instruction on pairs.
template <class T>
constexpr bool kInPairs = VECTOR && sizeof(T) == 2;

// The vector at `from`, or zeros, where there is none.
__device__ __forceinline__ void load_if(Vector<x_t, kLanes>& v, bool inside, const x_t* from) {
    if constexpr (VECTOR) {
        uint4 words = make_uint4(0u, 0u, 0u, 0u);
        if (inside) words = __ldg(reinterpret_cast<const uint4*>(from));
        *reinterpret_cast<uint4*>(&v) = words;
    } else {
#pragma unroll
        for (int i = 0; i < kLanes; ++i) v.at[i] = inside ? from[i] : from_float<x_t>(0.0f);
    }
}

template <class T>
__device__ __forceinline__ void widen_lanes(const Vector<T, kLanes>& v, float (&value)[kLanes]) {
    if constexpr (kInPairs<T>) {
        const uint4 words = *reinterpret_cast<const uint4*>(&v);
        const uint32_t pairs[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const float2 pair = unpack2<T>(pairs[i]);
            value[2 * i] = pair.x;
            value[2 * i + 1] = pair.y;
        }
    } else {
#pragma unroll
        for (int i = 0; i < kLanes; ++i) value[i] = to_float(v.at[i]);
    }
}

__device__ __forceinline__ unsigned magnitude_of(const Vector<x_t, kLanes>& v) {
    float value[kLanes];
    widen_lanes(v, value);
    unsigned largest = 0u;
#pragma unroll
    for (int i = 0; i < kLanes; ++i) largest = max(largest, finite_magnitude(value[i]));
    return largest;
}

template <class T>
struct PairOf;
template <>
struct PairOf<__half> { using type = __half2; };
template <>
struct PairOf<__nv_bfloat16> { using type = __nv_bfloat162; };

template <class To, class From>
__device__ __forceinline__ To same_bits(const From& from) {
    static_assert(sizeof(To) == 4 && sizeof(From) == 4, "one register");
    return *reinterpret_cast<const To*>(&from);
}

// The largest finite magnitude of held vectors. 16-bit numbers are compared in pairs: |v| * 0 + |v| is |v|, but NaN for
// infinities and NaN, and NaN loses against any number (max.f16x2, max.bf16x2, PTX ISA "Half Precision Comparison
// Instructions").
template <class T, int Count>
__device__ __forceinline__ unsigned largest_magnitude(const Vector<T, kLanes> (&held)[Count]) {
    if constexpr (kInPairs<T>) {
        using Pair = typename PairOf<T>::type;
        Pair most = same_bits<Pair>(0u);
#pragma unroll
        for (int i = 0; i < Count; ++i) {
            const uint4 words = *reinterpret_cast<const uint4*>(&held[i]);
            const uint32_t pairs[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                const uint32_t magnitude = same_bits<uint32_t>(__habs2(same_bits<Pair>(pairs[j])));
                most = __hmax2(most, same_bits<Pair>(fma_x2<T>(magnitude, 0u, magnitude)));
            }
        }
        const float2 both = unpack2<T>(same_bits<uint32_t>(most));
        return max(__float_as_uint(both.x), __float_as_uint(both.y));
    } else {
        unsigned largest = 0u;
#pragma unroll
        for (int i = 0; i < Count; ++i) largest = max(largest, magnitude_of(held[i]));
        return largest;
    }
}

// Stores the codes of v; `index` counts elements of x.
template <class AnyDivisor>
__device__ __forceinline__ void store_codes(y_t* y, size_t index, const Vector<x_t, kLanes>& v,
                                            const AnyDivisor& divisor) {
    unsigned char* const to = reinterpret_cast<unsigned char*>(y) + index / kCodesPerByte;
    float quotient[kLanes];
    widen_lanes(v, quotient);
#pragma unroll
    for (int i = 0; i < kLanes; ++i) quotient[i] = divisor.divide(quotient[i]);
#if INT4
    Vector<unsigned char, kLanes / 2> codes;
#pragma unroll
    for (int i = 0; i < kLanes; i += 2) {
        codes.at[i / 2] = static_cast<unsigned char>(encode_int4_pair(quotient[i], quotient[i + 1]));
    }
    store_vector(to, codes);
#else
    if constexpr (kLanes == 1) {
        *to = static_cast<unsigned char>(encode<y_t>(quotient[0]));
    } else {
        Vector<unsigned, (kLanes + 3) / 4> codes;
#pragma unroll
        for (int i = 0; i < kLanes; i += 4) {
            codes.at[i / 4] = encode4<y_t>(quotient[i], quotient[i + 1], quotient[i + 2], quotient[i + 3]);
        }
        store_vector(reinterpret_cast<unsigned*>(to), codes);
    }
#endif
}

}  // namespace forge
