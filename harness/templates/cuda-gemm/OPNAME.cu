// y = formula(x wᵀ, bias) on tensor cores, for x [M, K], w [N, K] and any M, N and K; sums in float32.
//
//   x [M, K] ──copies──▶ ring of STAGES ──ldmatrix──▶ a ──┐
//                        in shared memory                 ├─▶ mma.sync ──▶ sums ──▶ formula ──▶ y [M, N]
//   w [N, K] ──copies──▶                ──ldmatrix──▶ b ──┘   m16n8k16     in registers
//
// A block makes BLOCK_M x BLOCK_N elements of y with WARPS_M x WARPS_N warps. A stage is BLOCK_M rows of x, then
// BLOCK_N rows of w, BLOCK_K elements of each; STAGES - 1 of them are under way while one is multiplied.
//
// Compile-time: x_t, y_t, SLOPE (attribute), BLOCK_M, BLOCK_N, WARPS_M, WARPS_N, STAGES (tactic), WIDE (launch):
// 1 copies 16 bytes asynchronously, which needs K % 8 == 0 and aligned pointers; 0 serves every size and alignment.

#include "common/cp_async.cuh"
#include "common/ldmatrix.cuh"
#include "common/mma.cuh"
#include "common/numeric.cuh"
#include "common/swizzle.cuh"
#include "common/vector_io.cuh"

// ==== THE FORMULA: edit it here and in op.py ====
__device__ __forceinline__ float formula(float value, float bias) {
    value += bias;
    return value > 0.0f ? value : SLOPE * value;
}
// ================================================

constexpr int WARP_SIZE = 32;
constexpr int THREADS = WARPS_M * WARPS_N * WARP_SIZE;
constexpr int MMA_M = 16, MMA_N = 8, MMA_K = 16;
constexpr int WARP_M = BLOCK_M / WARPS_M;
constexpr int WARP_N = BLOCK_N / WARPS_N;
constexpr int TILES_M = WARP_M / MMA_M;
constexpr int TILES_N = WARP_N / MMA_N;
constexpr int BLOCK_K = 64;
constexpr int CHUNK = 8;  // elements of 16 bytes: a copy, a row of ldmatrix, a cell of the swizzle
constexpr int CHUNKS_PER_ROW = BLOCK_K / CHUNK;
constexpr int ROW_BYTES = BLOCK_K * sizeof(x_t);
constexpr int STAGE_BYTES = (BLOCK_M + BLOCK_N) * ROW_BYTES;

static_assert(ROW_BYTES == 128, "rows of a stage fit the 128-byte swizzle");
static_assert(BLOCK_M * CHUNKS_PER_ROW % THREADS == 0 && BLOCK_N * CHUNKS_PER_ROW % THREADS == 0, "even shares");
static_assert(WARP_M % MMA_M == 0 && WARP_N % (2 * MMA_N) == 0, "ldmatrix.x4 brings 16 rows of x or of w");

using accumulator = float[TILES_M][TILES_N][4];

// Rows first, first + 1, ... and elements k .. k + BLOCK_K of a [rows, K] matrix, zeros outside of it.
template <int Rows>
__device__ __forceinline__ void load_rows(unsigned char* tile, const x_t* matrix, int first, int rows, int k, int K) {
#pragma unroll
    for (int base = 0; base < Rows * CHUNKS_PER_ROW; base += THREADS) {
        const int i = base + threadIdx.x;
        const int row = first + i / CHUNKS_PER_ROW;
        const int column = k + i % CHUNKS_PER_ROW * CHUNK;
        unsigned char* target = tile + forge::swizzle128(i * CHUNK * sizeof(x_t));
        const x_t* source = matrix + static_cast<long long>(row) * K + column;
#if WIDE
        const bool inside = row < rows && column < K;
        forge::cp_async<16>(forge::shared_address(target), inside ? source : matrix, inside ? 16 : 0);
#else
        forge::Vector<x_t, CHUNK> chunk;
#pragma unroll
        for (int e = 0; e < CHUNK; ++e) chunk.at[e] = row < rows && column + e < K ? source[e] : x_t(0.0f);
        forge::store_vector(reinterpret_cast<x_t*>(target), chunk);
#endif
    }
}

