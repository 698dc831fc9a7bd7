// Warpgroup matrix multiply-accumulate of sm_90a (PTX ISA, "Asynchronous Warpgroup Level Matrix Instructions").
//
//   d[64][N] (f32, registers of 128 threads) (+)= a[64][16] * b[N][16]^T      a: shared memory or registers; b: shared
//
// Accumulator and register-A layout: thread t of the warpgroup (warp w = t / 32, lane l = t % 32)
//   d[4 * j + 2 * h + e]  is row 16 w + l / 4 + 8 h, column 8 j + 2 (l % 4) + e       j < N / 8, h < 2, e < 2
//   a[2 * j + h] packs    row 16 w + l / 4 + 8 h, columns 8 j + 2 (l % 4) + {0, 1}    j < 2
// so accumulators 8 j .. 8 j + 7, packed in pairs, are the A operand of the k-step j of a following product.
//
// Shared operands are in 128-byte swizzle: 16-byte chunk c of the 128-byte row r lies at chunk c ^ (r % 8); matrices
// start at multiples of 1024 bytes. This is what TMA writes with swizzle=128 and an inner box extent of 64 elements.
//   K-major  : a 128-byte row is 64 k of one m/n; 8-row groups are 1024 bytes apart. k-step of 16: + 32 bytes.
//   MN-major : a 128-byte row is 64 m/n of one k; 8-k groups are 1024 bytes apart, the next 64 m/n are `chunk_bytes`
//              further on. k-step of 16: + 2048 bytes.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "common/shared_address.cuh"

namespace forge {

// ---- shared-memory matrix descriptors ------------------------------------------------------------------------------
//  bits 0-13 start address, 16-29 leading byte offset, 32-45 stride byte offset (each / 16), 62-63 swizzle (1 = 128 B)

constexpr uint32_t SWIZZLE128_ROW_BYTES = 128;
constexpr uint32_t SWIZZLE128_ATOM_BYTES = 1024;  // eight rows: the pattern's period
constexpr uint64_t DESCRIPTOR_SWIZZLE128 = 1ull << 62;

__device__ __forceinline__ constexpr uint64_t descriptor_field(uint32_t bytes) {
    return static_cast<uint64_t>((bytes & 0x3ffffu) >> 4);
}

// The leading offset has no meaning for swizzled K-major matrices; 1 is what the ISA assumes there.
__device__ __forceinline__ uint64_t swizzle128_k_major(uint32_t address) {
    return descriptor_field(address) | (1ull << 16) | (descriptor_field(SWIZZLE128_ATOM_BYTES) << 32) |
           DESCRIPTOR_SWIZZLE128;
}

// chunk_bytes: distance between neighboring 64-element column groups (rows of the box * 128 for TMA boxes in a row).
__device__ __forceinline__ uint64_t swizzle128_mn_major(uint32_t address, uint32_t chunk_bytes) {
    return descriptor_field(address) | (descriptor_field(chunk_bytes) << 16) |
           (descriptor_field(SWIZZLE128_ATOM_BYTES) << 32) | DESCRIPTOR_SWIZZLE128;
}

// Moves the start address; shared addresses stay below 2^18, so the field does not overflow into the next, and the upper
// word, spelled out as unchanged, needs no second addition and no second register.
__device__ __forceinline__ uint64_t descriptor_advance(uint64_t descriptor, uint32_t bytes) {
    constexpr uint64_t UPPER_WORD = 0xffffffff00000000ull;
    return (descriptor & UPPER_WORD) | (static_cast<uint32_t>(descriptor) + (bytes >> 4));
}

// ---- ordering ------------------------------------------------------------------------------------------------------

// Before the first wgmma, and whenever ordinary code has touched registers that the next wgmma reads or adds to.
__device__ __forceinline__ void wgmma_fence() {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

__device__ __forceinline__ void wgmma_commit() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

template <int PENDING>
__device__ __forceinline__ void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

// Pins the registers at this point of the program: the compiler may not move their uses across it. Place it after
// wgmma_wait (results are read below) and before wgmma_fence (values are written above).
template <int COUNT>
__device__ __forceinline__ void wgmma_hold(float (&registers)[COUNT]) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
        asm volatile("" : "+f"(registers[i])::"memory");
    }
}

template <int COUNT>
__device__ __forceinline__ void wgmma_hold(int32_t (&registers)[COUNT]) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
        asm volatile("" : "+r"(registers[i])::"memory");
    }
}

template <int COUNT>
__device__ __forceinline__ void wgmma_hold(uint32_t (&registers)[COUNT]) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
        asm volatile("" : "+r"(registers[i])::"memory");
    }
}

// ---- the instruction -----------------------------------------------------------------------------------------------

template <class T, int N>
struct wgmma_m64k16;  // one specialization per element type and N, generated at the end of this file

// A and B from shared memory. TRANS_*: 0 = K-major, 1 = MN-major. scale_d = 0 overwrites d, otherwise adds to it.
template <class T, int N, int TRANS_A = 0, int TRANS_B = 0, class Accumulator>
__device__ __forceinline__ void wgmma_ss(Accumulator (&d)[N / 2], uint64_t a, uint64_t b, int scale_d) {
    wgmma_m64k16<T, N>::template ss<TRANS_A, TRANS_B>(d, a, b, scale_d);
}

// A from registers (always row-major fragments), B from shared memory.
template <class T, int N, int TRANS_B = 0>
__device__ __forceinline__ void wgmma_rs(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b, int scale_d) {
    wgmma_m64k16<T, N>::template rs<TRANS_B>(d, a, b, scale_d);
}

#include "common/wgmma_operands.cuh"

