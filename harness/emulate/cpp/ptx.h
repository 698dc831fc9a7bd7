// PTX instructions as functions, one for each, named after it (PTX ISA). The translator of inline assembly
// (harness/emulate/translate.py) calls them with the operands in the instruction's order: registers by reference,
// groups `{a, b}` as arrays of pointers, addresses `[a]` as values, `[map, {x, y}]` as two arguments.
#pragma once

#include "emulate.h"

namespace emulate::ptx {

struct Discard {
    template <class T>
    void operator=(T) {}
};

template <class First, class... Rest>
std::array<First*, 1 + sizeof...(Rest)> group(First& first, Rest&... rest) {
    return {&first, &rest...};
}

// ---- operands of inline assembly, by constraint ---------------------------------------------------------------------

template <class T>
std::uint32_t operand_r(T value) {
    if constexpr (std::is_same_v<T, float>) return bits_of(value);
    else return static_cast<std::uint32_t>(value);
}
template <class T>
std::uint64_t operand_l(T value) {
    if constexpr (std::is_pointer_v<T>) return reinterpret_cast<std::uint64_t>(value);
    else return static_cast<std::uint64_t>(value);
}
template <class T>
std::uint16_t operand_h(T value) { return static_cast<std::uint16_t>(value); }
inline float operand_f(float value) { return value; }
inline double operand_d(double value) { return value; }
template <class T>
T operand_n(T value) { return value; }

// ---- arithmetic -----------------------------------------------------------------------------------------------------
// The approximate instructions are specified with an error bound. A kernel that needs more is wrong on some GPU: the
// result here is the correctly rounded one moved by -1, 0 or +1 unit in the last place, as a hash of it decides.

inline float approximate(float exact) {
    const std::uint32_t bits = bits_of(exact);
    const std::uint32_t magnitude = bits & 0x7fffffffu;
    if (magnitude <= 0x00800000u || magnitude >= 0x7f7fffffu || (bits & 0x007fffffu) == 0) return exact;
    const std::uint32_t hash = (bits * 2654435761u) >> 16;
    return float_from_bits(bits + hash % 3u - 1u);
}
inline float flushed(float x) {  // .ftz: subnormal numbers are zeros of their sign
    return (bits_of(x) & 0x7f800000u) == 0 ? float_from_bits(bits_of(x) & 0x80000000u) : x;
}
inline void rcp_approx_ftz_f32(float& d, float a) { d = flushed(approximate(1.0f / flushed(a))); }
inline void rcp_approx_f32(float& d, float a) { d = approximate(1.0f / a); }
inline void ex2_approx_ftz_f32(float& d, float a) { d = flushed(approximate(std::exp2(flushed(a)))); }
inline void ex2_approx_f32(float& d, float a) { d = approximate(std::exp2(a)); }
inline void lg2_approx_ftz_f32(float& d, float a) { d = flushed(approximate(std::log2(flushed(a)))); }
inline void rsqrt_approx_ftz_f32(float& d, float a) { d = flushed(approximate(rsqrtf(flushed(a)))); }
inline void tanh_approx_f32(float& d, float a) { d = std::tanh(a); }

inline std::uint32_t pack(float high, float low, const Format& format) {
    return encode(high, format, false) << 16 | encode(low, format, false);
}
inline void cvt_rn_f16x2_f32(std::uint32_t& d, float high, float low) { d = pack(high, low, HALF_FORMAT); }
inline void cvt_rn_bf16x2_f32(std::uint32_t& d, float high, float low) { d = pack(high, low, BFLOAT16_FORMAT); }
inline void cvt_rn_satfinite_e4m3x2_f32(std::uint16_t& d, float high, float low) {
    d = static_cast<std::uint16_t>(encode(high, E4M3_FORMAT, true) << 8 | encode(low, E4M3_FORMAT, true));
}
inline void cvt_rn_satfinite_e5m2x2_f32(std::uint16_t& d, float high, float low) {
    d = static_cast<std::uint16_t>(encode(high, E5M2_FORMAT, true) << 8 | encode(low, E5M2_FORMAT, true));
}

inline void sub_f16x2(std::uint32_t& d, std::uint32_t a, std::uint32_t b) {
    const float low = decode(a & 0xffffu, HALF_FORMAT) - decode(b & 0xffffu, HALF_FORMAT);
    d = pack(decode(a >> 16, HALF_FORMAT) - decode(b >> 16, HALF_FORMAT), low, HALF_FORMAT);
}

// Products of two 11-bit numbers are exact in double, and so are these sums but for exponents further apart than its
// 53 bits reach: those are rounded twice.
inline std::uint32_t fma_x2(std::uint32_t a, std::uint32_t b, std::uint32_t c, const Format& format) {
    const auto half = [&](int shift) {
        const auto at = [&](std::uint32_t pair) { return decode(pair >> shift & 0xffffu, format); };
        return static_cast<float>(static_cast<double>(at(a)) * at(b) + at(c));
    };
    return pack(half(16), half(0), format);
}
inline void fma_rn_f16x2(std::uint32_t& d, std::uint32_t a, std::uint32_t b, std::uint32_t c) {
    d = fma_x2(a, b, c, HALF_FORMAT);
}
inline void fma_rn_bf16x2(std::uint32_t& d, std::uint32_t a, std::uint32_t b, std::uint32_t c) {
    d = fma_x2(a, b, c, BFLOAT16_FORMAT);
}

// Bit i of the table is the result for bits (a, b, c) that read i as a number.
inline void lop3_b32(std::uint32_t& d, std::uint32_t a, std::uint32_t b, std::uint32_t c, unsigned table) {
    std::uint32_t result = 0;
    for (unsigned i = 0; i < 8; ++i) {
        if (table >> i & 1u) result |= (i & 4u ? a : ~a) & (i & 2u ? b : ~b) & (i & 1u ? c : ~c);
    }
    d = result;
}

template <class D, class A>
void mov(D& d, A a) { d = static_cast<D>(a); }
template <class D, class A, class B>
void selp(D& d, A a, B b, bool p) { d = static_cast<D>(p ? a : b); }
template <class A, class B>
void setp_ne(bool& p, A a, B b) { p = a != static_cast<A>(b); }
template <class A, class B>
void setp_eq(bool& p, A a, B b) { p = a == static_cast<A>(b); }

inline std::uint32_t sreg_cluster_ctarank() { return cluster_rank(); }
inline std::uint32_t sreg_laneid() { return lane_index(); }
inline std::uint32_t sreg_smid() { return multiprocessor(); }

// ---- shared memory --------------------------------------------------------------------------------------------------

template <class T>
void st_shared(std::uint32_t at, T value, Location here = EMULATE_HERE) { store_shared(at, &value, sizeof(T), here); }
template <class T>
void ld_shared(T& d, std::uint32_t at, Location here = EMULATE_HERE) { load_shared(at, &d, sizeof(T), here); }
template <class T, std::size_t N>
void st_shared_vector(std::uint32_t at, const std::array<T*, N>& values, Location here = EMULATE_HERE) {
    std::remove_const_t<T> words[N];
    for (std::size_t i = 0; i < N; ++i) words[i] = *values[i];
    store_shared(at, words, sizeof(words), here);
}
template <class T, std::size_t N>
void ld_shared_vector(const std::array<T*, N>& values, std::uint32_t at, Location here = EMULATE_HERE) {
    T words[N];
    load_shared(at, words, sizeof(words), here);
    for (std::size_t i = 0; i < N; ++i) *values[i] = words[i];
}

inline void cp_async(std::uint32_t to, std::uint64_t from, unsigned bytes, unsigned valid,
                     Location here = EMULATE_HERE) {
    copy_async(to, reinterpret_cast<const void*>(from), bytes, valid, here);
}
inline void cp_async(std::uint32_t to, std::uint64_t from, unsigned bytes, Location here = EMULATE_HERE) {
    copy_async(to, reinterpret_cast<const void*>(from), bytes, bytes, here);
}
inline void cp_async_commit_group() { copy_async_commit(); }
inline void cp_async_wait_group(unsigned pending) { copy_async_wait(pending); }
inline void cp_async_wait_all() {
    copy_async_commit();
    copy_async_wait(0);
}

template <bool TRANSPOSED, std::size_t N>
void ldmatrix(const std::array<std::uint32_t*, N>& d, std::uint32_t row, Location here = EMULATE_HERE) {
    matrix_load(d.data(), N, TRANSPOSED, row, here);
}
template <bool TRANSPOSED, std::size_t N>
void stmatrix(std::uint32_t row, const std::array<const std::uint32_t*, N>& values, Location here = EMULATE_HERE) {
    matrix_store(values.data(), N, TRANSPOSED, row, here);
}

// Lane l holds row l/4, columns 2*(l%4) and 2*(l%4)+1; afterwards those of the transposed matrix.
inline void movmatrix_trans(std::uint32_t& d, std::uint32_t a, Location here = EMULATE_HERE) {
    const int row = static_cast<int>(lane_index()) / 4, column = 2 * (static_cast<int>(lane_index()) % 4);
    const std::uint32_t low = __shfl_sync(0xffffffffu, a, 4 * column + row / 2, 32, here);
    const std::uint32_t high = __shfl_sync(0xffffffffu, a, 4 * (column + 1) + row / 2, 32, here);
    const int shift = 16 * (row % 2);
    d = (low >> shift & 0xffffu) | (high >> shift & 0xffffu) << 16;
}

// ---- tensor cores ---------------------------------------------------------------------------------------------------

template <Element TYPE, class D, class C>
void mma_sync_m16n8(const std::array<D*, 4>& d, const std::array<const std::uint32_t*, 4>& a,
                    const std::array<const std::uint32_t*, 2>& b, const std::array<C*, 4>& c,
                    Location here = EMULATE_HERE) {
    std::array<float*, 4> to;  // of s8 the product reads and writes integers there
    std::array<const float*, 4> from;
    for (int i = 0; i < 4; ++i) to[i] = reinterpret_cast<float*>(d[i]);
    for (int i = 0; i < 4; ++i) from[i] = reinterpret_cast<const float*>(c[i]);
    mma_m16n8(TYPE, to.data(), a.data(), b.data(), from.data(), here);
}

template <Element TYPE, int N>
void wgmma_mma_async(const std::array<float*, N / 2>& d, std::uint64_t a, std::uint64_t b, bool scale_d, int scale_a,
                     int scale_b, int transposed_a, int transposed_b, Location here = EMULATE_HERE) {
    if (scale_a != 1 || scale_b != 1) fail("not emulated", "wgmma with negated operands");
    wgmma(TYPE, N, d.data(), nullptr, a, b, scale_d, transposed_a, transposed_b, here);
}
template <Element TYPE, int N>
void wgmma_mma_async(const std::array<float*, N / 2>& d, std::uint64_t a, std::uint64_t b, bool scale_d, int scale_a,
                     int scale_b, Location here = EMULATE_HERE) {
    wgmma_mma_async<TYPE, N>(d, a, b, scale_d, scale_a, scale_b, 0, 0, here);
}
template <Element TYPE, int N>
void wgmma_mma_async(const std::array<std::int32_t*, N / 2>& d, std::uint64_t a, std::uint64_t b, bool scale_d,
                     Location here = EMULATE_HERE) {
    std::array<float*, N / 2> places;  // the product writes integers there
    for (int i = 0; i < N / 2; ++i) places[i] = reinterpret_cast<float*>(d[i]);
    wgmma(TYPE, N, places.data(), nullptr, a, b, scale_d, 0, 0, here);
}
template <Element TYPE, int N>
void wgmma_mma_async(const std::array<float*, N / 2>& d, const std::array<const std::uint32_t*, 4>& a, std::uint64_t b,
                     bool scale_d, int scale_a, int scale_b, int transposed_b, Location here = EMULATE_HERE) {
    if (scale_a != 1 || scale_b != 1) fail("not emulated", "wgmma with negated operands");
    wgmma(TYPE, N, d.data(), a.data(), 0, b, scale_d, 0, transposed_b, here);
}
template <Element TYPE, int N>
void wgmma_mma_async(const std::array<float*, N / 2>& d, const std::array<const std::uint32_t*, 4>& a, std::uint64_t b,
                     bool scale_d, int scale_a, int scale_b, Location here = EMULATE_HERE) {
    wgmma_mma_async<TYPE, N>(d, a, b, scale_d, scale_a, scale_b, 0, here);
}
template <Element TYPE, int N>
void wgmma_mma_async(const std::array<std::int32_t*, N / 2>& d, const std::array<const std::uint32_t*, 4>& a,
                     std::uint64_t b, bool scale_d, Location here = EMULATE_HERE) {
    std::array<float*, N / 2> places;
    for (int i = 0; i < N / 2; ++i) places[i] = reinterpret_cast<float*>(d[i]);
    wgmma(TYPE, N, places.data(), a.data(), 0, b, scale_d, 0, 0, here);
}
inline void wgmma_fence(Location here = EMULATE_HERE) { emulate::wgmma_fence(here); }
inline void wgmma_commit_group(Location here = EMULATE_HERE) { wgmma_commit(here); }
inline void wgmma_wait_group(unsigned pending, Location here = EMULATE_HERE) { wgmma_wait(pending, here); }

// ---- barriers -------------------------------------------------------------------------------------------------------

inline void bar_sync(std::uint32_t id, std::uint32_t threads, Location here = EMULATE_HERE) {
    named_barrier(static_cast<int>(id), static_cast<int>(threads), true, here);
}
inline void bar_arrive(std::uint32_t id, std::uint32_t threads, Location here = EMULATE_HERE) {
    named_barrier(static_cast<int>(id), static_cast<int>(threads), false, here);
}
inline void barrier_cluster_arrive(Location here = EMULATE_HERE) { cluster_arrive(here); }
inline void barrier_cluster_wait(Location here = EMULATE_HERE) { cluster_wait(here); }
template <class T>
void elect_sync(T&&, bool& elected, std::uint32_t mask, Location here = EMULATE_HERE) { elected = elect(mask, here); }
inline void setmaxnreg(std::uint32_t) {}
inline void fence() {}
inline void mapa_shared_cluster(std::uint32_t& d, std::uint32_t address, std::uint32_t cta) {
    d = map_to_cta(address, cta);
}

inline void mbarrier_init(std::uint32_t at, std::uint32_t arrivals, Location here = EMULATE_HERE) {
    emulate::mbarrier_init(at, arrivals, here);
}
inline void mbarrier_arrive(Discard, std::uint32_t at, Location here = EMULATE_HERE) {
    emulate::mbarrier_arrive(at, 0, here);
}
inline void mbarrier_arrive_expect_tx(Discard, std::uint32_t at, std::uint32_t bytes, Location here = EMULATE_HERE) {
    emulate::mbarrier_arrive(at, bytes, here);
}
template <class T, std::size_t N>
void st_async(std::uint32_t at, const std::array<T*, N>& values, std::uint32_t barrier, Location here = EMULATE_HERE) {
    st_shared_vector(at, values, here);
    mbarrier_complete(barrier, sizeof(T) * N, here);
}
inline void mbarrier_try_wait_parity(bool& complete, std::uint32_t at, std::uint32_t parity,
                                     Location here = EMULATE_HERE) {
    complete = mbarrier_wait(at, parity, here);
}

// ---- tensor copies --------------------------------------------------------------------------------------------------

template <std::size_t N>
std::array<int, N> coordinates(const std::array<const std::uint32_t*, N>& given) {
    std::array<int, N> values;
    for (std::size_t i = 0; i < N; ++i) values[i] = static_cast<int>(*given[i]);
    return values;
}
template <std::size_t N>
void cp_async_bulk_tensor_load(std::uint32_t to, std::uint64_t map, const std::array<const std::uint32_t*, N>& at,
                               std::uint32_t barrier, Location here = EMULATE_HERE) {
    tensor_load(to, reinterpret_cast<const void*>(map), barrier, coordinates(at).data(), N, 0, here);
}
template <std::size_t N>
void cp_async_bulk_tensor_load_multicast(std::uint32_t to, std::uint64_t map,
                                         const std::array<const std::uint32_t*, N>& at, std::uint32_t barrier,
                                         std::uint16_t ctas, Location here = EMULATE_HERE) {
    tensor_load(to, reinterpret_cast<const void*>(map), barrier, coordinates(at).data(), N, ctas, here);
}
template <std::size_t N>
void cp_async_bulk_tensor_load_hint(std::uint32_t to, std::uint64_t map, const std::array<const std::uint32_t*, N>& at,
                                    std::uint32_t barrier, std::uint64_t, Location here = EMULATE_HERE) {
    cp_async_bulk_tensor_load(to, map, at, barrier, here);
}
template <std::size_t N>
void cp_async_bulk_tensor_store(std::uint64_t map, const std::array<const std::uint32_t*, N>& at, std::uint32_t from,
                                Location here = EMULATE_HERE) {
    tensor_store(reinterpret_cast<const void*>(map), from, coordinates(at).data(), N, here);
}
inline void cp_async_bulk_commit_group() { tensor_store_commit(); }
inline void cp_async_bulk_wait_group(unsigned pending) { tensor_store_wait(pending); }
inline void prefetch_tensormap(std::uint64_t) {}
template <std::size_t N>
void cp_async_bulk_prefetch_tensor(std::uint64_t, const std::array<const std::uint32_t*, N>&) {}

// ---- tensor maps that a kernel builds -------------------------------------------------------------------------------

#define EMULATE_MAP_FIELD(NAME)                                                                     \
    inline void tensormap_replace_##NAME(std::uint32_t map, std::uint64_t value,                    \
                                         Location here = EMULATE_HERE) {                            \
        map_replace(map, MapField::NAME, 0, value, here);                                           \
    }