// sums += the product of one stage, for the warp whose part starts at row m of x and row n of w.
__device__ __forceinline__ void multiply(accumulator& sums, const unsigned char* stage, int m, int n) {
    const uint32_t x_tile = forge::shared_address(stage);
    const uint32_t w_tile = x_tile + BLOCK_M * ROW_BYTES;
    const int lane = threadIdx.x % WARP_SIZE;
    // Four 8 x 8 matrices at a time, whose rows lanes 0-7, 8-15, 16-23 and 24-31 address. Of x: upper and lower half
    // of k 0-7, then of k 8-15. Of w: k 0-7 and 8-15 of the upper half, then of the lower half.
    const int x_at = (m + lane % 16) * ROW_BYTES + lane / 16 * 16;
    const int w_at = (n + lane / 16 * 8 + lane % 8) * ROW_BYTES + lane / 8 % 2 * 16;
#pragma unroll
    for (int k = 0; k < BLOCK_K; k += MMA_K) {
        uint32_t a[TILES_M][4];
#pragma unroll
        for (int i = 0; i < TILES_M; ++i) {
            forge::ldmatrix_x4(a[i], x_tile + forge::swizzle128(x_at + i * MMA_M * ROW_BYTES + k * sizeof(x_t)));
        }
#pragma unroll
        for (int j = 0; j < TILES_N; j += 2) {
            uint32_t b[4];
            forge::ldmatrix_x4(b, w_tile + forge::swizzle128(w_at + j * MMA_N * ROW_BYTES + k * sizeof(x_t)));
#pragma unroll
            for (int i = 0; i < TILES_M; ++i) {
                forge::mma_m16n8k16<x_t>(sums[i][j], a[i], b[0], b[1]);
                forge::mma_m16n8k16<x_t>(sums[i][j + 1], a[i], b[2], b[3]);
            }
        }
    }
}

// sums[i][j][2 h + e] is at row 16 i + lane / 4 + 8 h and column 8 j + 2 (lane % 4) + e of the warp's part.
__device__ __forceinline__ void finish(const accumulator& sums, const x_t* bias, int row, int column, int M, int N,
                                       y_t* y) {
    const int lane = threadIdx.x % WARP_SIZE;
    const bool pairs = WIDE && N % 2 == 0;
#pragma unroll
    for (int j = 0; j < TILES_N; ++j) {
        const int c = column + MMA_N * j + 2 * (lane % 4);
        const float bias_0 = c < N ? forge::to_float(bias[c]) : 0.0f;
        const float bias_1 = c + 1 < N ? forge::to_float(bias[c + 1]) : 0.0f;
#pragma unroll
        for (int i = 0; i < TILES_M; ++i) {
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                const int r = row + MMA_M * i + lane / 4 + 8 * h;
                if (r >= M || c >= N) continue;
                forge::Vector<y_t, 2> out;
                out.at[0] = forge::from_float<y_t>(formula(sums[i][j][2 * h], bias_0));
                out.at[1] = forge::from_float<y_t>(formula(sums[i][j][2 * h + 1], bias_1));
                y_t* target = y + static_cast<long long>(r) * N + c;
                if (pairs) {
                    forge::store_vector(target, out);
                } else {
                    target[0] = out.at[0];
                    if (c + 1 < N) target[1] = out.at[1];
                }
            }
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS)
    OPNAME_kernel(const x_t* __restrict__ x, const x_t* __restrict__ w, const x_t* __restrict__ bias, int M, int N,
                  int K, y_t* __restrict__ y) {
    extern __shared__ __align__(128) unsigned char ring[];
    const int tiles_m = M / BLOCK_M + (M % BLOCK_M != 0);
    const int row = blockIdx.x % tiles_m * BLOCK_M;  // neighbors share rows of w
    const int column = blockIdx.x / tiles_m * BLOCK_N;
    const int warp = threadIdx.x / WARP_SIZE;
    const int m = warp % WARPS_M * WARP_M;
    const int n = warp / WARPS_M * WARP_N;
    const int steps = K / BLOCK_K + (K % BLOCK_K != 0);

    const auto start_loading = [&](int step) {
        if (step < steps) {
            unsigned char* stage = ring + step % STAGES * STAGE_BYTES;
            load_rows<BLOCK_M>(stage, x, row, M, step * BLOCK_K, K);
            load_rows<BLOCK_N>(stage + BLOCK_M * ROW_BYTES, w, column, N, step * BLOCK_K, K);
        }
        forge::cp_async_commit();  // also when empty: waiting counts the groups
    };

    accumulator sums = {};
#pragma unroll
    for (int step = 0; step < STAGES - 1; ++step) start_loading(step);
    for (int step = 0; step < steps; ++step) {
        forge::cp_async_wait<STAGES - 2>();
        __syncthreads();  // everyone's copies of this stage have arrived, and everyone is done with the stage before
        start_loading(step + STAGES - 1);
        multiply(sums, ring + step % STAGES * STAGE_BYTES, m, n);
    }
    finish(sums, bias, row + m, column + n, M, N, y);
}
