// y = activate(x w^T * scale + bias) for 17 and more rows of 16-bit x and codes w of 8 or 4 bits, sm_90a: the codes become
// operand A of wgmma in registers.
//
//   cluster = 256 weight rows, COLUMNS rows of x;  CTA = a part of K;  2 consumer warpgroups x TILES x 64 weight rows
//
//   w [N, K]  --cp.async--> a warp's own ring of slots --AND, fma--> A, registers \
//                                                                               wgmma --> y^T of 128 along K (float32)
//   x [M, K]  --cp.async--> ahead --arranged by the producers--> B, swizzled --/            * scale of the group --> sums
//             full[s]: 4 producer warps        empty[s]: 8 consumer warps
//
//   sums --> shared memory in the place of the rings --ld.shared::cluster, in the order of K--> * scale of the row + bias
//                                                                                       --> activate --> y [M, N]
//
// Which elements along K meet in a product is free: a lane widens the codes as they lie in its 16 bytes, and the producers
// put x into that order. Clusters begin at different places of K, so that they do not all ask for the same lines of x.
//
// Compile-time: x_t, w_t, ACTIVATION, HAS_BIAS, HAS_ZERO, BITS; COLUMNS, SPLITS (parts of K), RING_SLOTS (slots of a warp),
// X_STAGES, X_AHEAD (stages of x on their way), IN_FLIGHT (groups of products at a time; 1 where absent), SHARED_BYTES. Needs K % 16 == 0 (8 bits) or K % 128 == 0 (4 bits) and
// 16-byte aligned pointers.

constexpr bool HAS_GROUPS = BITS == 4;

#include "codes.cuh"
#include "common/mbarrier.cuh"
#include "common/tma.cuh"
#include "common/warpgroup.cuh"
#include "common/wgmma.cuh"
#include "finish.cuh"
#include "slots.cuh"

constexpr int CONSUMERS = 2;
constexpr int CONSUMER_WARPS = CONSUMERS * 4;
constexpr int THREADS = (CONSUMERS + 1) * forge::WARPGROUP_THREADS;
#ifndef IN_FLIGHT
#define IN_FLIGHT 1
#endif
constexpr int CONSUMER_REGISTERS = IN_FLIGHT == 2 ? 224 : 200, PRODUCER_REGISTERS = IN_FLIGHT == 2 ? 56 : 104;
constexpr int TILES = 2;  // of 64 rows of a warpgroup
constexpr int TILE_ROWS = 64;
constexpr int BLOCK_ROWS = CONSUMERS * TILES * TILE_ROWS;

constexpr int STAGE_K = 128;  // of x
constexpr int STAGE_HALVES = STAGE_K * HALVES / SLOT_K;  // of slots in a stage of x: 1 of 4 bits, 2 of 8
constexpr int STAGES_PER_SLOT = SLOT_K / STAGE_K;
constexpr int MMA_K = 16, STEPS = STAGE_K / MMA_K;
constexpr int PANEL_K = 64;  // elements in 128 bytes
constexpr int PANEL_BYTES = COLUMNS * 128;
constexpr int STAGE_BYTES = STAGE_K / PANEL_K * PANEL_BYTES;

constexpr int WARP_SLOT_BYTES = TILES * RING_BYTES;
constexpr int BARRIER_BYTES = 1024;  // the stages of x start at a multiple of it
constexpr int RINGS = BARRIER_BYTES + (X_STAGES + X_AHEAD) * STAGE_BYTES;
constexpr int SUM_PITCH = BLOCK_ROWS + 4;
static_assert(SHARED_BYTES >= RINGS + CONSUMER_WARPS * RING_SLOTS * WARP_SLOT_BYTES, "shared memory of the rings");
static_assert(SHARED_BYTES >= BARRIER_BYTES + COLUMNS * SUM_PITCH * 4, "shared memory of the sums");

using sums_t = float[COLUMNS / 2];  // of 64 weight rows: see common/wgmma.cuh

// The part of K of a CTA: `slots` of them from `first` on, begun at different ones by different clusters.
struct k_order {
    int first, slots, turn;

    __device__ __forceinline__ int at(int i) const {
        const int place = i + turn;
        return first + (place < slots ? place : place - slots);
    }
};

struct x_ring {
    uint32_t stages, full, empty;
    int stage = 0;
    uint32_t parity = 0;

    __device__ __forceinline__ void advance() {
        if (++stage == X_STAGES) stage = 0, parity ^= 1;
    }
};

