// Running a grid: clusters one after the other in a shuffled order, their threads by the scheduler.
#pragma once

#include "tensor_maps.h"

uint3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulate {

inline void thread_ends() {
    Thread& me = *state.current;
    {
        const RuntimeContext context;
        if (!me.open_stores.empty() || !me.stores.empty()) {
            fail("tensor copy", "a thread returns before its stores have read shared memory (wait_group is missing)");
        }
    }
    copy_async_commit();
    copy_async_wait(0);
    release(&state.end);
    enter_context(state.runtime_context);
    me.state = Thread::State::finished;
    ++me.cta->finished;
    change(me.context, state.scheduler, true);
    std::abort();
}

// The first and last function of every thread.
inline void thread_begins() {
    arrived(state.current->context);
    enter_context(state.current->sanitizer);
    state.grid.entry->call(state.grid.arguments.data());
    thread_ends();
}

inline void resume(Thread& thread) {
    state.current = &thread;
    threadIdx = thread.index;
    blockIdx = thread.cta->index;
    change(state.scheduler, thread.context);
    state.current = nullptr;
}

inline void advance_engine() {
    const unsigned chosen = pick(static_cast<unsigned>(state.engine.size()));
    const auto copy = state.engine[chosen];
    state.engine.erase(state.engine.begin() + chosen);
    copy();
}

inline Thread& next_ready() {
    std::size_t chosen = 0;
    if (state.round.order == Order::shuffled) {
        chosen = pick(static_cast<unsigned>(state.ready.size()));
    } else {
        for (std::size_t i = 1; i < state.ready.size(); ++i) {
            if (state.ready[i]->rank < state.ready[chosen]->rank) chosen = i;
        }
    }
    Thread& thread = *state.ready[chosen];
    state.ready[chosen] = state.ready.back();
    state.ready.pop_back();
    return thread;
}

inline void check_end(const Cta& cta) {
    for (const auto& [id, barrier] : cta.barriers) {
        if (barrier.arrived != 0) {
            fail("divergent barrier", "block %s ends with %u of %u threads at %s %d", triple(cta.index).c_str(),
                 barrier.arrived, barrier.expected, "barrier", id);
        }
    }
    check_guards(cta);
}

inline ReusedPages stack_pages;

inline std::unique_ptr<Cta> create_cta(uint3 index, unsigned rank, unsigned char* stacks, unsigned char* arenas,
                                       const std::vector<unsigned>& ranks) {
    const Grid& grid = state.grid;
    auto cta = std::make_unique<Cta>();
    cta->index = index;
    cta->rank = rank;
    create_memory(*cta, arenas);
    cta->threads.resize(static_cast<std::size_t>(grid.threads.x) * grid.threads.y * grid.threads.z);
    for (unsigned i = 0; i < cta->threads.size(); ++i) {
        Thread& thread = cta->threads[i];
        thread.cta = cta.get();
        thread.number = i;
        thread.index = {i % grid.threads.x, i / grid.threads.x % grid.threads.y, i / grid.threads.x / grid.threads.y};
        thread.rank = ranks[i];
        prepare(thread.context, stacks + i * STACK_BYTES, stack_pages.fresh(), thread_begins);
        if (thread_sanitizer()) {
            thread.sanitizer = __tsan_create_fiber(0);
            const std::string name = "thread " + triple(thread.index) + " of block " + triple(index);
            __tsan_set_fiber_name(thread.sanitizer, name.c_str());
        }
        state.ready.push_back(&thread);
    }
    return cta;
}

// One cluster, whose first block is `first`.
inline void run_cluster(uint3 first) {
    const Grid& grid = state.grid;
    const unsigned ctas = grid.cluster.x * grid.cluster.y * grid.cluster.z;
    const unsigned threads = grid.threads.x * grid.threads.y * grid.threads.z;
    unsigned char* const stacks = stack_pages.take(static_cast<std::size_t>(ctas) * threads * STACK_BYTES);
    unsigned char* const arenas = arena_pages.take(static_cast<std::size_t>(ctas) * MEMORY_BYTES);
    std::vector<unsigned> ranks(static_cast<std::size_t>(ctas) * threads);
    for (unsigned i = 0; i < ranks.size(); ++i) ranks[i] = i;
    std::shuffle(ranks.begin(), ranks.end(), state.random);
    state.cluster_barrier = Barrier{};
    for (unsigned rank = 0; rank < ctas; ++rank) {
        const uint3 index{first.x + rank % grid.cluster.x, first.y + rank / grid.cluster.x % grid.cluster.y,
                          first.z + rank / grid.cluster.x / grid.cluster.y};
        const std::vector<unsigned> own(ranks.begin() + rank * threads, ranks.begin() + (rank + 1) * threads);
        unsigned char* const own_stacks = stacks + static_cast<std::size_t>(rank) * threads * STACK_BYTES;
        state.ctas.push_back(create_cta(index, rank, own_stacks, arenas, own));
    }
    std::size_t left = static_cast<std::size_t>(ctas) * threads;
    while (left != 0) {
        if (!state.engine.empty() && (state.ready.empty() || (state.round.order == Order::shuffled && pick(8) == 0))) {
            advance_engine();
            continue;
        }
        if (state.ready.empty()) report_deadlock();
        Thread& thread = next_ready();
        resume(thread);
        left -= thread.state == Thread::State::finished;
    }
    if (!state.engine.empty()) {
        fail("tensor copy", "a cluster ends while %zu tensor loads are on their way", state.engine.size());
    }
    for (const auto& cta : state.ctas) check_end(*cta);
    for (const auto& cta : state.ctas) {
        for (const Thread& thread : cta->threads) {
            if (thread.sanitizer != nullptr) __tsan_destroy_fiber(thread.sanitizer);
        }
    }
    state.ctas.clear();
}

inline void run_grid() {
    const Grid& grid = state.grid;
    gridDim = grid.blocks;
    blockDim = grid.threads;
    begin_variables();
    std::vector<uint3> clusters;
    for (unsigned z = 0; z < grid.blocks.z; z += grid.cluster.z) {
        for (unsigned y = 0; y < grid.blocks.y; y += grid.cluster.y) {
            for (unsigned x = 0; x < grid.blocks.x; x += grid.cluster.x) clusters.push_back({x, y, z});
        }
    }
    std::shuffle(clusters.begin(), clusters.end(), state.random);
    for (const uint3& first : clusters) run_cluster(first);
    acquire(&state.end);
}

}  // namespace emulate
