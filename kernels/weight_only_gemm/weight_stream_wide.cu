// y = activate(x w^T * scale + bias) for up to 16 rows of 16-bit x and codes w of 8 or 4 bits, sm_90 and later: the stream of
// weight_stream.cu with wide slots, for shapes that need no limits inside the loop.
//
//   cluster = every so many-th tile of 16 weight rows;  CTA = a part of K;  warp = a sixteenth of that, the same for all tiles
//
//   x [M, K]  --ld.global, once--> operand B of the warp's share, in registers for good
//   w [N, K]  --cp.async--> the warp's ring of slots: 16 rows x PARTS * 64 bytes --AND (8 bits: fma)--> operand A
//             scales, zero points of the slot's groups: 16 bytes, 4 bytes of a row at a time
//   two parts at a time:  A x B --mma--> two chains of sums that do not wait for each other, scaled --> sums of the tile
//   16 warps' sums --shared memory, one barrier per tile--> one part of K: y;  more: sums[tile] --cluster, at the end--> y
//
// What a slot costs beside its conversion and products: one wait, the copies of the slot that takes its place, with
// addresses that move by constants, and one 8-byte read of scales for two groups.
//
// Compile-time: x_t, w_t, ACTIVATION, HAS_BIAS, HAS_ZERO, BITS; COLUMN_TILES (of 8 rows of x), SPLITS (parts of K), PARTS (2
// or 4), RING_SLOTS (slots of a warp), TILES (most of them in a cluster, if SPLITS > 1), SHARED_BYTES. Needs N % 16 == 0, K a
// multiple of a slot's elements and at most SPLITS * WARPS * WARP_K, and 16-byte aligned pointers.

constexpr bool HAS_GROUPS = BITS == 4;

#include "codes.cuh"
#include "common/cp_async.cuh"
#include "common/mma.cuh"
#include "common/warpgroup.cuh"
#include "finish.cuh"

constexpr int WARP_SIZE = 32;
constexpr int MMA_M = 16, MMA_N = 8;
constexpr int LANE_K = 16 * 8 / BITS;  // of a lane in a part, neighbors along K
constexpr int CHUNKS = LANE_K / CHUNK;
constexpr int ROW_BYTES = PARTS * 64;  // of a slot
constexpr int SLOT_K = ROW_BYTES * 8 / BITS;
#include "stream_x.cuh"

constexpr int WARPS = 16;
constexpr int THREADS = WARPS * WARP_SIZE;
constexpr int X_REGISTERS = 64;  // of a lane, all of its share of x
constexpr int SLOTS = X_REGISTERS / (PARTS * CHUNKS * COLUMN_TILES * 4);  // of a warp along K
constexpr int WARP_K = SLOTS * SLOT_K;
static_assert(SLOTS >= 1 && PARTS % 2 == 0, "a slot's x fits the registers; two parts at a time");

constexpr int LINE_BYTES = 128;  // of a row: what a copy instruction takes of four rows
constexpr int LINES = ROW_BYTES / LINE_BYTES;
constexpr int COPY_ROWS = WARP_SIZE * 16 / LINE_BYTES;
constexpr int CODE_BYTES = MMA_M * ROW_BYTES;
constexpr int SCALE_BYTES = HAS_GROUPS ? MMA_M * PARTS * 4 : 0;
#if HAS_ZERO
constexpr bool HAS_ZEROS = true;
#else
constexpr bool HAS_ZEROS = false;
#endif
constexpr int ZERO_BYTES = HAS_ZEROS ? MMA_M * PARTS : 0;
constexpr int RING_BYTES = CODE_BYTES + SCALE_BYTES + ZERO_BYTES;  // of a slot

constexpr int TILE_SUMS = COLUMN_TILES * MMA_M * MMA_N;
constexpr int X_SUMS = COLUMN_TILES * 4 * 4;  // of a group: for the four lanes of a row, as they add to four sums
constexpr int WARP_X_SUMS = HAS_GROUPS ? SLOTS * PARTS * X_SUMS : 0;
constexpr int PARTIAL = WARPS * (RING_SLOTS * RING_BYTES + WARP_X_SUMS * 4);  // where the warps' sums begin
constexpr int TOTALS = SPLITS > 1 ? TILES : 0;
static_assert(SHARED_BYTES >= PARTIAL + (2 * WARPS + TOTALS) * TILE_SUMS * 4, "shared memory");

// Copies of one warp: slot after slot of its columns, tile after tile. Places are counted from the tile's first row, which
// is the same for all lanes.
struct feeder {
    const unsigned char* w;
    const float* scale;
#if HAS_ZERO
    const int8_t* zero;
#endif
    int N, row_bytes, slots, stride;  // slots of a tile; tiles from one of the cluster's to its next
    int code_place;                   // bytes to the lane's first piece of the warp's first slot
    int group_place;                  // groups to its first scale
    int zero_place;                   // and zero point
    int tile, slot;                   // what is copied next

