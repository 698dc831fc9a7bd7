// What tensor cores add products of two elements in: int32 for int8, which is exact, float32 for all others.
#pragma once

#include "common/shared_address.cuh"

namespace forge {

template <class T>
struct accumulator {
    using type = float;
};
template <>
struct accumulator<int8_t> {
    using type = int32_t;
};

}  // namespace forge
