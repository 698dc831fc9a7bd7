// x = float(code) * scale[group]: one rounding to float32, one to the output type. See sweep.cuh for who does what.
//
//   y --kLanes codes per thread--> registers --decode, * scale[group]--> x, 16 bytes per thread
//
// INT4: y holds two codes per byte, even index in the low nibble. SCALED = 0: there are no scales, x gets the codes.
#include "common/quantize.cuh"
#include "common/vector_io.cuh"
#include "quantize/sweep.cuh"

using namespace forge;

constexpr int kCodesPerByte = INT4 ? 2 : 1;
constexpr int kLanes = VECTOR ? kVectorLanes<x_t> : kCodesPerByte;
constexpr int kBytes = kLanes / kCodesPerByte;

__device__ __forceinline__ int integer_at(const Vector<unsigned char, kBytes>& codes, int i) {
    return decode_int4(static_cast<unsigned>(codes.at[i / 2]) >> (i % 2 * 4));
}

__device__ __forceinline__ Vector<x_t, kLanes> decode_lanes(const Vector<unsigned char, kBytes>& codes, float scale) {
    Vector<x_t, kLanes> x;
#pragma unroll
    for (int i = 0; i < kLanes; ++i) {
#if !SCALED
        x.at[i] = static_cast<x_t>(integer_at(codes, i));
#elif INT4
        x.at[i] = from_float<x_t>(__fmul_rn(static_cast<float>(integer_at(codes, i)), scale));
#else
        x.at[i] = from_float<x_t>(__fmul_rn(decode<y_t>(codes.at[i]), scale));
#endif
    }
    return x;
}

extern "C" __global__ void __launch_bounds__(THREADS)
dequantize(const y_t* __restrict__ y,
#if SCALED
           const float* __restrict__ scale,
#endif
           int rows, int columns, x_t* __restrict__ x) {
    const unsigned char* codes = reinterpret_cast<const unsigned char*>(y);
    const Sweep<kLanes> sweep(rows, columns);
    Vector<unsigned char, kBytes> held[ITEMS];
    float factor[ITEMS];
#pragma unroll
    for (int i = 0; i < ITEMS; ++i) {
        if (sweep.inside(i)) {
            held[i] = load_vector<kBytes>(codes + sweep.index(i) / kCodesPerByte);
#if SCALED
            factor[i] = __ldg(scale + sweep.group(i));
#else
            factor[i] = 1.0f;
#endif
        }
    }
#pragma unroll
    for (int i = 0; i < ITEMS; ++i) {
        if (!sweep.inside(i)) continue;
        const Vector<x_t, kLanes> values = decode_lanes(held[i], factor[i]);
        if constexpr (VECTOR) {
            store_vector(x + sweep.index(i), values);
        } else {
#pragma unroll
            for (int j = 0; j < kLanes; ++j) x[sweep.index(i) + j] = values.at[j];
        }
    }
}
