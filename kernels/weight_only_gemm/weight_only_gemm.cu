// y = activate(x w^T * scale + bias) for 16-bit x and codes w of 8 or 4 bits, made for few rows of x: what counts is
// how fast the weights come in. sm_80 and later.
//
//   cluster = BLOCK_ROWS weight rows, BLOCK_COLUMNS rows of x;  CTA = a run of steps along K;  warp = ROW_TILES * 16 rows
//
//   w [N, K]  --cp.async--> stage --own 16 bytes--> codes --AND, fma--> 16-bit floats = A \
//                                                                                          mma --> y^T (float32)
//   x [M, K]  --cp.async--> stage --arranged----------------------> B --------------------/      * scale of the group
//
//   y^T --> sums in the place of the stages --ld.shared::cluster, in the order of K--> * scale of the row + bias
//                                                                                          --> activate --> y [M, N]
//
// Weight rows are the M of the products: 16 of them fill it, where a single row of x as M would use a sixteenth. A lane
// takes 16 consecutive bytes of a row as they lie in memory; what it multiplies them with is put into the same order,
// so the weights need no shuffle beforehand. Every CTA of a cluster adds a part of the rows: always the same bits.
//
// Compile-time: x_t, ACTIVATION, HAS_BIAS, those of tile.cuh. Needs K % 16 == 0 (8 bits) or K % 128 == 0 (4 bits) and
// 16-byte aligned pointers.

#include "common/cluster_shared.cuh"
#include "common/numeric.cuh"
#include "common/warpgroup.cuh"
#include "fused_gemm/activate.cuh"
#include "stage.cuh"

constexpr int UNIT = 4;  // neighboring columns of y that a thread finishes at a time
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

// The sums of four weight rows and one row of x over all parts of K.
__device__ __forceinline__ float4 add_parts(const float* shared, int offset) {
    float4 total = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll
    for (int part = 0; part < SPLITS; ++part) {
#if SPLITS > 1
        const uint32_t here = forge::shared_address(shared + offset);
        const float4 one = forge::ld_shared_cluster_v4(forge::mapa_shared_cluster(here, part));
#else
        const float4 one = *reinterpret_cast<const float4*>(shared + offset);
#endif
        total.x += one.x, total.y += one.y, total.z += one.z, total.w += one.w;
    }
    return total;
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    weight_only_gemm(const x_t* __restrict__ x, const w_t* __restrict__ w, const float* __restrict__ scale,
#if HAS_BIAS
                     const x_t* __restrict__ bias,
#endif
                     int M, int N, int K, x_t* __restrict__ y) {
    extern __shared__ __align__(128) unsigned char dynamic_shared[];
    const int first_row = blockIdx.x / SPLITS * BLOCK_ROWS;
    const int first_column = blockIdx.y * BLOCK_COLUMNS;
    const int row_bytes = K / (8 / BITS);
    const int all_steps = (row_bytes + STEP_BYTES - 1) / STEP_BYTES;
    const int steps_of_part = (all_steps + SPLITS - 1) / SPLITS;
    const int part = blockIdx.x % SPLITS;
    const int first = part * steps_of_part;
    const int end = min(first + steps_of_part, all_steps);
    const int inside_end = first_row + BLOCK_ROWS <= N ? row_bytes / STEP_BYTES : 0;  // steps without an edge

    const uint32_t ring = forge::shared_address(dynamic_shared);
    copier own(x, reinterpret_cast<const unsigned char*>(w), scale, M, N, K, first_row, first_column, first);
    accumulator sums = {};
#pragma unroll
    for (int stage = 0; stage < STAGES - 1; ++stage) {
        const int step = first + stage;
        if (step < end) own.copy_next(ring + stage * STAGE_BYTES, step < inside_end);
        forge::cp_async_commit();
    }
    int reading = 0, filling = STAGES - 1;
    for (int step = first; step < end; ++step) {
        forge::cp_async_wait<STAGES - 2>();
        unsigned char* stage = dynamic_shared + reading * STAGE_BYTES;
        own.arrange(stage);
        __syncthreads();  // x and the scales of `step` are there for everyone, and everyone has read the stage before
        const int next = step + STAGES - 1;
        if (next < end) own.copy_next(ring + filling * STAGE_BYTES, next < inside_end);
        forge::cp_async_commit();  // also when empty: the wait above counts groups
        multiply_stage(sums, stage);
        reading = reading + 1 == STAGES ? 0 : reading + 1;
        filling = filling + 1 == STAGES ? 0 : filling + 1;
    }
    forge::cp_async_wait<0>();
    __syncthreads();

    float* shared = reinterpret_cast<float*>(dynamic_shared);
    store_sums(shared, sums);
#if SPLITS > 1
    forge::cluster_arrive();
    forge::cluster_wait();
#else
    __syncthreads();
#endif
    const int units = min(BLOCK_COLUMNS, M - first_column) * UNITS_PER_ROW;
    const int end_unit = units * (part + 1) / SPLITS;
    for (int unit = units * part / SPLITS + static_cast<int>(threadIdx.x); unit < end_unit; unit += THREADS) {
        const int column = unit / UNITS_PER_ROW, row = unit % UNITS_PER_ROW * UNIT;
        const int n = first_row + row;
        if (n >= N) continue;
        const float4 four = add_parts(shared, column * SUM_PITCH + row);
        float values[UNIT] = {four.x, four.y, four.z, four.w};
#pragma unroll
        for (int i = 0; i < UNIT; ++i) {
            if (n + i < N) {
                if constexpr (!HAS_GROUPS) values[i] *= __ldg(scale + n + i);
#if HAS_BIAS
                values[i] += forge::to_float(bias[n + i]);
#endif
                values[i] = activate(values[i]);
            }
        }
        x_t* target = y + static_cast<size_t>(first_column + column) * N + n;
        if (N % UNIT == 0) {
            *reinterpret_cast<uint2*>(target) =
                make_uint2(forge::pack2<x_t>(values[0], values[1]), forge::pack2<x_t>(values[2], values[3]));
        } else {
#pragma unroll
            for (int i = 0; i < UNIT; ++i) {
                if (n + i < N) target[i] = forge::from_float<x_t>(values[i]);
            }
        }
    }
#if SPLITS > 1
    forge::cluster_arrive();  // the others read the sums of this CTA
    forge::cluster_wait();
#endif
}
