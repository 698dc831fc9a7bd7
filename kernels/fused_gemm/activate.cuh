// The activation that the op's attribute chose, as one function of a float32 value.
#pragma once

#include "common/epilogue/activation.cuh"

__device__ __forceinline__ float activate(float value) {
#if defined(ACTIVATION_NONE) && ACTIVATION == ACTIVATION_NONE
    return value;
#elif defined(ACTIVATION_RELU) && ACTIVATION == ACTIVATION_RELU
    return forge::relu(value);
#elif defined(ACTIVATION_GELU_ERF) && ACTIVATION == ACTIVATION_GELU_ERF
    return forge::gelu_erf(value);
#elif defined(ACTIVATION_GELU_TANH) && ACTIVATION == ACTIVATION_GELU_TANH
    return forge::gelu_tanh(value);
#elif defined(ACTIVATION_SILU) && ACTIVATION == ACTIVATION_SILU
    return forge::silu(value);
#else
#error "ACTIVATION is none of the op's choices"
#endif
}
