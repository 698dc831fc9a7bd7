// silu(gate) * up and quantization with one scale per row.
//
//   gate [M, N] --+--one read--> gate / (1 + exp(-gate)) * up --held in registers as float32--+
//   up   [M, N] --+                                |                                         |
//                                             largest --one barrier--> scale = largest / qmax ----> scale [M]
//                                                                             |              |
//                                                                       value / scale <------+--> y [M, N]
//
// Geometry, rows in flight and constants: row.cuh (the exponentials are taken once; an overflowing row takes them
// twice).
#include "common/numeric.cuh"

using x_t = gate_t;
#define ROW_INPUTS 2
#include "fused_quantize/row.cuh"

using namespace forge;

// gate / (1 + exp(-gate)): exp2 and the reciprocal from the special function unit, each within 2 units in the last
// place. For gate < -88 the exponential is infinite and the result -0; -infinity gives NaN, as in PyTorch.
__device__ __forceinline__ float silu(float gate) {
    constexpr float kLog2E = 1.4426950408889634f;
    float power;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(-gate * kLog2E));
    return __fmul_rn(gate, rcp_approx_ftz_f32(1.0f + power));
}

__device__ __forceinline__ void gated(const Lanes& gate, const Lanes& up, float (&value)[kLanes], unsigned& largest) {
#pragma unroll
    for (int e = 0; e < kLanes; ++e) {
        value[e] = __fmul_rn(silu(to_float(gate.at[e])), to_float(up.at[e]));
        largest = max(largest, finite_order(value[e]));
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT)
silu_mul_quantize(const x_t* __restrict__ gate, const x_t* __restrict__ up,
#if HAS_STATIC_SCALE
                  const float* __restrict__ static_scale,
#endif
                  int M, int N, y_t* __restrict__ y, float* __restrict__ scale) {
    __shared__ Reduction::Slots slots;
    Reduction reduction(slots);
    const Place place(M, N);
    Rows rows(place, gate, up);
    reduction.start();

    for (int row = place.first_row(); place.more(row); row += place.row_step()) {
        rows.take(row);
        float value[ITEMS][kLanes];
        unsigned largest = 0u;
#pragma unroll
        for (int i = 0; i < ITEMS; ++i) gated(rows.at(0, i), rows.at(1, i), value[i], largest);
        rows.release();
#if OVERFLOW
        float more[kLanes];
        for (int v = place.overflow(); v < place.vectors; v += kStride) {
            gated(rows.again(0, row, v), rows.again(1, row, v), more, largest);
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
            gated(rows.again(0, row, v), rows.again(1, row, v), more, largest);
            codes.store(y + place.index(row, v), more);
        }
#endif
        if constexpr (STAGES == 0) break;  // as many CTAs as there are rows for
    }
}
