"""Matrix products with their epilogue: y = act(x wᵀ + bias) + residual, and the gated product of SwiGLU and GeGLU.

Weights lie as linear layers keep them, [N, K]. Products of float16 and bfloat16 accumulate in float32; biases,
activations and then residuals are applied to the float32 sums, which are rounded once.
"""

import math

import numpy as np

from trtforge.kernels import HALF, Attr, Case, Cost, Op, Tensor, Tolerance, cuda, triton
from trtforge.kernels.fused_gemm import peers
from trtforge.kernels.fused_gemm.geometry import (
    mma_launch,
    mma_tile,
    preferences,
    sm90_launch,
    sm90_tile,
    split_launch,
    split_tile,
    triton_launch,
    triton_tile,
)

ACTIVATIONS = ("none", "relu", "gelu_erf", "gelu_tanh", "silu")
GATES = ("silu", "gelu_erf", "gelu_tanh")

TOLERANCE = {
    "float16": Tolerance(l2=1e-3, rtol=2e-3, atol=2e-3),
    "bfloat16": Tolerance(l2=5e-3, rtol=1.6e-2, atol=8e-3),
}

BENCHMARK_SHAPES = (
    (16, 4096, 4096),
    (256, 4096, 4096),
    (4096, 4096, 4096),
    (8192, 8192, 8192),
    (8192, 14336, 4096),
)
RESIDUAL_SHAPES = ((16, 4096, 4096), (4096, 4096, 4096), (8192, 4096, 14336))  # attention's output and an MLP's


def weight_sample(rng, shape, d):
    """N(0, 1 / K), so that sums are N(0, 1): where activations bend, and far from float16's limits."""
    return rng.standard_normal(shape, dtype=np.float32) / math.sqrt(d.K)


def sizes(m, n, k):
    return {"M": m, "N": n, "K": k}


# ---- references --------------------------------------------------------------------------------------------


def sigmoid(x):
    return 1.0 / (1.0 + np.exp(-x))


def gelu_erf(x):
    """x times the normal distribution function (Hendrycks and Gimpel 2016, arXiv:1606.08415)."""
    erf = np.vectorize(math.erf, otypes=[np.float64])
    return 0.5 * x * (1.0 + erf(x / math.sqrt(2.0)))


def gelu_tanh(x):
    return 0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))


def silu(x):
    """Elfwing et al. 2017, arXiv:1702.03118."""
    return x * sigmoid(x)


ACTIVATION_FUNCTIONS = {
    "none": lambda x: x,
    "relu": lambda x: np.maximum(x, 0.0),
    "gelu_erf": gelu_erf,
    "gelu_tanh": gelu_tanh,
    "silu": silu,
}


def product(x, w, bias):
    """x wᵀ + bias, multiplied in float32 (the inputs have at most 11 significant bits), returned in float64."""
    sums = np.matmul(x.astype(np.float32), w.astype(np.float32).T).astype(np.float64)
    return sums if bias is None else sums + bias.astype(np.float64)


# ---- y = act(x wᵀ + bias) + residual -----------------------------------------------------------------------

