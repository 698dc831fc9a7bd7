// One stage of the ring: copies from global memory, the order of x, the products. See tile.cuh for what lies where.
#pragma once

#include "common/cp_async.cuh"
#include "common/mma.cuh"
#include "codes.cuh"
#include "tile.cuh"

// Byte offset of what this lane loads of the warp's rows 8 `eight` .. 8 `eight` + 7.
__device__ __forceinline__ uint32_t weight_offset(int warp, int eight, int load) {
    const int lane = threadIdx.x % WARP_SIZE;
    return ((warp * ROW_TILES * 2 + eight) * LOADS + load) * (WARP_SIZE * LOAD_BYTES) + lane * LOAD_BYTES;
}

// Byte offset of chunk `chunk` (0 .. ROW_CHUNKS - 1, along K) of row `column` of x.
__device__ __forceinline__ uint32_t x_offset(int column, int chunk) {
    const int load = chunk / (ROW_LANES * CHUNKS), lane = chunk / CHUNKS % ROW_LANES, i = chunk % CHUNKS;
    const int place = ((load * CHUNKS + i) * ROW_LANES + lane) ^ (column % 2 * 4);
    return WEIGHT_BYTES + column * X_ROW_BYTES + place * CHUNK_BYTES;
}

// What one thread copies: its lane's loads of its warp's weight rows and their scales, and the same chunk of every
// PASS_ROWS-th row of x. Rows that do not exist are not copied: what lies there only reaches sums that nobody stores.
// Beyond the end of K are zeros.
struct copier {
    static constexpr int PASS_ROWS = THREADS / ROW_CHUNKS;
    static_assert(THREADS % ROW_CHUNKS == 0 && PASS_ROWS % 2 == 0, "the swizzle of a thread's rows is one");

    const unsigned char* weights;
    const x_t* x;
    const float* scales;
    int K, row_bytes;      // of a weight row
    int byte, k, group;    // of what is copied next
    int rows, columns;     // that exist, from the first that this thread copies
    uint32_t first_chunk;  // byte offset in a stage

    // The block multiplies weight rows first_row .. N and rows of x first_column .. M.
    __device__ __forceinline__ copier(const x_t* all_x, const unsigned char* all_weights, const float* all_scales,
                                      int M, int N, int depth, int first_row, int first_column)
        : K(depth), row_bytes(depth / (8 / BITS)) {
        const int lane = threadIdx.x % WARP_SIZE, warp = threadIdx.x / WARP_SIZE;
        const int warp_row = first_row + warp * WARP_ROWS;
        const int thread = threadIdx.x;
        const int column = thread / ROW_CHUNKS, chunk = thread % ROW_CHUNKS;
        rows = N - warp_row;
        columns = min(BLOCK_COLUMNS, M - first_column) - column;
        byte = lane % ROW_LANES * LOAD_BYTES;
        k = chunk * CHUNK;
        group = lane % LOADS;
        weights = all_weights + static_cast<size_t>(warp_row + lane / ROW_LANES) * row_bytes + byte;
        x = all_x + static_cast<size_t>(first_column + column) * K + k;
        scales = all_scales + static_cast<size_t>(warp_row + lane / LOADS) * (K / GROUP) + group;
        first_chunk = x_offset(column, chunk);
    }

    // Calls f(byte offset in the stage), row by row of x, for those of this thread that exist.
    template <class F>
    __device__ __forceinline__ void for_each_chunk(F f) const {
#pragma unroll
        for (int pass = 0; pass * PASS_ROWS < BLOCK_COLUMNS; ++pass) {
            if (pass * PASS_ROWS < columns) f(first_chunk + pass * PASS_ROWS * X_ROW_BYTES);
        }
    }

    // ALL: the whole block lies inside of w and the whole step inside of K, so there is nothing to ask.
    template <bool ALL>
    __device__ __forceinline__ void copy(uint32_t stage) const {
        const int lane = threadIdx.x % WARP_SIZE, warp = threadIdx.x / WARP_SIZE;
#pragma unroll
        for (int eight = 0; eight < 2 * ROW_TILES; ++eight) {
            if (ALL || eight * 8 + lane / ROW_LANES < rows) {
                const unsigned char* source = weights + static_cast<size_t>(8 * eight) * row_bytes;
#pragma unroll
                for (int load = 0; load < LOADS; ++load) {
                    const int ahead = load * ROW_LANES * LOAD_BYTES;
                    const bool inside = ALL || byte + ahead < row_bytes;
                    forge::cp_async<LOAD_BYTES>(stage + weight_offset(warp, eight, load),
                                                source + (inside ? ahead : -byte), inside ? LOAD_BYTES : 0);
                }
            }
        }
        const x_t* source = x;
        const bool inside = ALL || k < K;
        for_each_chunk([&](uint32_t offset) {
            forge::cp_async<CHUNK_BYTES>(stage + offset, inside ? source : source - k, inside ? CHUNK_BYTES : 0);
            source += PASS_ROWS * K;
        });
        if constexpr (HAS_GROUPS) {
            const int groups = K / GROUP;
            const uint32_t first = stage + WEIGHT_BYTES + X_BYTES + (warp * WARP_ROWS * LOADS + lane) * 4;
#pragma unroll
            for (int i = 0; i < ROW_TILES; ++i) {
                if (ALL || i * MMA_M + lane / LOADS < rows) {
                    const bool exists = ALL || group < groups;
                    forge::cp_async<4>(first + i * WARP_SIZE * 4,
                                       scales + static_cast<size_t>(MMA_M * i) * groups - (exists ? 0 : group),
                                       exists ? 4 : 0);
                }
            }
        }
    }

