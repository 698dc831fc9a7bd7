// Step 1: what the formula says. One block per row, one element at a time, a loop over the row for each thing to know.
//
//   pass 1   x, residual --> sum [M, N], and the sum of its squares           2 + 2 bytes read, 2 written per element
//   pass 2   sum, weight --> the largest |sum * rstd * weight|                2 read (and 2 of weight, from cache)
//   pass 3   sum, weight --> codes                                            2 read (and 2), 1 written
//
// The second and third pass find the row in L2, or in L1. Threads next to each other read elements next to each other,
// so the accesses coalesce, but a warp's access moves only 64 bytes.
#include "common/quantize.cuh"
#include "tree.cuh"

using namespace forge;

extern "C" __global__ void __launch_bounds__(THREADS)
step1_naive(const x_t* x, const x_t* residual, const x_t* weight, int M, int N, y_t* y, float* scale, x_t* sum) {
    const size_t row = static_cast<size_t>(blockIdx.x) * N;

    // pass 1
    float squares = 0.0f;
    for (int column = threadIdx.x; column < N; column += THREADS) {
        const x_t s = from_float<x_t>(to_float(x[row + column]) + to_float(residual[row + column]));
        sum[row + column] = s;
        squares += to_float(s) * to_float(s);
    }
    const float rstd = rsqrtf(__fdividef(tree_sum(squares), N) + EPS);

    // pass 2
    unsigned largest = 0;
    for (int column = threadIdx.x; column < N; column += THREADS) {
        const float value = to_float(sum[row + column]) * rstd * to_float(weight[column]);
        largest = max(largest, finite_magnitude(value));
    }
    const float row_scale = scale_of<y_t>(tree_max(largest));
    if (threadIdx.x == 0) scale[blockIdx.x] = row_scale;

    // pass 3
    for (int column = threadIdx.x; column < N; column += THREADS) {
        const float value = to_float(sum[row + column]) * rstd * to_float(weight[column]);
        reinterpret_cast<unsigned char*>(y)[row + column] = encode<y_t>(__fdividef(value, row_scale));
    }
}