// o0..o6: the operand numbers that follow the accumulators, N / 2 onwards.
#define WGMMA_TYPED(T, TYPE, N, NAMES, REGISTERS, o0, o1, o2, o3, o4, o5, o6)                                          \
    template <>                                                                                                        \
    struct wgmma_m64k16<T, N> {                                                                                        \
        template <int TRANS_A, int TRANS_B>                                                                            \
        static __device__ __forceinline__ void ss(float (&d)[N / 2], uint64_t a, uint64_t b, int scale_d) {            \
            asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #o2 ", 0;\n"                                             \
                         "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE "." TYPE " {" NAMES "}, %" #o0         \
                         ", %" #o1 ", p, 1, 1, %" #o3 ", %" #o4 ";\n}"                                                 \
                         : UNWRAP REGISTERS                                                                            \
                         : "l"(a), "l"(b), "r"(scale_d), "n"(TRANS_A), "n"(TRANS_B)                                    \
                         : "memory");                                                                                  \
        }                                                                                                              \
        template <int TRANS_B>                                                                                         \
        static __device__ __forceinline__ void rs(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b,               \
                                                  int scale_d) {                                                       \
            asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #o5 ", 0;\n"                                             \
                         "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE "." TYPE " {" NAMES "}, {%" #o0        \
                         ",%" #o1 ",%" #o2 ",%" #o3 "}, %" #o4 ", p, 1, 1, %" #o6 ";\n}"                               \
                         : UNWRAP REGISTERS                                                                            \
                         : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(scale_d), "n"(TRANS_B)              \
                         : "memory");                                                                                  \
        }                                                                                                              \
    };
#define UNWRAP(...) __VA_ARGS__
#define WGMMA(N, NAMES, REGISTERS, ...)                                    \
    WGMMA_TYPED(__half, "f16", N, NAMES, REGISTERS, __VA_ARGS__)           \
    WGMMA_TYPED(__nv_bfloat16, "bf16", N, NAMES, REGISTERS, __VA_ARGS__)

// One row per N: its N / 2 operand names, its N / 2 registers, and the seven numbers that follow.
// clang-format off
WGMMA(8, D4(), (R4("+f", 0)), 4, 5, 6, 7, 8, 9, 10)
WGMMA(16, D8(), (R8("+f", 0)), 8, 9, 10, 11, 12, 13, 14)
WGMMA(24, D10() "," D2(1), (R8("+f", 0), R4("+f", 8)), 12, 13, 14, 15, 16, 17, 18)
WGMMA(32, D10() "," D6(1), (R16("+f", 0)), 16, 17, 18, 19, 20, 21, 22)
WGMMA(40, D20, (R16("+f", 0), R4("+f", 16)), 20, 21, 22, 23, 24, 25, 26)
WGMMA(48, D20 "," D4(2), (R16("+f", 0), R8("+f", 16)), 24, 25, 26, 27, 28, 29, 30)
WGMMA(56, D20 "," D8(2), (R16("+f", 0), R8("+f", 16), R4("+f", 24)), 28, 29, 30, 31, 32, 33, 34)
WGMMA(64, D20 "," D10(2) "," D2(3), (R32("+f", 0)), 32, 33, 34, 35, 36, 37, 38)
WGMMA(72, D20 "," D10(2) "," D6(3), (R32("+f", 0), R4("+f", 32)), 36, 37, 38, 39, 40, 41, 42)
WGMMA(80, D40, (R32("+f", 0), R8("+f", 32)), 40, 41, 42, 43, 44, 45, 46)
WGMMA(88, D40 "," D4(4), (R32("+f", 0), R8("+f", 32), R4("+f", 40)), 44, 45, 46, 47, 48, 49, 50)
WGMMA(96, D40 "," D8(4), (R32("+f", 0), R16("+f", 32)), 48, 49, 50, 51, 52, 53, 54)
WGMMA(112, D40 "," D10(4) "," D6(5), (R32("+f", 0), R16("+f", 32), R8("+f", 48)), 56, 57, 58, 59, 60, 61, 62)
WGMMA(128, D60 "," D4(6), (R64("+f", 0)), 64, 65, 66, 67, 68, 69, 70)
WGMMA(144, D60 "," D10(6) "," D2(7), (R64("+f", 0), R8("+f", 64)), 72, 73, 74, 75, 76, 77, 78)
WGMMA(160, D80, (R64("+f", 0), R16("+f", 64)), 80, 81, 82, 83, 84, 85, 86)
WGMMA(176, D80 "," D8(8), (R64("+f", 0), R16("+f", 64), R8("+f", 80)), 88, 89, 90, 91, 92, 93, 94)
WGMMA(192, D80 "," D10(8) "," D6(9), (R64("+f", 0), R32("+f", 64)), 96, 97, 98, 99, 100, 101, 102)
WGMMA(208, D100 "," D4(10), (R64("+f", 0), R32("+f", 64), R8("+f", 96)), 104, 105, 106, 107, 108, 109, 110)
WGMMA(224, D100 "," D10(10) "," D2(11), (R64("+f", 0), R32("+f", 64), R16("+f", 96)), 112, 113, 114, 115, 116, 117, 118)
WGMMA(240, D120, (R64("+f", 0), R32("+f", 64), R16("+f", 96), R8("+f", 112)), 120, 121, 122, 123, 124, 125, 126)
WGMMA(256, D120 "," D8(12), (R64("+f", 0), R64("+f", 64)), 128, 129, 130, 131, 132, 133, 134)
// clang-format on

#undef WGMMA
#undef UNWRAP
#undef WGMMA_TYPED

#include "common/wgmma_operands.cuh"

}  // namespace forge