    // Starts the copies of one step and goes on to the next; `all` as in copy(), equal in the block.
    __device__ __forceinline__ void copy_next(uint32_t stage, bool all) {
        if (all) {
            copy<true>(stage);
        } else {
            copy<false>(stage);
        }
        weights += STEP_BYTES, byte += STEP_BYTES;
        x += STEP_K, k += STEP_K;
        scales += LOADS, group += LOADS;
    }

    // The elements of this thread's own chunks of x in the order in which codes are widened: its copies have arrived,
    // and a block barrier follows.
    __device__ __forceinline__ void arrange(unsigned char* stage) const {
        for_each_chunk([&](uint32_t offset) {
            uint4& eight = *reinterpret_cast<uint4*>(stage + offset);
            eight = arranged(eight);
        });
    }
};

// sums += codes of one load times x: two products along K for each chunk. Operand A is 16 weight rows, B 8 rows of x.
__device__ __forceinline__ void multiply_load(accumulator& sums, const unsigned char* stage, int load) {
    constexpr int AT_ONCE = COLUMN_TILES < 4 ? COLUMN_TILES : 4;  // tiles whose products may overlap
    const int lane = threadIdx.x % WARP_SIZE, warp = threadIdx.x / WARP_SIZE;
    const unsigned char* x_parity[2];  // of this lane's even and odd chunks: what is swizzled is the parity
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        const int chunk = (load * ROW_LANES + lane % ROW_LANES) * CHUNKS + i;
        x_parity[i] = stage + x_offset(lane / ROW_LANES, chunk);
    }
    uint32_t words[ROW_TILES][2][4];
#pragma unroll
    for (int tile = 0; tile < ROW_TILES; ++tile) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const uint4 loaded = *reinterpret_cast<const uint4*>(stage + weight_offset(warp, 2 * tile + half, load));
            words[tile][half][0] = loaded.x, words[tile][half][1] = loaded.y;
            words[tile][half][2] = loaded.z, words[tile][half][3] = loaded.w;
        }
    }
#pragma unroll
    for (int i = 0; i < CHUNKS; ++i) {
        uint32_t a[2][ROW_TILES][4];
#pragma unroll
        for (int tile = 0; tile < ROW_TILES; ++tile) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                uint32_t pairs[4];
                widen_chunk(words[tile][half], i, forge::int4_offset<x_t>(0), pairs);
#pragma unroll
                for (int pair = 0; pair < 4; ++pair) a[pair / 2][tile][pair % 2 * 2 + half] = pairs[pair];
            }
        }
        const unsigned char* x = x_parity[i % 2] + i / 2 * (2 * ROW_LANES * CHUNK_BYTES);
#pragma unroll
        for (int first = 0; first < COLUMN_TILES; first += AT_ONCE) {
            uint4 b[AT_ONCE];
#pragma unroll
            for (int c = 0; c < AT_ONCE; ++c) {
                b[c] = *reinterpret_cast<const uint4*>(x + (first + c) * MMA_N * X_ROW_BYTES);
            }
#pragma unroll
            for (int c = 0; c < AT_ONCE; ++c) {
#pragma unroll
                for (int tile = 0; tile < ROW_TILES; ++tile) {
                    forge::mma_m16n8k16<x_t>(sums[first + c][tile], a[0][tile], b[c].x, b[c].y);
                }
            }
#pragma unroll
            for (int c = 0; c < AT_ONCE; ++c) {
#pragma unroll
                for (int tile = 0; tile < ROW_TILES; ++tile) {
                    forge::mma_m16n8k16<x_t>(sums[first + c][tile], a[1][tile], b[c].z, b[c].w);
                }
            }
        }
    }
}

// The products of a stage. With groups, a load is one: its sums are scaled in float32 before they are added.
__device__ __forceinline__ void multiply_stage(accumulator& sums, const unsigned char* stage) {
    const int lane = threadIdx.x % WARP_SIZE, warp = threadIdx.x / WARP_SIZE;
    constexpr int UNROLLED = HAS_GROUPS && COLUMN_TILES > 4 ? 1 : LOADS;  // two groups at once would need 256 registers
#pragma unroll UNROLLED
    for (int load = 0; load < LOADS; ++load) {
        if constexpr (HAS_GROUPS) {
            accumulator group = {};
            multiply_load(group, stage, load);
            const float* scales = reinterpret_cast<const float*>(stage + WEIGHT_BYTES + X_BYTES);
#pragma unroll
            for (int tile = 0; tile < ROW_TILES; ++tile) {
                const int row = warp * WARP_ROWS + tile * MMA_M + lane / ROW_LANES;
                const float scale[2] = {scales[row * LOADS + load], scales[(row + 8) * LOADS + load]};
#pragma unroll
                for (int c = 0; c < COLUMN_TILES; ++c) {
#pragma unroll
                    for (int e = 0; e < 4; ++e) {
                        sums[c][tile][e] = fmaf(group[c][tile][e], scale[e / 2], sums[c][tile][e]);
                    }
                }
            }
        } else {
            multiply_load(sums, stage, load);
        }
    }
}
