"""One number for every row: the declaration, from which the kit derives everything else."""

import numpy as np

from trtforge.kernels import HALF, Case, Cost, Launch, Op, Tensor, grid, triton

op = Op(
    "NAMESPACE::OPNAME",
    doc="y = sqrt(sum of x²), over the last dimension.",
    inputs={"x": Tensor("*M", "N", dtype=HALF, doc="rows to reduce")},
    outputs={"y": Tensor("*M", dtype="float32")},
    cases=[
        Case({"M": 1, "N": 1}),
        Case({"M": 3, "N": 1025}),
        Case({"M": 6, "N": 1000}, leading=(2, 3)),
        Case({"M": 5, "N": 100003}, tags=("gpu",)),
        Case({"M": 4096, "N": 4096}, tags=("bench",), dtypes={"x": "bfloat16"}),
    ],
)


# ==== THE FORMULA: edit it here and in OPNAME_triton.py ====
def formula(x):
    return np.sqrt(np.sum(np.square(x), axis=-1))


# ===========================================================


@op.reference
def _(x):
    return formula(x.astype(np.float64))


@op.cost
def _(d):
    return Cost(flops=2 * d.M * d.N)


# What `bench` times beside the kernels, on PyTorch tensors. It changes with the formula; one that differs has no time.
@op.peer("PyTorch eager")
@op.peer("torch.compile", compile=True)
def _(x):
    return x.float().square().sum(dim=-1).sqrt()


SOURCE = triton("OPNAME_triton.py", entry="OPNAME_kernel")
TACTICS = grid(BLOCK_N=(1024, 4096), num_warps=(4, 8))


def launch(d, vector):
    """One program per row. ``vector``: what N is known to be a multiple of, so that Triton may read so many at once."""
    return Launch(grid=d.M, scalars=(d.N // vector,), constants={"VECTOR": vector})


@op.kernel(
    SOURCE,
    tactics=TACTICS,
    requires=[(lambda d: d.N % 8 == 0, "reads 16 bytes at a time, so N must be a multiple of 8")],
)
def _(d):
    return launch(d, vector=8)


@op.kernel(SOURCE, name="triton_any", tactics=TACTICS, align=2)
def _(d):
    return launch(d, vector=1)
