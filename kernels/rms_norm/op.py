"""RMS normalization: the smallest complete declaration, and the one that the documentation walks through."""

import numpy as np

from trtforge.kernels import (
    HALF,
    Attr,
    Case,
    Cost,
    Launch,
    Op,
    Tensor,
    Tolerance,
    cdiv,
    cuda,
    grid,
    next_power_of_2,
    triton,
)

rms_norm = Op(
    "trtforge::rms_norm",
    doc="y = x / sqrt(mean(x²) + eps) · weight over the last dimension (Zhang and Sennrich 2019, arXiv:1910.07467).",
    inputs={
        "x": Tensor("*M", "N", dtype=HALF, doc="rows to normalize"),
        "weight": Tensor("N", dtype="x", doc="gain per column"),
    },
    outputs={"y": Tensor("*M", "N", dtype="x")},
    attributes={"eps": Attr(1e-6, minimum=0.0, doc="added to the mean square")},
    rules=[(lambda d: d.N <= 32768, "N must be at most 32768, because one block holds a row in registers")],
    tolerance={
        "float16": Tolerance(l2=6e-4, rtol=2e-3, atol=1e-3),
        "bfloat16": Tolerance(l2=5e-3, rtol=1.6e-2, atol=8e-3),
    },
    cases=[
        Case({"M": 1, "N": 1}),
        Case({"M": 3, "N": 257}, {"eps": 1e-3}),
        Case({"M": 6, "N": 1024}, leading=(2, 3)),
        Case({"M": 7, "N": 4096}),
        Case({"M": 5, "N": 12345}, tags=("gpu",)),
        Case({"M": 64, "N": 32768}, tags=("gpu",)),
        Case({"M": 16, "N": 4096}, tags=("bench",), dtypes={"x": "bfloat16"}),
        Case({"M": 4096, "N": 4096}, tags=("bench",), dtypes={"x": "bfloat16"}),
        Case({"M": 16384, "N": 8192}, tags=("bench",), dtypes={"x": "bfloat16"}),
    ],
)


@rms_norm.reference
def _(x, weight, *, eps):
    x = x.astype(np.float64)
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps) * weight.astype(np.float64)


@rms_norm.cost
def _(d):
    return Cost(flops=4 * d.M * d.N)


@rms_norm.peer("PyTorch eager")
@rms_norm.peer("torch.compile", compile=True)
def _(x, weight, *, eps):
    import torch.nn.functional as F

    return F.rms_norm(x, weight.shape, weight, eps)


def row_in_registers(d, t, wide):
    chunk = 8 * t.THREADS
    return Launch(
        grid=d.M,
        block=t.THREADS,
        scalars=(d.M, d.N),
        constants={"VECTORS": next_power_of_2(cdiv(d.N, chunk)), "WIDE": wide},
    )


FITS = (lambda d, t: d.N <= 64 * t.THREADS, "holds at most 64 values of a row in each thread")


@rms_norm.kernel(
    cuda("rms_norm.cu"),
    tactics=grid(THREADS=(128, 256, 512)),
    requires=[(lambda d: d.N % 8 == 0, "reads 16 bytes at a time, so N must be a multiple of 8"), FITS],
)
def _(d, t):
    return row_in_registers(d, t, wide=1)


@rms_norm.kernel(
    cuda("rms_norm.cu"), name="cuda_elementwise", tactics=grid(THREADS=(128, 256, 512)), requires=[FITS], align=2
)
def _(d, t):
    return row_in_registers(d, t, wide=0)


@rms_norm.kernel(triton("rms_norm_triton.py"), tactics=grid(num_warps=(4, 8)), align=2)
def _(d):
    return Launch(grid=d.M, scalars=(d.M, d.N), constants={"BLOCK_N": next_power_of_2(d.N)})


@rms_norm.heuristic
def _(d):
    threads = {"THREADS": 128 if d.N <= 2048 else 256 if d.N <= 8192 else 512}
    return [("cuda", threads), ("cuda_elementwise", threads)]


@rms_norm.pattern(inputs=("x", "weight"))
def _(f, x, weight):
    return f.rms_norm(x, weight, eps=f.capture("eps"))