    __device__ __forceinline__ feeder(const unsigned char* w, const float* scale, int N, int row_bytes, int first_slot,
                                      int slots, int tile, int stride)
        : w(w), scale(scale), N(N), row_bytes(row_bytes), slots(slots), stride(stride), tile(tile), slot(0) {
        const int lane = threadIdx.x % WARP_SIZE;
        code_place = lane / 8 * row_bytes + first_slot * ROW_BYTES + lane % 8 * 16;
        group_place = lane / 2 * groups() + first_slot * PARTS + lane % 2 * (PARTS / 2);
        zero_place = lane % MMA_M * groups() + first_slot * PARTS;
    }

    __device__ __forceinline__ int groups() const { return row_bytes / 64; }

    __device__ __forceinline__ void feed(uint32_t target) {
        const int lane = threadIdx.x % WARP_SIZE;
        if (tile * MMA_M < N && slots > 0) {
            const size_t first_row = static_cast<size_t>(tile) * MMA_M;
            const unsigned char* codes = w + first_row * row_bytes + code_place + slot * ROW_BYTES;
            const uint32_t place = target + lane / 8 * LINE_BYTES + (lane % 8 ^ lane / 8 % 2 * 4) * 16;
#pragma unroll
            for (int i = 0; i < MMA_M / COPY_ROWS; ++i) {
#pragma unroll
                for (int line = 0; line < LINES; ++line) {
                    forge::cp_async<16>(place + (line * MMA_M + i * COPY_ROWS) * LINE_BYTES, codes + line * LINE_BYTES);
                }
                codes += static_cast<ptrdiff_t>(COPY_ROWS) * row_bytes;
            }
            if constexpr (HAS_GROUPS) {
                const size_t first_group = first_row * groups() + slot * PARTS;
                forge::cp_async<2 * PARTS>(target + CODE_BYTES + lane * 2 * PARTS, scale + first_group + group_place);
#if HAS_ZERO
                static_assert(PARTS == 4, "zero points are copied by words");
                if (lane < MMA_M) {
                    forge::cp_async<4>(target + CODE_BYTES + SCALE_BYTES + lane * PARTS, zero + first_group + zero_place);
                }
#endif
            }
            if (SLOTS == 1 || ++slot == slots) slot = 0, tile += stride;
        }
        forge::cp_async_commit();  // also when empty: waiting counts groups
    }
};

// A lane's codes of part `part`: rows lane / 4 and lane / 4 + 8.
__device__ __forceinline__ void read(lane_codes& codes, const unsigned char* slot, int part) {
    const int g = threadIdx.x % WARP_SIZE / 4, t = threadIdx.x % 4;
    const int even = g * LINE_BYTES + (t ^ g % 2 * 4) * 16;
#pragma unroll
    for (int eight = 0; eight < 2; ++eight) {
        const int place = (even ^ part % 2 * 64) + (part / 2 * MMA_M + eight * 8) * LINE_BYTES;
        const uint4 loaded = *reinterpret_cast<const uint4*>(slot + place);
        codes.words[eight][0] = loaded.x, codes.words[eight][1] = loaded.y;
        codes.words[eight][2] = loaded.z, codes.words[eight][3] = loaded.w;
    }
}

// Scales and zero points of parts `part` and the next one for the lane's two rows.
struct pair_groups {
    float scales[2][2];  // [row][part]
    int zeros[2][2];

    __device__ __forceinline__ pair_groups(const unsigned char* slot, int part) {
        const int g = threadIdx.x % WARP_SIZE / 4;
#pragma unroll
        for (int eight = 0; eight < 2; ++eight) {
            const int first = (eight * 8 + g) * PARTS + part;
            const float2 found = *reinterpret_cast<const float2*>(slot + CODE_BYTES + first * 4);
            scales[eight][0] = found.x, scales[eight][1] = found.y;
            zeros[eight][0] = zeros[eight][1] = 0;
#if HAS_ZERO
            const char2 both = *reinterpret_cast<const char2*>(slot + CODE_BYTES + SCALE_BYTES + first);
            zeros[eight][0] = both.x, zeros[eight][1] = both.y;
#endif
        }
    }
};

// What the sums of a group begin at: - (bias + zero point) * (the group's sum of x).
__device__ __forceinline__ void begin_group(tile_sums& group, const float* x_sums, const pair_groups& of, int part) {
#pragma unroll
    for (int c = 0; c < COLUMN_TILES; ++c) {
        const float4 begin = *reinterpret_cast<const float4*>(x_sums + (c * 4 + threadIdx.x % 4) * 4);
        group[c][0] = begin.x, group[c][1] = begin.y, group[c][2] = begin.z, group[c][3] = begin.w;
#if HAS_ZERO
#pragma unroll
        for (int e = 0; e < 4; ++e) {
            group[c][e] *= -forge::int4_bias<x_t>::VALUE - static_cast<float>(of.zeros[e / 2][part]);
        }
#endif
    }
}

