// The body of the sm_90a GEMM kernels for few rows of x: a cluster of SPLIT_K blocks per tile, one part of K each.
//
//   block r of the cluster                                                     (all blocks at the same time)
//     warpgroup 0     one thread loads stages r * k_blocks .. of the weights and of x, STAGES of them ahead
//     warpgroups 1..  main loop (sm90_mainloop.cuh), then the sums, transposed, to `partial` in the block's shared
//                     memory
//     cluster barrier
//     all threads     every SPLIT_K-th run of 8 columns of y: the sums of block 0, + those of block 1, ... through
//                     distributed shared memory, in this order: the same input gives the same bits
//                     --> finish (bias, activation, residual) --> 16 bytes of y
//     cluster barrier: no block leaves while its sums are being read
//
// Small products wait for memory: the weights pass once, in runs that keep (STAGES x STAGE_BYTES) in flight per block.
#pragma once

#include "sm90_split_tile.cuh"

#include "common/cluster_shared.cuh"
#include "common/numeric.cuh"
#include "sm90_mainloop.cuh"
#include "tile_order.cuh"

constexpr int RUN = 8;  // columns of y that a thread finishes at once: 16 bytes
constexpr int TILE_RUNS = TILE_M * TILE_N / RUN;
constexpr int ROUNDS = ceil_div(TILE_RUNS, SPLIT_K * THREADS);
// What finishing needs is asked for before the main loop where registers allow.
constexpr bool FETCH_EARLY = ACCUMULATORS <= 64;

static_assert(SPLIT_K >= 1 && SPLIT_K <= 8, "a cluster has at most 8 blocks everywhere");

// Eight neighboring 16-bit elements.
struct element_run {
    uint4 words;

    __device__ __forceinline__ static element_run load(const y_t* source) {
        return {__ldg(reinterpret_cast<const uint4*>(source))};
    }
    __device__ __forceinline__ float at(int i) const {
        const uint32_t word = i / 2 == 0 ? words.x : i / 2 == 1 ? words.y : i / 2 == 2 ? words.z : words.w;
        const float2 pair = forge::unpack2<y_t>(word);
        return i % 2 == 0 ? pair.x : pair.y;
    }
};

// What is added to a run, or nothing where the call has no such tensor.
template <bool PRESENT>
struct added_run {
    element_run run;

    __device__ __forceinline__ void load(const y_t* tensor, size_t place) { run = element_run::load(tensor + place); }
    __device__ __forceinline__ float to(float sum, int i) const { return sum + run.at(i); }
};
template <>
struct added_run<false> {
    __device__ __forceinline__ void load(const y_t*, size_t) {}
    __device__ __forceinline__ float to(float sum, int) const { return sum; }
};

// The run of a thread in a round, counted over the tile; row and column are those of y.
struct tile_run {
    int row, column;
    int place;  // of its sums in `partial`, in floats
    bool inside;

    __device__ __forceinline__ tile_run(int round, int rank, int first_row, int first_column, int M, int N) {
        constexpr int ROW_RUNS = TILE_N / RUN;
        const int index = (round * SPLIT_K + rank) * THREADS + threadIdx.x;
        const int r = index / ROW_RUNS;
        const int c = index % ROW_RUNS * RUN;
        row = first_row + r;
        column = first_column + c;
        place = r * PITCH + c;
        inside = index < TILE_RUNS && row < M && column < N;  // N % 8 == 0: a run is inside or outside as a whole
    }
};

