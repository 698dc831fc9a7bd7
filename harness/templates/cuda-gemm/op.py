"""A matrix product with an epilogue: the declaration, from which the kit derives everything else."""

import numpy as np

from trtforge.kernels import HALF, Attr, Case, Cost, Launch, Op, Tensor, Tolerance, cdiv, cuda

op = Op(
    "NAMESPACE::OPNAME",
    doc="y = v where v > 0 else slope v, with v = x wᵀ + bias: a linear layer and a leaky ReLU.",
    inputs={
        "x": Tensor("*M", "K", dtype=HALF, doc="rows to multiply"),
        "w": Tensor("N", "K", dtype="x", sample=lambda rng, shape, d: rng.standard_normal(shape) / d.K**0.5),
        "bias": Tensor("N", dtype="x", doc="added to every row"),
    },
    outputs={"y": Tensor("*M", "N", dtype="x")},
    attributes={"slope": Attr(0.01, doc="factor of negative values")},
    tolerance={
        "float16": Tolerance(l2=1e-3, rtol=2e-3, atol=2e-3),
        "bfloat16": Tolerance(l2=5e-3, rtol=1.6e-2, atol=8e-3),
    },
    cases=[
        Case({"M": 1, "N": 1, "K": 1}),
        Case({"M": 7, "N": 33, "K": 65}, {"slope": 0.2}),
        Case({"M": 6, "N": 72, "K": 136}, leading=(2, 3)),
        Case({"M": 301, "N": 777, "K": 1001}, tags=("gpu",)),
        Case({"M": 257, "N": 520, "K": 1032}, tags=("gpu",)),
        Case({"M": 4096, "N": 4096, "K": 4096}, tags=("bench",), dtypes={"x": "bfloat16"}),
    ],
)


# ==== THE FORMULA: edit it here and in OPNAME.cu ====
def formula(value, bias, slope):
    value = value + bias
    return np.where(value > 0, value, slope * value)


# ====================================================


@op.reference
def _(x, w, bias, *, slope):
    product = np.matmul(x.astype(np.float32), w.astype(np.float32).T)
    return formula(product.astype(np.float64), bias.astype(np.float64), slope)


@op.cost
def _(d):
    return Cost(flops=2 * d.M * d.N * d.K)


# What `bench` times beside the kernels, on PyTorch tensors. It changes with the formula; one that differs has no time.
@op.peer("PyTorch eager")
@op.peer("torch.compile", compile=True)
def _(x, w, bias, *, slope):
    from torch.nn import functional

    return functional.leaky_relu(functional.linear(x, w, bias), slope)


SOURCE = cuda("OPNAME.cu", entry="OPNAME_kernel")
ROW_BYTES = 128  # of a stage: 64 elements of K
TILES = (  # largest first; a stage is BLOCK_M + BLOCK_N rows
    {"BLOCK_M": 128, "BLOCK_N": 128, "WARPS_M": 2, "WARPS_N": 4, "STAGES": 3},
    {"BLOCK_M": 64, "BLOCK_N": 64, "WARPS_M": 2, "WARPS_N": 2, "STAGES": 4},
    {"BLOCK_M": 32, "BLOCK_N": 32, "WARPS_M": 2, "WARPS_N": 2, "STAGES": 4},
)


def launch(d, t, wide):
    """One block per tile of y. ``wide``: copies of 16 bytes."""
    return Launch(
        grid=cdiv(d.M, t.BLOCK_M) * cdiv(d.N, t.BLOCK_N),
        block=32 * t.WARPS_M * t.WARPS_N,
        shared=t.STAGES * (t.BLOCK_M + t.BLOCK_N) * ROW_BYTES,
        scalars=(d.M, d.N, d.K),
        constants={"WIDE": wide},
    )


@op.kernel(
    SOURCE,
    tactics=TILES,
    requires=[(lambda d: d.K % 8 == 0, "copies 16 bytes at a time, so K must be a multiple of 8")],
)
def _(d, t):
    return launch(d, t, wide=True)


@op.kernel(SOURCE, name="cuda_any", tactics=TILES[1:], align=2)
def _(d, t):
    return launch(d, t, wide=False)


@op.heuristic
def _(d, dev):
    """The largest tile that occupies every multiprocessor, else the smallest."""
    busy = [t for t in TILES[:-1] if cdiv(d.M, t["BLOCK_M"]) * cdiv(d.N, t["BLOCK_N"]) >= dev.sms]
    order = [*busy, TILES[-1]]
    return [("cuda", t) for t in order] + [("cuda_any", t) for t in order if t in TILES[1:]]
