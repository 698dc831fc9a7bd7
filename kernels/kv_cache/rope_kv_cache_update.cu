// New keys and values on their way into a KV cache: keys are turned by their rotary angle, both are quantized, and both
// are written in place. One launch, every element read once and written once.
//
//   k [B, H, T, D]   row (b, h, t):   | vector p of the first half | ... | the same of the second half | ...
//                                           a                                  c
//   cos, sin [B, T, D/2] ─────────────▶  a·cos - c·sin                    c·cos + a·sin        float32, products rounded
//   v [B, H, T, D]   ─────────────────▶  a                                c
//                                           │ / k_scale[h], v_scale[h]         │               8-bit caches only (or [0])
//                                           ▼                                  ▼
//   cache [pages, H, page_size, D]    page = block_table[b, row / page_size] (or b), row = positions[b] + t
//
// One thread: the vectors p of both halves of one row, of k and of v, four loads of 16 bytes under way. Heads of one
// token are neighbors, so that the angles of a token are read once from L2 and for its other heads from L1. Rows
// outside of 0 .. capacity - 1, and rows of pages that do not exist, are dropped.
//
// Compile-time: THREADS, LANES (elements of a vector: 8, or 1 where rows are no multiple of 32 bytes), HEAD_DIM,
// SCALE_STRIDE (1, or 0 for one scale of all heads), k_t (new keys), k_cache_t (cache), HAS_K_SCALE, HAS_BLOCK_TABLE.

#include "common/quantize.cuh"
#include "common/vector_io.cuh"

using namespace forge;

constexpr int kHalf = HEAD_DIM / 2;
constexpr int kPieces = kHalf / LANES;  // threads of a row
static_assert(kHalf % LANES == 0, "a half row is whole vectors");

using New = Vector<k_t, LANES>;

struct Angles {
    float at[LANES];

    __device__ __forceinline__ explicit Angles(const float* from) {
        if constexpr (LANES == 1) {
            at[0] = __ldg(from);
        } else {
#pragma unroll
            for (int i = 0; i < LANES; i += 4) {
                const float4 four = __ldg(reinterpret_cast<const float4*>(from + i));
                at[i] = four.x, at[i + 1] = four.y, at[i + 2] = four.z, at[i + 3] = four.w;
            }
        }
    }
};

// Puts float32 values into the cache: as codes of value / scale, or rounded to the cache's type.
class Writer {
  public:
#if HAS_K_SCALE
    __device__ __forceinline__ explicit Writer(float scale) : divisor_(scale) {}

    __device__ __forceinline__ void store(k_cache_t* to, const float (&value)[LANES]) const {
        Vector<unsigned char, LANES> codes;
        if constexpr (LANES == 1) {
            codes.at[0] = static_cast<unsigned char>(encode<k_cache_t>(divisor_.divide(value[0])));
        } else {
#pragma unroll
            for (int i = 0; i < LANES; i += 2) {
                const unsigned pair = encode2<k_cache_t>(divisor_.divide(value[i]), divisor_.divide(value[i + 1]));
                codes.at[i] = static_cast<unsigned char>(pair);
                codes.at[i + 1] = static_cast<unsigned char>(pair >> 8);
            }
        }
        store_vector(reinterpret_cast<unsigned char*>(to), codes);
    }

  private:
    Divisor divisor_;
#else
    __device__ __forceinline__ void store(k_cache_t* to, const float (&value)[LANES]) const {
        Vector<k_cache_t, LANES> rounded;
#pragma unroll
        for (int i = 0; i < LANES; ++i) rounded.at[i] = from_float<k_cache_t>(value[i]);
        store_vector(to, rounded);
    }
#endif
};

// The products are rounded before they are added, as in the network's own rotary embedding: no fused multiply-add.
__device__ __forceinline__ void rotate(float (&first)[LANES], float (&second)[LANES], const Angles& cos, const Angles& sin) {
#pragma unroll
    for (int i = 0; i < LANES; ++i) {
        const float a = first[i], c = second[i];
        first[i] = __fsub_rn(__fmul_rn(a, cos.at[i]), __fmul_rn(c, sin.at[i]));
        second[i] = __fadd_rn(__fmul_rn(c, cos.at[i]), __fmul_rn(a, sin.at[i]));
    }
}

__device__ __forceinline__ void widen(const New& from, float (&to)[LANES]) {
#pragma unroll
    for (int i = 0; i < LANES; ++i) to[i] = to_float(from.at[i]);
}

extern "C" __global__ void __launch_bounds__(THREADS)
rope_kv_cache_update(const void*, const void*, const k_t* __restrict__ k, const k_t* __restrict__ v,
                     const float* __restrict__ cos, const float* __restrict__ sin, const int* __restrict__ positions,
#if HAS_K_SCALE
                     const float* __restrict__ k_scale, const float* __restrict__ v_scale,
#endif
#if HAS_BLOCK_TABLE
                     const int* __restrict__ block_table,
#endif
                     int batch, int heads, int tokens, [[maybe_unused]] int pages, int page_size,
                     [[maybe_unused]] int max_pages, k_cache_t* k_updated, k_cache_t* v_updated) {
    const int at = blockIdx.x * THREADS + threadIdx.x;
    const int piece = at % kPieces * LANES;
    const int head = at / kPieces % heads;
    const int token = at / kPieces / heads;  // b * tokens + t
    const int sequence = token / tokens;
    if (sequence >= batch) return;

    const size_t from = ((static_cast<size_t>(sequence) * heads + head) * tokens + token % tokens) * HEAD_DIM + piece;
    const New k_first = load_vector<LANES>(k + from), k_second = load_vector<LANES>(k + from + kHalf);
    const New v_first = load_vector<LANES>(v + from), v_second = load_vector<LANES>(v + from + kHalf);
    const Angles cos_at(cos + static_cast<size_t>(token) * kHalf + piece);
    const Angles sin_at(sin + static_cast<size_t>(token) * kHalf + piece);
    const int row = __ldg(positions + sequence) + token % tokens;

#if HAS_BLOCK_TABLE
    if (row < 0 || row / page_size >= max_pages) return;
    const int page = __ldg(block_table + static_cast<size_t>(sequence) * max_pages + row / page_size);
    if (page < 0 || page >= pages) return;
#else
    if (row < 0 || row >= page_size) return;
    const int page = sequence;
#endif
    const size_t to = ((static_cast<size_t>(page) * heads + head) * page_size + row % page_size) * HEAD_DIM + piece;

#if HAS_K_SCALE
    const Writer keys(__ldg(k_scale + head * SCALE_STRIDE)), values(__ldg(v_scale + head * SCALE_STRIDE));
#else
    const Writer keys, values;
#endif
    float first[LANES], second[LANES];
    widen(k_first, first);
    widen(k_second, second);
    rotate(first, second, cos_at, sin_at);
    keys.store(k_updated + to, first);
    keys.store(k_updated + to + kHalf, second);
    widen(v_first, first);
    widen(v_second, second);
    values.store(v_updated + to, first);
    values.store(v_updated + to + kHalf, second);
}
