// A row on its way through a CTA, the same for every op of this family.
//
//   inputs [M, N]          ROW_THREADS threads per row, THREADS / ROW_THREADS rows per CTA (or CLUSTER CTAs per row)
//   +------------------+   thread t holds vectors t, t + kStride, ... (ITEMS of them) in registers
//   | row   (one read) | --STAGES = 0: straight to registers----------------------------+
//   +------------------+                                                                v
//            |                                                                   registers --> codes, scale
//            +--STAGES > 0: cp.async, STAGES rows ahead--> a ring that each thread      ^
//                           has for itself in shared memory (no barrier) ---------------+
//
// Compile-time: x_t, y_t; ROW_INPUTS (1 or 2 tensors of this shape); THREADS, ROW_THREADS, ITEMS, STAGES, CLUSTER;
// VECTOR (1: 16-byte accesses, which need N % 8 == 0 and aligned pointers; 0: element by element); OVERFLOW (1: what
// does not fit ITEMS is read again, from L2 as a rule). A vector beyond the row, or of a row beyond the last, is zero.
#pragma once

#include "common/cp_async.cuh"
#include "common/quantize.cuh"
#include "common/row_reduction.cuh"
#include "common/vector_io.cuh"

namespace forge {

constexpr int kLanes = VECTOR ? kVectorLanes<x_t> : 1;
constexpr int kRows = THREADS / ROW_THREADS;      // rows of a CTA (of a cluster: 1)
constexpr int kStride = ROW_THREADS * CLUSTER;    // vectors of a row that are read at once
constexpr int kPitch = kStride * kLanes;          // elements between two vectors of a thread
constexpr bool kKeepGain = STAGES > 0 && ITEMS <= 4;  // many rows, and few enough to stay in registers
static_assert(STAGES == 0 || VECTOR, "cp.async moves 16 bytes");

using Lanes = Vector<x_t, kLanes>;
using Reduction = RowReduction<ROW_THREADS, THREADS, CLUSTER>;

__device__ __forceinline__ Lanes load_lanes(const x_t* from) {
    if constexpr (VECTOR) return load_vector<kLanes>(from);
    return load_elements<kLanes>(from);
}

__device__ __forceinline__ Lanes zero_lanes() {
    Lanes zero;
#pragma unroll
    for (int e = 0; e < kLanes; ++e) zero.at[e] = from_float<x_t>(0.0f);
    return zero;
}

// Where a thread stands in the matrix.
struct Place {
    int rows, columns, vectors, lane;

    __device__ __forceinline__ Place(int rows, int columns) : rows(rows), columns(columns), vectors(columns / kLanes) {
        lane = threadIdx.x % ROW_THREADS + (CLUSTER > 1 ? static_cast<int>(cluster_rank()) * ROW_THREADS : 0);
    }
    __device__ __forceinline__ int first_row() const {
        return static_cast<int>(blockIdx.x) / CLUSTER * kRows + static_cast<int>(threadIdx.x) / ROW_THREADS;
    }
    __device__ __forceinline__ int row_step() const { return static_cast<int>(gridDim.x) / CLUSTER * kRows; }
    // All threads of a CTA take the same number of rows, those beyond the last included: barriers count on it.
    __device__ __forceinline__ bool more(int row) const {
        return row - static_cast<int>(threadIdx.x) / ROW_THREADS < rows;
    }
    __device__ __forceinline__ int vector(int item) const { return lane + item * kStride; }
    __device__ __forceinline__ bool inside(int row, int vector) const { return vector < vectors && row < rows; }
    // Where the thread's first vector of a row begins; held ones follow every kPitch elements, a constant, so that
    // one address serves all of them.
    __device__ __forceinline__ size_t origin(int row) const {
        return static_cast<size_t>(row) * columns + static_cast<size_t>(lane) * kLanes;
    }
    // Where any vector of a row begins.
    __device__ __forceinline__ size_t index(int row, int vector) const {
        return static_cast<size_t>(row) * columns + static_cast<size_t>(vector) * kLanes;
    }
    // Vectors past the held ones, with OVERFLOW: for (v = overflow(); v < vectors; v += kStride).
    __device__ __forceinline__ int overflow() const { return vector(ITEMS); }
};

// Gives a thread its part of one row after another: `take` for first_row, + row_step, ... in turn, then `at` for every
// input and item once, then `release`.
class Rows {
  public:
    __device__ __forceinline__ Rows(const Place& place, const x_t* first, const x_t* second)
        : place_(place), sources_{first, second}, ahead_(place.first_row()) {
#if STAGES > 0
#pragma unroll
        for (int s = 0; s < STAGES; ++s) release();
#endif
    }

    __device__ __forceinline__ void take([[maybe_unused]] int row) {
#if STAGES > 0
        cp_async_wait<STAGES - 1>();
#else
#pragma unroll
        for (int n = 0; n < ROW_INPUTS; ++n) {
            const x_t* const from = sources_[n] + place_.origin(row);
#pragma unroll
            for (int i = 0; i < ITEMS; ++i) {
                held_[n][i] = place_.inside(row, place_.vector(i)) ? load_lanes(from + i * kPitch) : zero_lanes();
            }
        }
#endif
    }

    __device__ __forceinline__ Lanes at(int input, int item) const {
#if STAGES > 0
        Lanes lanes;
        *reinterpret_cast<uint4*>(&lanes) = slots(input)[item * THREADS];
        return lanes;
#else
        return held_[input][item];
#endif
    }

