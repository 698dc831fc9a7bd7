"""RMS normalization in Triton: one program per row, the row held in registers."""

import triton
import triton.language as tl


@triton.jit
def rms_norm(x_ptr, weight_ptr, M, N, y_ptr, BLOCK_N: tl.constexpr, EPS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK_N)
    inside = columns < N
    x = tl.load(x_ptr + row * N + columns, mask=inside, other=0.0).to(tl.float32)
    weight = tl.load(weight_ptr + columns, mask=inside, other=0.0).to(tl.float32)
    mean_square = tl.sum(x * x, axis=0) / N
    y = x * (1.0 / tl.sqrt(mean_square + EPS)) * weight
    tl.store(y_ptr + row * N + columns, y.to(y_ptr.dtype.element_ty), mask=inside)
