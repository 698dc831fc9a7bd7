// Writing new rows into a KV cache in place: cache[b, h, positions[b] + t] = fresh[b, h, t].
//
//   fresh  [B, H, T, D]   rows of one head, contiguous: T * D elements
//                           │ ACCESS bytes per thread, neighbors side by side
//                           ▼
//   cache  [B, H, S, D]   ... | position | position + 1 | ... | position + T - 1 | ...      (same memory as updated)
//
// One block moves THREADS accesses of one head: blockIdx = (chunk of T * D, h, b). Rows outside of 0 .. S - 1 are
// dropped. Nothing is computed, so bytes are moved whatever the dtype is.
//
// Compile-time: THREADS, ACCESS (bytes of one access; divides the bytes of a row, and base pointers).

#include "common/vector_io.cuh"

extern "C" __global__ void __launch_bounds__(THREADS)
    kv_cache_update(const void*, const unsigned char* fresh, const int* positions, int rows, int capacity, int pieces,
                    unsigned char* updated) {
  const int at = blockIdx.x * THREADS + threadIdx.x;
  if (at >= rows * pieces) return;
  const int row = positions[blockIdx.z] + at / pieces;
  if (row < 0 || row >= capacity) return;
  const long long head = static_cast<long long>(blockIdx.z) * gridDim.y + blockIdx.y;
  const unsigned char* from = fresh + (head * rows * pieces + at) * ACCESS;
  unsigned char* to = updated + ((head * capacity + row) * pieces + at % pieces) * ACCESS;
  forge::store_vector(to, forge::load_vector<ACCESS>(from));
}