fused_gemm = Op(
    "trtforge::fused_gemm",
    doc="y = activation(x wᵀ + bias) + residual: a linear layer with its activation, added to what went around it. "
    "Accumulates in float32, rounds once.",
    inputs={
        "x": Tensor("*M", "K", dtype=HALF, doc="rows to multiply"),
        "w": Tensor("N", "K", dtype="x", sample=weight_sample, doc="weights, one row per output column"),
        "bias": Tensor("N", dtype="x", optional=True, doc="added to every row before the activation"),
        "residual": Tensor("*M", "N", dtype="x", optional=True, doc="added after the activation"),
    },
    outputs={"y": Tensor("*M", "N", dtype="x")},
    attributes={"activation": Attr("none", choices=ACTIVATIONS, doc="applied to the float32 sums")},
    tolerance=TOLERANCE,
    cases=[
        Case(sizes(1, 1, 1)),
        Case(sizes(1, 40, 8), {"activation": "relu"}),
        Case(sizes(7, 33, 65), {"activation": "gelu_erf"}, ("bias",)),
        Case(sizes(17, 1000, 24), {"activation": "silu"}),
        Case(sizes(6, 72, 136), {"activation": "gelu_tanh"}, ("bias",), leading=(2, 3)),
        Case(sizes(200, 520, 72), {"activation": "relu"}, ("bias",)),  # several tiles for a persistent block
        *(Case(sizes(19, 72, 40), {"activation": a}, o) for a in ACTIVATIONS for o in ((), ("bias",))),
        Case(sizes(7, 33, 65), optional=("residual",)),
        Case(sizes(2, 5, 24), {"activation": "silu"}, ("residual",), leading=(2, 1)),
        Case(sizes(133, 328, 72), {"activation": "relu"}, ("bias", "residual")),
        Case(sizes(1, 4096, 4096), {"activation": "silu"}, ("bias",), tags=("gpu",)),
        Case(sizes(16, 1032, 2056), {"activation": "gelu_tanh"}, tags=("gpu",)),
        Case(sizes(257, 520, 1032), {"activation": "relu"}, ("bias",), tags=("gpu",)),
        Case(sizes(301, 777, 1001), {"activation": "gelu_erf"}, ("bias",), tags=("gpu",)),
        Case(sizes(1024, 1024, 64), {"activation": "none"}, leading=(4, 256), tags=("gpu",)),
        Case(sizes(2100, 4616, 328), {"activation": "gelu_tanh"}, ("bias",), tags=("gpu",)),
        Case(sizes(4096, 4096, 1024), {"activation": "silu"}, tags=("gpu",)),
        Case(sizes(2100, 4616, 328), {"activation": "silu"}, ("bias", "residual"), tags=("gpu",)),
        Case(sizes(301, 777, 1001), {"activation": "gelu_tanh"}, ("residual",), tags=("gpu",)),
        *(
            Case(sizes(*shape), {"activation": activation}, bias, ("bench",), dtypes={"x": "bfloat16"})
            for activation, bias in (("gelu_tanh", ("bias",)), ("relu", ("bias",)), ("none", ()))
            for shape in BENCHMARK_SHAPES
        ),
        *(Case(sizes(*shape), {}, ("residual",), ("bench",), dtypes={"x": "bfloat16"}) for shape in RESIDUAL_SHAPES),
    ],
)


@fused_gemm.reference
def _(x, w, bias, residual, *, activation):
    activated = ACTIVATION_FUNCTIONS[activation](product(x, w, bias))
    return activated if residual is None else activated + residual.astype(np.float64)


@fused_gemm.cost
def _(d):
    return Cost(flops=2 * d.M * d.N * d.K)


# ---- y = act(x w_gateᵀ) · (x w_upᵀ) ------------------------------------------------------------------------

gated_gemm = Op(
    "trtforge::gated_gemm",
    doc="y = activation(x w_gateᵀ + bias_gate) · (x w_upᵀ + bias_up): SwiGLU with silu, GeGLU with gelu (Shazeer 2020, "
    "arXiv:2002.05202). One pass over x; the two weight matrices stay separate.",
    inputs={
        "x": Tensor("*M", "K", dtype=HALF, doc="rows to multiply"),
        "w_gate": Tensor("N", "K", dtype="x", sample=weight_sample, doc="weights of the activated half"),
        "w_up": Tensor("N", "K", dtype="x", sample=weight_sample, doc="weights of the linear half"),
        "bias_gate": Tensor("N", dtype="x", optional=True, doc="added before the activation"),
        "bias_up": Tensor("N", dtype="x", optional=True, doc="added to the linear half"),
    },
    outputs={"y": Tensor("*M", "N", dtype="x")},
    attributes={"activation": Attr("silu", choices=GATES, doc="applied to the gate's float32 sums")},
    tolerance=TOLERANCE,
    cases=[
        Case(sizes(1, 1, 1)),
        Case(sizes(1, 40, 8), {"activation": "gelu_erf"}, ("bias_gate",)),
        Case(sizes(7, 33, 65), {"activation": "gelu_erf"}, ("bias_gate", "bias_up")),
        Case(sizes(17, 1000, 24), {"activation": "silu"}),
        Case(sizes(6, 72, 136), {"activation": "gelu_tanh"}, ("bias_up",), leading=(2, 3)),
        Case(sizes(200, 264, 72), {"activation": "silu"}),
        *(Case(sizes(19, 72, 40), {"activation": a}, o) for a in GATES for o in ((), ("bias_gate", "bias_up"))),
        Case(sizes(1, 11008, 4096), {"activation": "silu"}, tags=("gpu",)),
        Case(sizes(16, 1032, 2056), {"activation": "silu"}, tags=("gpu",)),
        Case(sizes(257, 520, 1032), {"activation": "gelu_tanh"}, tags=("gpu",)),
        Case(sizes(301, 777, 1001), {"activation": "gelu_erf"}, ("bias_gate", "bias_up"), tags=("gpu",)),
        Case(sizes(1024, 1024, 64), {"activation": "silu"}, leading=(4, 256), tags=("gpu",)),
        Case(sizes(2100, 2312, 328), {"activation": "silu"}, ("bias_gate", "bias_up"), tags=("gpu",)),
        Case(sizes(4096, 2048, 1024), {"activation": "silu"}, tags=("gpu",)),
        *(Case(sizes(*shape), tags=("bench",), dtypes={"x": "bfloat16"}) for shape in BENCHMARK_SHAPES),
    ],
)


