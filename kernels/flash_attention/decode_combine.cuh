// From the warps' partial results to the output: sums over different keys, each with its own maximum, are added by
//
//   M = max m_i     o = sum 2^(c m_i - c M) o_i  /  sum 2^(c m_i - c M) l_i          in the order of i: always the same bits
//
//   warp partials ──▶ shared memory ──▶ CTA partial ──st.async──▶ inbox of the CTA that writes this unit ──▶ o
//
// A unit is four neighboring columns of one row; unit u of a row block belongs to CTA u % SPLITS of the cluster. Inboxes
// are memory of their own, so that a CTA may send while others still use their rings; the cluster's barrier that a CTA
// arrives at when it starts has told that all inboxes exist, and the inbox's own barrier counts the bytes that come. A
// CTA ends after its inbox is full, so that nobody writes into memory that is gone.
#pragma once

#include "common/cluster_shared.cuh"
#include "common/mbarrier.cuh"
#include "common/warpgroup.cuh"
#include "decode_queries.cuh"
#include "online_softmax.cuh"

namespace forge {

constexpr int UNIT_COLUMNS = 4;
constexpr int UNITS_PER_ROW = HEAD_DIM / UNIT_COLUMNS;
constexpr int UNITS = BLOCK_ROWS * UNITS_PER_ROW;
constexpr int UNITS_PER_CTA = (UNITS + SPLITS - 1) / SPLITS;
constexpr int PARTIAL_PITCH = PADDED_D + 4;  // floats; rows 2 t of lanes t then start in banks 8 t

// In place of the rings: of each warp BLOCK_ROWS rows of sums, then of each warp BLOCK_ROWS pairs (maximum, sum).
constexpr uint32_t PARTIAL_BYTES = WARPS * BLOCK_ROWS * PARTIAL_PITCH * 4;
constexpr uint32_t STATISTICS_BYTES = WARPS * BLOCK_ROWS * 8;
constexpr uint32_t WORK_BYTES =
    WARPS * RING_BYTES > PARTIAL_BYTES + STATISTICS_BYTES ? WARPS * RING_BYTES : PARTIAL_BYTES + STATISTICS_BYTES;

// After the rings: from each CTA its share of this CTA's units, then from each CTA its pairs of all rows.
constexpr uint32_t INBOX_UNITS = WORK_BYTES;
constexpr uint32_t INBOX_STATISTICS = INBOX_UNITS + SPLITS * UNITS_PER_CTA * 16;
constexpr uint32_t INBOX_BARRIER = INBOX_STATISTICS + SPLITS * BLOCK_ROWS * 8;

struct statistics {
    float maximum, sum;
};

// Partial i of a row has weight[i]; `total` is the weighted sum of the sums.
template <int COUNT>
struct weights {
    float weight[COUNT];
    float maximum = NO_MAXIMUM;
    float total = 0.0f;

    __device__ __forceinline__ weights(const statistics* partial, int pitch) {
        statistics s[COUNT];
#pragma unroll
        for (int i = 0; i < COUNT; ++i) {
            s[i] = partial[i * pitch];
            maximum = fmaxf(maximum, s[i].maximum);
        }
#pragma unroll
        for (int i = 0; i < COUNT; ++i) {
            weight[i] = exp2_approximate((s[i].maximum - maximum) * EXPONENT_SCALE);
            total = fmaf(weight[i], s[i].sum, total);
        }
    }

    __device__ __forceinline__ float4 add(const float4* partial, int pitch) const {
        float4 result = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll
        for (int i = 0; i < COUNT; ++i) {
            const float4 one = partial[i * pitch];
            result.x = fmaf(weight[i], one.x, result.x);
            result.y = fmaf(weight[i], one.y, result.y);
            result.z = fmaf(weight[i], one.z, result.z);
            result.w = fmaf(weight[i], one.w, result.w);
        }
        return result;
    }
};

// Sums and statistics of one warp, whose lanes hold the accumulator layout of V^T p^T: rows are columns there.
__device__ __forceinline__ void store_partial(unsigned char* shared, const float (&o)[ROW_TILES][D_TILES][4],
                                              const float (&maximum)[ROW_TILES][2], const float (&sum)[ROW_TILES][2]) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    float* sums = reinterpret_cast<float*>(shared) + warp * BLOCK_ROWS * PARTIAL_PITCH;
    statistics* pairs = reinterpret_cast<statistics*>(shared + PARTIAL_BYTES) + warp * BLOCK_ROWS;
#pragma unroll
    for (int m = 0; m < ROW_TILES; ++m) {
        const int row = m * TILE_ROWS + 2 * (lane % 4);
#pragma unroll
        for (int tile = 0; tile < D_TILES; ++tile) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                sums[(row + i % 2) * PARTIAL_PITCH + head_column(tile, lane / 4 + i / 2 * 8)] = o[m][tile][i];
            }
        }
        if (lane < 4) {
            pairs[row] = {maximum[m][0], sum[m][0]};
            pairs[row + 1] = {maximum[m][1], sum[m][1]};
        }
    }
}

