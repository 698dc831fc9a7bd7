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

#include "common/wgmma_operands.cuh"

// K: the constraint of accumulators. o0..o5: the operand numbers that follow them, N / 2 onwards. SIGNS:
// ", 1, 1" (no negation) where the type has it.
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

WGMMA_8BIT_TYPES(64, D20 "," D10(2) "," D2(3), R32, 32, 33, 34, 35, 36, 37)
WGMMA_8BIT_TYPES(96, D40 "," D8(4), R48, 48, 49, 50, 51, 52, 53)
WGMMA_8BIT_TYPES(128, D60 "," D4(6), R64, 64, 65, 66, 67, 68, 69)
WGMMA_8BIT_TYPES(192, D80 "," D10(8) "," D6(9), R96, 96, 97, 98, 99, 100, 101)
WGMMA_8BIT_TYPES(256, D120 "," D8(12), R128, 128, 129, 130, 131, 132, 133)

#undef WGMMA_8BIT_TYPES
#undef WGMMA_8BIT

#include "common/wgmma_operands.cuh"

}  // namespace forge