    // Asks for the row that comes STAGES rows later, into the slots that were read.
    __device__ __forceinline__ void release() {
#if STAGES > 0
#pragma unroll
        for (int n = 0; n < ROW_INPUTS; ++n) {
            const x_t* const from = sources_[n] + place_.origin(ahead_);
            const uint32_t to = shared_address(slots(n));
#pragma unroll
            for (int i = 0; i < ITEMS; ++i) {
                const bool inside = place_.inside(ahead_, place_.vector(i));
                cp_async<16>(to + i * THREADS * 16, inside ? from + i * kPitch : sources_[n], inside ? 16 : 0);
            }
        }
        cp_async_commit();
        ahead_ += place_.row_step();
        stage_ = stage_ + 1 == STAGES ? 0 : stage_ + 1;
#endif
    }

    // One vector of an overflowing row.
    __device__ __forceinline__ Lanes again(int input, int row, int vector) const {
        return place_.inside(row, vector) ? load_lanes(sources_[input] + place_.index(row, vector)) : zero_lanes();
    }

  private:
    const Place& place_;
    const x_t* sources_[2];
    [[maybe_unused]] int ahead_;
#if STAGES > 0
    __device__ __forceinline__ uint4* slots(int input) const {
        extern __shared__ __align__(16) unsigned char ring[];
        return reinterpret_cast<uint4*>(ring) + (stage_ * ROW_INPUTS + input) * ITEMS * THREADS + threadIdx.x;
    }

    int stage_ = 0;
#else
    Lanes held_[ROW_INPUTS][ITEMS];
#endif
};

// A vector of columns that every row is multiplied by (or shifted by): held from row to row where there is room.
class Gain {
  public:
    __device__ __forceinline__ Gain(const Place& place, const x_t* values) : place_(place), values_(values) {
        if constexpr (kKeepGain) {
#pragma unroll
            for (int i = 0; i < ITEMS; ++i) kept_[i] = at_item(i);
        }
    }
    __device__ __forceinline__ Lanes at(int item) const {
        if constexpr (kKeepGain) return kept_[item];
        return at_item(item);
    }
    __device__ __forceinline__ Lanes read(int vector) const {
        return vector < place_.vectors ? load_lanes(values_ + static_cast<size_t>(vector) * kLanes) : zero_lanes();
    }

  private:
    __device__ __forceinline__ Lanes at_item(int item) const {
        const x_t* const from = values_ + place_.lane * kLanes;
        return place_.vector(item) < place_.vectors ? load_lanes(from + item * kPitch) : zero_lanes();
    }

    const Place& place_;
    const x_t* values_;
    Lanes kept_[kKeepGain ? ITEMS : 1];
};

// Turns the values of one row into codes. `value * rescale` is what is quantized.
//   dynamic  scale = max(largest * rescale / qmax, 2^-126); the code is round(value * (rescale / scale))
//   static   scale is given; the code is round(value * rescale / scale), an IEEE division
class RowCodes {
  public:
#if HAS_STATIC_SCALE
    __device__ __forceinline__ RowCodes(float given, float rescale) : divisor_(given), scale_(given), factor_(rescale) {}
#else
    __device__ __forceinline__ RowCodes(unsigned largest_order, float rescale) {
        const float absmax = __fmul_rn(magnitude_of_order(largest_order), rescale);
        scale_ = scale_of<y_t>(__float_as_uint(absmax) < kInfinityBits ? __float_as_uint(absmax) : 0u);
        const float inverse = rcp_approx_ftz_f32(scale_);
        factor_ = __fmul_rn(rescale, inverse);
        if (factor_ == __uint_as_float(kInfinityBits)) {  // a row of almost nothing: in two steps, 0 stays 0
            lift_ = 0x1p64f;
            factor_ = __fmul_rn(__fmul_rn(rescale, 0x1p-64f), inverse);
        }
    }
#endif
    __device__ __forceinline__ float scale() const { return scale_; }

    __device__ __forceinline__ void store(y_t* y, const float (&value)[kLanes]) const {
        float quotient[kLanes];
#pragma unroll
        for (int e = 0; e < kLanes; ++e) {
#if HAS_STATIC_SCALE
            quotient[e] = divisor_.divide(__fmul_rn(value[e], factor_));
#else
            quotient[e] = __fmul_rn(value[e], factor_);
#endif
        }
#if !HAS_STATIC_SCALE
        if (lift_ != 1.0f) {
#pragma unroll
            for (int e = 0; e < kLanes; ++e) quotient[e] = __fmul_rn(__fmul_rn(value[e], lift_), factor_);
        }
#endif
        unsigned char* const to = reinterpret_cast<unsigned char*>(y);
        if constexpr (kLanes == 8) {
            *reinterpret_cast<uint2*>(to) = make_uint2(encode4<y_t>(quotient[0], quotient[1], quotient[2], quotient[3]),
                                                       encode4<y_t>(quotient[4], quotient[5], quotient[6], quotient[7]));
        } else {
            *to = static_cast<unsigned char>(encode<y_t>(quotient[0]));
        }
    }

  private:
#if HAS_STATIC_SCALE
    Divisor divisor_;
#endif
    float scale_, factor_;
    [[maybe_unused]] float lift_ = 1.0f;
};

}  // namespace forge
