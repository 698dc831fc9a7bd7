// Small integers to 16-bit floats, two to a register, exactly. A byte or a nibble under the exponent of a power of two
// is that power plus the number; one fused multiply-add takes the power away again. No conversion instruction is used.
//
//   widen_int4   nibbles 7 6 5 4 3 2 1 0   ->  (0, 4) (1, 5) (2, 6) (3, 7)     two's complement, -8 .. 7, less a zero point
//   widen_int8   bytes   3 2 1 0           ->  (0, 2) (1, 3)                   two's complement, -128 .. 127
//   biased_int4  as widen_int4, without the fused multiply-add: the number plus int4_bias. Whoever adds up products with
//                them can take int4_bias times the sum of the other factors away, once for many products.
//
//   float16:  1024 + n keeps n < 1024, so nibbles are read where they lie in the low byte, also as 16 n
//   bfloat16: 128 + n keeps n < 128: nibbles are shifted down; of a byte the sign is subtracted as 128 or 256
//
// The numbers of a pair lie 16 bits apart, where one AND finds both.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "common/shared_address.cuh"

namespace forge {

// a * b + c in both halves, rounded once (fma.rn, PTX ISA "Half Precision Floating Point Instructions"; sm_80+).
template <class T>
__device__ __forceinline__ uint32_t fma_x2(uint32_t a, uint32_t b, uint32_t c);
template <>
__device__ __forceinline__ uint32_t fma_x2<__half>(uint32_t a, uint32_t b, uint32_t c) {
    uint32_t d;
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
}
template <>
__device__ __forceinline__ uint32_t fma_x2<__nv_bfloat16>(uint32_t a, uint32_t b, uint32_t c) {
    uint32_t d;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
}

// (a & mask) ^ c as the one instruction that it is: of a mask and a c that are both constants, compilers make two.
__device__ __forceinline__ uint32_t lop3_and_xor(uint32_t a, uint32_t mask, uint32_t c) {
    constexpr int TABLE = (0xf0 & 0xcc) ^ 0xaa;
    uint32_t d;
    asm("lop3.b32 %0, %1, %2, %3, %4;" : "=r"(d) : "r"(a), "r"(mask), "r"(c), "n"(TABLE));
    return d;
}

constexpr uint32_t LOW_NIBBLES = 0x000f000fu;
constexpr uint32_t HIGH_NIBBLES = 0x00f000f0u;

// What the fused multiply-add takes away: the power of two, the 8 of the sign bit that was turned over, and a zero point
// of -8 .. 7, of which an integer addition makes the bits. There is no default: NVRTC 12.9 and 13.0 run member initializers
// for the elements of a[0] of an array a[2][2] only and leave a[1] 0.
template <class T>
struct int4_offset;

template <>
struct int4_offset<__half> {
    uint32_t low, high;  // -1032 of nibbles in place, -72 of sixteenths
    __device__ __forceinline__ explicit int4_offset(int zero)
        : low((0xe408u + zero) * 0x10001u), high((0xd480u + zero * 16) * 0x10001u) {}
};

template <>
struct int4_offset<__nv_bfloat16> {
    uint32_t low;  // -136
    __device__ __forceinline__ explicit int4_offset(int zero) : low((0xc308u + zero) * 0x10001u) {}
};

template <class T>
__device__ __forceinline__ void widen_int4(uint32_t packed, int4_offset<T> offset, uint32_t (&pairs)[4]);

template <>
__device__ __forceinline__ void widen_int4<__half>(uint32_t packed, int4_offset<__half> offset, uint32_t (&pairs)[4]) {
    constexpr uint32_t ONE = 0x3c003c00u, SIXTEENTH = 0x2c002c00u;
    constexpr uint32_t LOW_MAGIC = 0x64086408u;   // 1024, and the sign bit of a nibble turned over: + 8
    constexpr uint32_t HIGH_MAGIC = 0x64806480u;  // the same for 16 n
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
        const uint32_t low_bytes = packed >> 4 * i;
        pairs[i] = fma_x2<__half>(lop3_and_xor(low_bytes, LOW_NIBBLES, LOW_MAGIC), ONE, offset.low);
        pairs[i + 1] = fma_x2<__half>(lop3_and_xor(low_bytes, HIGH_NIBBLES, HIGH_MAGIC), SIXTEENTH, offset.high);
    }
}

