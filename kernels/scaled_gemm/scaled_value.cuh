// An element of a scaled product: activate(sum * x_scale[row] * w_scale[column] + bias[column]), in float32.
#pragma once

#include "fused_gemm/activate.cuh"

// `bias` is one number, or absent.
template <class Sum, class... Bias>
__device__ __forceinline__ float scaled_value(Sum sum, float row_scale, float column_scale, Bias... bias) {
    return activate(((static_cast<float>(sum) * row_scale * column_scale) + ... + bias));
}
