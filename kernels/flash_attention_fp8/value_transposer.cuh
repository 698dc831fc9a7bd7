// V [keys][D] as it landed -> V transposed [D][keys], operand B of P V: 8-bit operands of wgmma are K-major, and the K of
// this product is keys. Two warps of the producer's warpgroup do it while the consumers multiply.
//
//   landed, 16 keys x 32 columns            registers (lane 4 p + t)                        transposed, 32 rows x 16 keys
//   ┌ 8 x 8 pairs ┐  ldmatrix.trans   r0: columns 2p, 2p+1 of keys 2t, 2t+1    byte permute   ┌ even column: 16 keys ┐
//   │ keys 0-7    │ ───────────────▶                                          ─────────────▶ │ odd column:  16 keys │
//   │ keys 8-15   │                  r1: the same of keys 2t+8, 2t+9            stmatrix      └ ...                  ┘
//
// A pair of columns is what ldmatrix moves about as one 16-bit element; the byte permute takes it apart and puts four keys
// of one column together: 2t, 2t+1, 2t+8, 2t+9. That is the order in which the accumulators of S become operand A of 8
// bits (common/wgmma_8bit.cuh), so neither P nor V needs a shuffle.
//
// Of the eight rows that one 8 x 8 matrix of stmatrix writes, four belong to even columns and four to odd ones, so that
// they differ in their number modulo 8: the swizzle then puts them into different banks.
#pragma once

#include "common/ldmatrix.cuh"
#include "common/mbarrier.cuh"
#include "common/tma.cuh"
#include "common/warpgroup.cuh"
#include "flash_attention/sm90_config.cuh"
#include "flash_attention/sm90_schedule.cuh"

namespace forge {

// The strips of 32 columns go to the warps in turn.
class value_transposer {
  public:
    __device__ __forceinline__ explicit value_transposer(int worker) {
        const int lane = static_cast<int>(threadIdx.x) % WARP_THREADS;
        const int matrix = lane / MATRIX_ROWS, row = lane % MATRIX_ROWS;
        // Matrices 0 and 1 are loaded from keys 0-7 and 8-15 of 16 columns, 2 and 3 from those of the next 16.
        const int key = matrix % 2 * MATRIX_ROWS + row;
        source_ = key * SWIZZLE128_ROW_BYTES + ((2 * worker + matrix / 2) ^ row) * 16;
        // Matrices 0 and 1 are stored to half of 16 columns each, 2 and 3 to those of the next 16.
        const int odd = (row / 4 + matrix) % 2;
        const int column = worker * STRIP_COLUMNS + matrix / 2 * 16 + 2 * row + odd;
        target_ = column * SWIZZLE128_ROW_BYTES + column % 8 * 16;
        bytes_ = lane / 4 >= 4 ? ODD_BYTES : EVEN_BYTES;
    }

    // All lanes of a warp; the tile at `landed` has arrived, the one at `transposed` is free.
    __device__ __forceinline__ void transpose(uint32_t landed, uint32_t transposed) const {
#pragma unroll 1
        for (int n = 0; n < STRIPS; ++n) {
            const int column_group = n * TRANSPOSER_WARPS * 2;  // of 16 columns, for the first warp
            const uint32_t source = ((landed + source_) ^ column_group % 8 * 16) + column_group / 8 * KV_CHUNK_BYTES;
            const uint32_t target = transposed + target_ + n * TRANSPOSER_WARPS * STRIP_COLUMNS * SWIZZLE128_ROW_BYTES;
#pragma unroll 1  // and derived addresses are not kept: few registers are there for them
            for (int first = 0; first < GROUPS; first += BATCH) {
                uint32_t pairs[BATCH][4];
#pragma unroll
                for (int i = 0; i < BATCH; ++i) {
                    ldmatrix_x4_trans(pairs[i], source + (first + i) * GROUP_KEYS * SWIZZLE128_ROW_BYTES);
                }
#pragma unroll
                for (int i = 0; i < BATCH; ++i) {
                    const int group = first + i;
                    const uint32_t columns[4] = {take(pairs[i][0], pairs[i][1], 0), take(pairs[i][0], pairs[i][1], BOTH),
                                                 take(pairs[i][2], pairs[i][3], 0), take(pairs[i][2], pairs[i][3], BOTH)};
                    stmatrix_x4((target ^ group % GROUPS_PER_CHUNK * 16) + group / GROUPS_PER_CHUNK * VALUE_CHUNK_BYTES,
                                columns);
                }
            }
        }
    }

  private:
    static constexpr int MATRIX_ROWS = 8;
    static constexpr int STRIP_COLUMNS = 32;
    static constexpr int STRIPS = TILE_D / STRIP_COLUMNS / TRANSPOSER_WARPS;  // of one warp
    static constexpr int GROUP_KEYS = 16;
    static constexpr int GROUPS = BLOCK_N / GROUP_KEYS;
    static constexpr int GROUPS_PER_CHUNK = SWIZZLE128_ROW_BYTES / GROUP_KEYS;
    static constexpr int BATCH = GROUPS % 4 == 0 ? 4 : 2;  // loads in flight
    static constexpr uint32_t EVEN_BYTES = 0x6420, ODD_BYTES = 0x7531, BOTH = EVEN_BYTES ^ ODD_BYTES;
    static_assert(TILE_D % (STRIP_COLUMNS * TRANSPOSER_WARPS) == 0, "the warps share the columns of V evenly");
    static_assert(TRANSPOSER_WARPS == 1 || TRANSPOSER_WARPS == 2 || TRANSPOSER_WARPS == 4, "addresses are joined by XOR");
    static_assert(GROUPS % BATCH == 0, "BLOCK_N is a multiple of 32");

    __device__ __forceinline__ uint32_t take(uint32_t low_keys, uint32_t high_keys, uint32_t other) const {
        return __byte_perm(low_keys, high_keys, bytes_ ^ other);
    }

    uint32_t source_, target_;  // offsets of this lane
    uint32_t bytes_;            // of the column that the lane stores first
};

// Warp `worker` of TRANSPOSER_WARPS: its columns of every V tile that the producer loads, in the same order.
__device__ __forceinline__ void transpose_values(const shared_layout& shared, const tile_schedule& schedule, int worker) {
    const value_transposer transposer(worker);
    ring_position<STAGES> ring;
    for (int tile = blockIdx.x; tile < schedule.tiles; tile += schedule.step) {
        const key_blocks blocks = schedule.at(tile).blocks;
        for (int block = blocks.begin; block < blocks.end; ++block) {
            mbarrier_wait(shared.landed_full(ring.stage), ring.round_parity);
            mbarrier_wait(shared.v_empty(ring.stage), ring.round_parity ^ 1);
            transposer.transpose(shared.landed_tile(ring.stage), shared.v_tile(ring.stage));
            fence_proxy_async_shared();
            __syncwarp();
            if (threadIdx.x % WARP_THREADS == 0) {
                mbarrier_arrive(shared.landed_empty(ring.stage));
                mbarrier_arrive(shared.v_full(ring.stage));
            }
            ring.advance();
        }
    }
}

}  // namespace forge