// What a producer thread brings to a stage: 32 elements of a row of x in a job, four runs of 8 that belong to the four
// lanes of a row of weights. Place 8 u + 2 t (+ 1) of the 32 is pair u of lane t's chunk. On their way they lie in shared
// memory that only this thread reads, X_AHEAD stages before they are needed: behind the copies of the weights, L2 takes
// longer to answer than a stage of products. Eight neighboring lanes have eight rows, so that no banks collide.
struct x_loader {
    static constexpr int JOBS = COLUMNS * (STAGE_K / 32) / forge::WARPGROUP_THREADS;
    static constexpr int ROW_STEP = forge::WARPGROUP_THREADS / 4;  // rows from a job of the thread to its next
    static constexpr int RUN_BYTES = forge::WARPGROUP_THREADS * CHUNK_BYTES;  // of all threads
    static_assert(JOBS * 4 * RUN_BYTES == STAGE_BYTES, "every element once");
    const x_t* x;
    int rows, K, row, block, place;

    __device__ __forceinline__ x_loader(const x_t* x, int rows, int K) : x(x), rows(rows), K(K) {
        const int thread = threadIdx.x % forge::WARPGROUP_THREADS, lane = thread % WARP_SIZE;
        row = thread / WARP_SIZE * 8 + lane % 8;
        block = lane / 8;
        place = (row * 4 + (block ^ lane % 8 / 2)) * CHUNK_BYTES;  // 64 bytes of a row together
    }

    __device__ __forceinline__ void copy(uint32_t ahead, int k) const {
        const int first = k + (BITS == 4 ? block * CHUNK : block / 2 * PANEL_K + block % 2 * CHUNK);
#pragma unroll
        for (int job = 0; job < JOBS; ++job) {
            const x_t* source = x + static_cast<size_t>(row + job * ROW_STEP) * K + first;
#pragma unroll
            for (int t = 0; t < 4; ++t) {
                const bool exists = row + job * ROW_STEP < rows && first + t * LANE_K < K;
                forge::cp_async<16>(ahead + (job * 4 + t) * RUN_BYTES + place, exists ? source + t * LANE_K : x,
                                    exists ? 16 : 0);
            }
        }
    }

    __device__ __forceinline__ void arrange(const unsigned char* ahead, unsigned char* stage) const {
#pragma unroll
        for (int job = 0; job < JOBS; ++job) {
            const int column = row + job * ROW_STEP;
            unsigned char* line = stage + block / 2 * PANEL_BYTES + column * 128;
            uint4 of[4];
#pragma unroll
            for (int t = 0; t < 4; ++t) {
                of[t] = arranged(*reinterpret_cast<const uint4*>(ahead + (job * 4 + t) * RUN_BYTES + place));
            }
            const uint4 units[4] = {make_uint4(of[0].x, of[1].x, of[2].x, of[3].x),
                                    make_uint4(of[0].y, of[1].y, of[2].y, of[3].y),
                                    make_uint4(of[0].z, of[1].z, of[2].z, of[3].z),
                                    make_uint4(of[0].w, of[1].w, of[2].w, of[3].w)};
#pragma unroll
            for (int u = 0; u < 4; ++u) {
                const int chunk = (block % 2 * 4 + u) ^ column % 8;
                *reinterpret_cast<uint4*>(line + chunk * 16) = units[u];
            }
        }
    }
};

__device__ __forceinline__ void produce(const x_t* x, int rows, int K, const k_order& order, x_ring ring,
                                        unsigned char* stages) {
    const x_loader own(x, rows, K);
    unsigned char* ahead = stages + X_STAGES * STAGE_BYTES;
    const uint32_t ahead_address = forge::shared_address(ahead);
    const int count = order.slots * STAGES_PER_SLOT;
    const auto copy = [&](int place, int i) {
        if (i < count) {
            const int k = order.at(i / STAGES_PER_SLOT) * SLOT_K + i % STAGES_PER_SLOT * STAGE_K;
            own.copy(ahead_address + place * STAGE_BYTES, k);
        }
        forge::cp_async_commit();  // also when empty: waiting counts groups
    };
#pragma unroll 1
    for (int i = 0; i < X_AHEAD; ++i) copy(i, i);
    int place = 0;
#pragma unroll 1
    for (int i = 0; i < count; ++i) {
        forge::cp_async_wait<X_AHEAD - 1>();
        forge::mbarrier_wait(ring.empty + ring.stage * forge::MBARRIER_BYTES, ring.parity ^ 1);
        own.arrange(ahead + place * STAGE_BYTES, stages + ring.stage * STAGE_BYTES);
        forge::fence_proxy_async_shared();
        __syncwarp();
        if (threadIdx.x % WARP_SIZE == 0) forge::mbarrier_arrive(ring.full + ring.stage * forge::MBARRIER_BYTES);
        ring.advance();
        copy(place, i + X_AHEAD);
        place = place + 1 == X_AHEAD ? 0 : place + 1;
    }
}

