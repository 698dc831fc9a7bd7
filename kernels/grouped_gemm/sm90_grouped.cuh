// What the sm_90a GEMM kernel needs to run over experts: their tiles, and boxes that end where an expert's rows end.
//
//   box inside of the expert's rows          one TMA store
//   box that the expert's end cuts           rows before the end, 16 bytes a thread: the rows after it are another's
//   rows after the last expert's end         zeros, from the three warps beside the thread that loads
#pragma once

#include "fused_gemm/sm90_kernel.cuh"
#include "grouped_gemm/expert_tiles.cuh"

constexpr int CHUNK_BYTES = 16;
constexpr int ROW_CHUNKS = ROW_BYTES / CHUNK_BYTES;
constexpr int CHUNK_COLUMNS = CHUNK_BYTES / sizeof(y_t);

struct grouped_tile : gemm_tile {
    int expert;
    int end;  // of the expert's rows
};

struct grouped_tiles {
    using tile = grouped_tile;
    expert_walk<CLUSTER_M * BLOCK_M, BLOCK_N, GROUP_M> walk;
    y_t* y;

    __device__ __forceinline__ bool find(int index, tile& found) {
        expert_tile at;
        if (!walk.find(index, at)) return false;
        found.row = at.row;
        found.column = at.column;
        found.weight_row = at.expert * walk.N + at.column;
        found.expert = at.expert;
        found.end = at.end;
        return true;
    }
    __device__ __forceinline__ int count() const { return walk.count(); }

    // Zeros after the last expert's rows; M * N is a multiple of CHUNK_COLUMNS.
    __device__ __forceinline__ void beside_loads() const {
        constexpr int THREADS_BESIDE = forge::WARPGROUP_THREADS - forge::WARP_THREADS;
        int last = 0;
        for (int expert = threadIdx.x % forge::WARP_THREADS; expert < walk.experts; expert += forge::WARP_THREADS) {
            last = max(last, __ldg(walk.offsets + expert));
        }
#pragma unroll
        for (int lanes = forge::WARP_THREADS / 2; lanes > 0; lanes /= 2) {
            last = max(last, __shfl_xor_sync(0xffffffffu, last, lanes));
        }
        const size_t row_chunks = walk.N / CHUNK_COLUMNS;
        const size_t end = walk.M * row_chunks;
        size_t chunk = min(last, walk.M) * row_chunks;
        chunk += blockIdx.x * THREADS_BESIDE + threadIdx.x - forge::WARP_THREADS;
        for (; chunk < end; chunk += gridDim.x * THREADS_BESIDE) reinterpret_cast<uint4*>(y)[chunk] = uint4{0, 0, 0, 0};
    }
};

// An epilogue over experts. Finish: an epilogue as run_tiles takes it, with a member `expert` that is set for every
// tile.
template <class Finish>
struct grouped_epilogue : Finish {
    y_t* y;
    int M, N;
    int end;  // of the rows of the tile's expert
};

template <class Finish>
__device__ __forceinline__ void begin_tile(grouped_epilogue<Finish>& epilogue, const grouped_tile& tile) {
    epilogue.expert = tile.expert;
    epilogue.end = tile.end;
}

__device__ __forceinline__ uint4 load_shared_chunk(uint32_t address) {
    uint4 words;
    asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(words.x), "=r"(words.y), "=r"(words.z), "=r"(words.w)
                 : "r"(address)
                 : "memory");
    return words;
}

template <class Finish>
__device__ __forceinline__ void begin_box(grouped_epilogue<Finish>& epilogue, int first) {
    begin_box(static_cast<Finish&>(epilogue), first);
}

template <class Finish>
__device__ __forceinline__ void put_box(const grouped_epilogue<Finish>& epilogue, const forge::tensor_map* y,
                                        uint32_t box, int column, int row) {
    const int thread = threadIdx.x % forge::WARPGROUP_THREADS;
    const int rows = epilogue.end - row;  // of the box, this expert's; none or fewer where the tile is cut before it
    if (rows >= WGMMA_M || epilogue.end == epilogue.M) {  // the copy engine itself stops at row M
        if (thread == 0 && rows > 0) forge::tma_store_2d(y, box, column, row);
        return;
    }
    for (int i = thread; i < rows * ROW_CHUNKS; i += forge::WARPGROUP_THREADS) {
        const int box_row = i / ROW_CHUNKS;
        const int chunk = i % ROW_CHUNKS;
        const int first_column = column + chunk * CHUNK_COLUMNS;
        if (first_column < epilogue.N) {
            const uint4 words = load_shared_chunk(box + box_row * ROW_BYTES + ((chunk ^ (box_row % 8)) * CHUNK_BYTES));
            *reinterpret_cast<uint4*>(epilogue.y + static_cast<size_t>(row + box_row) * epilogue.N + first_column) =
                words;
        }
    }
}

// y of every expert. finish.expert need not be set.
template <class Finish>
__device__ __forceinline__ void run_grouped_gemm(const Finish& finish, const int* offsets, int experts, int M, int N,
                                                 int K, const forge::tensor_map* x, const forge::tensor_map* w, y_t* y,
                                                 const forge::tensor_map* y_map) {
    static_assert(WEIGHTS == 1, "one matrix of weights for an expert");
    static_assert(!WARP_STORES, "the warps' own stores do not stop where an expert's rows end");
    const grouped_epilogue<Finish> epilogue = {finish, y, M, N, 0};
    const grouped_tiles tiles = {{offsets, experts, M, N}, y};
    const forge::tensor_map* const weights[WEIGHTS] = {w};
    run_tiles(epilogue, tiles, M, N, K, x, weights, y_map);
}
