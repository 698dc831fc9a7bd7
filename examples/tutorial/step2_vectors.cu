// Step 2: sixteen bytes at a time. The same three passes, eight elements per access.
//
//   thread t of the block reads elements 8t .. 8t+7, then 8(t + THREADS) .. : a warp's access moves 512 bytes
//
// One eighth of the load and store instructions for x, residual, weight and sum; the codes leave eight at a time.
#include "common/quantize.cuh"
#include "common/vector_io.cuh"
#include "tree.cuh"

using namespace forge;

constexpr int LANES = 8;
using Chunk = Vector<x_t, LANES>;

extern "C" __global__ void __launch_bounds__(THREADS)
step2_vectors(const x_t* x, const x_t* residual, const x_t* weight, int M, int N, y_t* y, float* scale, x_t* sum) {
    const size_t row = static_cast<size_t>(blockIdx.x) * N;

    // pass 1
    float squares = 0.0f;
    for (int column = threadIdx.x * LANES; column < N; column += THREADS * LANES) {
        const Chunk a = load_vector<LANES>(x + row + column);
        const Chunk b = load_vector<LANES>(residual + row + column);
        Chunk s;
        for (int e = 0; e < LANES; ++e) {
            s.at[e] = from_float<x_t>(to_float(a.at[e]) + to_float(b.at[e]));
            squares += to_float(s.at[e]) * to_float(s.at[e]);
        }
        store_vector(sum + row + column, s);
    }
    const float rstd = rsqrtf(__fdividef(tree_sum(squares), N) + EPS);

    // pass 2
    unsigned largest = 0;
    for (int column = threadIdx.x * LANES; column < N; column += THREADS * LANES) {
        const Chunk s = *reinterpret_cast<const Chunk*>(sum + row + column);
        const Chunk gain = load_vector<LANES>(weight + column);
        for (int e = 0; e < LANES; ++e) {
            largest = max(largest, finite_magnitude(to_float(s.at[e]) * rstd * to_float(gain.at[e])));
        }
    }
    const float row_scale = scale_of<y_t>(tree_max(largest));
    if (threadIdx.x == 0) scale[blockIdx.x] = row_scale;

    // pass 3
    for (int column = threadIdx.x * LANES; column < N; column += THREADS * LANES) {
        const Chunk s = *reinterpret_cast<const Chunk*>(sum + row + column);
        const Chunk gain = load_vector<LANES>(weight + column);
        Vector<unsigned char, LANES> codes;
        for (int e = 0; e < LANES; ++e) {
            const float value = to_float(s.at[e]) * rstd * to_float(gain.at[e]);
            codes.at[e] = static_cast<unsigned char>(encode<y_t>(__fdividef(value, row_scale)));
        }
        store_vector(reinterpret_cast<unsigned char*>(y) + row + column, codes);
    }
}
