// Warpgroup products of 8-bit elements (PTX ISA, "Asynchronous Warpgroup Level Matrix Instructions"), beside
// common/wgmma.cuh, whose layouts they share: a 32-byte step along K is now 32 elements, both operands are K-major.
//
//   d[64][N] (f32) (+)= a[64][32] * b[N][32]^T     e4m3, e5m2; sums are kept with fewer bits than float32's 24
//   d[64][N] (s32) (+)= a[64][32] * b[N][32]^T     s8, exact
//
// Accumulators lie as there. A from registers: thread t of the warpgroup (warp w = t / 32, lane l = t % 32) holds
//   a[2 * j + h]  byte b is row 16 w + l / 4 + 8 h, column 16 j + 4 (l % 4) + b       j < 2, h < 2, b < 4
// Columns of A and columns of B may be permuted alike: of the accumulators 16 j .. 16 j + 15 of a preceding product, the
// pairs 8 i + 2 h and 8 i + 2 h + 4 make a[2 * i + h], if B's columns are taken in the order
//   column 16 i + 4 t + b  <-  16 i + 2 t + {0, 1, 8, 9}[b]                            i < 2, t < 4
#pragma once

#include <cuda_fp8.h>

#include "common/wgmma.cuh"

namespace forge {

// Accumulator operand names: "%0,%1,...". K is the constraint, "+f" or "+r".
#define NAMES_8(t) "%" #t "0,%" #t "1,%" #t "2,%" #t "3,%" #t "4,%" #t "5,%" #t "6,%" #t "7"
#define NAMES_10(t) NAMES_8(t) ",%" #t "8,%" #t "9"
#define NAMES_2(t) "%" #t "0,%" #t "1"
#define NAMES_4(t) NAMES_2(t) ",%" #t "2,%" #t "3"
#define NAMES_6(t) NAMES_4(t) ",%" #t "4,%" #t "5"
#define NAMES_30 NAMES_10() "," NAMES_10(1) "," NAMES_10(2)
#define NAMES_60 NAMES_30 "," NAMES_10(3) "," NAMES_10(4) "," NAMES_10(5)
#define NAMES_90 NAMES_60 "," NAMES_10(6) "," NAMES_10(7) "," NAMES_10(8)
#define NAMES_120 NAMES_90 "," NAMES_10(9) "," NAMES_10(10) "," NAMES_10(11)
#define HELD_4(K, i) K(d[i]), K(d[(i) + 1]), K(d[(i) + 2]), K(d[(i) + 3])
#define HELD_16(K, i) HELD_4(K, i), HELD_4(K, (i) + 4), HELD_4(K, (i) + 8), HELD_4(K, (i) + 12)
#define HELD_32(K, i) HELD_16(K, i), HELD_16(K, (i) + 16)
#define HELD_48(K, i) HELD_32(K, i), HELD_16(K, (i) + 32)
#define HELD_64(K, i) HELD_32(K, i), HELD_32(K, (i) + 32)
#define HELD_96(K, i) HELD_64(K, i), HELD_32(K, (i) + 64)
#define HELD_128(K, i) HELD_64(K, i), HELD_64(K, (i) + 64)

// o0..o5: the operand numbers that follow the accumulators, N / 2 onwards. SIGNS: ", 1, 1" (no negation) where the type
// has it.
#define WGMMA_8BIT(T, ACC, TYPES, SIGNS, K, N, NAMES, HELD, o0, o1, o2, o3, o4, o5)                                    \
    template <>                                                                                                        \
    struct wgmma_m64k16<T, N> {                                                                                        \
        template <int TRANS_A, int TRANS_B>                                                                            \
        static __device__ __forceinline__ void ss(ACC (&d)[N / 2], uint64_t a, uint64_t b, int scale_d) {              \
            static_assert(TRANS_A == 0 && TRANS_B == 0, "8-bit operands are K-major");                                 \
            asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #o2 ", 0;\n"                                             \
                         "wgmma.mma_async.sync.aligned.m64n" #N "k32." TYPES " {" NAMES "}, %" #o0                     \
                         ", %" #o1 ", p" SIGNS ";\n}"                                                                  \
                         : HELD(K, 0)                                                                                  \
                         : "l"(a), "l"(b), "r"(scale_d)                                                                \
                         : "memory");                                                                                  \
        }                                                                                                              \
        template <int TRANS_B>                                                                                         \
        static __device__ __forceinline__ void rs(ACC (&d)[N / 2], const uint32_t (&a)[4], uint64_t b, int scale_d) {  \
            static_assert(TRANS_B == 0, "8-bit operands are K-major");                                                 \
            asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #o5 ", 0;\n"                                             \
                         "wgmma.mma_async.sync.aligned.m64n" #N "k32." TYPES " {" NAMES "}, {%" #o0 ",%" #o1           \
                         ",%" #o2 ",%" #o3 "}, %" #o4 ", p" SIGNS ";\n}"                                               \
                         : HELD(K, 0)                                                                                  \
                         : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(scale_d)                            \
                         : "memory");                                                                                  \
        }                                                                                                              \
    };
#define WGMMA_8BIT_TYPES(N, NAMES, HELD, ...)                                                                          \
    WGMMA_8BIT(__nv_fp8_e4m3, float, "f32.e4m3.e4m3", ", 1, 1", "+f", N, NAMES, HELD, __VA_ARGS__)                     \
    WGMMA_8BIT(__nv_fp8_e5m2, float, "f32.e5m2.e5m2", ", 1, 1", "+f", N, NAMES, HELD, __VA_ARGS__)                     \
    WGMMA_8BIT(int8_t, int32_t, "s32.s8.s8", "", "+r", N, NAMES, HELD, __VA_ARGS__)

WGMMA_8BIT_TYPES(64, NAMES_30 "," NAMES_2(3), HELD_32, 32, 33, 34, 35, 36, 37)
WGMMA_8BIT_TYPES(96, NAMES_30 "," NAMES_10(3) "," NAMES_8(4), HELD_48, 48, 49, 50, 51, 52, 53)
WGMMA_8BIT_TYPES(128, NAMES_60 "," NAMES_4(6), HELD_64, 64, 65, 66, 67, 68, 69)
WGMMA_8BIT_TYPES(192, NAMES_90 "," NAMES_6(9), HELD_96, 96, 97, 98, 99, 100, 101)
WGMMA_8BIT_TYPES(256, NAMES_120 "," NAMES_8(12), HELD_128, 128, 129, 130, 131, 132, 133)

#undef WGMMA_8BIT_TYPES
#undef WGMMA_8BIT
#undef HELD_128
#undef HELD_96
#undef HELD_64
#undef HELD_48
#undef HELD_32
#undef HELD_16
#undef HELD_4
#undef NAMES_120
#undef NAMES_90
#undef NAMES_60
#undef NAMES_30
#undef NAMES_6
#undef NAMES_4
#undef NAMES_2
#undef NAMES_10
#undef NAMES_8

}  // namespace forge