// Starts the products of one tile and one stage of x; target is overwritten with groups, added to without.
__device__ __forceinline__ void start_products(sums_t& target, uint32_t (&a)[STEPS][4], uint32_t stage) {
    forge::wgmma_hold(target);
#pragma unroll
    for (int step = 0; step < STEPS; ++step) forge::wgmma_hold(a[step]);  // all are there before the first product
    forge::wgmma_fence();
    const uint64_t panel = forge::swizzle128_k_major(stage);
#pragma unroll
    for (int step = 0; step < STEPS; ++step) {
        constexpr int PANEL_STEPS = PANEL_K / MMA_K;
        const uint64_t b = forge::descriptor_advance(
            panel, step / PANEL_STEPS * PANEL_BYTES + step % PANEL_STEPS * MMA_K * 2);
        forge::wgmma_rs<x_t, COLUMNS>(target, a[step], b, !HAS_GROUPS || step > 0);
    }
    forge::wgmma_commit();
}

struct consumer {
    weight_rows rows;
    int first_row;  // of the warp's first tile
    unsigned char* ring;
    uint32_t ring_address;

    __device__ __forceinline__ void feed(int place, const k_order& order, int i) const {
        if (i < order.slots) {
#pragma unroll
            for (int tile = 0; tile < TILES; ++tile) {
                const uint32_t target = ring_address + place * WARP_SLOT_BYTES + tile * RING_BYTES;
                if constexpr (IN_FLIGHT == 2) {
                    rows.copy_whole(target, first_row + tile * TILE_ROWS, order.at(i));
                } else {
                    rows.copy(target, first_row + tile * TILE_ROWS, order.at(i));
                }
            }
        }
        forge::cp_async_commit();  // also when empty: waiting counts groups
    }

    // The codes of a tile that meet the stage of x, half a slot after the other.
    __device__ __forceinline__ void widen(uint32_t (&a)[STEPS][4], float (&scales)[2], int place, int tile, int slot,
                                          int first_half) const {
#pragma unroll
        for (int part = 0; part < STAGE_HALVES; ++part) {
            const int half = first_half + part;
            const unsigned char* memory = ring + place * WARP_SLOT_BYTES + tile * RING_BYTES;
            const half_slot codes(memory, half);
            int zeros[2];
            rows.zeros(zeros, memory, first_row + tile * TILE_ROWS, slot, half);
            scales[0] = codes.scales[0], scales[1] = codes.scales[1];
#pragma unroll
            for (int i = 0; i < CHUNKS; ++i) {
                uint32_t both[2][4];
                codes.widen(i, zeros, both);
#pragma unroll
                for (int e = 0; e < 8; ++e) a[(part * CHUNKS + i) * 2 + e / 4][e % 4] = both[e / 4][e % 4];
            }
        }
    }

    // While the products of one tile run, the codes of the next are widened, at last those of the next slot.
    __device__ __forceinline__ void run(sums_t (&sums)[TILES], const k_order& order, x_ring x) const {
        constexpr int PARTS = STAGES_PER_SLOT * TILES;
        uint32_t a[TILES][STEPS][4];
        float scales[TILES][2];
        int place = 0;
        forge::cp_async_wait<RING_SLOTS - 1>();
        __syncwarp();  // what the other lanes have copied is there as well
        widen(a[0], scales[0], place, 0, order.at(0), 0);
#pragma unroll 1
        for (int i = 0; i < order.slots; ++i) {
            const int read = place;
            place = place + 1 == RING_SLOTS ? 0 : place + 1;
#pragma unroll
            for (int part = 0; part < PARTS; ++part) {
                const int tile = part % TILES, next_tile = (part + 1) % TILES;
                const uint32_t barrier = x.stage * forge::MBARRIER_BYTES;
                sums_t group;
                sums_t& target = HAS_GROUPS ? group : sums[tile];
                if (tile == 0) forge::mbarrier_wait(x.full + barrier, x.parity);
                start_products(target, a[tile], x.stages + x.stage * STAGE_BYTES);
                if (part + 1 < PARTS) {
                    widen(a[next_tile], scales[next_tile], read, next_tile, order.at(i), (part + 1) / TILES * STAGE_HALVES);
                } else {
                    forge::cp_async_wait<RING_SLOTS - 2>();
                    __syncwarp();
                    widen(a[next_tile], scales[next_tile], place, next_tile, order.at(i + 1), 0);
                }
                finish_products(sums[tile], group, scales[tile]);
                if (tile == TILES - 1) {
                    if (threadIdx.x % WARP_SIZE == 0) forge::mbarrier_arrive(x.empty + barrier);
                    x.advance();
                }
            }
            feed(read, order, i + RING_SLOTS);
        }
    }

