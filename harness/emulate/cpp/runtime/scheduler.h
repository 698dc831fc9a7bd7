// The blocks of a grid, one cluster after the other, their threads as fibers of one processor.
//
//   ready threads --pick--> runs until it waits (barrier, shuffle, mbarrier ...) --> scheduler --> ...
//                 `--------> one pending tensor copy                                    |
//                                                    nobody ready, no copy pending: deadlock, told with who waits where
//
// The order is hostile on purpose, and the same for the same seed: "shuffled" takes any ready thread, "ranked" always
// the one of the highest rank, so that some threads run as far ahead as barriers let them (Burckhardt et al. 2010, "A
// randomized scheduler with probabilistic guarantees of finding bugs"). Copies land as late or as early as allowed.
#pragma once

#include <algorithm>
#include <array>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "../runtime.h"
#include "fibers.h"

namespace emulate {

constexpr unsigned WARP = 32;
constexpr unsigned WARPGROUP = 128;

enum class Order { shuffled, ranked };
enum class Timing { late, early };

struct Round {
    Order order;
    Timing timing;
    unsigned char poison;  // what shared memory holds at first
    unsigned seed;
};

struct Cta;

struct Thread {
    enum class State { ready, waiting, finished };
    Context context;
    Cta* cta = nullptr;
    unsigned number = 0;  // in the block
    uint3 index{};
    State state = State::ready;
    const char* waits_for = "";
    std::uint32_t waits_at = 0;  // a shared address, or 0
    Location where{};
    void* sanitizer = nullptr;  // ThreadSanitizer's context
    unsigned rank = 0;
    unsigned cluster_phase = 0;  // of the cluster's barrier, when this thread arrived
    bool at_cluster_barrier = false;
    struct Copy {
        std::uint32_t to;
        const void* from;
        unsigned bytes, valid_bytes, group;
        Location where;
    };
    std::deque<Copy> copies;  // cp.async
    unsigned copy_group = 0;
    std::vector<std::function<void()>> open_stores;
    std::deque<std::vector<std::function<void()>>> stores;  // cp.async.bulk.tensor to global memory
};

struct Phased {  // a barrier's orderings, for ThreadSanitizer: two places in turn, so that phases do not mix
    char place[2];
    unsigned phase = 0;
    void* now() { return &place[phase % 2]; }
};

struct Barrier {
    unsigned arrived = 0, expected = 0;
    std::vector<Thread*> waiting;
    Phased order;
    Location where{};
    int sum = 0, result_sum = 0;
    bool all = true, any = false, result_all = true, result_any = false;
};

struct Collective {  // an instruction that several threads carry out together
    const char* name = "";
    Location where{};
    unsigned first = 0, size = 0, mask = 0, arrived = 0;
    std::vector<void*> arguments;
    std::vector<Thread*> waiting;
};

struct Mbarrier {
    std::uint32_t count = 0, pending = 0;
    long long bytes = 0;
    std::uint64_t phase = 0;
    char order[2];
    std::vector<Thread*> waiting;
};

struct Product {  // a wgmma that was issued and not yet waited for
    unsigned group;
    std::function<void()> compute;
};

struct Variable {  // a static __shared__ variable: the same place in every block
    std::uint32_t offset;
    std::size_t bytes;
    std::string name;
};

struct Cta {
    uint3 index{};
    unsigned rank = 0;
    unsigned char* memory = nullptr;
    std::vector<Thread> threads;
    std::map<int, Barrier> barriers;
    std::vector<std::unique_ptr<Collective>> collectives;
    std::map<std::uint32_t, Mbarrier> mbarriers;
    struct Warpgroup {
        std::deque<Product> products;
        unsigned group = 0;
        char order = 0;
    };
    std::map<unsigned, Warpgroup> warpgroups;
    unsigned finished = 0;
};

struct Grid {
    const Entry* entry = nullptr;
    std::vector<void*> arguments;
    uint3 blocks{1, 1, 1}, threads{1, 1, 1}, cluster{1, 1, 1};
    std::uint32_t dynamic_bytes = 0, dynamic_alignment = 16;
    std::map<const void*, Variable> variables;
    std::uint32_t variables_end = 0;
    bool atomics = false;
};

struct State {
    Grid grid;
    Round round{};
    std::mt19937 random;
    std::vector<std::unique_ptr<Cta>> ctas;  // of the cluster that runs now
    std::vector<Thread*> ready;
    std::vector<std::function<void()>> engine;  // tensor copies on their way
    Barrier cluster_barrier;
    Thread* current = nullptr;
    Context scheduler;
    void* runtime_context = nullptr;
    char end = 0;  // for ThreadSanitizer: the grid's end comes after everything that its threads did
};
inline State state;

// While one of these lives, ThreadSanitizer takes the code for the runtime's.
class RuntimeContext {
  public:
    RuntimeContext() { enter_context(state.runtime_context); }
    ~RuntimeContext() {
        if (state.current != nullptr) enter_context(state.current->sanitizer);
    }
    RuntimeContext(const RuntimeContext&) = delete;
    RuntimeContext& operator=(const RuntimeContext&) = delete;
};

inline unsigned pick(unsigned count) { return static_cast<unsigned>(state.random() % count); }

inline std::string at(Location where) {
    if (where.file == nullptr) return {};
    const char* slash = std::strrchr(where.file, '/');
    return " (" + std::string(slash != nullptr ? slash + 1 : where.file) + ":" + std::to_string(where.line) + ")";
}

inline std::string triple(uint3 v) {
    return "(" + std::to_string(v.x) + ", " + std::to_string(v.y) + ", " + std::to_string(v.z) + ")";
}

inline void wake(std::vector<Thread*>& waiting) {
    for (Thread* thread : waiting) {
        thread->state = Thread::State::ready;
        state.ready.push_back(thread);
    }
    waiting.clear();
}

// The current thread waits until somebody wakes it. Only inside a RuntimeContext. (No std::string is made on a thread's
// stack: it would be copied by a memcpy that ThreadSanitizer watches.)
inline void suspend(const char* what, std::uint32_t address, Location where) {
    Thread& me = *state.current;
    me.state = Thread::State::waiting;
    me.waits_for = what;
    me.waits_at = address;
    me.where = where;
    change(me.context, state.scheduler);
}

// Who waits where, for the report of a deadlock.
inline std::string waiting_list() {
    std::map<std::string, std::vector<const Thread*>> places;
    unsigned finished = 0;
    for (const auto& cta : state.ctas) {
        for (const Thread& thread : cta->threads) {
            if (thread.state == Thread::State::finished) {
                ++finished;
            } else {
                const std::string of = thread.waits_at != 0 ? " " + std::to_string(thread.waits_at) : "";
                places[thread.waits_for + of + at(thread.where)].push_back(&thread);
            }
        }
    }
    std::string text;
    for (const auto& [place, threads] : places) {
        if (!text.empty()) text += "; ";
        text += std::to_string(threads.size());
        text += (threads.size() == 1 ? " thread waits at " : " threads wait at ") + place;
        text += ", the first is " + triple(threads.front()->index) + " of block " + triple(threads.front()->cta->index);
    }
    if (finished != 0) text += "; " + std::to_string(finished) + " have returned";
    return text;
}

inline void report_deadlock() {
    bool barrier = false;
    for (const auto& cta : state.ctas) {
        for (const Thread& thread : cta->threads) {
            const bool waits = thread.state == Thread::State::waiting;
            barrier = barrier || (waits && std::strcmp(thread.waits_for, "__syncthreads") == 0);
        }
    }
    fail(barrier ? "divergent barrier" : "deadlock", "nobody can go on: %s", waiting_list().c_str());
}

}  // namespace emulate
