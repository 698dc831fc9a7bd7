// Sum and maximum over the threads that share a row: part of a warp, a warp, several warps, or a cluster of CTAs.
//
//   registers --shuffle, redux--> one (sum, maximum) per warp --> slots[phase] of every CTA of the row
//                                                                   |  one barrier (block, or cluster)
//   every thread of the row  <--shuffle-- (sum, maximum) <----------+
//
// Both values cross one barrier together. The slots are doubled and used in turn, so a second call needs no barrier
// of its own: when a thread writes slots[p] again, everybody has passed the barrier of the call between, and so has
// read what slots[p] held. Butterflies add the same pairs in every lane: all threads of a row get the same bits.
#pragma once

#include "common/cluster_shared.cuh"
#include "common/reduce.cuh"
#include "common/warpgroup.cuh"

namespace forge {

template <int Width>
__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
    for (int offset = Width / 2; offset > 0; offset /= 2) value += __shfl_xor_sync(0xffffffffu, value, offset);
    return value;
}

// RowThreads: threads of one CTA that share a row (a power of two); Threads: of the CTA; Cluster: CTAs per row.
template <int RowThreads, int Threads, int Cluster>
class RowReduction {
    static constexpr int kRowWarps = (RowThreads + kWarp - 1) / kWarp;
    static constexpr int kSlots = kRowWarps * Cluster;
    static constexpr bool kInWarp = RowThreads <= kWarp && Cluster == 1;
    static_assert((RowThreads & (RowThreads - 1)) == 0 && Threads % RowThreads == 0, "rows share a CTA evenly");
    static_assert(Cluster == 1 || RowThreads == Threads, "a row that spans CTAs has them for itself");

  public:
    struct Slots {
        uint2 at[2][kInWarp ? 1 : Threads / kWarp * Cluster];
    };

    __device__ __forceinline__ explicit RowReduction(Slots& slots) : slots_(slots) {
        if constexpr (Cluster > 1) cluster_arrive();  // waited for in start()
    }

    // Once, before the first reduction: the other CTAs of the cluster must be there.
    __device__ __forceinline__ void start() {
        if constexpr (Cluster > 1) cluster_wait();
    }

    // Every thread of the CTA must call it.
    __device__ __forceinline__ void sum_and_max(float& sum, unsigned& largest) { reduce<true, true>(sum, largest); }

    __device__ __forceinline__ float sum(float value) {
        unsigned unused = 0u;
        reduce<true, false>(value, unused);
        return value;
    }

    __device__ __forceinline__ unsigned max(unsigned value) {
        float unused = 0.0f;
        reduce<false, true>(unused, value);
        return value;
    }

  private:
    template <bool Sum, bool Max>
    __device__ __forceinline__ void reduce(float& sum, unsigned& largest) {
        constexpr int kWidth = RowThreads < kWarp ? RowThreads : kWarp;
        if constexpr (Sum) sum = warp_sum<kWidth>(sum);
        if constexpr (Max) largest = warp_max<kWidth>(largest);
        if constexpr (!kInWarp) exchange<Sum, Max>(sum, largest);
    }

    template <bool Sum, bool Max>
    __device__ __forceinline__ void exchange(float& sum, unsigned& largest) {
        const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
        uint2* const slots = slots_.at[phase_];
        if constexpr (Cluster > 1) {
            const unsigned slot = cluster_rank() * kRowWarps + warp;
            if (lane < Cluster) {
                const uint32_t remote = mapa_shared_cluster(shared_address(&slots[slot]), lane);
                st_shared_cluster_v2(remote, __float_as_uint(sum), largest);
            }
            cluster_arrive();
            cluster_wait();
        } else {
            if (lane == 0) slots[warp] = make_uint2(__float_as_uint(sum), largest);
            __syncthreads();
        }
        phase_ ^= 1;
        const uint2* const mine = slots + warp / kRowWarps * kRowWarps;
        if constexpr (kSlots <= kWarp) {
            const uint2 part = mine[lane % kSlots];
            if constexpr (Sum) sum = warp_sum<kSlots>(__uint_as_float(part.x));
            if constexpr (Max) largest = warp_max<kWarp>(part.y);
        } else {
            float total = 0.0f;
            unsigned most = 0u;
#pragma unroll
            for (int slot = 0; slot < kSlots; slot += kWarp) {
                const uint2 part = mine[slot + lane];
                total += __uint_as_float(part.x);
                most = part.y > most ? part.y : most;
            }
            if constexpr (Sum) sum = warp_sum<kWarp>(total);
            if constexpr (Max) largest = warp_max<kWarp>(most);
        }
    }

    Slots& slots_;
    int phase_ = 0;
};

}  // namespace forge
