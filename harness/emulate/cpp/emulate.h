// The language of a CUDA kernel, for a host compiler: qualifiers, thread indices, barriers, warp instructions, math.
//
// `__shared__` and `asm` are left in the text: harness/emulate/translate.py rewrites them after the preprocessor.
// Functions that another thread can observe take the place they are called from as a last, defaulted argument.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <tuple>
#include <type_traits>
#include <utility>

#include "cuda_fp8.h"
#include "types.h"

#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __managed__
#define __grid_constant__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __cluster_dims__(...)
#define __maxnreg__(...)
#define __align__(bytes) alignas(bytes)

constexpr int warpSize = 32;

// ---- the functions that CUDA has without an include -----------------------------------------------------------------

#define EMULATE_TWO(NAME, CHOICE)                                                                     \
    template <class A, class B>                                                                       \
        requires(std::is_arithmetic_v<A> && std::is_arithmetic_v<B>)                                  \
    constexpr std::common_type_t<A, B> NAME(A first, B second) {                                      \
        const std::common_type_t<A, B> a = static_cast<std::common_type_t<A, B>>(first);              \
        const std::common_type_t<A, B> b = static_cast<std::common_type_t<A, B>>(second);             \
        if constexpr (std::is_floating_point_v<std::common_type_t<A, B>>) {                           \
            if (a != a) return b;                                                                     \
            if (b != b) return a;                                                                     \
        }                                                                                             \
        return CHOICE;                                                                                \
    }
EMULATE_TWO(min, b < a ? b : a)
EMULATE_TWO(max, a < b ? b : a)
#undef EMULATE_TWO

template <class To, class From>
To emulate_bits(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    std::memcpy(&to, &from, sizeof(to));
    return to;
}
inline int __float_as_int(float x) { return emulate_bits<int>(x); }
inline unsigned int __float_as_uint(float x) { return emulate_bits<unsigned int>(x); }
inline float __int_as_float(int x) { return emulate_bits<float>(x); }
inline float __uint_as_float(unsigned int x) { return emulate_bits<float>(x); }
inline long long __double_as_longlong(double x) { return emulate_bits<long long>(x); }
inline double __longlong_as_double(long long x) { return emulate_bits<double>(x); }

inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fsqrt_rn(float x) { return std::sqrt(x); }
inline float rsqrtf(float x) { return static_cast<float>(1.0 / std::sqrt(static_cast<double>(x))); }
inline float __frsqrt_rn(float x) { return rsqrtf(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __expf(float x) { return std::exp(x); }
inline float __exp2f(float x) { return std::exp2(x); }
inline float __logf(float x) { return std::log(x); }
inline float __log2f(float x) { return std::log2(x); }
inline float __sinf(float x) { return std::sin(x); }
inline float __cosf(float x) { return std::cos(x); }
inline float __powf(float x, float y) { return std::pow(x, y); }
inline float __saturatef(float x) { return x > 0.0f ? x < 1.0f ? x : 1.0f : 0.0f; }

// cvt.rni.s32.f32 and its kin: saturating, NaN to zero.
template <class Integer>
Integer emulate_to_integer(float x) {
    if (x != x) return 0;
    if (x >= static_cast<float>(std::numeric_limits<Integer>::max())) return std::numeric_limits<Integer>::max();
    if (x <= static_cast<float>(std::numeric_limits<Integer>::min())) return std::numeric_limits<Integer>::min();
    return static_cast<Integer>(x);
}
inline int __float2int_rn(float x) { return emulate_to_integer<int>(std::nearbyint(x)); }
inline int __float2int_rz(float x) { return emulate_to_integer<int>(std::trunc(x)); }
inline int __float2int_rd(float x) { return emulate_to_integer<int>(std::floor(x)); }
inline int __float2int_ru(float x) { return emulate_to_integer<int>(std::ceil(x)); }
inline unsigned int __float2uint_rn(float x) { return emulate_to_integer<unsigned int>(std::nearbyint(x)); }
inline float __int2float_rn(int x) { return static_cast<float>(x); }
inline float __uint2float_rn(unsigned int x) { return static_cast<float>(x); }

inline int __popc(unsigned int x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned int>(x)); }
inline int __clzll(long long x) { return x == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(x)); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline unsigned int __umulhi(unsigned int a, unsigned int b) {
    return static_cast<unsigned int>(static_cast<unsigned long long>(a) * b >> 32);
}
inline int __mulhi(int a, int b) { return static_cast<int>(static_cast<long long>(a) * b >> 32); }
inline unsigned int __brev(unsigned int x) {
    unsigned int reversed = 0;
    for (int i = 0; i < 32; ++i) reversed |= (x >> i & 1u) << (31 - i);
    return reversed;
}
inline unsigned int __byte_perm(unsigned int x, unsigned int y, unsigned int selector) {
    const unsigned long long bytes = static_cast<unsigned long long>(y) << 32 | x;
    unsigned int result = 0;
    for (int i = 0; i < 4; ++i) {
        const unsigned int nibble = selector >> (4 * i) & 0xfu;
        unsigned int byte = static_cast<unsigned int>(bytes >> (8 * (nibble & 7u))) & 0xffu;
        if ((nibble & 8u) != 0) byte = (byte & 0x80u) != 0 ? 0xffu : 0u;
        result |= byte << (8 * i);
    }
    return result;
}

template <class T>
T __ldg(const T* from) { return *from; }
template <class T>
T __ldcs(const T* from) { return *from; }
template <class T>
T __ldcg(const T* from) { return *from; }
template <class T>
T __ldca(const T* from) { return *from; }
template <class T>
void __stcs(T* to, T value) { *to = value; }
template <class T>
void __stcg(T* to, T value) { *to = value; }
template <class T>
void __stwt(T* to, T value) { *to = value; }

inline std::size_t __cvta_generic_to_shared(const void* pointer) { return emulate::shared_address(pointer); }
inline std::size_t __cvta_generic_to_global(const void* pointer) { return reinterpret_cast<std::size_t>(pointer); }
inline unsigned int __isShared(const void* pointer) { return emulate::is_shared(pointer); }
[[noreturn]] inline void __trap() { emulate::fail("trap", "the kernel called __trap"); }

// ---- barriers -------------------------------------------------------------------------------------------------------

using EmulateHere = emulate::Location;

inline void __syncthreads(EmulateHere here = EMULATE_HERE) { emulate::block_barrier(emulate::Vote::sum, 0, here); }
inline int __syncthreads_count(int predicate, EmulateHere here = EMULATE_HERE) {
    return emulate::block_barrier(emulate::Vote::sum, predicate, here);
}
inline int __syncthreads_and(int predicate, EmulateHere here = EMULATE_HERE) {
    return emulate::block_barrier(emulate::Vote::all, predicate, here);
}
inline int __syncthreads_or(int predicate, EmulateHere here = EMULATE_HERE) {
    return emulate::block_barrier(emulate::Vote::any, predicate, here);
}
inline void __syncwarp(unsigned int mask = 0xffffffffu, EmulateHere here = EMULATE_HERE) {
    emulate::warp_barrier(mask, here);
}
// Fences order one thread's accesses; with threads that take turns on one processor nothing is left to do.
inline void __threadfence_block() {}
inline void __threadfence() {}
inline void __threadfence_system() {}

// ---- warps ----------------------------------------------------------------------------------------------------------

template <class T>
T emulate_shuffle(emulate::Shuffle kind, unsigned int mask, T value, int operand, int width, EmulateHere here) {
    static_assert(sizeof(T) <= 8, "a shuffle moves at most 8 bytes");
    std::uint64_t carried = 0;
    std::memcpy(&carried, &value, sizeof(value));
    carried = emulate::shuffle(kind, mask, carried, operand, width, here);
    std::memcpy(&value, &carried, sizeof(value));
    return value;
}
template <class T>
T __shfl_sync(unsigned int mask, T value, int lane, int width = 32, EmulateHere here = EMULATE_HERE) {
    return emulate_shuffle(emulate::Shuffle::index, mask, value, lane, width, here);
}
template <class T>
T __shfl_up_sync(unsigned int mask, T value, unsigned int by, int width = 32, EmulateHere here = EMULATE_HERE) {
    return emulate_shuffle(emulate::Shuffle::up, mask, value, static_cast<int>(by), width, here);
}
template <class T>
T __shfl_down_sync(unsigned int mask, T value, unsigned int by, int width = 32, EmulateHere here = EMULATE_HERE) {
    return emulate_shuffle(emulate::Shuffle::down, mask, value, static_cast<int>(by), width, here);
}
template <class T>
T __shfl_xor_sync(unsigned int mask, T value, int bits, int width = 32, EmulateHere here = EMULATE_HERE) {
    return emulate_shuffle(emulate::Shuffle::exclusive_or, mask, value, bits, width, here);
}

#define EMULATE_REDUCE(NAME, T, KIND)                                                                       \
    inline T NAME(unsigned int mask, T value, EmulateHere here = EMULATE_HERE) {                            \
        return static_cast<T>(                                                                              \
            emulate::reduce(emulate::Reduction::KIND, mask, static_cast<unsigned int>(value), here));       \
    }
EMULATE_REDUCE(__reduce_add_sync, unsigned int, add)
EMULATE_REDUCE(__reduce_add_sync, int, add)
EMULATE_REDUCE(__reduce_min_sync, unsigned int, smallest)
EMULATE_REDUCE(__reduce_min_sync, int, smallest_signed)
EMULATE_REDUCE(__reduce_max_sync, unsigned int, largest)
EMULATE_REDUCE(__reduce_max_sync, int, largest_signed)
EMULATE_REDUCE(__reduce_and_sync, unsigned int, bits_and)
EMULATE_REDUCE(__reduce_or_sync, unsigned int, bits_or)
EMULATE_REDUCE(__reduce_xor_sync, unsigned int, bits_xor)
#undef EMULATE_REDUCE

inline unsigned int __ballot_sync(unsigned int mask, int predicate, EmulateHere here = EMULATE_HERE) {
    return emulate::ballot(mask, predicate, here);
}
inline int __any_sync(unsigned int mask, int predicate, EmulateHere here = EMULATE_HERE) {
    return emulate::ballot(mask, predicate, here) != 0;
}
inline int __all_sync(unsigned int mask, int predicate, EmulateHere here = EMULATE_HERE) {
    return emulate::ballot(mask, predicate == 0, here) == 0;
}
template <class T>
unsigned int __match_any_sync(unsigned int mask, T value, EmulateHere here = EMULATE_HERE) {
    std::uint64_t carried = 0;
    std::memcpy(&carried, &value, sizeof(value));
    return emulate::match_any(mask, carried, here);
}

// ---- atomics: real ones, so that ThreadSanitizer knows them as such -------------------------------------------------

template <class T, class Change>
T emulate_atomic(T* at, Change change) {
    emulate::note_atomic(at);
    using Bits = std::conditional_t<sizeof(T) == 8, std::uint64_t, std::uint32_t>;
    static_assert(sizeof(T) == sizeof(Bits), "atomics of 4 and 8 bytes");
    auto* place = reinterpret_cast<Bits*>(at);
    Bits seen = __atomic_load_n(place, __ATOMIC_RELAXED);
    for (;;) {
        T before, after;
        std::memcpy(&before, &seen, sizeof(before));
        after = change(before);
        Bits wanted;
        std::memcpy(&wanted, &after, sizeof(wanted));
        if (__atomic_compare_exchange_n(place, &seen, wanted, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) return before;
    }
}
#define EMULATE_ATOMIC(NAME, RESULT)                                                      \
    template <class T>                                                                    \
    T NAME(T* at, std::type_identity_t<T> value) {                                        \
        return emulate_atomic(at, [value](T before) { return static_cast<T>(RESULT); });  \
    }
EMULATE_ATOMIC(atomicAdd, before + value)
EMULATE_ATOMIC(atomicSub, before - value)
EMULATE_ATOMIC(atomicExch, value)
EMULATE_ATOMIC(atomicMin, value < before ? value : before)
EMULATE_ATOMIC(atomicMax, before < value ? value : before)
EMULATE_ATOMIC(atomicAnd, before & value)
EMULATE_ATOMIC(atomicOr, before | value)
EMULATE_ATOMIC(atomicXor, before ^ value)
#undef EMULATE_ATOMIC
template <class T>
T atomicCAS(T* at, std::type_identity_t<T> compare, std::type_identity_t<T> value) {
    return emulate_atomic(at, [=](T before) { return before == compare ? value : before; });
}

// ---- the kernel's entry ---------------------------------------------------------------------------------------------

namespace emulate {

template <class P>
constexpr char kind_of() {
    if constexpr (std::is_pointer_v<P>) return 'p';
    else if constexpr (std::is_integral_v<P> && sizeof(P) == 4) return 'i';
    else if constexpr (std::is_class_v<P> && sizeof(P) == 128) return 'm';
    else return '?';
}

template <class... P>
struct Signature {
    static constexpr char kinds[] = {kind_of<P>()..., '\0'};

    template <std::size_t... I>
    static void call(void (*entry)(P...), void** arguments, std::index_sequence<I...>) {
        entry(*static_cast<P*>(arguments[I])...);
    }
    static void call(void (*entry)(P...), void** arguments) { call(entry, arguments, std::index_sequence_for<P...>{}); }
};

template <class... P>
Signature<std::remove_const_t<P>...> signature_of(void (*)(P...));

}  // namespace emulate

// The program's main function, for the kernel ENTRY.
#define EMULATE_MAIN(ENTRY)                                                                                       \
    int main(int count, char** arguments) {                                                                       \
        using Signature = decltype(emulate::signature_of(&ENTRY));                                                \
        const emulate::Entry entry{#ENTRY, Signature::kinds, [](void** a) { Signature::call(&ENTRY, a); }};       \
        return emulate::serve(entry, count, arguments);                                                           \
    }

#include "ptx.h"
