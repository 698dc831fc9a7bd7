"""One function of every element: the declaration, from which the kit derives everything else."""

import numpy as np

from trtforge.kernels import HALF, Attr, Case, Cost, Launch, Op, Tensor, Tolerance, cdiv, cuda, grid

op = Op(
    "NAMESPACE::OPNAME",
    doc="y = x / (1 + exp(-beta x)), elementwise.",
    inputs={"x": Tensor("*M", "N", dtype=HALF, doc="any shape")},
    outputs={"y": Tensor("*M", "N", dtype="x")},
    attributes={"beta": Attr(1.0, doc="steepness at zero")},
    tolerance={
        "float16": Tolerance(l2=6e-4, rtol=2e-3, atol=1e-3),
        "bfloat16": Tolerance(l2=5e-3, rtol=1.6e-2, atol=8e-3),
    },
    cases=[
        Case({"M": 1, "N": 1}),
        Case({"M": 3, "N": 257}, {"beta": 1.5}),
        Case({"M": 6, "N": 1000}, leading=(2, 3)),
        Case({"M": 1, "N": 1000003}, tags=("gpu",)),
        Case({"M": 4096, "N": 4096}, tags=("bench",), dtypes={"x": "bfloat16"}),
    ],
)


# ==== THE FORMULA: edit it here and in OPNAME.cu ====
def formula(x, beta):
    return x / (1 + np.exp(-beta * x))


# ====================================================


@op.reference
def _(x, *, beta):
    return formula(x.astype(np.float64), beta)


@op.cost
def _(d):
    return Cost(flops=4 * d.M * d.N)


# What `bench` times beside the kernels, on PyTorch tensors. It changes with the formula; one that differs has no time.
@op.peer("PyTorch eager")
@op.peer("torch.compile", compile=True)
def _(x, *, beta):
    return x * (beta * x).sigmoid()


SOURCE = cuda("OPNAME.cu", entry="OPNAME_kernel")


def launch(d, t, lanes):
    """``lanes``: elements of one memory access."""
    return Launch(
        grid=cdiv(d.M * d.N, t.THREADS * t.VECTORS * lanes),
        block=t.THREADS,
        scalars=(d.M, d.N),
        constants={"LANES": lanes},
    )


@op.kernel(
    SOURCE,
    tactics=grid(THREADS=(128, 256), VECTORS=(1, 2)),
    requires=[(lambda d: d.M * d.N % 8 == 0, "accesses 16 bytes at a time, so M * N must be a multiple of 8")],
)
def _(d, t):
    return launch(d, t, lanes=8)


@op.kernel(SOURCE, name="cuda_any", tactics=grid(THREADS=(256,), VECTORS=(4, 8)), align=2)
def _(d, t):
    return launch(d, t, lanes=1)
