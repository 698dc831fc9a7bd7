// RMS normalization, after the addition of a residual if there is one, and quantization with one scale per row.
//
//   x [M, N] (+ residual [M, N]) --one read--> s, rounded to x_t ---------------------------> sum [M, N] (RESIDUAL)
//                                               |
//                                             s * w, held in registers as float32
//                                               |
//                         sum of s^2 and largest |s * w| --one barrier--> rstd = 1 / sqrt(mean(s^2) + EPS)
//                                               |                         scale = largest * rstd / qmax ---> scale [M]
//                                               v
//                                s * w * (rstd / scale) --> codes ---------------------------------------> y [M, N]
//
// rstd is the same for the whole row, so the largest |s * rstd * w| is rstd times the largest |s * w|: both
// reductions cross one barrier together. Geometry, rows in flight and constants: row.cuh; also EPS, RESIDUAL.
#define ROW_INPUTS (1 + RESIDUAL)
#include "fused_quantize/row.cuh"

using namespace forge;

// What is normalized: x, or x + residual rounded to the type of both.
__device__ __forceinline__ Lanes summed(const Lanes& x, [[maybe_unused]] const Lanes& residual) {
#if RESIDUAL
    Lanes s;
#pragma unroll
    for (int e = 0; e < kLanes; ++e) s.at[e] = from_float<x_t>(to_float(x.at[e]) + to_float(residual.at[e]));
    return s;
#else
    return x;
#endif
}

// Adds s^2 to `squares`, gives s * w and its largest magnitude.
__device__ __forceinline__ void measure(const Lanes& s, const Lanes& gain, float (&product)[kLanes], float& squares,
                                        [[maybe_unused]] unsigned& largest) {
#pragma unroll
    for (int e = 0; e < kLanes; ++e) {
        const float value = to_float(s.at[e]);
        squares = fmaf(value, value, squares);
        product[e] = __fmul_rn(value, to_float(gain.at[e]));
#if !HAS_STATIC_SCALE
        largest = max(largest, finite_order(product[e]));
#endif
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT)
rms_norm_quantize(const x_t* __restrict__ x,
#if RESIDUAL
                  const x_t* __restrict__ residual,
#endif
                  const x_t* __restrict__ weight,
#if HAS_STATIC_SCALE
                  const float* __restrict__ static_scale,
#endif
                  int M, int N, y_t* __restrict__ y, float* __restrict__ scale
#if RESIDUAL
                  , x_t* __restrict__ sum
#endif
) {
    __shared__ Reduction::Slots slots;
    Reduction reduction(slots);
    const Place place(M, N);
#if RESIDUAL
    Rows rows(place, x, residual);
#else
    Rows rows(place, x, x);
#endif
    const Gain gain(place, weight);
    const float share = 1.0f / static_cast<float>(N);
    reduction.start();

    for (int row = place.first_row(); place.more(row); row += place.row_step()) {
        rows.take(row);
        float product[ITEMS][kLanes];
        float squares = 0.0f;
        unsigned largest = 0u;
#pragma unroll
        for (int i = 0; i < ITEMS; ++i) {
            const Lanes s = summed(rows.at(0, i), rows.at(ROW_INPUTS - 1, i));
#if RESIDUAL
            if (place.inside(row, place.vector(i))) store_vector(sum + place.origin(row) + i * kPitch, s);
#endif
            measure(s, gain.at(i), product[i], squares, largest);
        }
        rows.release();
#if OVERFLOW
        float more[kLanes];
        for (int v = place.overflow(); v < place.vectors; v += kStride) {
            const Lanes s = summed(rows.again(0, row, v), rows.again(ROW_INPUTS - 1, row, v));
#if RESIDUAL
            if (place.inside(row, v)) store_vector(sum + place.index(row, v), s);
#endif
            measure(s, gain.read(v), more, squares, largest);
        }
#endif
#if HAS_STATIC_SCALE
        squares = reduction.sum(squares);
        const RowCodes codes(*static_scale, rsqrtf(fmaf(squares, share, EPS)));
#else
        reduction.sum_and_max(squares, largest);
        const RowCodes codes(largest, rsqrtf(fmaf(squares, share, EPS)));
#endif
        if (place.lane == 0 && row < M) scale[row] = codes.scale();

        y_t* const to = y + place.origin(row);
#pragma unroll
        for (int i = 0; i < ITEMS; ++i) {
            if (place.inside(row, place.vector(i))) codes.store(to + i * kPitch, product[i]);
        }
#if OVERFLOW
        for (int v = place.overflow(); v < place.vectors && row < M; v += kStride) {
            const Lanes s = summed(rows.again(0, row, v), rows.again(ROW_INPUTS - 1, row, v));
            measure(s, gain.read(v), more, squares, largest);
            codes.store(y + place.index(row, v), more);
        }
#endif
        if constexpr (STAGES == 0) break;  // as many CTAs as there are rows for
    }
}