    // The products of a tile run while those of the one before are scaled and the codes of the next are widened: whatever the
    // compiler's order of the latter two, they lie between the starts of two products. At the end of a slot nothing is in
    // flight for a moment: the compiler takes products one by one that a loop hands on to its next round.
    __device__ __forceinline__ void run_two(sums_t (&sums)[TILES], const k_order& order, x_ring x) const {
        static_assert(TILES == 2, "the tile before is the other one");
        constexpr int PARTS = STAGES_PER_SLOT * TILES;
        uint32_t a[TILES][STEPS][4];
        float scales[TILES][2];
        int place = 0;
        forge::cp_async_wait<RING_SLOTS - 1>();
        __syncwarp();  // what the other lanes have copied is there as well
        widen(a[0], scales[0], place, 0, order.at(0), 0);
#pragma unroll 1
        for (int i = 0; i < order.slots; ++i) {
            const int read = place;
            place = place + 1 == RING_SLOTS ? 0 : place + 1;
            sums_t groups[TILES];
            uint32_t before = x.empty;  // of the stage before
#pragma unroll
            for (int part = 0; part < PARTS; ++part) {
                const int tile = part % TILES, other = 1 - tile;
                const uint32_t barrier = x.stage * forge::MBARRIER_BYTES;
                if (tile == 0) forge::mbarrier_wait(x.full + barrier, x.parity);
                start_products(HAS_GROUPS ? groups[tile] : sums[tile], a[tile], x.stages + x.stage * STAGE_BYTES);
                if (part > 0) {
                    forge::wgmma_wait<1>();
                    if constexpr (HAS_GROUPS) {
                        add_group(sums[other], groups[other], scales[other]);
                        forge::wgmma_hold(sums[other]);  // done before the group's registers are needed again
                    }
                    if (tile == 0) leave(before);
                }
                if (tile == TILES - 1) {
                    before = x.empty + barrier;
                    x.advance();
                }
                if (part + 1 < PARTS) {
                    widen(a[other], scales[other], read, other, order.at(i), (part + 1) / TILES * STAGE_HALVES);
                } else {
                    forge::cp_async_wait<RING_SLOTS - 2>();
                    __syncwarp();
                    widen(a[other], scales[other], place, other, order.at(i + 1), 0);
                }
            }
            feed(read, order, i + RING_SLOTS);
            finish_products(sums[1], groups[1], scales[1]);
            if constexpr (!HAS_GROUPS) forge::wgmma_hold(sums[0]);
            leave(before);
        }
    }

    // The warp has read the stage of x whose barrier this is.
    static __device__ __forceinline__ void leave(uint32_t empty) {
        if (threadIdx.x % WARP_SIZE == 0) forge::mbarrier_arrive(empty);
    }

    static __device__ __forceinline__ void finish_products(sums_t& sums, sums_t& group, const float (&scales)[2]) {
        forge::wgmma_wait<0>();
        if constexpr (HAS_GROUPS) {
            add_group(sums, group, scales);
        } else {
            forge::wgmma_hold(sums);
        }
    }

    static __device__ __forceinline__ void add_group(sums_t& sums, sums_t& group, const float (&scales)[2]) {
        forge::wgmma_hold(group);
#pragma unroll
        for (int i = 0; i < COLUMNS / 2; ++i) sums[i] = fmaf(group[i], scales[i / 2 % 2], sums[i]);
    }
};