// Two neighboring parts of a slot, chunk by chunk in turns.
__device__ __forceinline__ void multiply(tile_sums (&target)[2], const lane_codes (&codes)[2],
                                         const uint4 (&x0)[CHUNKS][COLUMN_TILES],
                                         const uint4 (&x1)[CHUNKS][COLUMN_TILES]) {
    constexpr int NO_ZEROS[2] = {0, 0};
#pragma unroll
    for (int i = 0; i < CHUNKS; ++i) {
        uint32_t a[2][2][4];
#pragma unroll
        for (int p = 0; p < 2; ++p) {
            if constexpr (HAS_GROUPS) {
                codes[p].biased(i, a[p]);
            } else {
                codes[p].widen(i, NO_ZEROS, a[p]);
            }
        }
#pragma unroll
        for (int c = 0; c < COLUMN_TILES; ++c) {
            forge::mma_m16n8k16<x_t>(target[0][c], a[0][0], x0[i][c].x, x0[i][c].y);
            forge::mma_m16n8k16<x_t>(target[1][c], a[1][0], x1[i][c].x, x1[i][c].y);
            forge::mma_m16n8k16<x_t>(target[0][c], a[0][1], x0[i][c].z, x0[i][c].w);
            forge::mma_m16n8k16<x_t>(target[1][c], a[1][1], x1[i][c].z, x1[i][c].w);
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    weight_stream_wide(const x_t* __restrict__ x, const w_t* __restrict__ w, const float* __restrict__ scale,
#if HAS_BIAS
                       const x_t* __restrict__ bias,
#endif
#if HAS_ZERO
                       const int8_t* __restrict__ zero,
#endif
                       int M, int N, int K, x_t* __restrict__ y) {
    extern __shared__ __align__(128) unsigned char dynamic_shared[];
    const int lane = threadIdx.x % WARP_SIZE, warp = forge::warp_index_uniform();
    const int slots = K / SLOT_K;
    const int cluster = blockIdx.x / SPLITS, clusters = gridDim.x / SPLITS, part = blockIdx.x % SPLITS;
    const int part_slot = slots * part / SPLITS, part_slots = slots * (part + 1) / SPLITS - part_slot;
    const int first_slot = part_slot + part_slots * warp / WARPS;
    const int own_slots = part_slot + part_slots * (warp + 1) / WARPS - first_slot;

    unsigned char* ring = dynamic_shared + warp * RING_SLOTS * RING_BYTES;
    const uint32_t ring_address = forge::shared_address(ring);
    feeder own(reinterpret_cast<const unsigned char*>(w), scale, N, K / (8 / BITS), first_slot, own_slots, cluster,
               clusters);
#if HAS_ZERO
    own.zero = zero;
#endif

    const int first_column = blockIdx.y * COLUMN_TILES * MMA_N;
    const int first_k = first_slot * SLOT_K + lane % 4 * LANE_K;
    operand_b b[SLOTS];
#pragma unroll
    for (int s = 0; s < SLOTS; ++s) {
        const int k = first_k + s * SLOT_K;
        load_x(b[s], x + static_cast<size_t>(first_column + lane / 4) * K + k, K, s < own_slots ? K - k : 0,
               M - first_column - lane / 4);
    }
#pragma unroll 1
    for (int i = 0; i < RING_SLOTS; ++i) own.feed(ring_address + i * RING_BYTES);
    float* x_sums = reinterpret_cast<float*>(dynamic_shared + WARPS * RING_SLOTS * RING_BYTES) + warp * WARP_X_SUMS;
#pragma unroll
    for (int s = 0; s < SLOTS; ++s) {
        arrange(b[s]);
        if constexpr (HAS_GROUPS) {
            constexpr float FACTOR = HAS_ZEROS ? 1.0f : -forge::int4_bias<x_t>::VALUE;  // zero points: see begin_group
#pragma unroll
            for (int p = 0; p < PARTS; ++p) {
#pragma unroll
                for (int c = 0; c < COLUMN_TILES; ++c) {
                    float rows[4] = {};
                    add_up(rows, b[s][p], c);
                    if (lane < 4) {
                        *reinterpret_cast<float4*>(x_sums + (s * PARTS + p) * X_SUMS + (c * 4 + lane) * 4) =
                            make_float4(FACTOR * rows[0], FACTOR * rows[1], FACTOR * rows[2], FACTOR * rows[3]);
                    }
                }
            }
        }
    }

    float* partial = reinterpret_cast<float*>(dynamic_shared + PARTIAL);
    float* total = partial + 2 * WARPS * TILE_SUMS;  // of a tile: [row of x][weight row]
#if HAS_BIAS
    const finisher finish{scale, bias, N, y};
#else
    const finisher finish{scale, nullptr, N, y};
#endif
    int reading = 0, index = 0;  // of the slot, of the tile among the cluster's
#pragma unroll 1
    for (int tile = cluster; tile * MMA_M < N; tile += clusters, ++index) {
        tile_sums sums[2] = {};  // 8 bits: of even and of odd parts
#pragma unroll
        for (int s = 0; s < SLOTS; ++s) {
            if (s < own_slots) {
                forge::cp_async_wait<RING_SLOTS - 1>();
                __syncwarp();  // what the other lanes have copied is there as well
                const unsigned char* slot = ring + reading * RING_BYTES;
#pragma unroll
                for (int p = 0; p < PARTS; p += 2) {
                    lane_codes codes[2];
                    read(codes[0], slot, p);
                    read(codes[1], slot, p + 1);
                    tile_sums group[2];
                    if constexpr (HAS_GROUPS) {
                        const pair_groups of(slot, p);
                        if (p == PARTS - 2) {
                            __syncwarp();  // everyone has read the slot
                            own.feed(ring_address + reading * RING_BYTES);
                        }
                        begin_group(group[0], x_sums + (s * PARTS + p) * X_SUMS, of, 0);
                        begin_group(group[1], x_sums + (s * PARTS + p + 1) * X_SUMS, of, 1);
                        multiply(group, codes, b[s][p], b[s][p + 1]);
#pragma unroll
                        for (int c = 0; c < COLUMN_TILES; ++c) {
#pragma unroll
                            for (int e = 0; e < 4; ++e) {
                                sums[0][c][e] = fmaf(group[0][c][e], of.scales[e / 2][0], sums[0][c][e]);
                                sums[0][c][e] = fmaf(group[1][c][e], of.scales[e / 2][1], sums[0][c][e]);
                            }
                        }
                    } else {
                        if (p == PARTS - 2) {
                            __syncwarp();
                            own.feed(ring_address + reading * RING_BYTES);
                        }
                        multiply(sums, codes, b[s][p], b[s][p + 1]);
                    }
                }
                reading = reading + 1 == RING_SLOTS ? 0 : reading + 1;
            }
        }
        float* buffer = partial + index % 2 * WARPS * TILE_SUMS;  // the other is read until the next barrier
#pragma unroll
        for (int c = 0; c < COLUMN_TILES; ++c) {
            if constexpr (!HAS_GROUPS) {
#pragma unroll
                for (int e = 0; e < 4; ++e) sums[0][c][e] += sums[1][c][e];
            }
            *reinterpret_cast<float4*>(buffer + warp * TILE_SUMS + (c * WARP_SIZE + lane) * 4) =
                make_float4(sums[0][c][0], sums[0][c][1], sums[0][c][2], sums[0][c][3]);
        }
        __syncthreads();
        const int place = threadIdx.x;
        const int from = place / 4 % WARP_SIZE, e = place % 4;
        const int column = place / (WARP_SIZE * 4) * MMA_N + from % 4 * 2 + e % 2, row = e / 2 * 8 + from / 4;
        if (place < TILE_SUMS && first_column + column < M) {
            float sum = 0.0f;
#pragma unroll
            for (int i = 0; i < WARPS; ++i) sum += buffer[i * TILE_SUMS + place];
            if constexpr (SPLITS > 1) {
                total[index * TILE_SUMS + column * MMA_M + row] = sum;
            } else {
                finish(first_column + column, tile * MMA_M + row, sum);
            }
        }
    }
    forge::cp_async_wait<0>();
#if SPLITS > 1
    forge::cluster_arrive();
    forge::cluster_wait();
    constexpr int TILE_UNITS = MMA_M / UNIT;
    const int row_units = index * TILE_UNITS;
    const int units = min(COLUMN_TILES * MMA_N, M - first_column) * row_units;
    const int share = forge::cluster_rank();
    const int end_unit = units * (share + 1) / SPLITS;
#pragma unroll 1
    for (int unit = units * share / SPLITS + static_cast<int>(threadIdx.x); unit < end_unit; unit += THREADS) {
        const int column = unit / row_units, place = unit % row_units;
        const int offset = place / TILE_UNITS * TILE_SUMS + column * MMA_M + place % TILE_UNITS * UNIT;
        const int tile = cluster + place / TILE_UNITS * clusters;
        finish(first_column + column, tile * MMA_M + place % TILE_UNITS * UNIT, add_parts(total, offset));
    }
    forge::cluster_arrive();  // the others read the sums of this CTA
    forge::cluster_wait();
#endif
}
