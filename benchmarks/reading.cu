// How fast memory can be read: the ways in which the kit's memory-bound kernels do it, with nothing computed.
//
//   loads      global ──ld.global.nc.v4──▶ registers             UNROLL independent 16-byte loads a thread
//   copies     global ──cp.async 16──▶ ring of a warp            STAGES tiles of TILE_BYTES in flight a warp
//   bulk       global ──cp.async.bulk──▶ ring of a warp          the same by the copy engine, one thread a warp
//   nothing    a launch alone
//
// The bytes are cut into gridDim.x runs, one a CTA; the warps of a CTA take its tiles in turn. PADDING: bytes between the
// rows of ROW_BYTES in shared memory, as a kernel would have against bank conflicts (16 makes every line of memory straddle
// two lines of shared memory). What was read is combined, and stored if it is a number that does not occur, so that no read
// can be left out.
#include "common/cp_async.cuh"
#include "common/mbarrier.cuh"

constexpr int THREADS = WARPS * 32;
constexpr int STAGE_BYTES = TILE_BYTES / ROW_BYTES * (ROW_BYTES + PADDING);
constexpr int COPIES = TILE_BYTES / 512;
constexpr unsigned NEVER = 0x9e3779b9u;

extern __shared__ __align__(128) unsigned char dynamic_shared[];

struct run {
    const unsigned char* start;
    long long tiles;

    __device__ __forceinline__ run(const unsigned char* data, long long bytes) {
        const long long all = bytes / TILE_BYTES;
        const long long first = all * blockIdx.x / gridDim.x;
        start = data + first * TILE_BYTES;
        tiles = all * (blockIdx.x + 1) / gridDim.x - first;
    }
};

extern "C" __global__ void __launch_bounds__(THREADS)
loads(const unsigned char* __restrict__ data, int kibibytes, unsigned* sink) {
    const run mine(data, static_cast<long long>(kibibytes) << 10);
    const uint4* from = reinterpret_cast<const uint4*>(mine.start);
    const long long count = mine.tiles * TILE_BYTES / 16;
    unsigned seen = 0;
    for (long long i = threadIdx.x; i < count; i += THREADS * UNROLL) {
        uint4 value[UNROLL] = {};
#pragma unroll
        for (int u = 0; u < UNROLL; ++u) {
            if (i + u * THREADS < count) value[u] = __ldcs(from + i + u * THREADS);
        }
#pragma unroll
        for (int u = 0; u < UNROLL; ++u) {
            seen ^= value[u].x ^ value[u].y ^ value[u].z ^ value[u].w;
        }
    }
    if (seen == NEVER) *sink = seen;
}

extern "C" __global__ void __launch_bounds__(THREADS)
copies(const unsigned char* __restrict__ data, int kibibytes, unsigned* sink) {
    const run mine(data, static_cast<long long>(kibibytes) << 10);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const uint32_t ring = forge::shared_address(dynamic_shared) + warp * STAGES * STAGE_BYTES;
    long long next = warp;
    unsigned seen = 0;
    auto copy_next = [&](int stage) {
        if (next < mine.tiles) {
#pragma unroll
            for (int i = 0; i < COPIES; ++i) {
                const int offset = i * 512 + lane * 16;
                forge::cp_async<16>(ring + stage * STAGE_BYTES + offset + offset / ROW_BYTES * PADDING,
                                    mine.start + next * TILE_BYTES + offset);
            }
            next += WARPS;
        }
        forge::cp_async_commit();
    };
#pragma unroll 1
    for (int stage = 0; stage < STAGES; ++stage) {
        copy_next(stage);
    }
    int stage = 0;
    for (long long tile = warp; tile < mine.tiles; tile += WARPS) {
        forge::cp_async_wait<STAGES - 1>();
        __syncwarp();
        seen ^= *reinterpret_cast<const unsigned*>(dynamic_shared + (warp * STAGES + stage) * STAGE_BYTES + lane * 4);
        __syncwarp();
        copy_next(stage);
        stage = stage + 1 == STAGES ? 0 : stage + 1;
    }
    if (seen == NEVER) *sink = seen;
}

extern "C" __global__ void __launch_bounds__(THREADS)
bulk(const unsigned char* __restrict__ data, int kibibytes, unsigned* sink) {
    __shared__ uint64_t full[WARPS * STAGES];
    const run mine(data, static_cast<long long>(kibibytes) << 10);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const uint32_t ring = forge::shared_address(dynamic_shared) + warp * STAGES * TILE_BYTES;
    const uint32_t bars = forge::shared_address(full + warp * STAGES);
    if (lane == 0) {
        for (int stage = 0; stage < STAGES; ++stage) forge::mbarrier_init(bars + stage * forge::MBARRIER_BYTES, 1);
        forge::mbarrier_init_fence();
    }
    __syncwarp();
    long long next = warp;
    unsigned seen = 0;
    auto copy_next = [&](int stage) {
        if (lane == 0 && next < mine.tiles) {
            const uint32_t bar = bars + stage * forge::MBARRIER_BYTES;
            forge::mbarrier_arrive_expect_tx(bar, TILE_BYTES);
            asm volatile(
                "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                    ring + stage * TILE_BYTES),
                "l"(__cvta_generic_to_global(mine.start + next * TILE_BYTES)), "r"(TILE_BYTES), "r"(bar)
                : "memory");
        }
        next += WARPS;
    };
#pragma unroll 1
    for (int stage = 0; stage < STAGES; ++stage) {
        copy_next(stage);
    }
    forge::ring_position<STAGES> at;
    for (long long tile = warp; tile < mine.tiles; tile += WARPS) {
        forge::mbarrier_wait(bars + at.stage * forge::MBARRIER_BYTES, at.round_parity);
        seen ^= *reinterpret_cast<const unsigned*>(dynamic_shared + (warp * STAGES + at.stage) * TILE_BYTES + lane * 4);
        __syncwarp();
        copy_next(at.stage);
        at.advance();
    }
    if (seen == NEVER) *sink = seen;
}

extern "C" __global__ void __launch_bounds__(THREADS)
nothing(const unsigned char*, int kibibytes, unsigned* sink) {
    if (kibibytes < 0) *sink = dynamic_shared[0];
}
