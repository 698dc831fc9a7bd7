// Asynchronous copies: cp.async of a thread, tensor copies (TMA) of the copy engine, and the mbarriers that they
// complete on.
#pragma once

#include "matrix.h"

namespace emulate {

// ---- cp.async -------------------------------------------------------------------------------------------------------
// ThreadSanitizer sees the write twice, when the copy is issued and when it is waited for: it may happen at any time
// between.

inline void carry_out(const Thread::Copy& copy, bool told) {
    unsigned char* to = shared_at(*state.current->cta, copy.to, copy.bytes, copy.bytes, "cp.async", copy.where);
    note_read(copy.from, copy.valid_bytes);
    if (told) note_write(to, copy.bytes);
    const RuntimeContext context;
    std::memset(to, 0, copy.bytes);
    std::memcpy(to, copy.from, copy.valid_bytes);
}

void copy_async(std::uint32_t to, const void* from, unsigned bytes, unsigned valid_bytes, Location where) {
    Thread& me = *state.current;
    if (valid_bytes > bytes) fail("cp.async", "%u of %u bytes are valid%s", valid_bytes, bytes, at(where).c_str());
    if (valid_bytes != 0 && reinterpret_cast<std::uintptr_t>(from) % bytes != 0) {
        fail("misaligned", "cp.async reads %u bytes from an address that is not a multiple of it%s", bytes,
             at(where).c_str());
    }
    const Thread::Copy copy{to, from, bytes, valid_bytes, me.copy_group, where};
    note_write(shared_at(*me.cta, to, bytes, bytes, "cp.async", where), bytes);
    if (state.round.timing == Timing::early) {
        carry_out(copy, false);
    }
    const RuntimeContext context;
    me.copies.push_back(copy);
}

void copy_async_commit() { ++state.current->copy_group; }

void copy_async_wait(unsigned pending) {
    Thread& me = *state.current;
    while (!me.copies.empty() && me.copies.front().group + pending < me.copy_group) {
        if (state.round.timing == Timing::late) carry_out(me.copies.front(), true);
        const RuntimeContext context;
        me.copies.pop_front();
    }
}

// ---- mbarrier -------------------------------------------------------------------------------------------------------

inline Mbarrier& mbarrier_at(std::uint32_t address, const char* what, Location where) {
    Cta& cta = cta_of(address);
    shared_at(cta, address, 8, 8, what, where);
    const auto found = cta.mbarriers.find(address & OFFSET_MASK);
    if (found == cta.mbarriers.end()) {
        fail("mbarrier", "%s at shared address 0x%x, where no mbarrier was initialized%s", what, address,
             at(where).c_str());
    }
    return found->second;
}

inline void settle(Mbarrier& barrier) {
    if (barrier.pending != 0 || barrier.bytes != 0) return;
    barrier.pending = barrier.count;
    ++barrier.phase;
    wake(barrier.waiting);
}

void mbarrier_init(std::uint32_t address, std::uint32_t arrivals, Location where) {
    const RuntimeContext context;
    Cta& cta = *state.current->cta;
    shared_at(cta, address, 8, 8, "mbarrier.init", where);
    if (arrivals == 0) fail("mbarrier", "mbarrier.init with no arrivals%s", at(where).c_str());
    Mbarrier& barrier = cta.mbarriers[address & OFFSET_MASK];
    barrier.count = barrier.pending = arrivals;
    barrier.bytes = 0;
    barrier.phase = 0;
}

void mbarrier_arrive(std::uint32_t address, std::uint32_t expected_bytes, Location where) {
    Mbarrier& barrier = mbarrier_at(address, "mbarrier.arrive", where);
    release(&barrier.order[barrier.phase % 2]);
    const RuntimeContext context;
    if (barrier.pending == 0) {
        fail("mbarrier", "more arrivals at shared address 0x%x than its %u%s", address, barrier.count,
             at(where).c_str());
    }
    barrier.bytes += expected_bytes;
    --barrier.pending;
    settle(barrier);
}

// Bytes that a store to another block (st.async) has brought.
void mbarrier_complete(std::uint32_t address, std::uint32_t bytes, Location where) {
    Mbarrier& barrier = mbarrier_at(address, "st.async", where);
    release(&barrier.order[barrier.phase % 2]);
    const RuntimeContext context;
    barrier.bytes -= bytes;
    settle(barrier);
}

// Returns true when the phase of that parity has completed; the thread waits for it here.
bool mbarrier_wait(std::uint32_t address, std::uint32_t parity, Location where) {
    Mbarrier& barrier = mbarrier_at(address, "mbarrier.try_wait", where);
    while (barrier.phase % 2 == parity % 2) {
        const RuntimeContext context;
        barrier.waiting.push_back(state.current);
        suspend("mbarrier.try_wait.parity at shared address", address, where);
    }
    acquire(&barrier.order[parity % 2]);
    return true;
}

// ---- tensor copies --------------------------------------------------------------------------------------------------

// What the host writes into the 128 bytes of a tensor map, instead of what cuTensorMapEncodeTiled would.
struct Map {
    unsigned char* base;
    std::int64_t shape[5], strides[5];  // in elements, innermost first
    std::int32_t box[5];
    std::int16_t rank, element_bytes, swizzle, magic;
    std::uint64_t given;  // of a map in the making: the fields that have a value (tensor_maps.h)
};
static_assert(sizeof(Map) <= 128);
constexpr std::int16_t MAP_MAGIC = 0x7f0e;

inline Map map_of(const void* map, int rank, Location where) {
    Map copy;
    std::memcpy(&copy, map, sizeof(copy));
    if (copy.magic != MAP_MAGIC) fail("tensor map", "an argument that is no tensor map%s", at(where).c_str());
    if (copy.rank != rank) {
        fail("tensor map", "a copy of %d coordinates with a map of %d dimensions%s", rank, copy.rank,
             at(where).c_str());
    }
    return copy;
}

// Calls visit(offset in the box's shared memory, global pointer or null) for every innermost run of 16 bytes or less.
template <class Visit>
void each_run(const Map& map, const std::array<int, 5>& origin, Visit visit) {
    const std::uint32_t row_bytes = static_cast<std::uint32_t>(map.box[0] * map.element_bytes);
    std::uint32_t rows = 1;
    for (int i = 1; i < map.rank; ++i) rows *= static_cast<std::uint32_t>(map.box[i]);
    for (std::uint32_t row = 0; row < rows; ++row) {
        bool inside = true;
        std::int64_t place = 0;
        std::uint32_t rest = row;
        for (int i = 1; i < map.rank; ++i) {
            const auto size = static_cast<std::uint32_t>(map.box[i]);
            const std::int64_t at = origin[i] + static_cast<std::int64_t>(rest % size);
            rest /= size;
            inside = inside && at >= 0 && at < map.shape[i];
            place += at * map.strides[i];
        }
        for (std::uint32_t byte = 0; byte < row_bytes; byte += static_cast<std::uint32_t>(map.element_bytes)) {
            const std::int64_t column = origin[0] + static_cast<std::int64_t>(byte) / map.element_bytes;
            const bool here = inside && column >= 0 && column < map.shape[0];
            std::uint32_t offset = row * row_bytes + byte;
            if (map.swizzle != 0) {  // 128, 64, 32 bytes: three, two, one bits of the 16-byte column
                offset ^= (offset >> 7 & (static_cast<std::uint32_t>(map.swizzle) / 16 - 1)) << 4;
            }
            visit(offset, here ? map.base + (place + column) * map.element_bytes : nullptr);
        }
    }
}

inline std::uint32_t box_bytes(const Map& map) {
    std::uint32_t bytes = static_cast<std::uint32_t>(map.element_bytes);
    for (int i = 0; i < map.rank; ++i) bytes *= static_cast<std::uint32_t>(map.box[i]);
    return bytes;
}

inline unsigned box_alignment(const Map& map) {
    return map.swizzle != 0 ? static_cast<unsigned>(map.swizzle) * 8 : 128;
}

inline void load_box(Cta& cta, std::uint32_t to, std::uint32_t barrier_at, const Map& map,
                     const std::array<int, 5>& origin, const ProxyContext& proxy, Location where) {
    const std::uint32_t bytes = box_bytes(map);
    unsigned char* box = shared_at(cta, to, bytes, box_alignment(map), "cp.async.bulk.tensor", where);
    const auto found = cta.mbarriers.find(barrier_at & OFFSET_MASK);
    if (found == cta.mbarriers.end()) {
        fail("mbarrier", "a tensor copy completes at 0x%x, where no mbarrier was initialized%s", barrier_at,
             at(where).c_str());
    }
    Mbarrier& barrier = found->second;
    proxy.run([&] {
        note_write(box, bytes);
        each_run(map, origin, [&](std::uint32_t, const unsigned char* from) {
            if (from != nullptr) note_read(from, static_cast<std::size_t>(map.element_bytes));
        });
        release(&barrier.order[barrier.phase % 2]);
    });
    each_run(map, origin, [&](std::uint32_t offset, const unsigned char* from) {
        if (from != nullptr) {
            std::memcpy(box + offset, from, static_cast<std::size_t>(map.element_bytes));
        } else {
            std::memset(box + offset, 0, static_cast<std::size_t>(map.element_bytes));
        }
    });
    barrier.bytes -= bytes;
    settle(barrier);
}

inline std::array<int, 5> origin_of(const int* coordinates, int rank) {
    std::array<int, 5> origin{};
    std::copy(coordinates, coordinates + rank, origin.begin());
    return origin;
}

void tensor_load(std::uint32_t to, const void* map_address, std::uint32_t barrier, const int* coordinates, int rank,
                 unsigned ctas, Location where) {
    const RuntimeContext context;
    const Map map = map_of(map_address, rank, where);
    const std::array<int, 5> origin = origin_of(coordinates, rank);
    Cta& mine = cta_of(to);
    for (const auto& cta : state.ctas) {
        if (ctas == 0 ? cta.get() != &mine : (ctas >> cta->rank & 1) == 0) continue;
        const ProxyContext proxy;  // one for each block that the box goes to
        const auto copy = [=, target = cta.get()] {
            load_box(*target, to & OFFSET_MASK, barrier, map, origin, proxy, where);
            proxy.end();
        };
        if (state.round.timing == Timing::early) {
            copy();
        } else {
            state.engine.push_back(copy);
        }
    }
}

void tensor_store(const void* map_address, std::uint32_t from, const int* coordinates, int rank, Location where) {
    const RuntimeContext context;
    const ProxyContext proxy;
    const Map map = map_of(map_address, rank, where);
    const std::array<int, 5> origin = origin_of(coordinates, rank);
    Cta* const cta = state.current->cta;
    state.current->open_stores.push_back([=] {
        unsigned char* box = shared_at(*cta, from, box_bytes(map), box_alignment(map), "cp.async.bulk.tensor", where);
        char* const order = &cta->warpgroups[state.current->number / WARPGROUP].order;
        proxy.run([&] {
            note_read(box, box_bytes(map));
            each_run(map, origin, [&](std::uint32_t, unsigned char* to) {
                if (to != nullptr) note_write(to, static_cast<std::size_t>(map.element_bytes));
            });
            release(order);
        });
        proxy.end();
        each_run(map, origin, [&](std::uint32_t offset, unsigned char* to) {
            if (to != nullptr) std::memcpy(to, box + offset, static_cast<std::size_t>(map.element_bytes));
        });
    });
}

void tensor_store_commit() {
    const RuntimeContext context;
    state.current->stores.push_back(std::move(state.current->open_stores));
    state.current->open_stores.clear();
}

void tensor_store_wait(unsigned pending) {
    {
        const RuntimeContext context;
        auto& stores = state.current->stores;
        while (stores.size() > pending) {
            for (const auto& store : stores.front()) store();
            stores.pop_front();
        }
    }
    char* order = [] {
        const RuntimeContext context;
        return &state.current->cta->warpgroups[state.current->number / WARPGROUP].order;
    }();
    acquire(order);
}

}  // namespace emulate