template <>
__device__ __forceinline__ void widen_int4<__nv_bfloat16>(uint32_t packed, int4_offset<__nv_bfloat16> offset,
                                                          uint32_t (&pairs)[4]) {
    constexpr uint32_t ONE = 0x3f803f80u;
    constexpr uint32_t MAGIC = 0x43084308u;  // 128, and the sign bit of a nibble turned over: + 8
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        pairs[i] = fma_x2<__nv_bfloat16>(lop3_and_xor(packed >> 4 * i, LOW_NIBBLES, MAGIC), ONE, offset.low);
    }
}

template <class T>
struct int4_bias;
template <>
struct int4_bias<__half> {
    static constexpr float VALUE = 24.0f;  // 16, of which a nibble is the upper mantissa, and 8
};
template <>
struct int4_bias<__nv_bfloat16> {
    static constexpr float VALUE = 136.0f;  // 128, of which a nibble is the lower mantissa, and 8
};

template <class T>
__device__ __forceinline__ void biased_int4(uint32_t packed, uint32_t (&pairs)[4]);

template <>
__device__ __forceinline__ void biased_int4<__half>(uint32_t packed, uint32_t (&pairs)[4]) {
    constexpr uint32_t MASK = LOW_NIBBLES << 6, MAGIC = 0x4e004e00u;  // small, so that float32 sums stay sharp
    pairs[0] = lop3_and_xor(packed << 6, MASK, MAGIC);
    pairs[1] = lop3_and_xor(packed << 2, MASK, MAGIC);
    pairs[2] = lop3_and_xor(packed >> 2, MASK, MAGIC);
    pairs[3] = lop3_and_xor(packed >> 6, MASK, MAGIC);
}

template <>
__device__ __forceinline__ void biased_int4<__nv_bfloat16>(uint32_t packed, uint32_t (&pairs)[4]) {
    constexpr uint32_t MAGIC = 0x43084308u;
#pragma unroll
    for (int i = 0; i < 4; ++i) pairs[i] = lop3_and_xor(packed >> 4 * i, LOW_NIBBLES, MAGIC);
}

template <class T>
__device__ __forceinline__ void widen_int8(uint32_t packed, uint32_t (&pairs)[2]);

template <>
__device__ __forceinline__ void widen_int8<__half>(uint32_t packed, uint32_t (&pairs)[2]) {
    constexpr uint32_t ONE = 0x3c003c00u;
    constexpr uint32_t HIGH_BYTES = 0x64646464u;   // of 1024
    constexpr uint32_t MINUS_1152 = 0xe480e480u;
    const uint32_t biased = packed ^ 0x80808080u;  // + 128
    pairs[0] = fma_x2<__half>(__byte_perm(biased, HIGH_BYTES, 0x4240), ONE, MINUS_1152);
    pairs[1] = fma_x2<__half>(__byte_perm(biased, HIGH_BYTES, 0x4341), ONE, MINUS_1152);
}

template <>
__device__ __forceinline__ void widen_int8<__nv_bfloat16>(uint32_t packed, uint32_t (&pairs)[2]) {
    constexpr uint32_t ONE = 0x3f803f80u;
    constexpr uint32_t LOW_BITS = 0x007f007fu, SIGNS = 0x00800080u;
    constexpr uint32_t PLUS_128 = 0x43004300u;
    constexpr uint32_t MINUS_128 = 0xc300c300u;  // with the sign bit of a byte as its last exponent bit: -256
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        const uint32_t low_bytes = packed >> 8 * i;
        const uint32_t sign = lop3_and_xor(low_bytes, SIGNS, MINUS_128);  // these bits of the constants are 0
        pairs[i] = fma_x2<__nv_bfloat16>(lop3_and_xor(low_bytes, LOW_BITS, PLUS_128), ONE, sign);
    }
}

}  // namespace forge