#define EMULATE_MAP_DIMENSION(NAME)                                                                 \
    inline void tensormap_replace_##NAME(std::uint32_t map, int dimension, std::uint64_t value,     \
                                         Location here = EMULATE_HERE) {                            \
        map_replace(map, MapField::NAME, dimension, value, here);                                   \
    }
EMULATE_MAP_FIELD(global_address)
EMULATE_MAP_FIELD(rank)
EMULATE_MAP_FIELD(elemtype)
EMULATE_MAP_FIELD(interleave_layout)
EMULATE_MAP_FIELD(swizzle_mode)
EMULATE_MAP_FIELD(fill_mode)
EMULATE_MAP_DIMENSION(global_dim)
EMULATE_MAP_DIMENSION(global_stride)
EMULATE_MAP_DIMENSION(box_dim)
EMULATE_MAP_DIMENSION(element_stride)
#undef EMULATE_MAP_FIELD
#undef EMULATE_MAP_DIMENSION

inline void tensormap_cp_fenceproxy(std::uint64_t to, std::uint32_t map, unsigned, Location here = EMULATE_HERE) {
    warp_barrier(0xffffffffu, here);
    if (lane_index() == 0) map_publish(reinterpret_cast<void*>(to), map, here);
    warp_barrier(0xffffffffu, here);
}
inline void fence_proxy_tensormap_acquire(std::uint64_t, unsigned) {}

}  // namespace emulate::ptx
