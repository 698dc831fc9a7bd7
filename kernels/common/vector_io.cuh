// Runs of elements moved by one instruction: 16 bytes is the widest global access of sm_80 to sm_90
// (ld.global.v4.b32 / st.global.v4.b32, PTX ISA "Data Movement"), and what a warp needs to move 512 bytes at once.
#pragma once

namespace forge {

template <class T, int Count>
struct alignas(sizeof(T) * Count) Vector {
    static_assert(Count > 0 && (Count & (Count - 1)) == 0, "a vector has 1, 2, 4, 8 or 16 elements");
    static_assert(sizeof(T) * Count <= 16, "one access moves at most 16 bytes");
    T at[Count];
};

// How many elements of T one 16-byte access moves.
template <class T>
constexpr int kVectorLanes = 16 / sizeof(T);

// `Count` elements through the read-only path (ld.global.nc); `from` must be aligned to the whole vector.
template <int Count, class T>
__device__ __forceinline__ Vector<T, Count> load_vector(const T* from) {
    Vector<T, Count> v;
    if constexpr (sizeof(v) == 16) {
        *reinterpret_cast<uint4*>(&v) = __ldg(reinterpret_cast<const uint4*>(from));
    } else if constexpr (sizeof(v) == 8) {
        *reinterpret_cast<uint2*>(&v) = __ldg(reinterpret_cast<const uint2*>(from));
    } else if constexpr (sizeof(v) == 4) {
        *reinterpret_cast<unsigned*>(&v) = __ldg(reinterpret_cast<const unsigned*>(from));
    } else if constexpr (sizeof(v) == 2) {
        *reinterpret_cast<unsigned short*>(&v) = __ldg(reinterpret_cast<const unsigned short*>(from));
    } else {
        *reinterpret_cast<unsigned char*>(&v) = __ldg(reinterpret_cast<const unsigned char*>(from));
    }
    return v;
}

// `Count` elements one by one, for addresses that are aligned to one element only.
template <int Count, class T>
__device__ __forceinline__ Vector<T, Count> load_elements(const T* from) {
    Vector<T, Count> v;
#pragma unroll
    for (int i = 0; i < Count; ++i) v.at[i] = from[i];
    return v;
}

template <int Count, class T>
__device__ __forceinline__ void store_vector(T* to, const Vector<T, Count>& v) {
    *reinterpret_cast<Vector<T, Count>*>(to) = v;
}

}  // namespace forge
