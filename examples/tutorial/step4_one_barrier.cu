// Step 4: one barrier for a row, and no divisions. Two facts about the formula, and what a warp can do without memory.
//
//   the largest |s * rstd * w| is rstd times the largest |s * w|: it need not wait for rstd
//   s * rstd * w / scale is (s * w) * (rstd / scale): one division per row
//
//   x, residual --one read--> s --> sum
//                             s * w in registers
//                             squares, largest |s * w| --shuffle, redux--> one pair per warp --one barrier--> all
//                             s * w * (rstd / scale) --> codes
//
// The reduction is the kit's (common/row_reduction.cuh); so is the order in which magnitudes are compared, which leaves
// infinities and NaN out without a branch (common/quantize.cuh).
#include "common/quantize.cuh"
#include "common/row_reduction.cuh"
#include "common/vector_io.cuh"

using namespace forge;

constexpr int LANES = 8;
using Chunk = Vector<x_t, LANES>;
using Reduction = RowReduction<THREADS, THREADS, 1>;

extern "C" __global__ void __launch_bounds__(THREADS, 4)
step4_one_barrier(const x_t* x, const x_t* residual, const x_t* weight, int M, int N, y_t* y, float* scale, x_t* sum) {
    __shared__ Reduction::Slots slots;
    Reduction reduction(slots);
    const size_t row = static_cast<size_t>(blockIdx.x) * N;

    // the one read
    float product[ITEMS][LANES];
    float squares = 0.0f;
    unsigned largest = 0;
#pragma unroll
    for (int i = 0; i < ITEMS; ++i) {
        const int column = (threadIdx.x + i * THREADS) * LANES;
        if (column >= N) continue;
        const Chunk a = load_vector<LANES>(x + row + column);
        const Chunk b = load_vector<LANES>(residual + row + column);
        const Chunk gain = load_vector<LANES>(weight + column);
        Chunk s;
        for (int e = 0; e < LANES; ++e) {
            s.at[e] = from_float<x_t>(to_float(a.at[e]) + to_float(b.at[e]));
            squares += to_float(s.at[e]) * to_float(s.at[e]);
            product[i][e] = to_float(s.at[e]) * to_float(gain.at[e]);
            largest = max(largest, finite_order(product[i][e]));
        }
        store_vector(sum + row + column, s);
    }

    // the one barrier
    reduction.sum_and_max(squares, largest);
    const float rstd = rsqrtf(__fdividef(squares, N) + EPS);
    const float row_scale = scale_of<y_t>(finite_magnitude(magnitude_of_order(largest) * rstd));
    const float inverse = 1.0f / row_scale;
    if (threadIdx.x == 0) scale[blockIdx.x] = row_scale;

    // from registers
#pragma unroll
    for (int i = 0; i < ITEMS; ++i) {
        const int column = (threadIdx.x + i * THREADS) * LANES;
        if (column >= N) continue;
        float q[LANES];
        for (int e = 0; e < LANES; ++e) q[e] = product[i][e] * rstd * inverse;
        *reinterpret_cast<uint2*>(y + row + column) =
            make_uint2(encode4<y_t>(q[0], q[1], q[2], q[3]), encode4<y_t>(q[4], q[5], q[6], q[7]));
    }
}
