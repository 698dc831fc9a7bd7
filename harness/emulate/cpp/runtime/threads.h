// Barriers and the instructions that a warp carries out together.
#pragma once

#include "memory.h"

namespace emulate {

// ---- barriers -------------------------------------------------------------------------------------------------------

inline void complete(Barrier& barrier) {
    barrier.result_sum = barrier.sum;
    barrier.result_all = barrier.all;
    barrier.result_any = barrier.any;
    barrier.sum = 0;
    barrier.all = true;
    barrier.any = false;
    barrier.arrived = barrier.expected = 0;
    ++barrier.order.phase;
    wake(barrier.waiting);
}

// The barrier that `find()` names. What the thread did before is released to the phase that it arrives at.
template <class Find>
Barrier& find_barrier(Find find) {
    Barrier* barrier = nullptr;
    {
        const RuntimeContext context;
        barrier = &find();
    }
    release(barrier->order.now());
    return *barrier;
}

inline void arrive(Barrier& barrier, unsigned expected, bool wait, const char* name, int id, Location where) {
    void* const order = barrier.order.now();
    {
        const RuntimeContext context;
        if (barrier.arrived != 0 && barrier.expected != expected) {
            fail("barrier", "%s %d is used with %u and with %u threads at once%s", name, id, barrier.expected, expected,
                 at(where).c_str());
        }
        barrier.expected = expected;
        if (++barrier.arrived == expected) {
            complete(barrier);
        } else if (wait) {
            barrier.waiting.push_back(state.current);
            suspend(name, 0, where);
        }
    }
    if (wait) acquire(order);
}

int block_barrier(Vote vote, int predicate, Location where) {
    Cta& cta = *state.current->cta;
    Barrier& barrier = find_barrier([&]() -> Barrier& { return cta.barriers[0]; });
    if (barrier.arrived == 0) {
        barrier.where = where;
    } else if (barrier.where.line != where.line || std::strcmp(barrier.where.file, where.file) != 0) {
        const RuntimeContext context;
        fail("divergent barrier", "threads of one block wait at two __syncthreads at once: one%s, this one%s",
             at(barrier.where).c_str(), at(where).c_str());
    }
    barrier.sum += predicate != 0;
    barrier.all = barrier.all && predicate != 0;
    barrier.any = barrier.any || predicate != 0;
    arrive(barrier, static_cast<unsigned>(cta.threads.size()), true, "__syncthreads", 0, where);
    return vote == Vote::sum ? barrier.result_sum : vote == Vote::all ? barrier.result_all : barrier.result_any;
}

void named_barrier(int id, int threads, bool wait, Location where) {
    if (id < 0 || id > 15 || threads <= 0 || threads % static_cast<int>(WARP) != 0) {
        fail("barrier", "bar.sync %d, %d: barriers are 0 to 15, for a multiple of 32 threads%s", id, threads,
             at(where).c_str());
    }
    Barrier& barrier = find_barrier([&]() -> Barrier& { return state.current->cta->barriers[id]; });
    arrive(barrier, static_cast<unsigned>(threads), wait, "bar.sync", id, where);
}

void cluster_arrive(Location where) {
    Barrier& barrier = find_barrier([]() -> Barrier& { return state.cluster_barrier; });
    unsigned threads = 0;
    for (const auto& cta : state.ctas) threads += static_cast<unsigned>(cta->threads.size());
    state.current->cluster_phase = barrier.order.phase;
    state.current->at_cluster_barrier = true;
    arrive(barrier, threads, false, "barrier.cluster", 0, where);
}

// Waits for the phase that this thread arrived at; others may have arrived at the next one already.
void cluster_wait(Location where) {
    Thread& me = *state.current;
    Barrier& barrier = state.cluster_barrier;
    if (!me.at_cluster_barrier) {
        fail("barrier", "barrier.cluster.wait without an arrive before it%s", at(where).c_str());
    }
    me.at_cluster_barrier = false;
    if (barrier.order.phase == me.cluster_phase) {
        const RuntimeContext context;
        barrier.waiting.push_back(&me);
        suspend("barrier.cluster.wait", 0, where);
    }
    acquire(&barrier.order.place[me.cluster_phase % 2]);
}

unsigned cluster_rank() { return state.current->cta->rank; }
unsigned multiprocessor() { return state.current->cta->rank; }  // blocks that are there at a time are on different ones

// ---- together -------------------------------------------------------------------------------------------------------

inline unsigned existing_lanes(const Thread& thread) {
    const unsigned first = thread.number / WARP * WARP;
    const unsigned count = std::min<unsigned>(WARP, static_cast<unsigned>(thread.cta->threads.size()) - first);
    return count == WARP ? 0xffffffffu : (1u << count) - 1;
}

// Waits until every thread of `mask` (of the warp) or all `size` threads (of a warpgroup) have come with their
// argument; the last one runs carry_out(arguments), where arguments[i] is null for a lane that does not take part.
template <class CarryOut>
void together(const char* name, unsigned size, unsigned mask, void* argument, Location where, CarryOut carry_out) {
    const RuntimeContext context;
    Thread& me = *state.current;
    Cta& cta = *me.cta;
    const unsigned first = me.number / size * size;
    const unsigned lane = me.number - first;
    if (size == WARP) {
        mask &= existing_lanes(me);
        if ((mask >> lane & 1) == 0) {
            fail("warp", "%s: lane %u calls with a mask (0x%x) that does not name it%s", name, lane, mask,
                 at(where).c_str());
        }
    } else if (first + size > cta.threads.size()) {
        fail("warp", "%s needs %u threads together, the block ends before%s", name, size, at(where).c_str());
    }
    Collective* mine = nullptr;
    for (const auto& pending : cta.collectives) {
        const bool same_threads = pending->size == size && pending->first == first;
        if (!same_threads || (size == WARP && (pending->mask & mask) == 0)) continue;
        if (pending->mask != mask || std::strcmp(pending->name, name) != 0 || pending->where.line != where.line) {
            fail("divergent warp", "one thread is at %s%s with mask 0x%x while others are at %s%s with mask 0x%x", name,
                 at(where).c_str(), mask, pending->name, at(pending->where).c_str(), pending->mask);
        }
        mine = pending.get();
    }
    if (mine == nullptr) {
        cta.collectives.push_back(std::make_unique<Collective>());
        mine = cta.collectives.back().get();
        mine->name = name;
        mine->where = where;
        mine->first = first;
        mine->size = size;
        mine->mask = mask;
        mine->arguments.assign(size, nullptr);
    }
    mine->arguments[lane] = argument;
    ++mine->arrived;
    const unsigned needed = size == WARP ? static_cast<unsigned>(__builtin_popcount(mask)) : size;
    if (mine->arrived == needed) {
        const auto place = std::find_if(cta.collectives.begin(), cta.collectives.end(),
                                        [mine](const auto& pending) { return pending.get() == mine; });
        const std::unique_ptr<Collective> done = std::move(*place);
        cta.collectives.erase(place);
        carry_out(done->arguments);
        wake(done->waiting);
    } else {
        mine->waiting.push_back(&me);
        suspend(name, 0, where);
    }
}

unsigned lane_index() { return state.current->number % WARP; }

void warp_barrier(unsigned mask, Location where) {
    Phased& order = *[] {
        static std::map<std::pair<Cta*, unsigned>, Phased> orders;  // never shrinks: its places must stay
        const RuntimeContext context;
        return &orders[{state.current->cta, state.current->number / WARP}];
    }();
    void* const place = order.now();
    release(place);
    together("__syncwarp", WARP, mask, &order, where, [&](const std::vector<void*>&) { ++order.phase; });
    acquire(place);
}

struct LaneValue {
    std::uint64_t value, result;
    int operand;
};

std::uint64_t shuffle(Shuffle kind, unsigned mask, std::uint64_t value, int operand, int width, Location where) {
    if (width < 1 || width > static_cast<int>(WARP) || (width & (width - 1)) != 0) {
        fail("warp", "a shuffle's width is a power of two up to 32, not %d%s", width, at(where).c_str());
    }
    static const char* const names[] = {"__shfl_sync", "__shfl_up_sync", "__shfl_down_sync", "__shfl_xor_sync"};
    LaneValue mine{value, value, operand};
    const char* name = names[static_cast<int>(kind)];
    together(name, WARP, mask, &mine, where, [=](const std::vector<void*>& lanes) {
        for (int lane = 0; lane < static_cast<int>(WARP); ++lane) {
            auto* taker = static_cast<LaneValue*>(lanes[lane]);
            if (taker == nullptr) continue;
            const int segment = lane / width * width;
            int source = lane;
            switch (kind) {
                case Shuffle::index: source = segment + (taker->operand & (width - 1)); break;
                case Shuffle::up: source = lane - taker->operand >= segment ? lane - taker->operand : lane; break;
                case Shuffle::down:
                    source = lane + taker->operand < segment + width ? lane + taker->operand : lane;
                    break;
                case Shuffle::exclusive_or: {
                    const int other = lane ^ taker->operand;
                    source = other < segment + width ? other : lane;
                    break;
                }
            }
            auto* giver = static_cast<LaneValue*>(lanes[source]);
            if (giver == nullptr) {
                fail("warp", "%s: lane %d reads lane %d, which is not in the mask%s", name, lane, source,
                     at(where).c_str());
            }
            taker->result = giver->value;
        }
    });
    return mine.result;
}

// One result for all lanes, from the values of all lanes.
template <class Combine>
std::uint64_t combined(const char* name, unsigned mask, std::uint64_t value, Location where, Combine combine) {
    LaneValue mine{value, value, 0};
    together(name, WARP, mask, &mine, where, [&](const std::vector<void*>& lanes) {
        bool first = true;
        std::uint64_t result = 0;
        for (unsigned lane = 0; lane < WARP; ++lane) {
            if (lanes[lane] == nullptr) continue;
            const std::uint64_t next = static_cast<LaneValue*>(lanes[lane])->value;
            result = first ? next : combine(result, next);
            first = false;
        }
        for (void* lane : lanes) {
            if (lane != nullptr) static_cast<LaneValue*>(lane)->result = result;
        }
    });
    return mine.result;
}

unsigned reduce(Reduction kind, unsigned mask, unsigned value, Location where) {
    const auto combine = [kind](std::uint64_t a, std::uint64_t b) {
        const auto x = static_cast<unsigned>(a), y = static_cast<unsigned>(b);
        switch (kind) {
            case Reduction::add: return x + y;
            case Reduction::smallest: return std::min(x, y);
            case Reduction::largest: return std::max(x, y);
            case Reduction::bits_and: return x & y;
            case Reduction::bits_or: return x | y;
            case Reduction::bits_xor: return x ^ y;
            case Reduction::smallest_signed:
                return static_cast<unsigned>(std::min(static_cast<int>(x), static_cast<int>(y)));
            case Reduction::largest_signed:
                return static_cast<unsigned>(std::max(static_cast<int>(x), static_cast<int>(y)));
        }
        return x;
    };
    return static_cast<unsigned>(combined("__reduce_sync", mask, value, where, combine));
}

unsigned ballot(unsigned mask, int predicate, Location where) {
    const std::uint64_t mine = predicate != 0 ? 1ull << lane_index() : 0;
    return static_cast<unsigned>(
        combined("__ballot_sync", mask, mine, where, [](std::uint64_t a, std::uint64_t b) { return a | b; }));
}

unsigned match_any(unsigned mask, std::uint64_t value, Location where) {
    LaneValue mine{value, 0, 0};
    together("__match_any_sync", WARP, mask, &mine, where, [](const std::vector<void*>& lanes) {
        for (void* taker : lanes) {
            for (unsigned lane = 0; taker != nullptr && lane < WARP; ++lane) {
                const auto* other = static_cast<LaneValue*>(lanes[lane]);
                if (other != nullptr && other->value == static_cast<LaneValue*>(taker)->value) {
                    static_cast<LaneValue*>(taker)->result |= 1ull << lane;
                }
            }
        }
    });
    return static_cast<unsigned>(mine.result);
}

// One lane, the same one for the same mask; which one is not specified, so the seed decides.
bool elect(unsigned mask, Location where) {
    const unsigned present = mask & existing_lanes(*state.current);
    unsigned chosen = state.round.seed % static_cast<unsigned>(__builtin_popcount(present));
    unsigned leader = 0;
    for (; (present >> leader & 1) == 0 || chosen-- != 0; ++leader) {
    }
    int here = 0;
    together("elect.sync", WARP, mask, &here, where, [](const std::vector<void*>&) {});
    return lane_index() == leader;
}

void note_atomic(const void*) { state.grid.atomics = true; }

}  // namespace emulate