@gated_gemm.reference
def _(x, w_gate, w_up, bias_gate, bias_up, *, activation):
    return ACTIVATION_FUNCTIONS[activation](product(x, w_gate, bias_gate)) * product(x, w_up, bias_up)


@gated_gemm.cost
def _(d):
    return Cost(flops=4 * d.M * d.N * d.K)


# ---- kernels -----------------------------------------------------------------------------------------------

TMA_ROWS = [
    (lambda d: d.K % 8 == 0, "loads rows of x and of the weights by TMA, so K must be a multiple of 8"),
    (lambda d: d.N % 8 == 0, "stores rows of y by TMA, so N must be a multiple of 8"),
]
WIDE_ROWS = [(lambda d: d.K % 8 == 0, "copies 16 bytes at a time, so K must be a multiple of 8")]
WIDE_COLUMNS = [(lambda d: d.N % 8 == 0, "stores 16 bytes at a time, so N must be a multiple of 8")]

SM90_TACTICS = (
    sm90_tile(128, 256, stages=4, cluster_m=1, group_m=16),
    sm90_tile(128, 128, stages=5, cluster_m=1, group_m=8),
    sm90_tile(64, 128, stages=8, cluster_m=1, group_m=16),
    sm90_tile(64, 64, stages=8, cluster_m=1, group_m=16),
    sm90_tile(128, 256, stages=4, cluster_m=2, group_m=8),
    sm90_tile(128, 128, stages=5, cluster_m=2, group_m=4),
    sm90_tile(64, 256, stages=4, cluster_m=1, group_m=16, pingpong=True),
    sm90_tile(64, 256, stages=4, cluster_m=2, group_m=8, pingpong=True),
    sm90_tile(64, 128, stages=7, cluster_m=2, group_m=8, pingpong=True),
)
SM90_GATED_TACTICS = (
    sm90_tile(128, 128, stages=4, cluster_m=1, group_m=16),
    sm90_tile(128, 64, stages=5, cluster_m=1, group_m=8),
    sm90_tile(64, 64, stages=8, cluster_m=1, group_m=16),
    sm90_tile(128, 128, stages=4, cluster_m=2, group_m=8),
    sm90_tile(64, 128, stages=4, cluster_m=1, group_m=16, pingpong=True),
    sm90_tile(64, 128, stages=4, cluster_m=2, group_m=8, pingpong=True),
)
# For few rows of x: 4096 columns are 64 tiles of 64, and two blocks a tile nearly fill 132 multiprocessors, with up to
# 200 KB in flight in each.
SPLIT_TACTICS = (
    split_tile(16, 64, stages=20, split_k=2),
    split_tile(16, 64, stages=10, split_k=4),
    split_tile(16, 64, stages=10, split_k=8),
    split_tile(64, 64, stages=12, split_k=2),
    split_tile(128, 128, stages=6, split_k=2),
    split_tile(256, 128, stages=4, split_k=4),
)
SPLIT_GATED_TACTICS = (
    split_tile(16, 64, stages=11, split_k=2),
    split_tile(64, 64, stages=8, split_k=2),
    split_tile(256, 64, stages=4, split_k=2),
)
MMA_TACTICS = (
    mma_tile((128, 128, 64), stages=3, warps=(2, 4, 1)),
    mma_tile((64, 64, 64), stages=4, warps=(2, 2, 1)),
    mma_tile((32, 64, 64), stages=4, warps=(2, 2, 1)),
    mma_tile((16, 64, 128), stages=4, warps=(1, 4, 1)),
    mma_tile((16, 32, 128), stages=6, warps=(1, 2, 2)),
)
MMA_GATED_TACTICS = (
    mma_tile((128, 64, 64), stages=3, warps=(2, 4, 1)),
    mma_tile((64, 64, 64), stages=3, warps=(2, 2, 1)),
    mma_tile((32, 32, 64), stages=4, warps=(2, 2, 1)),
    mma_tile((16, 32, 128), stages=4, warps=(1, 2, 2)),
)
MMA_ELEMENTWISE_TACTICS = MMA_TACTICS[1:4]
MMA_GATED_ELEMENTWISE_TACTICS = MMA_GATED_TACTICS[1:3]
TRITON_TACTICS = (
    triton_tile(128, 128, 64, num_warps=8, num_stages=3),
    triton_tile(64, 64, 64, num_warps=4, num_stages=3),
    triton_tile(16, 64, 128, num_warps=4, num_stages=3),
)
TRITON_GATED_TACTICS = (
    triton_tile(128, 64, 64, num_warps=8, num_stages=3),
    triton_tile(64, 64, 32, num_warps=4, num_stages=3),
    triton_tile(16, 64, 64, num_warps=4, num_stages=3),
)
TRITON_ELEMENTWISE_TACTICS = (
    triton_tile(64, 64, 32, num_warps=8, num_stages=2),
    triton_tile(16, 64, 32, num_warps=4, num_stages=2),
)


