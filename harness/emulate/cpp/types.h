// CUDA's built-in vector types (CUDA C++ Programming Guide, "Built-in Vector Types"), with their sizes and alignments.
#pragma once

#include "runtime.h"

#define EMULATE_VECTOR(T, NAME, ALIGN2, ALIGN4)                                                      \
    struct NAME##1 { T x; };                                                                         \
    struct alignas(ALIGN2) NAME##2 { T x, y; };                                                      \
    struct NAME##3 { T x, y, z; };                                                                   \
    struct alignas(ALIGN4) NAME##4 { T x, y, z, w; };                                                \
    inline NAME##1 make_##NAME##1(T x) { return {x}; }                                               \
    inline NAME##2 make_##NAME##2(T x, T y) { return {x, y}; }                                       \
    inline NAME##3 make_##NAME##3(T x, T y, T z) { return {x, y, z}; }                               \
    inline NAME##4 make_##NAME##4(T x, T y, T z, T w) { return {x, y, z, w}; }

EMULATE_VECTOR(signed char, char, 2, 4)
EMULATE_VECTOR(unsigned char, uchar, 2, 4)
EMULATE_VECTOR(short, short, 4, 8)
EMULATE_VECTOR(unsigned short, ushort, 4, 8)
EMULATE_VECTOR(int, int, 8, 16)
EMULATE_VECTOR(long long, longlong, 16, 16)
EMULATE_VECTOR(unsigned long long, ulonglong, 16, 16)
EMULATE_VECTOR(float, float, 8, 16)
EMULATE_VECTOR(double, double, 16, 16)
#undef EMULATE_VECTOR

struct uint1 { unsigned int x; };
struct alignas(8) uint2 { unsigned int x, y; };
struct alignas(16) uint4 { unsigned int x, y, z, w; };
inline uint1 make_uint1(unsigned int x) { return {x}; }
inline uint2 make_uint2(unsigned int x, unsigned int y) { return {x, y}; }
inline uint3 make_uint3(unsigned int x, unsigned int y, unsigned int z) { return {x, y, z}; }
inline uint4 make_uint4(unsigned int x, unsigned int y, unsigned int z, unsigned int w) { return {x, y, z, w}; }

struct dim3 {
    unsigned int x, y, z;
    constexpr dim3(unsigned int x = 1, unsigned int y = 1, unsigned int z = 1) : x(x), y(y), z(z) {}
};
