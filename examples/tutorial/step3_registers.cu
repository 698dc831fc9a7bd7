// Step 3: the row stays in registers. It is read once; what the passes after the first need is already there.
//
//   x, residual --one read--> s[ITEMS] in registers (ITEMS vectors of 8 per thread) --> sum
//                                |--> squares --tree--> rstd
//                                |--> largest --tree--> scale
//                                +--> codes
//
// ITEMS is known when the kernel is compiled: an array that is indexed by a loop variable lives in registers only if
// the loop is unrolled. All loads of a thread are now issued before the first is needed.
#include "common/quantize.cuh"
#include "common/vector_io.cuh"
#include "tree.cuh"

using namespace forge;

constexpr int LANES = 8;
using Chunk = Vector<x_t, LANES>;

extern "C" __global__ void __launch_bounds__(THREADS, 4)
step3_registers(const x_t* x, const x_t* residual, const x_t* weight, int M, int N, y_t* y, float* scale, x_t* sum) {
    const size_t row = static_cast<size_t>(blockIdx.x) * N;

    // the one read
    Chunk s[ITEMS];
    float squares = 0.0f;
#pragma unroll
    for (int i = 0; i < ITEMS; ++i) {
        const int column = (threadIdx.x + i * THREADS) * LANES;
        if (column >= N) continue;
        const Chunk a = load_vector<LANES>(x + row + column);
        const Chunk b = load_vector<LANES>(residual + row + column);
        for (int e = 0; e < LANES; ++e) {
            s[i].at[e] = from_float<x_t>(to_float(a.at[e]) + to_float(b.at[e]));
            squares += to_float(s[i].at[e]) * to_float(s[i].at[e]);
        }
        store_vector(sum + row + column, s[i]);
    }
    const float rstd = rsqrtf(__fdividef(tree_sum(squares), N) + EPS);

    // from registers
    float value[ITEMS][LANES];
    unsigned largest = 0;
#pragma unroll
    for (int i = 0; i < ITEMS; ++i) {
        const int column = (threadIdx.x + i * THREADS) * LANES;
        if (column >= N) continue;
        const Chunk gain = load_vector<LANES>(weight + column);
        for (int e = 0; e < LANES; ++e) {
            value[i][e] = to_float(s[i].at[e]) * rstd * to_float(gain.at[e]);
            largest = max(largest, finite_magnitude(value[i][e]));
        }
    }
    const float row_scale = scale_of<y_t>(tree_max(largest));
    if (threadIdx.x == 0) scale[blockIdx.x] = row_scale;

    // from registers again
#pragma unroll
    for (int i = 0; i < ITEMS; ++i) {
        const int column = (threadIdx.x + i * THREADS) * LANES;
        if (column >= N) continue;
        Vector<unsigned char, LANES> codes;
        for (int e = 0; e < LANES; ++e) {
            codes.at[e] = static_cast<unsigned char>(encode<y_t>(__fdividef(value[i][e], row_scale)));
        }
        store_vector(reinterpret_cast<unsigned char*>(y) + row + column, codes);
    }
}
