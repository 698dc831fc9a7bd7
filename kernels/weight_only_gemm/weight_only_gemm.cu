// y = activate(x w^T * scale + bias) for 16-bit x and codes w of 8 or 4 bits, made for few rows of x: what counts is
// how fast the weights come in. sm_80 and later.
//
//   CTA = BLOCK_ROWS weight rows, BLOCK_COLUMNS rows of x;  warp = ROW_TILES * 16 of the weight rows
//
//   w [N, K]  --cp.async--> stage --own 16 bytes--> codes --AND, fma--> 16-bit floats = A \
//                                                                                          mma --> y^T (float32)
//   x [M, K]  --cp.async--> stage --arranged----------------------> B --------------------/      * scale of the group
//
//   y^T --> sums in the place of the stages --> * scale of the row + bias --> activate --> y [M, N]
//
// Weight rows are the M of the products: 16 of them fill it, where a single row of x as M would use a sixteenth. A lane
// takes 16 consecutive bytes of a row as they lie in memory; what it multiplies them with is put into the same order,
// so the weights need no shuffle beforehand. Where they can, weight_stream.cu (sm_90 and later, up to 16 rows of x) and
// weight_wgmma.cu (sm_90a, 17 to 256 rows) run instead, and alone take zero points.
//
// Compile-time: x_t, ACTIVATION, HAS_BIAS, those of tile.cuh. Needs K % 16 == 0 (8 bits) or K % 128 == 0 (4 bits) and
// 16-byte aligned pointers.

#include "stage.cuh"
#include "finish.cuh"

constexpr int UNITS_PER_ROW = BLOCK_ROWS / UNIT;

// sums[c][tile][2 h + e]: weight row 16 tile + 8 h + lane / 4 of the warp, row of x 8 c + 2 (lane % 4) + e.
__device__ __forceinline__ void store_sums(float* shared, const accumulator& sums) {
    const int lane = threadIdx.x % WARP_SIZE, warp = threadIdx.x / WARP_SIZE;
#pragma unroll
    for (int c = 0; c < COLUMN_TILES; ++c) {
#pragma unroll
        for (int tile = 0; tile < ROW_TILES; ++tile) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int column = c * MMA_N + lane % ROW_LANES * 2 + i % 2;
                const int row = warp * WARP_ROWS + tile * MMA_M + i / 2 * 8 + lane / ROW_LANES;
                shared[column * SUM_PITCH + row] = sums[c][tile][i];
            }
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    weight_only_gemm(const x_t* __restrict__ x, const w_t* __restrict__ w, const float* __restrict__ scale,
#if HAS_BIAS
                     const x_t* __restrict__ bias,
#endif
                     int M, int N, int K, x_t* __restrict__ y) {
    extern __shared__ __align__(128) unsigned char dynamic_shared[];
    const int first_row = blockIdx.x * BLOCK_ROWS;
    const int first_column = blockIdx.y * BLOCK_COLUMNS;
    const int row_bytes = K / (8 / BITS);
    const int steps = (row_bytes + STEP_BYTES - 1) / STEP_BYTES;
    const int inside_end = first_row + BLOCK_ROWS <= N ? row_bytes / STEP_BYTES : 0;  // steps without an edge

    const uint32_t ring = forge::shared_address(dynamic_shared);
    copier own(x, reinterpret_cast<const unsigned char*>(w), scale, M, N, K, first_row, first_column);
    accumulator sums = {};
#pragma unroll
    for (int stage = 0; stage < STAGES - 1; ++stage) {
        if (stage < steps) own.copy_next(ring + stage * STAGE_BYTES, stage < inside_end);
        forge::cp_async_commit();
    }
    int reading = 0, filling = STAGES - 1;
    for (int step = 0; step < steps; ++step) {
        forge::cp_async_wait<STAGES - 2>();
        unsigned char* stage = dynamic_shared + reading * STAGE_BYTES;
        own.arrange(stage);
        __syncthreads();  // x and the scales of `step` are there for everyone, and everyone has read the stage before
        const int next = step + STAGES - 1;
        if (next < steps) own.copy_next(ring + filling * STAGE_BYTES, next < inside_end);
        forge::cp_async_commit();  // also when empty: the wait above counts groups
        multiply_stage(sums, stage);
        reading = reading + 1 == STAGES ? 0 : reading + 1;
        filling = filling + 1 == STAGES ? 0 : filling + 1;
    }
    forge::cp_async_wait<0>();
    __syncthreads();

    float* shared = reinterpret_cast<float*>(dynamic_shared);
    store_sums(shared, sums);
    __syncthreads();
    const int units = min(BLOCK_COLUMNS, M - first_column) * UNITS_PER_ROW;
#if HAS_BIAS
    const finisher finish{scale, bias, N, y};
#else
    const finisher finish{scale, nullptr, N, y};
#endif
    for (int unit = threadIdx.x; unit < units; unit += THREADS) {
        const int column = unit / UNITS_PER_ROW, row = unit % UNITS_PER_ROW * UNIT;
        finish(first_column + column, first_row + row, add_parts(shared, column * SUM_PITCH + row));
    }
}
