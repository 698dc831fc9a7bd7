"""A whole op in one file: y = relu(x)², the activation of Primer (So et al. 2021, arXiv:2109.08668).

trtforge check squared_relu --load examples/squared_relu.py
"""

import numpy as np
import triton
import triton.language as tl

import trtforge
from trtforge.kernels import HALF, Case, Cost, Launch, Op, Tensor, cdiv, grid

squared_relu = Op(
    "examples::squared_relu",
    doc="y = max(x, 0)², elementwise.",
    inputs={"x": Tensor("*M", "N", dtype=HALF)},
    outputs={"y": Tensor("*M", "N", dtype="x")},
    cases=[Case({"M": 1, "N": 1}), Case({"M": 33, "N": 1000}), Case({"M": 4096, "N": 4096}, tags=("bench",))],
)


@squared_relu.reference
def _(x):
    return np.square(np.maximum(x.astype(np.float32), 0))


@squared_relu.cost
def _(d):
    return Cost(flops=2 * d.M * d.N)


@triton.jit
def squared_relu_kernel(x_ptr, count, y_ptr, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.maximum(tl.load(x_ptr + at, mask=at < count).to(tl.float32), 0.0)
    tl.store(y_ptr + at, (x * x).to(y_ptr.dtype.element_ty), mask=at < count)


@squared_relu.kernel(trtforge.triton(__file__, entry="squared_relu_kernel"), tactics=grid(BLOCK=(512, 1024)))
def _(d, t):
    return Launch(grid=cdiv(d.M * d.N, t.BLOCK), scalars=(d.M * d.N,))


@squared_relu.pattern(inputs=("x",))
def _(f, x):
    positive = f.relu(x)
    return f.mul(positive, positive)
