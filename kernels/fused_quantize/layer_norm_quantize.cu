// Layer normalization and quantization with one scale per row.
//
//   x [M, N] --one read--> float32 in registers --sum--> mean --sum of (x - mean)^2--> rstd = 1 / sqrt(variance + EPS)
//                                   |
//                                   v
//              (x - mean) * rstd * weight + bias --largest--> scale = largest / qmax ----> scale [M]
//                              |                                    |
//                              +------------- value / scale --------+--> codes ----------> y [M, N]
//
// The deviations are taken from registers, not from sums of squares, so nothing cancels where the mean is large.
// Geometry, rows in flight and constants: row.cuh; also EPS, HAS_BIAS.
#define ROW_INPUTS 1
#include "fused_quantize/row.cuh"

using namespace forge;

__device__ __forceinline__ void widen(const Lanes& x, float (&value)[kLanes]) {
#pragma unroll
    for (int e = 0; e < kLanes; ++e) value[e] = to_float(x.at[e]);
}

__device__ __forceinline__ float added(const float (&value)[kLanes]) {
    float total = 0.0f;
#pragma unroll
    for (int e = 0; e < kLanes; ++e) total += value[e];
    return total;
}

// Takes the mean away; gives the sum of squares of what is left.
__device__ __forceinline__ float center(float (&value)[kLanes], float mean) {
    float total = 0.0f;
#pragma unroll
    for (int e = 0; e < kLanes; ++e) {
        value[e] = __fsub_rn(value[e], mean);
        total = fmaf(value[e], value[e], total);
    }
    return total;
}

__device__ __forceinline__ void stretch(float (&centered)[kLanes], const Lanes& gain, const Lanes& shift, float rstd) {
#pragma unroll
    for (int e = 0; e < kLanes; ++e) {
        const float unit = __fmul_rn(centered[e], rstd);
#if HAS_BIAS
        centered[e] = __fmaf_rn(unit, to_float(gain.at[e]), to_float(shift.at[e]));
#else
        centered[e] = __fmul_rn(unit, to_float(gain.at[e]));
#endif
    }
}

__device__ __forceinline__ unsigned largest_of(const float (&value)[kLanes], unsigned largest) {
#pragma unroll
    for (int e = 0; e < kLanes; ++e) largest = max(largest, finite_order(value[e]));
    return largest;
}

extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT)
layer_norm_quantize(const x_t* __restrict__ x, const x_t* __restrict__ weight,
#if HAS_BIAS
                    const x_t* __restrict__ bias,
#endif
#if HAS_STATIC_SCALE
                    const float* __restrict__ static_scale,
#endif
                    int M, int N, y_t* __restrict__ y, float* __restrict__ scale) {
    __shared__ Reduction::Slots slots;
    Reduction reduction(slots);
    const Place place(M, N);
    Rows rows(place, x, x);
    const Gain gain(place, weight);
#if HAS_BIAS
    const Gain shift(place, bias);
#else
    const Gain& shift = gain;
#endif
    const float share = 1.0f / static_cast<float>(N);
    reduction.start();

    for (int row = place.first_row(); place.more(row); row += place.row_step()) {
        rows.take(row);
        float value[ITEMS][kLanes];
        float total = 0.0f;
#pragma unroll
        for (int i = 0; i < ITEMS; ++i) {
            widen(rows.at(0, i), value[i]);
            total += added(value[i]);
        }
        rows.release();
#if OVERFLOW
        float more[kLanes];
        for (int v = place.overflow(); v < place.vectors; v += kStride) {
            widen(rows.again(0, row, v), more);
            total += added(more);
        }
#endif
        const float mean = reduction.sum(total) * share;

        float squares = 0.0f;
#pragma unroll
        for (int i = 0; i < ITEMS; ++i) {
            const float part = center(value[i], mean);
            squares += place.vector(i) < place.vectors ? part : 0.0f;
        }
#if OVERFLOW
        for (int v = place.overflow(); v < place.vectors; v += kStride) {
            widen(rows.again(0, row, v), more);
            squares += center(more, mean);
        }
#endif
        const float rstd = rsqrtf(fmaf(reduction.sum(squares), share, EPS));

        unsigned largest = 0u;
#pragma unroll
        for (int i = 0; i < ITEMS; ++i) {
            stretch(value[i], gain.at(i), shift.at(i), rstd);
            if (place.vector(i) < place.vectors) largest = largest_of(value[i], largest);
        }
#if OVERFLOW
        for (int v = place.overflow(); v < place.vectors; v += kStride) {
            widen(rows.again(0, row, v), more);
            center(more, mean);
            stretch(more, gain.read(v), shift.read(v), rstd);
            largest = largest_of(more, largest);
        }
#endif
#if HAS_STATIC_SCALE
        const RowCodes codes(*static_scale, 1.0f);
#else
        const RowCodes codes(reduction.max(largest), 1.0f);
#endif
        if (place.lane == 0 && row < M) scale[row] = codes.scale();

        y_t* const to = y + place.origin(row);
#pragma unroll
        for (int i = 0; i < ITEMS; ++i) {
            if (place.inside(row, place.vector(i))) codes.store(to + i * kPitch, value[i]);
        }
#if OVERFLOW
        for (int v = place.overflow(); v < place.vectors && row < M; v += kStride) {
            widen(rows.again(0, row, v), more);
            center(more, mean);
            stretch(more, gain.read(v), shift.read(v), rstd);
            codes.store(y + place.index(row, v), more);
        }
#endif
        if constexpr (STAGES == 0) break;  // as many CTAs as there are rows for
    }
}