// The sums of one run over the blocks of the cluster, in the order of their ranks.
__device__ __forceinline__ void gather(float (&sums)[WEIGHTS][RUN], const shared_plan& shared, int place) {
#pragma unroll
    for (int rank = 0; rank < SPLIT_K; ++rank) {
        const uint32_t partial = forge::mapa_shared_cluster(shared.base + place * sizeof(float), rank);
#pragma unroll
        for (int i = 0; i < WEIGHTS; ++i) {
#pragma unroll
            for (int part = 0; part < RUN; part += 4) {
                const float4 four = forge::ld_shared_cluster_v4(partial + (i * TILE_N + part) * sizeof(float));
                const float values[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
                for (int e = 0; e < 4; ++e) {
                    sums[i][part + e] = rank == 0 ? values[e] : sums[i][part + e] + values[e];
                }
            }
        }
    }
}

// Finish: a type with `operands`, what it needs for a run besides its sums, fetch(row, column), which reads them, and
// value(sums, operands, i), the finished element i of a run.
template <class Finish>
__device__ __forceinline__ void run_gemm(const Finish& finish, int M, int N, int K, const forge::tensor_map* x,
                                         const forge::tensor_map* const (&weights)[WEIGHTS], y_t* y) {
    extern __shared__ unsigned char dynamic_shared[];
    const shared_plan shared(dynamic_shared);
    const int warpgroup = forge::warp_index_uniform() / (forge::WARPGROUP_THREADS / forge::WARP_THREADS);
    const int rank = SPLIT_K > 1 ? forge::cluster_rank() : 0;

    if (threadIdx.x == 0) {
        forge::tma_prefetch_descriptor(x);
        for (int i = 0; i < WEIGHTS; ++i) forge::tma_prefetch_descriptor(weights[i]);
    }
    init_barriers(shared);

    const int tile = blockIdx.x / SPLIT_K;
    const int tile_rows = ceil_div(M, TILE_M);
    const int row = tile % tile_rows * TILE_M;  // tiles with the same weights are neighbors
    const int column = tile / tile_rows * TILE_N;
    const int k_blocks = ceil_div(ceil_div(K, BLOCK_K), SPLIT_K);  // those past K are zeros
    ring position;

    typename Finish::operands operands[ROUNDS];
    const auto fetch = [&]() {
#pragma unroll
        for (int round = 0; round < ROUNDS; ++round) {
            const tile_run at(round, rank, row, column, M, N);
            if (at.inside) operands[round] = finish.fetch(at.row, at.column);
        }
    };
    if constexpr (FETCH_EARLY) fetch();

    if (warpgroup == 0) {
        if (threadIdx.x == 0) {
            fill_ring(shared, position, rank * k_blocks, k_blocks, [&](int stage, uint32_t full, int k) {
#pragma unroll
                for (int i = 0; i < WEIGHTS; ++i) {
                    forge::tma_load_2d(shared.a(stage) + i * WEIGHT_BYTES, weights[i], full, k, column);
                }
                forge::tma_load_2d(shared.b(stage), x, full, k, row);
            });
        }
        __syncwarp();
    } else {
        const int slice = warpgroup - 1;
        const int thread = threadIdx.x % forge::WARPGROUP_THREADS;
        acc_t acc[ACCUMULATORS];
        multiply_tile(acc, shared, position, k_blocks, slice);
        forge::named_barrier_sync(1, TILE_CONSUMERS * forge::WARPGROUP_THREADS);  // the ring is no longer read
        // acc[4 j + 2 h + e]: row 16 w + lane / 4 + 8 h of the weights, row 8 j + 2 (lane % 4) + e of x
        const int lane = thread % forge::WARP_THREADS;
        const int weight_row = slice * WGMMA_M + thread / forge::WARP_THREADS * 16 + lane / 4;
        float* const mine = shared.partial() + 2 * (lane % 4) * PITCH + weight_row;
#pragma unroll
        for (int i = 0; i < ACCUMULATORS; ++i) {
            const int j = i / 4, h = i / 2 % 2, e = i % 2;
            mine[(8 * j + e) * PITCH + 8 * h] = acc[i];
        }
    }
    forge::cluster_arrive();
    if constexpr (!FETCH_EARLY) fetch();
    forge::cluster_wait();

#pragma unroll
    for (int round = 0; round < ROUNDS; ++round) {
        const tile_run at(round, rank, row, column, M, N);
        if (!at.inside) continue;
        float sums[WEIGHTS][RUN];
        gather(sums, shared, at.place);
        uint32_t words[RUN / 2];
#pragma unroll
        for (int i = 0; i < RUN; i += 2) {
            const float low = finish.value(sums, operands[round], i);
            const float high = finish.value(sums, operands[round], i + 1);
            words[i / 2] = forge::pack2<y_t>(low, high);
        }
        *reinterpret_cast<uint4*>(y + static_cast<size_t>(at.row) * N + at.column) =
            uint4{words[0], words[1], words[2], words[3]};
    }
    __syncwarp();
    forge::cluster_arrive();
    forge::cluster_wait();
}