__device__ __forceinline__ void store_unit(q_t* o, const packed_rows& packed, int row, int column, const float4& sum,
                                           float total, float scale) {
    const float factor = total == 0.0f ? 0.0f : scale / total;
    const uint2 four = make_uint2(pack2<q_t>(sum.x * factor, sum.y * factor), pack2<q_t>(sum.z * factor, sum.w * factor));
    *reinterpret_cast<uint2*>(o + packed.offset(row) + column) = four;
}

// At the start of the kernel, all threads: what the inbox waits for when `rows` packed rows are computed.
__device__ __forceinline__ void open_inbox(unsigned char* shared, int rows) {
#if SPLITS > 1
    if (threadIdx.x == 0) {
        const int units = rows * UNITS_PER_ROW;
        const int of_this_cta = (units - static_cast<int>(cluster_rank()) + SPLITS - 1) / SPLITS;
        const uint32_t bar = shared_address(shared) + INBOX_BARRIER;
        mbarrier_init(bar, 1);
        mbarrier_init_fence();
        mbarrier_arrive_expect_tx(bar, SPLITS * (of_this_cta * 16 + BLOCK_ROWS * 8));
    }
    __syncwarp();
    cluster_arrive_relaxed();  // waited for in combine()
#endif
}

// All threads of the block, after every warp's store_partial. `scale` multiplies the output.
__device__ __forceinline__ void combine(unsigned char* shared, q_t* o, const packed_rows& packed, int first_row,
                                        float scale) {
    const int units = min(BLOCK_ROWS, packed.rows - first_row) * UNITS_PER_ROW;
    const float4* sums = reinterpret_cast<const float4*>(shared);
    const statistics* pairs = reinterpret_cast<const statistics*>(shared + PARTIAL_BYTES);
    constexpr int WARP_PITCH = BLOCK_ROWS * PARTIAL_PITCH / UNIT_COLUMNS;
    __syncthreads();
    if constexpr (SPLITS == 1) {
        for (int unit = threadIdx.x; unit < units; unit += THREADS) {
            const int row = unit / UNITS_PER_ROW, column = unit % UNITS_PER_ROW;
            const weights<WARPS> of_warps(pairs + row, BLOCK_ROWS);
            const float4 sum = of_warps.add(sums + row * (PARTIAL_PITCH / UNIT_COLUMNS) + column, WARP_PITCH);
            store_unit(o, packed, first_row + row, column * UNIT_COLUMNS, sum, of_warps.total, scale);
        }
    } else {
#if SPLITS > 1
        const uint32_t base = shared_address(shared);
        const uint32_t rank = cluster_rank();
        cluster_wait();  // for the arrival at the start: every CTA's inbox exists
        for (int unit = threadIdx.x; unit < units; unit += THREADS) {
            const int row = unit / UNITS_PER_ROW, column = unit % UNITS_PER_ROW;
            const weights<WARPS> of_warps(pairs + row, BLOCK_ROWS);
            const float4 sum = of_warps.add(sums + row * (PARTIAL_PITCH / UNIT_COLUMNS) + column, WARP_PITCH);
            const uint32_t inbox = mapa_shared_cluster(base, unit % SPLITS);
            st_async_v4(inbox + INBOX_UNITS + (rank * UNITS_PER_CTA + unit / SPLITS) * 16, inbox + INBOX_BARRIER, sum);
        }
        for (int i = threadIdx.x; i < SPLITS * BLOCK_ROWS; i += THREADS) {
            const int row = i % BLOCK_ROWS;
            const weights<WARPS> of_warps(pairs + row, BLOCK_ROWS);
            const uint32_t inbox = mapa_shared_cluster(base, i / BLOCK_ROWS);
            st_async_v2(inbox + INBOX_STATISTICS + (rank * BLOCK_ROWS + row) * 8, inbox + INBOX_BARRIER,
                        __float_as_uint(of_warps.maximum), __float_as_uint(of_warps.total));
        }
        mbarrier_wait_cluster(base + INBOX_BARRIER, 0);
        const float4* sent = reinterpret_cast<const float4*>(shared + INBOX_UNITS);
        const statistics* sent_pairs = reinterpret_cast<const statistics*>(shared + INBOX_STATISTICS);
        for (int slot = threadIdx.x; slot * SPLITS + static_cast<int>(rank) < units; slot += THREADS) {
            const int unit = slot * SPLITS + static_cast<int>(rank);
            const int row = unit / UNITS_PER_ROW, column = unit % UNITS_PER_ROW;
            const weights<SPLITS> of_splits(sent_pairs + row, BLOCK_ROWS);
            const float4 sum = of_splits.add(sent + slot, UNITS_PER_CTA);
            store_unit(o, packed, first_row + row, column * UNIT_COLUMNS, sum, of_splits.total, scale);
        }
#endif
    }
}

}  // namespace forge