@fused_gemm.kernel(cuda("fused_gemm_sm90.cu"), name="sm90", arch=("sm_90a",), tactics=SM90_TACTICS, requires=TMA_ROWS)
def _(d, t, dev, has):
    return sm90_launch(d, t, dev, weights=("w",), residual=has.residual)


@fused_gemm.kernel(
    cuda("fused_gemm_sm90_split.cu"), name="sm90_split", arch=("sm_90a",), tactics=SPLIT_TACTICS, requires=TMA_ROWS
)
def _(d, t):
    return split_launch(d, t, weights=("w",))


@fused_gemm.kernel(cuda("fused_gemm_mma.cu"), name="mma", tactics=MMA_TACTICS, requires=WIDE_ROWS)
def _(d, t):
    return mma_launch(d, t, weights=1, wide=True)


@fused_gemm.kernel(cuda("fused_gemm_mma.cu"), name="mma_elementwise", tactics=MMA_ELEMENTWISE_TACTICS, align=2)
def _(d, t):
    return mma_launch(d, t, weights=1, wide=False)


@fused_gemm.kernel(triton("fused_gemm_triton.py"), tactics=TRITON_TACTICS, requires=[*WIDE_ROWS, *WIDE_COLUMNS])
def _(d, t):
    return triton_launch(d, t, wide=True)


@fused_gemm.kernel(
    triton("fused_gemm_triton.py"), name="triton_elementwise", tactics=TRITON_ELEMENTWISE_TACTICS, align=2
)
def _(d, t):
    return triton_launch(d, t, wide=False)


@fused_gemm.heuristic
def _(d, dev):
    return preferences(d, dev, SM90_TACTICS, SPLIT_TACTICS, MMA_TACTICS, MMA_ELEMENTWISE_TACTICS, weights=1)


@gated_gemm.kernel(
    cuda("gated_gemm_sm90.cu"), name="sm90", arch=("sm_90a",), tactics=SM90_GATED_TACTICS, requires=TMA_ROWS
)
def _(d, t, dev):
    return sm90_launch(d, t, dev, weights=("w_gate", "w_up"))


