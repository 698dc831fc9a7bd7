"""Matrix products of fp8 with scales per block: y = act(Σ_b (x_b w_bᵀ) · x_scale_b · w_scale_b + bias).

x comes with the scales of ``quantize_block`` (1 x 128: every token and 128 elements of K), w with those of
``quantize_tile`` (128 x 128), as DeepSeek-V3 is trained and served (arXiv:2412.19437, section 3.3). The product of
each block of 128 elements is a sum of its own on the tensor cores, which keep fewer bits than float32; blocks are
scaled and added in float32.
"""

import math

import numpy as np

from trtforge.kernels import HALF, Attr, Case, Cost, Launch, Op, Tensor, Tolerance, attr, cdiv, cuda, sym, triton
from trtforge.kernels.block_scaled_gemm import peers
from trtforge.kernels.fused_gemm.geometry import sm90_launch, sm90_tile
from trtforge.kernels.fused_gemm.op import ACTIVATION_FUNCTIONS, ACTIVATIONS, BENCHMARK_SHAPES

SCALE_BLOCK = 128
TMA_ELEMENTS = 16  # of one byte in the 16 bytes that TMA rows are multiples of


def scale_sample(rng, shape, d):
    """Positive, about K^(-1/4), a factor of four from block to block: sums of N(0, 1) codes become about N(0, 1)."""
    return (2.0 ** rng.uniform(-1.0, 1.0, shape) / math.sqrt(math.sqrt(d.K))).astype(np.float32)


def sizes(m, n, k):
    return {"M": m, "N": n, "K": k}


block_scaled_gemm = Op(
    "trtforge::block_scaled_gemm",
    doc="y = activation(Σ (x_b wᵀ_b) · x_scale_b · w_scale_b + bias) for fp8 e4m3 x and w with one scale per 1 x 128 "
    "block of x and per 128 x 128 block of w; blocks are added in float32.",
    inputs={
        "x": Tensor("*M", "K", dtype="float8_e4m3fn", doc="codes of the rows to multiply"),
        "w": Tensor("N", "K", dtype="float8_e4m3fn", doc="codes of the weights, one row per output column"),
        "x_scale": Tensor(
            "*M", cdiv(sym("K"), SCALE_BLOCK), dtype="float32", sample=scale_sample, doc="one per 128 elements of a row"
        ),
        "w_scale": Tensor(
            cdiv(sym("N"), SCALE_BLOCK),
            cdiv(sym("K"), SCALE_BLOCK),
            dtype="float32",
            sample=scale_sample,
            doc="one per 128 x 128 elements of w",
        ),
        "bias": Tensor("N", dtype=attr("to"), optional=True, doc="added to every row before the activation"),
    },
    outputs={"y": Tensor("*M", "N", dtype=attr("to"))},
    attributes={
        "to": Attr("bfloat16", choices=HALF[::-1], doc="element type of bias and y"),
        "activation": Attr("none", choices=ACTIVATIONS, doc="applied to the scaled float32 sums"),
    },
    # The tensor cores of sm_90 keep about 14 bits of a block's sum, which 128 terms make; the result has 11 or 8.
    tolerance={
        "float16": Tolerance(l2=2e-3, rtol=4e-3, atol=4e-3),
        "bfloat16": Tolerance(l2=5e-3, rtol=1.6e-2, atol=1e-2),
    },
    cases=[
        Case(sizes(1, 8, 16)),
        Case(sizes(7, 33, 65), {"activation": "relu"}),
        Case(sizes(17, 272, 272), {"activation": "silu", "to": "float16"}),
        Case(sizes(6, 136, 144), {"activation": "gelu_tanh"}, ("bias",), leading=(2, 3)),
        Case(sizes(200, 520, 656), {"to": "float16"}, ("bias",)),  # several tiles for each block of the kernel
        Case(sizes(257, 520, 1040), {"activation": "relu"}, ("bias",), tags=("gpu",)),
        Case(sizes(2100, 4616, 336), {"activation": "gelu_erf"}, ("bias",), tags=("gpu",)),
        Case(sizes(301, 777, 1001), tags=("gpu",)),
        Case(sizes(1024, 1536, 4096), tags=("gpu",)),
        *(Case(sizes(*shape), tags=("bench",)) for shape in BENCHMARK_SHAPES),
    ],
)


