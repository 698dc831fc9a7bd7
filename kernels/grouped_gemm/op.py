"""Matrix products over experts: tokens sorted by expert, each expert's rows multiplied with its own weights.

How many rows an expert has is known on the device only: `offsets` holds the end row of every expert, as PyTorch's
grouped product takes them. The epilogue is the fused product's.
"""

import numpy as np

from trtforge.kernels import HALF, Attr, Case, Cost, Op, Tensor, cuda, triton
from trtforge.kernels.fused_gemm.geometry import mma_tile, sm90_tile, triton_tile
from trtforge.kernels.fused_gemm.op import ACTIVATION_FUNCTIONS, ACTIVATIONS, TOLERANCE, product
from trtforge.kernels.grouped_gemm import peers
from trtforge.kernels.grouped_gemm.geometry import (
    BENCHMARKS,
    RULES,
    by_rows_of_an_expert,
    expert_ends,
    mma_launch,
    rows_of_experts,
    sizes,
    sm90_launch,
    triton_launch,
    weight_sample,
)
from trtforge.kernels.grouped_gemm.scaled import scaled_grouped_gemm

__all__ = ["grouped_gemm", "scaled_grouped_gemm"]

grouped_gemm = Op(
    "trtforge::grouped_gemm",
    doc="""y = activation(x w[e]ᵀ + bias[e]) for the rows of every expert e: the linear layers of a mixture of experts.

Rows of x are sorted by expert: expert e has the rows offsets[e - 1] (0 for the first) up to offsets[e], which may be
none. Rows after the last offset belong to no expert; zeros come out for them. Offsets are read on the device. Where
they descend, the largest so far is taken, and values outside of 0 to M as the nearer of the two: nothing outside of
the tensors is read or written whatever they hold. Accumulates in float32, rounds once.""",
    inputs={
        "x": Tensor("M", "K", dtype=HALF, doc="tokens, sorted by expert"),
        "w": Tensor("E", "N", "K", dtype="x", sample=weight_sample, doc="weights, one row per output column"),
        "offsets": Tensor(
            "E", dtype="int32", sample=lambda rng, shape, d: expert_ends(rng, d), doc="end row of every expert"
        ),
        "bias": Tensor("E", "N", dtype="x", optional=True, doc="added to an expert's rows before the activation"),
    },
    outputs={"y": Tensor("M", "N", dtype="x")},
    attributes={"activation": Attr("none", choices=ACTIVATIONS, doc="applied to the float32 sums")},
    rules=RULES,
    tolerance=TOLERANCE,
    cases=[
        Case(sizes(1, 1, 1, 1)),
        Case(sizes(3, 7, 40, 8), {"activation": "relu"}),
        Case(sizes(4, 61, 33, 65), {"activation": "gelu_erf"}, ("bias",)),
        Case(sizes(2, 128, 264, 72)),
        Case(sizes(5, 203, 136, 72), {"activation": "silu"}, ("bias",)),
        Case(sizes(3, 334, 72, 24), {"activation": "gelu_tanh"}),
        Case(sizes(40, 99, 24, 16), {}, ("bias",)),
        Case(sizes(8, 1000, 1032, 2056), {"activation": "gelu_tanh"}, tags=("gpu",)),
        Case(sizes(7, 2101, 777, 1001), {"activation": "gelu_erf"}, ("bias",), tags=("gpu",)),
        Case(sizes(11, 4099, 520, 328), {"activation": "relu"}, ("bias",), tags=("gpu",)),
        Case(sizes(300, 999, 264, 136), {"activation": "silu"}, tags=("gpu",)),
        Case(sizes(16, 4096, 1024, 1024), tags=("gpu",)),
        *(Case(one, tags=("bench",), dtypes={"x": "bfloat16"}) for one in BENCHMARKS),
    ],
)


@grouped_gemm.reference
def _(x, w, offsets, bias, *, activation):
    y = np.zeros((len(x), w.shape[1]))
    for e, rows in enumerate(rows_of_experts(offsets, len(x))):
        if rows.stop > rows.start:
            y[rows] = ACTIVATION_FUNCTIONS[activation](product(x[rows], w[e], None if bias is None else bias[e]))
    return y


@grouped_gemm.cost
def _(d):
    """Every row has an expert, and every expert rows."""
    return Cost(flops=2 * d.M * d.N * d.K)


SM90_TACTICS = (
    sm90_tile(128, 256, stages=4, cluster_m=1, group_m=16),
    sm90_tile(128, 256, stages=4, cluster_m=2, group_m=8),
    sm90_tile(64, 256, stages=4, cluster_m=2, group_m=8, pingpong=True),
    sm90_tile(64, 256, stages=4, cluster_m=1, group_m=16, pingpong=True),
    sm90_tile(64, 128, stages=8, cluster_m=1, group_m=16),
    sm90_tile(128, 256, stages=4, cluster_m=1, group_m=16) | {"WEIGHTS_AHEAD": 4},
    sm90_tile(64, 256, stages=4, cluster_m=1, group_m=16, pingpong=True) | {"WEIGHTS_AHEAD": 4},
)
MMA_TACTICS = (
    mma_tile((128, 128, 64), stages=3, warps=(2, 4, 1)),
    mma_tile((64, 64, 64), stages=4, warps=(2, 2, 1)),
    mma_tile((32, 64, 64), stages=4, warps=(2, 2, 1)),
    mma_tile((16, 64, 128), stages=4, warps=(1, 4, 1)),
)
TRITON_TACTICS = (
    triton_tile(128, 128, 64, num_warps=8, num_stages=3),
    triton_tile(64, 64, 64, num_warps=4, num_stages=3),
    triton_tile(16, 64, 128, num_warps=4, num_stages=3),
)
TRITON_ELEMENTWISE_TACTICS = (triton_tile(32, 64, 32, num_warps=4, num_stages=2),)
WIDE = 8  # elements of 16 bytes
WIDE_K = (lambda d: d.K % WIDE == 0, "reads rows of x and w 16 bytes at a time, so K must be a multiple of 8")
WIDE_N = (lambda d: d.N % WIDE == 0, "writes rows of y 16 bytes at a time, so N must be a multiple of 8")


@grouped_gemm.kernel(
    cuda("grouped_gemm_sm90.cu"), name="sm90", arch=("sm_90a",), tactics=SM90_TACTICS, requires=[WIDE_K, WIDE_N]
)
def _(d, t, dev):
    return sm90_launch(d, t, dev)


@grouped_gemm.kernel(cuda("grouped_gemm_mma.cu"), name="mma", tactics=MMA_TACTICS, requires=[WIDE_K])
def _(d, t):
    return mma_launch(d, t, wide=True)


@grouped_gemm.kernel(cuda("grouped_gemm_mma.cu"), name="mma_elementwise", tactics=MMA_TACTICS[1:2], align=2)
def _(d, t):
    return mma_launch(d, t, wide=False)


@grouped_gemm.kernel(triton("grouped_gemm_triton.py"), tactics=TRITON_TACTICS, requires=[WIDE_K, WIDE_N])
def _(d, t):
    return triton_launch(d, t, WIDE)


@grouped_gemm.kernel(
    triton("grouped_gemm_triton.py"), name="triton_elementwise", tactics=TRITON_ELEMENTWISE_TACTICS, align=2
)
def _(d, t):
    return triton_launch(d, t, 1)


@grouped_gemm.heuristic
def _(d):
    names = (("sm90", SM90_TACTICS), ("mma", MMA_TACTICS))
    return [*((name, t) for name, table in names for t in by_rows_of_an_expert(d, table)), "mma_elementwise"]


peers.declare(grouped_gemm)
