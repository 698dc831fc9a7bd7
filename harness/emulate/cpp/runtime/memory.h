// Shared memory: one arena per block, filled with the round's poison, with guard bytes between its parts.
//
//   0        1024                                                       MEMORY_BYTES
//   | never  | a few bytes | dynamic | guard | variable | guard | ... |
//   | valid  |
//            ^ the dynamic part starts at the declared alignment and at no larger one
//
// A shared address is the offset in the arena; addresses of other blocks of the cluster carry rank + 1 above bit 24.
#pragma once

#include "scheduler.h"

namespace emulate {

constexpr std::uint32_t MEMORY_BYTES = 512 << 10;
constexpr std::uint32_t FIRST_ADDRESS = 1024;
constexpr std::uint32_t GUARD_BYTES = 64;
constexpr unsigned char GUARD_PATTERN = 0xA5;
constexpr unsigned CTA_SHIFT = 24;
constexpr std::uint32_t OFFSET_MASK = (1u << CTA_SHIFT) - 1;

inline std::uint32_t dynamic_offset() { return FIRST_ADDRESS + state.grid.dynamic_alignment % FIRST_ADDRESS; }

inline void begin_variables() {
    state.grid.variables.clear();
    state.grid.variables_end = dynamic_offset() + state.grid.dynamic_bytes + GUARD_BYTES;
}

inline void open_part(Cta& cta, std::uint32_t offset, std::size_t bytes) {
    std::memset(cta.memory + offset, state.round.poison, bytes);
    unpoison(cta.memory + offset, bytes);
}

// The arenas of a cluster's blocks lie one after the other.
inline ReusedPages arena_pages;

inline void create_memory(Cta& cta, unsigned char* arenas) {
    cta.memory = arenas + static_cast<std::size_t>(cta.rank) * MEMORY_BYTES;
    std::memset(cta.memory, GUARD_PATTERN, state.grid.variables_end + GUARD_BYTES);
    poison(cta.memory, MEMORY_BYTES);
    open_part(cta, dynamic_offset(), state.grid.dynamic_bytes);
    for (const auto& [key, variable] : state.grid.variables) open_part(cta, variable.offset, variable.bytes);
}

// The part that an offset lies in: [begin, end), or an empty one.
inline std::pair<std::uint32_t, std::uint32_t> part_at(std::uint32_t offset) {
    const std::uint32_t begin = dynamic_offset();
    if (offset >= begin && offset < begin + state.grid.dynamic_bytes) return {begin, begin + state.grid.dynamic_bytes};
    for (const auto& [key, variable] : state.grid.variables) {
        const auto end = static_cast<std::uint32_t>(variable.offset + variable.bytes);
        if (offset >= variable.offset && offset < end) return {variable.offset, end};
    }
    return {0, 0};
}

inline Cta& cta_of(std::uint32_t address) {
    const unsigned rank = address >> CTA_SHIFT;
    if (rank == 0) return *state.current->cta;
    if (rank > state.ctas.size()) fail("shared memory", "address 0x%x belongs to no block of the cluster", address);
    return *state.ctas[rank - 1];
}

// Where `bytes` bytes at a shared address lie, after checking bounds and alignment.
inline unsigned char* shared_at(Cta& cta, std::uint32_t address, std::uint32_t bytes, unsigned alignment,
                                const char* what, Location where) {
    const std::uint32_t offset = address & OFFSET_MASK;
    const auto [begin, end] = part_at(offset);
    if (begin == end || bytes > end - offset) {
        fail("out of bounds", "%s touches %u bytes at shared address 0x%x, outside of the block's shared memory%s",
             what, bytes, address, at(where).c_str());
    }
    if (offset % alignment != 0) {
        fail("misaligned", "%s at shared address 0x%x, which is not a multiple of %u%s", what, address, alignment,
             at(where).c_str());
    }
    return cta.memory + offset;
}

inline void check_guards(const Cta& cta) {
    std::uint32_t at = 0;
    const auto check = [&](std::uint32_t end, const std::string& before) {
        for (; at < end; ++at) {
            if (cta.memory[at] != GUARD_PATTERN) {
                fail("out of bounds", "a thread of block %s wrote into shared memory %s", triple(cta.index).c_str(),
                     before.c_str());
            }
        }
    };
    std::map<std::uint32_t, std::pair<std::size_t, std::string>> parts;
    parts[dynamic_offset()] = {state.grid.dynamic_bytes, "the dynamic shared memory"};
    for (const auto& [key, variable] : state.grid.variables) parts[variable.offset] = {variable.bytes, variable.name};
    std::string previous = "before the block's own";
    unpoison(cta.memory, MEMORY_BYTES);
    for (const auto& [offset, part] : parts) {
        check(offset, previous);
        at = static_cast<std::uint32_t>(offset + part.first);
        previous = "past the end of " + part.second;
    }
    check(state.grid.variables_end + GUARD_BYTES, previous);
}

// ---- what kernels ask for -------------------------------------------------------------------------------------------

void* dynamic_shared() {
    if (state.current == nullptr) {
        fail("not emulated", "an extern __shared__ array outside of a function; declare it where it is used");
    }
    return state.current->cta->memory + dynamic_offset();
}

void* static_shared(const void* key, std::size_t bytes, std::size_t alignment, const char* name) {
    const RuntimeContext context;
    auto found = state.grid.variables.find(key);
    if (found == state.grid.variables.end()) {
        const auto unit = static_cast<std::uint32_t>(std::max<std::size_t>(alignment, 16));
        const std::uint32_t offset = (state.grid.variables_end + unit - 1) / unit * unit;
        const auto end = static_cast<std::uint32_t>(offset + bytes + GUARD_BYTES);
        if (end + GUARD_BYTES > MEMORY_BYTES) fail("shared memory", "static shared memory does not fit: %s", name);
        found = state.grid.variables.emplace(key, Variable{offset, bytes, name}).first;
        for (const auto& cta : state.ctas) {
            unpoison(cta->memory, MEMORY_BYTES);
            const std::uint32_t begin = state.grid.variables_end;
            std::memset(cta->memory + begin, GUARD_PATTERN, end + GUARD_BYTES - begin);
            poison(cta->memory, MEMORY_BYTES);
            unpoison(cta->memory + dynamic_offset(), state.grid.dynamic_bytes);
            for (const auto& [other, variable] : state.grid.variables) {
                if (other != key) unpoison(cta->memory + variable.offset, variable.bytes);
            }
            open_part(*cta, offset, bytes);
        }
        state.grid.variables_end = end;
    }
    return state.current->cta->memory + found->second.offset;
}

bool is_shared(const void* pointer) {
    const auto* p = static_cast<const unsigned char*>(pointer);
    return std::any_of(state.ctas.begin(), state.ctas.end(),
                       [p](const auto& cta) { return p >= cta->memory && p < cta->memory + MEMORY_BYTES; });
}

std::uint32_t shared_address(const void* pointer) {
    const auto* p = static_cast<const unsigned char*>(pointer);
    const unsigned char* memory = state.current->cta->memory;
    if (p < memory || p >= memory + MEMORY_BYTES) {
        fail("shared memory", "__cvta_generic_to_shared was given a pointer that is not to this block's shared memory");
    }
    return static_cast<std::uint32_t>(p - memory);
}

std::uint32_t map_to_cta(std::uint32_t address, std::uint32_t cta) {
    if (cta >= state.ctas.size()) {
        fail("shared memory", "mapa names block %u of a cluster of %zu", cta, state.ctas.size());
    }
    return (address & OFFSET_MASK) | (cta + 1) << CTA_SHIFT;
}

void load_shared(std::uint32_t address, void* to, unsigned bytes, Location where) {
    const unsigned char* from = shared_at(cta_of(address), address, bytes, bytes, "ld.shared", where);
    note_read(from, bytes);
    const RuntimeContext context;
    std::memcpy(to, from, bytes);
}

void store_shared(std::uint32_t address, const void* from, unsigned bytes, Location where) {
    unsigned char* to = shared_at(cta_of(address), address, bytes, bytes, "st.shared", where);
    note_write(to, bytes);
    const RuntimeContext context;
    std::memcpy(to, from, bytes);
}

}  // namespace emulate