@gated_gemm.kernel(
    cuda("gated_gemm_sm90_split.cu"),
    name="sm90_split",
    arch=("sm_90a",),
    tactics=SPLIT_GATED_TACTICS,
    requires=TMA_ROWS,
)
def _(d, t):
    return split_launch(d, t, weights=("w_gate", "w_up"))


@gated_gemm.kernel(cuda("gated_gemm_mma.cu"), name="mma", tactics=MMA_GATED_TACTICS, requires=WIDE_ROWS)
def _(d, t):
    return mma_launch(d, t, weights=2, wide=True)


@gated_gemm.kernel(cuda("gated_gemm_mma.cu"), name="mma_elementwise", tactics=MMA_GATED_ELEMENTWISE_TACTICS, align=2)
def _(d, t):
    return mma_launch(d, t, weights=2, wide=False)


@gated_gemm.kernel(triton("gated_gemm_triton.py"), tactics=TRITON_GATED_TACTICS, requires=[*WIDE_ROWS, *WIDE_COLUMNS])
def _(d, t):
    return triton_launch(d, t, wide=True)


@gated_gemm.kernel(
    triton("gated_gemm_triton.py"), name="triton_elementwise", tactics=TRITON_ELEMENTWISE_TACTICS, align=2
)
def _(d, t):
    return triton_launch(d, t, wide=False)


@gated_gemm.heuristic
def _(d, dev):
    return preferences(
        d, dev, SM90_GATED_TACTICS, SPLIT_GATED_TACTICS, MMA_GATED_TACTICS, MMA_GATED_ELEMENTWISE_TACTICS, weights=2
    )


# ---- the subgraphs that the ops replace --------------------------------------------------------------------

GRAPH_ACTIVATIONS = {
    "relu": lambda f, x: f.relu(x),
    "gelu_erf": lambda f, x: f.gelu(x, approximate="none"),
    "gelu_tanh": lambda f, x: f.gelu(x, approximate="tanh"),
    "silu": lambda f, x: f.silu(x),
}


def declare_residual_patterns(activation, graph_activation):
    """Linear layers with this activation whose result is added to a tensor of its own shape."""
    attributes = {"activation": activation}
    suffix = "residual" if activation == "none" else f"{activation}_residual"

    @fused_gemm.pattern(inputs=("x", "w", "bias", "residual"), attributes=attributes, name=f"linear_bias_{suffix}")
    def _(f, x, w, bias, residual):
        linear = f.add(f.matmul(x, w, transpose_b=True), bias)
        return f.add(graph_activation(f, linear), residual)

    @fused_gemm.pattern(inputs=("x", "w", "residual"), attributes=attributes, name=f"linear_{suffix}")
    def _(f, x, w, residual):
        return f.add(graph_activation(f, f.matmul(x, w, transpose_b=True)), residual)


def declare_patterns(activation, graph_activation):
    """Linear layers with this activation, alone or added to a residual, and gated products where it can be the gate."""
    attributes = {"activation": activation}

    @fused_gemm.pattern(inputs=("x", "w", "bias"), attributes=attributes, name=f"linear_bias_{activation}")
    def _(f, x, w, bias):
        return graph_activation(f, f.add(f.matmul(x, w, transpose_b=True), bias))

    @fused_gemm.pattern(inputs=("x", "w"), attributes=attributes, name=f"linear_{activation}")
    def _(f, x, w):
        return graph_activation(f, f.matmul(x, w, transpose_b=True))

    declare_residual_patterns(activation, graph_activation)

    if activation in GATES:

        @gated_gemm.pattern(inputs=("x", "w_gate", "w_up"), attributes=attributes, name=f"gated_{activation}")
        def _(f, x, w_gate, w_up):
            gate = graph_activation(f, f.matmul(x, w_gate, transpose_b=True))
            return f.mul(gate, f.matmul(x, w_up, transpose_b=True))


for _name, _graph_activation in GRAPH_ACTIVATIONS.items():
    declare_patterns(_name, _graph_activation)


@fused_gemm.pattern(inputs=("x", "w", "bias"), attributes={"activation": "none"}, name="linear_bias")
def _(f, x, w, bias):
    return f.add(f.matmul(x, w, transpose_b=True), bias)


declare_residual_patterns("none", lambda f, x: x)

peers.declare(fused_gemm, gated_gemm)
