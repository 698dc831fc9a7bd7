"""One number for every row, one program per row, any N.

global x row ──BLOCK_N elements at a time──▶ term ──combine──▶ BLOCK_N float32 values ──finish──▶ global y
"""

import triton
import triton.language as tl

# ==== THE FORMULA: edit it here and in op.py ====
START = tl.constexpr(0.0)  # combine(START, value) is value


@triton.jit
def term(x):
    return x * x


@triton.jit
def combine(a, b):
    return a + b


@triton.jit
def finish(values, N):
    return tl.sqrt(tl.sum(values, axis=0))


# ================================================


@triton.jit
def OPNAME_kernel(x_ptr, vectors, y_ptr, BLOCK_N: tl.constexpr, VECTOR: tl.constexpr):
    N = vectors * VECTOR
    row = tl.program_id(0).to(tl.int64)
    values = tl.full([BLOCK_N], START, tl.float32)
    for start in range(0, N, BLOCK_N):
        columns = start + tl.arange(0, BLOCK_N)
        inside = columns < N
        x = tl.load(x_ptr + row * N + columns, mask=inside, other=0.0).to(tl.float32)
        values = combine(values, tl.where(inside, term(x), START))
    tl.store(y_ptr + row, finish(values, N))