__device__ __forceinline__ void store_sums(float* shared, int first_row, const sums_t& sums) {
    const int lane = threadIdx.x % WARP_SIZE;
#pragma unroll
    for (int i = 0; i < COLUMNS / 2; ++i) {
        const int column = i / 4 * MMA_N + lane % 4 * 2 + i % 2, row = first_row + i / 2 % 2 * 8 + lane / 4;
        shared[column * SUM_PITCH + row] = sums[i];
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    weight_wgmma(const x_t* __restrict__ x, const w_t* __restrict__ w, const float* __restrict__ scale,
#if HAS_BIAS
                 const x_t* __restrict__ bias,
#endif
#if HAS_ZERO
                 const int8_t* __restrict__ zero,
#endif
                 int M, int N, int K, x_t* __restrict__ y) {
    extern __shared__ __align__(1024) unsigned char dynamic_shared[];
    const int warp = forge::warp_index_uniform(), lane = threadIdx.x % WARP_SIZE;
    const int row_bytes = K / (8 / BITS), slots = (row_bytes + SLOT_BYTES - 1) / SLOT_BYTES;
    const int cluster = blockIdx.x / SPLITS, part = blockIdx.x % SPLITS;
    const int first_slot = slots * part / SPLITS, part_slots = slots * (part + 1) / SPLITS - first_slot;
    const k_order order{first_slot, part_slots, part_slots > 0 ? cluster % part_slots : 0};
    const int block_row = cluster * BLOCK_ROWS, first_column = blockIdx.y * COLUMNS;

    const uint32_t address = forge::shared_address(dynamic_shared);
    const x_ring ring{address + BARRIER_BYTES, address, address + X_STAGES * forge::MBARRIER_BYTES};
    const bool consumes = warp < CONSUMER_WARPS;
    const int warp_row = warp / 4 * TILES * TILE_ROWS + warp % 4 * MMA_M;  // of the block, of the first tile
    unsigned char* own_ring = dynamic_shared + RINGS + warp * RING_SLOTS * WARP_SLOT_BYTES;
    const consumer own{{reinterpret_cast<const unsigned char*>(w), scale,
#if HAS_ZERO
                        zero,
#endif
                        N, row_bytes},
                       block_row + warp_row, own_ring, forge::shared_address(own_ring)};
    if (consumes) {
#pragma unroll 1
        for (int i = 0; i < RING_SLOTS; ++i) own.feed(i, order, i);
    }
    if (threadIdx.x == THREADS - 1) {
#pragma unroll
        for (int i = 0; i < X_STAGES; ++i) {
            forge::mbarrier_init(ring.full + i * forge::MBARRIER_BYTES, 4);
            forge::mbarrier_init(ring.empty + i * forge::MBARRIER_BYTES, CONSUMER_WARPS);
        }
        forge::mbarrier_init_fence();
    }
    __syncthreads();
    float* shared = reinterpret_cast<float*>(dynamic_shared + BARRIER_BYTES);
    if (consumes) {
        forge::setmaxnreg_inc<CONSUMER_REGISTERS>();
        sums_t sums[TILES] = {};
        if constexpr (IN_FLIGHT == 2) {
            own.run_two(sums, order, ring);
        } else {
            own.run(sums, order, ring);
        }
        forge::cp_async_wait<0>();
        forge::named_barrier_sync(1, CONSUMER_WARPS * WARP_SIZE);  // everyone has read the rings
#pragma unroll
        for (int tile = 0; tile < TILES; ++tile) store_sums(shared, warp_row + tile * TILE_ROWS, sums[tile]);
    } else {
        forge::setmaxnreg_dec<PRODUCER_REGISTERS>();
        produce(x + static_cast<size_t>(first_column) * K, M - first_column, K, order, ring,
                dynamic_shared + BARRIER_BYTES);
    }
#if SPLITS > 1
    __syncwarp();
    forge::cluster_arrive();
    forge::cluster_wait();
#else
    __syncthreads();
#endif
    constexpr int ROW_UNITS = BLOCK_ROWS / UNIT;
    const int units = min(COLUMNS, M - first_column) * ROW_UNITS;
    const int end_unit = units * (part + 1) / SPLITS;
#if HAS_BIAS
    const finisher finish{scale, bias, N, y};
#else
    const finisher finish{scale, nullptr, N, y};
#endif
#pragma unroll 2
    for (int unit = units * part / SPLITS + static_cast<int>(threadIdx.x); unit < end_unit; unit += THREADS) {
        const int column = unit / ROW_UNITS, row = unit % ROW_UNITS * UNIT;
        finish(first_column + column, block_row + row, add_parts(shared, column * SUM_PITCH + row));
    }
#if SPLITS > 1
    __syncwarp();
    forge::cluster_arrive();  // the others read the sums of this CTA
    forge::cluster_wait();
#endif
}
