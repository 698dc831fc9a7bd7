// RMS normalization: y = x / sqrt(mean(x^2) + EPS) * weight, one block per row.
//
//   global x row ──(one read)──▶ registers (VECTORS × ELEMENTS per thread, as x_t)
//                                   │ sum of squares in float32
//                                   ▼
//                    warp shuffle ─▶ shared[warp] ─▶ block total ─▶ rsqrt
//                                   │
//   global y row ◀──(one write)── x · rstd · weight, rounded once
//
// Compile-time: x_t, EPS, THREADS, VECTORS (chunks per thread), WIDE (1: 16-byte accesses, needs N % 8 == 0 and
// 16-byte aligned pointers; 0: element accesses).

#include "common/numeric.cuh"

constexpr int WARP_SIZE = 32;
constexpr int WARPS = THREADS / WARP_SIZE;
constexpr int ELEMENTS = 8;  // of 2 bytes: one 16-byte access

struct alignas(16) Chunk {
  x_t value[ELEMENTS];
};

__device__ __forceinline__ int column_of(int vector, int element) {
#if WIDE
  return (vector * THREADS + threadIdx.x) * ELEMENTS + element;
#else
  return (vector * ELEMENTS + element) * THREADS + threadIdx.x;
#endif
}

__device__ __forceinline__ Chunk load_chunk(const x_t* row, int vector, int N) {
  Chunk chunk;
#if WIDE
  const int column = column_of(vector, 0);
  if (column < N) {
    *reinterpret_cast<uint4*>(&chunk) = *reinterpret_cast<const uint4*>(row + column);
  } else {
    *reinterpret_cast<uint4*>(&chunk) = make_uint4(0, 0, 0, 0);
  }
#else
#pragma unroll
  for (int e = 0; e < ELEMENTS; ++e) {
    const int column = column_of(vector, e);
    chunk.value[e] = column < N ? row[column] : x_t(0.0f);
  }
#endif
  return chunk;
}

__device__ __forceinline__ void store_chunk(x_t* row, int vector, int N, const Chunk& chunk) {
#if WIDE
  const int column = column_of(vector, 0);
  if (column < N) *reinterpret_cast<uint4*>(row + column) = *reinterpret_cast<const uint4*>(&chunk);
#else
#pragma unroll
  for (int e = 0; e < ELEMENTS; ++e) {
    const int column = column_of(vector, e);
    if (column < N) row[column] = chunk.value[e];
  }
#endif
}

__device__ __forceinline__ float block_sum(float value) {
  __shared__ float partial[WARPS];
#pragma unroll
  for (int offset = WARP_SIZE / 2; offset > 0; offset /= 2) value += __shfl_xor_sync(0xffffffffu, value, offset);
  if (threadIdx.x % WARP_SIZE == 0) partial[threadIdx.x / WARP_SIZE] = value;
  __syncthreads();
  float total = 0.0f;
#pragma unroll
  for (int w = 0; w < WARPS; ++w) total += partial[w];
  return total;
}

extern "C" __global__ void __launch_bounds__(THREADS)
    rms_norm(const x_t* __restrict__ x, const x_t* __restrict__ weight, int M, int N, x_t* __restrict__ y) {
  const long long start = static_cast<long long>(blockIdx.x) * N;

  Chunk row[VECTORS];
  float squares = 0.0f;
#pragma unroll
  for (int v = 0; v < VECTORS; ++v) {
    row[v] = load_chunk(x + start, v, N);
#pragma unroll
    for (int e = 0; e < ELEMENTS; ++e) {
      const float value = forge::to_float(row[v].value[e]);
      squares = fmaf(value, value, squares);
    }
  }
  const float rstd = rsqrtf(block_sum(squares) / N + EPS);

#pragma unroll
  for (int v = 0; v < VECTORS; ++v) {
    const Chunk gain = load_chunk(weight, v, N);
#pragma unroll
    for (int e = 0; e < ELEMENTS; ++e) {
      row[v].value[e] = forge::from_float<x_t>(forge::to_float(row[v].value[e]) * rstd * forge::to_float(gain.value[e]));
    }
    store_chunk(y + start, v, N, row[v]);
  }
}
