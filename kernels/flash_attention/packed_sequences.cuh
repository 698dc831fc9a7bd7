// Sequences of different lengths packed one after another, and which piece of which of them a CTA works on.
//
//   tokens   │ sequence 0 │ sequence 1 │ ... │ sequence n-1 │ of nobody │      offsets[s]: where sequence s begins
//   slots    [ .. . ][ .. ][ ...                            [ .. ]
//
// Sequence s has slots floor(offsets[s] r / ROWS) + s up to the first slot of s + 1, with r rows per token: at least as
// many as it has tiles of ROWS rows, one too many at most. So a CTA finds its sequence by a search in the offsets, no
// sum over lengths is needed, and the grid follows from the number of tokens and of sequences alone. Queries after the
// last offset form a sequence without keys, n, whose output is zeros.
//
// Offsets are data. They are clamped to 0..tokens and the first is taken as 0, so that no memory outside of the tensors
// is touched whatever they are; the output is only defined where they ascend.
//
// Compile-time input: VARLEN (0/1; 0 where a kernel does not set it).
#pragma once

#include "common/shared_address.cuh"
#include "visibility.cuh"

#ifndef VARLEN
#define VARLEN 0
#endif

namespace forge {

// A tile of one sequence. `rows` is the number of rows of the sequence, 0 for a slot that is one too many.
struct packed_tile {
    int first_row, rows;   // of the tile, of the sequence
    int q_begin, queries;  // first token and length
    int k_begin, keys;
};

struct packed_sequences {
    const int32_t* q_offsets;
    const int32_t* k_offsets;
    int count, q_tokens, k_tokens;

    // CTAs that a head needs; rows_per_query packed rows to a token.
    template <int ROWS>
    __device__ __forceinline__ int slots(int rows_per_query) const {
        return q_tokens * rows_per_query / ROWS + count + 1;
    }

    // By a whole warp: each round asks 32 sequences whether they begin at or before `slot`, and keeps the last that does.
    template <int ROWS>
    __device__ __forceinline__ packed_tile tile_at(int slot, int rows_per_query) const {
        constexpr int LANES = 32;
        const int lane = static_cast<int>(threadIdx.x) % LANES;
        int sequence = 0;
        int candidates = count + 1;
        while (candidates > 1) {
            const int step = (candidates + LANES - 1) / LANES;
            const bool within = lane * step < candidates;
            const bool begun = within && first_slot<ROWS>(sequence + lane * step, rows_per_query) <= slot;
            const int passed = max(__popc(__ballot_sync(0xffffffffu, begun)) - 1, 0) * step;
            sequence += passed;
            candidates = min(step, candidates - passed);
        }
        packed_tile tile;
        tile.q_begin = offset(q_offsets, sequence, q_tokens);
        tile.queries = max(sequence == count ? q_tokens - tile.q_begin
                                             : offset(q_offsets, sequence + 1, q_tokens) - tile.q_begin, 0);
        tile.k_begin = offset(k_offsets, sequence, k_tokens);
        tile.keys = sequence == count ? 0 : max(offset(k_offsets, sequence + 1, k_tokens) - tile.k_begin, 0);
        const int rows = tile.queries * rows_per_query;
        const int tiles = (rows + ROWS - 1) / ROWS;
        const int nth = slot - first_slot<ROWS>(sequence, rows_per_query);
        tile.rows = nth >= 0 && nth < tiles ? rows : 0;
        tile.first_row = (IS_CAUSAL ? tiles - 1 - nth : nth) * ROWS;  // longest tiles first
        return tile;
    }

   private:
    static __device__ __forceinline__ int offset(const int32_t* offsets, int index, int tokens) {
        return index == 0 ? 0 : min(max(offsets[index], 0), tokens);
    }

    template <int ROWS>
    __device__ __forceinline__ int first_slot(int sequence, int rows_per_query) const {
        return offset(q_offsets, sequence, q_tokens) * rows_per_query / ROWS + sequence;
    }
};

}  // namespace forge
