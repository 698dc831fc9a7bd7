// y = activate(x w^T * scale + bias) for up to 16 rows of 16-bit x and codes w of 8 or 4 bits, with a cluster of sm_90 or
// later: a stream of weights through all multiprocessors, with nothing between it and the tensor cores.
//
//   cluster = every so many-th tile of 16 weight rows;  CTA = a part of K;  warp = a sixteenth of that, the same for all tiles
//
//   x [M, K]  --ld.global, once--> the warp's share of x, as operand B, in registers for good
//   w [N, K]  --cp.async--> the warp's own ring of slots: 16 rows x 128 bytes --AND (8 bits: fma)--> operand A
//                                                                            A x B --mma--> sums of the tile (float32)
//   16 warps' sums --shared memory--> one, for every tile;  at the end the parts of the cluster, in the order of K
//                                                                            --> * scale + bias --> activate --> y
//
// Codes of 4 bits are multiplied with the bias that one AND gives them; the sums of a group begin at - (bias + zero point) *
// the group's sum of x.
//
// A warp waits for its own copies only. A CTA asks for x and for all that it can hold before anything else, and each slot
// is asked for again as soon as it has been read. The one block barrier per tile does not stop the copies.
//
// Compile-time: x_t, w_t, ACTIVATION, HAS_BIAS, HAS_ZERO, BITS; COLUMN_TILES (of 8 rows of x), SPLITS (parts of K), RING_SLOTS
// (slots of a warp), TILES (most of them in a cluster), SHARED_BYTES. Needs K % 16 == 0 (8 bits) or K % 128 == 0 (4 bits),
// K at most SPLITS * WARPS * WARP_K, and 16-byte aligned pointers.

constexpr bool HAS_GROUPS = BITS == 4;

#include "codes.cuh"
#include "common/mma.cuh"
#include "common/warpgroup.cuh"
#include "finish.cuh"
#include "slots.cuh"

constexpr int PARTS = HALVES;  // of a slot
#include "stream_x.cuh"

constexpr int WARPS = 16;
constexpr int THREADS = WARPS * WARP_SIZE;
constexpr int X_REGISTERS = 64;  // of a lane, all of its share of x
constexpr int SLOTS = X_REGISTERS / (HALVES * CHUNKS * COLUMN_TILES * 4);  // of a warp along K
constexpr int WARP_K = SLOTS * SLOT_K;
static_assert(SLOTS >= 1, "a slot's x fits the registers");

constexpr int TILE_SUMS = COLUMN_TILES * MMA_M * MMA_N;
constexpr int X_SUMS = COLUMN_TILES * MMA_N;  // of a group
constexpr int WARP_X_SUMS = HAS_GROUPS ? SLOTS * HALVES * X_SUMS : 0;
static_assert(SHARED_BYTES >= WARPS * (RING_SLOTS * RING_BYTES + WARP_X_SUMS * 4) + (2 * WARPS + TILES) * TILE_SUMS * 4,
              "shared memory");

// Copies of one warp: slot after slot of its columns, tile after tile.
struct feeder {
    weight_rows rows;
    int first_slot, slots;  // of this warp in a row
    int tile, stride;       // what is copied next, and the distance of the cluster's tiles
    weight_rows::place place;
    int slot;

    __device__ __forceinline__ feeder(const weight_rows& rows, int first_slot, int slots, int tile, int stride)
        : rows(rows), first_slot(first_slot), slots(slots), tile(tile), stride(stride),
          place(rows.at(tile * MMA_M, first_slot)), slot(0) {}

    __device__ __forceinline__ void feed(uint32_t target) {
        if (slot < slots && tile * MMA_M < rows.N) {
            rows.copy(target, place, tile * MMA_M, first_slot + slot);
            place.move(SLOT_BYTES, HALVES);
            if (++slot == slots) {
                slot = 0, tile += stride;
                place = rows.at(tile * MMA_M, first_slot);
            }
        }
        forge::cp_async_commit();  // also when empty: waiting counts groups
    }
};

// Sums of the rows of x over half a slot, for all lanes. They leave the registers to x itself.
__device__ __forceinline__ void add_up(float* sums, const uint4 (&x)[CHUNKS][COLUMN_TILES]) {
    const int lane = threadIdx.x % WARP_SIZE;
#pragma unroll
    for (int c = 0; c < COLUMN_TILES; ++c) {
        float rows[4] = {};
        add_up(rows, x, c);
        if (lane < 4) *reinterpret_cast<float2*>(sums + c * MMA_N + lane * 2) = make_float2(rows[0], rows[1]);
    }
}

