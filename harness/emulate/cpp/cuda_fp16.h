// __half and __half2: storage, conversions, arithmetic (each operation in float32 and rounded once: 24 >= 2 * 11 + 2
// bits make that the correctly rounded result for + - * / and sqrt).
#pragma once

#include "conversions.h"
#include "types.h"

struct __half_raw {
    unsigned short x;
};

struct __half {
    unsigned short bits;

    __half() = default;
    __half(const __half_raw& raw) : bits(raw.x) {}
    __half(float value) : bits(static_cast<unsigned short>(emulate::encode(value, emulate::HALF_FORMAT, false))) {}
    __half(double value) : __half(static_cast<float>(value)) {}
    __half(int value) : __half(static_cast<float>(value)) {}
    operator float() const { return emulate::decode(bits, emulate::HALF_FORMAT); }
    operator __half_raw() const { return {bits}; }
};
using half = __half;

struct alignas(4) __half2 {
    __half x, y;
};
using half2 = __half2;

inline __half __float2half_rn(float value) { return __half(value); }
inline __half __float2half(float value) { return __half(value); }
inline float __half2float(__half value) { return value; }
inline __half __ushort_as_half(unsigned short bits) { return __half(__half_raw{bits}); }
inline unsigned short __half_as_ushort(__half value) { return value.bits; }
inline __half2 __floats2half2_rn(float low, float high) { return {__half(low), __half(high)}; }
inline __half2 __float22half2_rn(float2 pair) { return {__half(pair.x), __half(pair.y)}; }
inline float2 __half22float2(__half2 pair) { return {pair.x, pair.y}; }
inline __half2 __halves2half2(__half low, __half high) { return {low, high}; }
inline __half __low2half(__half2 pair) { return pair.x; }
inline __half __high2half(__half2 pair) { return pair.y; }
inline float __low2float(__half2 pair) { return pair.x; }
inline float __high2float(__half2 pair) { return pair.y; }

#define EMULATE_HALF_ARITHMETIC(T)                                                                                   \
    inline T operator+(T a, T b) { return T(static_cast<float>(a) + static_cast<float>(b)); }                        \
    inline T operator-(T a, T b) { return T(static_cast<float>(a) - static_cast<float>(b)); }                        \
    inline T operator*(T a, T b) { return T(static_cast<float>(a) * static_cast<float>(b)); }                        \
    inline T operator/(T a, T b) { return T(static_cast<float>(a) / static_cast<float>(b)); }                        \
    inline T operator-(T a) { a.bits ^= 0x8000u; return a; }                                                         \
    inline T& operator+=(T& a, T b) { return a = a + b; }                                                            \
    inline T& operator-=(T& a, T b) { return a = a - b; }                                                            \
    inline T& operator*=(T& a, T b) { return a = a * b; }                                                            \
    inline bool operator<(T a, T b) { return static_cast<float>(a) < static_cast<float>(b); }                        \
    inline bool operator>(T a, T b) { return static_cast<float>(a) > static_cast<float>(b); }                        \
    inline bool operator<=(T a, T b) { return static_cast<float>(a) <= static_cast<float>(b); }                      \
    inline bool operator>=(T a, T b) { return static_cast<float>(a) >= static_cast<float>(b); }                      \
    inline bool operator==(T a, T b) { return static_cast<float>(a) == static_cast<float>(b); }                      \
    inline bool operator!=(T a, T b) { return static_cast<float>(a) != static_cast<float>(b); }                      \
    inline T __hadd(T a, T b) { return a + b; }                                                                      \
    inline T __hsub(T a, T b) { return a - b; }                                                                      \
    inline T __hmul(T a, T b) { return a * b; }                                                                      \
    inline T __hdiv(T a, T b) { return a / b; }                                                                      \
    inline T __hneg(T a) { return -a; }                                                                              \
    inline T __habs(T a) { a.bits &= 0x7fffu; return a; }                                                            \
    inline bool __hisnan(T a) { const float value = a; return value != value; }                                      \
    inline T __hmax(T a, T b) { return __hisnan(a) ? b : __hisnan(b) ? a : a < b ? b : a; }                          \
    inline T __hmin(T a, T b) { return __hisnan(a) ? b : __hisnan(b) ? a : b < a ? b : a; }

#define EMULATE_PAIR_ARITHMETIC(PAIR)                                                                                \
    inline PAIR __habs2(PAIR a) { return {__habs(a.x), __habs(a.y)}; }                                               \
    inline PAIR __hmax2(PAIR a, PAIR b) { return {__hmax(a.x, b.x), __hmax(a.y, b.y)}; }                             \
    inline PAIR __hmin2(PAIR a, PAIR b) { return {__hmin(a.x, b.x), __hmin(a.y, b.y)}; }

EMULATE_HALF_ARITHMETIC(__half)
EMULATE_PAIR_ARITHMETIC(__half2)
