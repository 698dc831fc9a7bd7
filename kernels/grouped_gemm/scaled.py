"""Products over experts of fp8 elements with scales: y = act((x wᵀ) · x_scale · w_scale + bias) per expert.

x and w are what the quantize family makes (``quantize_token``): fp8 e4m3 codes with a float32 scale per row. Sums are
the tensor cores' own, which keep fewer bits than float32 and shrink where all terms have one sign (``FP8_SUMS`` of
:mod:`trtforge.kernels.scaled_gemm.op`); scales, bias and activation are applied in float32.
"""

import numpy as np

from trtforge.kernels import HALF, Attr, Case, Cost, Op, Tensor, attr, cuda, triton
from trtforge.kernels.fused_gemm.geometry import sm90_tile, triton_tile
from trtforge.kernels.fused_gemm.op import ACTIVATION_FUNCTIONS, ACTIVATIONS
from trtforge.kernels.grouped_gemm import peers
from trtforge.kernels.grouped_gemm.geometry import (
    BENCHMARKS,
    RULES,
    by_rows_of_an_expert,
    expert_ends,
    rows_of_experts,
    sizes,
    sm90_launch,
    triton_launch,
)
from trtforge.kernels.scaled_gemm.op import FP8_SUMS, TMA_ELEMENTS, scale_sample, scaled_gemm

scaled_grouped_gemm = Op(
    "trtforge::scaled_grouped_gemm",
    doc=f"""y = activation((x w[e]ᵀ) · x_scale · w_scale[e] + bias[e]) for the rows of every expert e, in fp8 e4m3.

Scales per row of x and per output channel of every expert. Rows belong to experts as in trtforge::grouped_gemm: zeros
come out for those after the last offset.

{FP8_SUMS}""",
    inputs={
        "x": Tensor("M", "K", dtype="float8_e4m3fn", doc="codes of the tokens, sorted by expert"),
        "w": Tensor("E", "N", "K", dtype="float8_e4m3fn", doc="codes of the weights, one row per output column"),
        "offsets": Tensor(
            "E", dtype="int32", sample=lambda rng, shape, d: expert_ends(rng, d), doc="end row of every expert"
        ),
        "x_scale": Tensor("M", dtype="float32", sample=scale_sample, doc="one per row of x"),
        "w_scale": Tensor("E", "N", dtype="float32", sample=scale_sample, doc="one per row of w"),
        "bias": Tensor("E", "N", dtype=attr("to"), optional=True, doc="added to an expert's rows, then activated"),
    },
    outputs={"y": Tensor("M", "N", dtype=attr("to"))},
    attributes={
        "to": Attr("bfloat16", choices=HALF[::-1], doc="element type of bias and y"),
        "activation": Attr("none", choices=ACTIVATIONS, doc="applied to the scaled float32 sums"),
    },
    rules=RULES,
    tolerance=scaled_gemm.tolerance,
    cases=[
        Case(sizes(1, 1, 8, 16)),
        Case(sizes(3, 7, 40, 16), {"activation": "relu"}),
        Case(sizes(4, 61, 33, 65), {"activation": "gelu_erf"}, ("bias",)),
        Case(sizes(2, 128, 272, 144), {"to": "float16"}),
        Case(sizes(5, 203, 144, 80), {"activation": "silu"}, ("bias",)),
        Case(sizes(3, 334, 72, 32), {"activation": "gelu_tanh", "to": "float16"}, ("bias",)),
        Case(sizes(8, 1000, 1032, 2064), {"activation": "gelu_tanh"}, tags=("gpu",)),
        Case(sizes(7, 2101, 777, 1001), {"activation": "gelu_erf"}, ("bias",), tags=("gpu",)),
        Case(sizes(300, 999, 264, 144), {"activation": "silu"}, ("bias",), tags=("gpu",)),
        *(Case(one, tags=("bench",)) for one in BENCHMARKS),
    ],
)


@scaled_grouped_gemm.reference
def _(x, w, offsets, x_scale, w_scale, bias, *, to, activation):
    y = np.zeros((len(x), w.shape[1]))
    for e, rows in enumerate(rows_of_experts(offsets, len(x))):
        if rows.stop > rows.start:
            sums = np.matmul(x[rows].astype(np.float32), w[e].astype(np.float32).T).astype(np.float64)
            scaled = sums * x_scale[rows, None].astype(np.float64) * w_scale[e].astype(np.float64)
            y[rows] = ACTIVATION_FUNCTIONS[activation](scaled if bias is None else scaled + bias[e].astype(np.float64))
    return y


@scaled_grouped_gemm.cost
def _(d):
    """Every row has an expert, and every expert rows."""
    return Cost(flops=2 * d.M * d.N * d.K)


SM90_TACTICS = (
    sm90_tile(128, 256, stages=4, cluster_m=2, group_m=8),
    sm90_tile(64, 256, stages=4, cluster_m=2, group_m=8, pingpong=True),
    sm90_tile(64, 256, stages=4, cluster_m=1, group_m=16, pingpong=True),
    sm90_tile(64, 128, stages=8, cluster_m=1, group_m=16),
)
TRITON_TACTICS = (
    triton_tile(128, 128, 64, num_warps=8, num_stages=3),
    triton_tile(64, 64, 64, num_warps=8, num_stages=3),
    triton_tile(16, 64, 128, num_warps=4, num_stages=3),
)
TRITON_ELEMENTWISE_TACTICS = (triton_tile(32, 32, 64, num_warps=4, num_stages=2),)
WIDE_K = (lambda d: d.K % TMA_ELEMENTS == 0, "reads rows of x and w 16 bytes at a time, so K must be a multiple of 16")
TRITON_TYPES = (lambda dev: dev.cc >= 89, "reads fp8, which Triton has from sm_89 on")


@scaled_grouped_gemm.kernel(
    cuda("scaled_grouped_gemm_sm90.cu"),
    name="sm90",
    arch=("sm_90a",),
    tactics=SM90_TACTICS,
    requires=[WIDE_K, (lambda d: d.N % 8 == 0, "writes rows of y 16 bytes at a time, so N must be a multiple of 8")],
)
def _(d, t, dev):
    return sm90_launch(d, t, dev, element_bytes=1)


@scaled_grouped_gemm.kernel(
    triton("scaled_grouped_gemm_triton.py"),
    tactics=TRITON_TACTICS,
    requires=[
        TRITON_TYPES,
        WIDE_K,
        (lambda d: d.N % TMA_ELEMENTS == 0, "writes rows of y 16 elements at a time, so N must be a multiple of 16"),
    ],
)
def _(d, t):
    return triton_launch(d, t, TMA_ELEMENTS)


@scaled_grouped_gemm.kernel(
    triton("scaled_grouped_gemm_triton.py"),
    name="triton_elementwise",
    tactics=TRITON_ELEMENTWISE_TACTICS,
    requires=[TRITON_TYPES],
    align=4,
)
def _(d, t):
    return triton_launch(d, t, 1)


@scaled_grouped_gemm.heuristic
def _(d):
    names = (("sm90", SM90_TACTICS), ("triton", TRITON_TACTICS))
    return [(name, t) for name, table in names for t in by_rows_of_an_expert(d, table)]


peers.declare_scaled(scaled_grouped_gemm)