@block_scaled_gemm.reference
def _(x, w, x_scale, w_scale, bias, *, to, activation):
    rows = x.reshape(-1, x.shape[-1])
    row_scales = x_scale.reshape(rows.shape[0], -1).astype(np.float64)
    sums = np.zeros((rows.shape[0], w.shape[0]))
    for block in range(w_scale.shape[1]):
        part = slice(block * SCALE_BLOCK, (block + 1) * SCALE_BLOCK)
        product = np.matmul(rows[:, part].astype(np.float32), w[:, part].astype(np.float32).T)
        column_scales = np.repeat(w_scale[:, block].astype(np.float64), SCALE_BLOCK)[: w.shape[0]]
        sums += product * row_scales[:, block, None] * column_scales
    if bias is not None:
        sums += bias.astype(np.float64)
    return ACTIVATION_FUNCTIONS[activation](sums).reshape(*x.shape[:-1], w.shape[0])


@block_scaled_gemm.cost
def _(d):
    return Cost(flops=2 * d.M * d.N * d.K)


# ---- kernels -----------------------------------------------------------------------------------------------

SM90_TACTICS = (
    sm90_tile(128, 256, stages=4, cluster_m=1, group_m=16),
    sm90_tile(128, 256, stages=4, cluster_m=2, group_m=8),
    sm90_tile(128, 128, stages=6, cluster_m=1, group_m=8),
    sm90_tile(64, 128, stages=8, cluster_m=1, group_m=16),
    sm90_tile(128, 256, stages=4, cluster_m=1, group_m=16) | {"IN_ORDER": 1},
    sm90_tile(128, 256, stages=4, cluster_m=1, group_m=16) | {"QUARTERS": 1},
    sm90_tile(128, 256, stages=4, cluster_m=2, group_m=8) | {"QUARTERS": 1},
)
WIDE, WIDE_CLUSTER, SQUARE, FLAT = SM90_TACTICS[:4]
TRITON_TACTICS = (
    {"BLOCK_M": 128, "BLOCK_N": 128, "GROUP_M": 8, "num_warps": 8, "num_stages": 3},
    {"BLOCK_M": 64, "BLOCK_N": 64, "GROUP_M": 8, "num_warps": 4, "num_stages": 3},
)
TRITON_ELEMENTWISE_TACTICS = ({"BLOCK_M": 32, "BLOCK_N": 32, "GROUP_M": 8, "num_warps": 4, "num_stages": 2},)
TRITON_TYPES = (lambda dev: dev.cc >= 89, "reads fp8, which Triton has from sm_89 on")


def on_triton(d, t, vector):
    return Launch(
        grid=cdiv(d.M, t.BLOCK_M) * cdiv(d.N, t.BLOCK_N),
        scalars=(d.M, d.N // vector, d.K // vector),
        constants={"VECTOR": vector, "SCALE_BLOCK": SCALE_BLOCK},
    )


@block_scaled_gemm.kernel(
    cuda("block_scaled_gemm_sm90.cu"),
    name="sm90",
    arch=("sm_90a",),
    tactics=SM90_TACTICS,
    requires=[
        (lambda d: d.K % TMA_ELEMENTS == 0, "loads rows of x and w by TMA, so K must be a multiple of 16"),
        (lambda d: d.N % 8 == 0, "stores rows of y by TMA, so N must be a multiple of 8"),
    ],
)
def _(d, t, dev):
    return sm90_launch(d, t, dev, weights=("w",), element_bytes=1)


@block_scaled_gemm.kernel(
    triton("block_scaled_gemm_triton.py"),
    tactics=TRITON_TACTICS,
    requires=[
        TRITON_TYPES,
        (lambda d: d.K % TMA_ELEMENTS == 0, "reads 16 bytes at a time, so K must be a multiple of 16"),
        (lambda d: d.N % TMA_ELEMENTS == 0, "writes rows of y 16 elements at a time, so N must be a multiple of 16"),
    ],
)
def _(d, t):
    return on_triton(d, t, TMA_ELEMENTS)


@block_scaled_gemm.kernel(
    triton("block_scaled_gemm_triton.py"),
    name="triton_elementwise",
    tactics=TRITON_ELEMENTWISE_TACTICS,
    requires=[TRITON_TYPES],
    align=4,
)
def _(d, t):
    return on_triton(d, t, 1)


@block_scaled_gemm.heuristic
def _(d, dev):
    """The largest tile whose tiles fill half of the multiprocessors."""
    if dev.cc != 90:
        return ["triton", "triton_elementwise"]
    if cdiv(d.M, 128) * cdiv(d.N, 256) * 2 >= dev.sms:
        tactics = [WIDE_CLUSTER, WIDE]
    elif cdiv(d.M, 128) * cdiv(d.N, 128) * 2 >= dev.sms:
        tactics = [SQUARE]
    else:
        tactics = [FLAT]
    return [*(("sm90", tactic) for tactic in tactics), "sm90", "triton", "triton_elementwise"]


peers.declare(block_scaled_gemm)