// Half a slot: sums += codes * x, with groups sums += scale * ((codes - zero point) * x).
__device__ __forceinline__ void multiply(tile_sums& sums, const half_slot& codes, const int (&zeros)[2],
                                         const uint4 (&x)[CHUNKS][COLUMN_TILES], const float* x_sums) {
    tile_sums group;
    tile_sums& target = HAS_GROUPS ? group : sums;
    if constexpr (HAS_GROUPS) {
#pragma unroll
        for (int c = 0; c < COLUMN_TILES; ++c) {
            const float2 of_x = *reinterpret_cast<const float2*>(x_sums + c * MMA_N + threadIdx.x % 4 * 2);
#pragma unroll
            for (int eight = 0; eight < 2; ++eight) {
                const float bias = -forge::int4_bias<x_t>::VALUE - static_cast<float>(zeros[eight]);
                group[c][eight * 2] = bias * of_x.x, group[c][eight * 2 + 1] = bias * of_x.y;
            }
        }
    }
#pragma unroll
    for (int i = 0; i < CHUNKS; ++i) {
        uint32_t a[2][4];
        if constexpr (HAS_GROUPS) {
            codes.biased(i, a);
        } else {
            codes.widen(i, zeros, a);
        }
#pragma unroll
        for (int c = 0; c < COLUMN_TILES; ++c) {
            forge::mma_m16n8k16<x_t>(target[c], a[0], x[i][c].x, x[i][c].y);
            forge::mma_m16n8k16<x_t>(target[c], a[1], x[i][c].z, x[i][c].w);
        }
    }
    if constexpr (HAS_GROUPS) {
#pragma unroll
        for (int c = 0; c < COLUMN_TILES; ++c) {
#pragma unroll
            for (int e = 0; e < 4; ++e) sums[c][e] = fmaf(group[c][e], codes.scales[e / 2], sums[c][e]);
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    weight_stream(const x_t* __restrict__ x, const w_t* __restrict__ w, const float* __restrict__ scale,
#if HAS_BIAS
                  const x_t* __restrict__ bias,
#endif
#if HAS_ZERO
                  const int8_t* __restrict__ zero,
#endif
                  int M, int N, int K, x_t* __restrict__ y) {
    extern __shared__ __align__(128) unsigned char dynamic_shared[];
    const int lane = threadIdx.x % WARP_SIZE, warp = threadIdx.x / WARP_SIZE;
    const int row_lane = lane / 4, k_lane = lane % 4;
    const int row_bytes = K / (8 / BITS);
    const int slots = (row_bytes + SLOT_BYTES - 1) / SLOT_BYTES;
    const int cluster = blockIdx.x / SPLITS, clusters = gridDim.x / SPLITS, part = blockIdx.x % SPLITS;
    const int part_slot = slots * part / SPLITS, part_slots = slots * (part + 1) / SPLITS - part_slot;
    const int first_slot = part_slot + part_slots * warp / WARPS;
    const int own_slots = part_slot + part_slots * (warp + 1) / WARPS - first_slot;

    unsigned char* ring = dynamic_shared + warp * RING_SLOTS * RING_BYTES;
    const uint32_t ring_address = forge::shared_address(ring);
    const weight_rows rows{reinterpret_cast<const unsigned char*>(w), scale,
#if HAS_ZERO
                           zero,
#endif
                           N, row_bytes};
    feeder own(rows, first_slot, own_slots, cluster, clusters);

    const int first_column = blockIdx.y * COLUMN_TILES * MMA_N;
    const int first_k = first_slot * SLOT_K + k_lane * LANE_K;
    operand_b b[SLOTS];
#pragma unroll
    for (int s = 0; s < SLOTS; ++s) {
        const int k = first_k + s * SLOT_K;
        load_x(b[s], x + static_cast<size_t>(first_column + row_lane) * K + k, K, s < own_slots ? K - k : 0,
               M - first_column - row_lane);
    }
#pragma unroll 1
    for (int i = 0; i < RING_SLOTS; ++i) own.feed(ring_address + i * RING_BYTES);
    float* x_sums = reinterpret_cast<float*>(dynamic_shared + WARPS * RING_SLOTS * RING_BYTES) + warp * WARP_X_SUMS;
#pragma unroll
    for (int s = 0; s < SLOTS; ++s) {
        arrange(b[s]);
#pragma unroll
        for (int half = 0; half < HALVES; ++half) {
            if constexpr (HAS_GROUPS) add_up(x_sums + (s * HALVES + half) * X_SUMS, b[s][half]);
        }
    }

    float* partial = reinterpret_cast<float*>(dynamic_shared + WARPS * (RING_SLOTS * RING_BYTES + WARP_X_SUMS * 4));
    float* total = partial + 2 * WARPS * TILE_SUMS;  // of a tile: [row of x][weight row]
    int reading = 0, index = 0;  // of the slot, of the tile among the cluster's
#pragma unroll 1
    for (int tile = cluster; tile * MMA_M < N; tile += clusters, ++index) {
        tile_sums sums = {};
#pragma unroll
        for (int s = 0; s < SLOTS; ++s) {
            if (s < own_slots) {
                forge::cp_async_wait<RING_SLOTS - 1>();
                __syncwarp();  // what the other lanes have copied is there as well
                const unsigned char* slot = ring + reading * RING_BYTES;
#pragma unroll
                for (int half = 0; half < HALVES; ++half) {
                    const half_slot codes(slot, half);
                    int zeros[2];
                    rows.zeros(zeros, slot, tile * MMA_M, first_slot + s, half);
                    if (half == HALVES - 1) {
                        __syncwarp();  // everyone has read the slot
                        own.feed(ring_address + reading * RING_BYTES);
                    }
                    multiply(sums, codes, zeros, b[s][half], x_sums + (s * HALVES + half) * X_SUMS);
                }
                reading = reading + 1 == RING_SLOTS ? 0 : reading + 1;
            }
        }
        float* buffer = partial + index % 2 * WARPS * TILE_SUMS;  // the other is read until the next barrier
#pragma unroll
        for (int c = 0; c < COLUMN_TILES; ++c) {
            *reinterpret_cast<float4*>(buffer + warp * TILE_SUMS + (c * WARP_SIZE + lane) * 4) =
                make_float4(sums[c][0], sums[c][1], sums[c][2], sums[c][3]);
        }
        __syncthreads();
        const int place = threadIdx.x;
        if (place < TILE_SUMS) {
            float sum = 0.0f;
#pragma unroll
            for (int i = 0; i < WARPS; ++i) sum += buffer[i * TILE_SUMS + place];
            const int c = place / (WARP_SIZE * 4), from = place / 4 % WARP_SIZE, e = place % 4;
            const int column = c * MMA_N + from % 4 * 2 + e % 2, row = e / 2 * 8 + from / 4;
            total[index * TILE_SUMS + column * MMA_M + row] = sum;
        }
    }
    forge::cp_async_wait<0>();
#if SPLITS > 1
    forge::cluster_arrive();
    forge::cluster_wait();
#else
    __syncthreads();
#endif
    constexpr int TILE_UNITS = MMA_M / UNIT;
    const int row_units = index * TILE_UNITS;
    const int units = min(COLUMN_TILES * MMA_N, M - first_column) * row_units;
    const int share = SPLITS > 1 ? forge::cluster_rank() : 0;  // = part, which need not stay in a register for this
    const int end_unit = units * (share + 1) / SPLITS;
#if HAS_BIAS
    const finisher finish{scale, bias, N, y};
#else
    const finisher finish{scale, nullptr, N, y};
#endif
#pragma unroll 1
    for (int unit = units * share / SPLITS + static_cast<int>(threadIdx.x); unit < end_unit; unit += THREADS) {
        const int column = unit / row_units, place = unit % row_units;
        const int offset = place / TILE_UNITS * TILE_SUMS + column * MMA_M + place % TILE_UNITS * UNIT;
        const int tile = cluster + place / TILE_UNITS * clusters;
        finish(first_column + column, tile * MMA_M + place % TILE_UNITS * UNIT, add_parts(total, offset));
    }
#if SPLITS > 1
    forge::cluster_arrive();  // the others read the sums of this CTA
    forge::cluster_wait();
#endif
}
