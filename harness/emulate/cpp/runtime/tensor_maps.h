// Tensor maps that a kernel builds in shared memory, field by field, and copies to device memory: the same struct that
// the host writes (copies.h), and a note of the fields that have a value. Incomplete maps, and values that the copy
// engine does not take, are faults (CUDA driver API, cuTensorMapEncodeTiled; PTX ISA, tensormap.replace).
#pragma once

#include "copies.h"

namespace emulate {

constexpr std::uint32_t MAP_BYTES = 128;

// The element sizes of the codes of .elemtype: u8 u16 u32 s32 u64 s64 f16 f32 f32.ftz f64 bf16.
constexpr std::array<std::int16_t, 11> MAP_ELEMENT_BYTES = {1, 2, 4, 4, 8, 8, 2, 4, 4, 8, 2};
constexpr std::array<std::int16_t, 4> MAP_SWIZZLE_BYTES = {0, 32, 64, 128};

inline std::uint64_t field_bit(MapField field, int dimension) {
    const int number = static_cast<int>(field), first = static_cast<int>(MapField::global_dim);
    return 1ull << (number < first ? number : first + 5 * (number - first) + dimension);
}

inline void require_map(bool holds, const char* what, std::uint64_t value, Location where) {
    if (!holds) {
        fail("tensor map", "%s, %llu was given%s", what, static_cast<unsigned long long>(value), at(where).c_str());
    }
}

void map_replace(std::uint32_t address, MapField field, int dimension, std::uint64_t value, Location where) {
    const RuntimeContext context;
    auto* const place = shared_at(*state.current->cta, address, MAP_BYTES, MAP_BYTES, "tensormap.replace", where);
    Map map;
    std::memcpy(&map, place, sizeof(map));
    switch (field) {
        case MapField::global_address:
            require_map(value % 16 == 0, "the global address is a multiple of 16", value, where);
            map.base = reinterpret_cast<unsigned char*>(value);
            break;
        case MapField::rank:
            require_map(value < 5, "the rank minus one is within 0..4", value, where);
            map.rank = static_cast<std::int16_t>(value + 1);
            break;
        case MapField::elemtype:
            require_map(value < MAP_ELEMENT_BYTES.size(), "the element type is within 0..10", value, where);
            map.element_bytes = MAP_ELEMENT_BYTES[value];
            break;
        case MapField::interleave_layout:
            require_map(value == 0, "only maps without interleaving are emulated", value, where);
            break;
        case MapField::swizzle_mode:
            require_map(value < MAP_SWIZZLE_BYTES.size(), "the swizzle mode is within 0..3", value, where);
            map.swizzle = MAP_SWIZZLE_BYTES[value];
            break;
        case MapField::fill_mode:
            require_map(value == 0, "only maps that fill with zeros are emulated", value, where);
            break;
        case MapField::global_dim:
            require_map(value != 0 && value <= 0xffffffffull, "an extent is within 1..2^32", value, where);
            map.shape[dimension] = static_cast<std::int64_t>(value);
            break;
        case MapField::global_stride:  // in bytes until the map is published; of dimension + 1
            require_map(value % 16 == 0 && value >> 40 == 0, "a stride is a multiple of 16 below 2^40", value, where);
            map.strides[dimension + 1] = static_cast<std::int64_t>(value);
            break;
        case MapField::box_dim:
            require_map(value >= 1 && value <= 256, "an extent of the box is within 1..256", value, where);
            map.box[dimension] = static_cast<std::int32_t>(value);
            break;
        case MapField::element_stride:
            require_map(value == 1, "only element strides of one are emulated", value, where);
            break;
    }
    map.given |= field_bit(field, dimension);
    std::memcpy(place, &map, sizeof(map));
}

inline void require_every_field(const Map& map, Location where) {
    for (int field = 0; field <= static_cast<int>(MapField::element_stride); ++field) {
        const auto one = static_cast<MapField>(field);
        const int dimensions = one < MapField::global_dim ? 1 : map.rank - (one == MapField::global_stride);
        for (int i = 0; i < dimensions; ++i) {
            if ((map.given & field_bit(one, i)) == 0) {
                fail("tensor map", "field %d of dimension %d was not replaced before the copy%s", field, i,
                     at(where).c_str());
            }
        }
    }
}

void map_publish(void* to, std::uint32_t address, Location where) {
    const RuntimeContext context;
    Map map;
    std::memcpy(&map, shared_at(*state.current->cta, address, MAP_BYTES, MAP_BYTES, "tensormap.cp_fenceproxy", where),
                sizeof(map));
    if (reinterpret_cast<std::uintptr_t>(to) % MAP_BYTES != 0) {
        fail("misaligned", "tensormap.cp_fenceproxy to an address that is not a multiple of 128%s", at(where).c_str());
    }
    require_every_field(map, where);
    map.strides[0] = 1;
    for (int i = 1; i < map.rank; ++i) map.strides[i] /= map.element_bytes;
    map.magic = MAP_MAGIC;
    std::memcpy(to, &map, sizeof(map));
}

}  // namespace emulate
