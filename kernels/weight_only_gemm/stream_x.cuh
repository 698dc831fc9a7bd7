// x of a warp that streams weights past it: operand B in registers for the whole kernel, in the order of the codes, and its
// sums over groups. A slot has PARTS parts of 64 bytes of every weight row, of which a lane takes 16 neighboring bytes.
//
// Include after the constants of the slot: PARTS, SLOT_K (elements of a slot along K), COLUMN_TILES, CHUNKS, MMA_N.
#pragma once

using operand_b = uint4[PARTS][CHUNKS][COLUMN_TILES];  // a lane's x of one slot
using tile_sums = float[COLUMN_TILES][4];

// `x`: the lane's first element of the slot in row lane / 4 of the block; `left`: elements from there to the end of K.
__device__ __forceinline__ void load_x(operand_b& b, const x_t* x, int K, int left, int rows) {
#pragma unroll
    for (int c = 0; c < COLUMN_TILES; ++c) {
#pragma unroll
        for (int part = 0; part < PARTS; ++part) {
#pragma unroll
            for (int i = 0; i < CHUNKS; ++i) {
                const int k = part * (SLOT_K / PARTS) + i * CHUNK;
                const x_t* source = x + static_cast<size_t>(c) * MMA_N * K + k;
                b[part][i][c] = make_uint4(0, 0, 0, 0);
                if (k < left && c * MMA_N < rows) b[part][i][c] = __ldg(reinterpret_cast<const uint4*>(source));
            }
        }
    }
}

__device__ __forceinline__ void arrange(operand_b& b) {
#pragma unroll
    for (int part = 0; part < PARTS; ++part) {
#pragma unroll
        for (int i = 0; i < CHUNKS; ++i) {
#pragma unroll
            for (int c = 0; c < COLUMN_TILES; ++c) b[part][i][c] = arranged(b[part][i][c]);
        }
    }
}

// Sums of the rows of x over a part of a slot, which is a group: what a bias of the codes adds to the products. Of columns
// 2 (lane % 4) and the next one, twice.
__device__ __forceinline__ void add_up(float (&sums)[4], const uint4 (&x)[CHUNKS][COLUMN_TILES], int c) {
    const uint32_t one = forge::pack2<x_t>(1.0f, 1.0f);
    const uint32_t ones[4] = {one, one, one, one};
#pragma unroll
    for (int i = 0; i < CHUNKS; ++i) {
        forge::mma_m16n8k16<x_t>(sums, ones, x[i][c].x, x[i][c].y);
        forge::mma_m16n8k16<x_t>(sums, ones, x[i][c].z, x[i][c].w);
    }
}
