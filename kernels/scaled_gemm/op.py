"""Matrix products of 8-bit elements with scales: y = act((x wᵀ) · x_scale · w_scale + bias).

x and w are what the quantize family makes (``quantize_token``, ``quantize_tensor``): int8 or fp8 e4m3 codes and float32
scales. int8 sums are exact in int32. fp8 sums are the tensor cores' own, which keep fewer bits than float32 (on sm_90
about 14, see the tolerances, and drop the rest: :data:`FP8_SUMS`); scales, bias and activation are applied in float32,
and the result is rounded once.
"""

import math

import numpy as np

from trtforge.kernels import HALF, Attr, Case, Cost, Launch, Op, Tensor, Tolerance, attr, cdiv, cuda, minimum, triton
from trtforge.kernels.fused_gemm.geometry import (
    MMA_TILE_RATE,
    by_modeled_time,
    mma_launch,
    mma_tile,
    sm90_launch,
    sm90_tile,
    triton_tile,
)
from trtforge.kernels.fused_gemm.op import ACTIVATION_FUNCTIONS, ACTIVATIONS, BENCHMARK_SHAPES
from trtforge.kernels.scaled_gemm import peers

CODES = ("float8_e4m3fn", "int8")
LONGEST_INT8_SUM = (1 << 17) - 1  # products of up to 2^14 that fit int32
TMA_ELEMENTS = 16  # of one byte in the 16 bytes that TMA (and cp.async) move multiples of
#: What the ops' pages warn of (docs/kernels/flash_attention_fp8.md, Accuracy).
FP8_SUMS = """Long sums of fp8 products lose accuracy on sm_90 (kernel sm90 and those in Triton), where the tensor cores
add up alone: bits that do not fit are dropped, not rounded, at every 32 products. Where terms have both signs, most of
these errors cancel; sums of one sign shrink by about 2^-11 each time. On an H200 such sums of
trtforge::flash_attention_fp8 lost 22 % after 16,384 products; at that rate 6 % are lost after 4,096.
trtforge::block_scaled_gemm adds up in float32 every 128 products: take it where K is long and products are mostly of
one sign."""


INT8_SPREAD = 32.0  # of N(0, 1) in int8: four standard deviations fill the format, as a scale from the data makes them


def scale_sample(rng, shape, d, dt):
    """Positive, about K^(-1/4), so that two of them make K^(-1/2): sums of codes become about N(0, 1)."""
    spread = INT8_SPREAD if dt["x"] == "int8" else 1.0
    return (rng.uniform(0.5, 1.5, shape) / (spread * math.sqrt(math.sqrt(d.K)))).astype(np.float32)


def code_sample(rng, shape, dt):
    """N(0, 1) in fp8; in int8 spread over the format."""
    values = rng.standard_normal(shape, dtype=np.float32)
    return np.clip(np.rint(values * INT8_SPREAD), -127, 127) if dt["x"] == "int8" else values


def sizes(m, n, k, rows=True, columns=True):
    return {"M": m, "N": n, "K": k, "SX": m if rows else 1, "SW": n if columns else 1}


scaled_gemm = Op(
    "trtforge::scaled_gemm",
    doc=f"""y = activation((x wᵀ) · x_scale · w_scale + bias) for fp8 e4m3 or int8 x and w (W8A8): scales per row of x
and per row of w (output channel), or one for the tensor.

{FP8_SUMS} int8 sums are exact.""",
    inputs={
        "x": Tensor("*M", "K", dtype=CODES, sample=code_sample, doc="codes of the rows to multiply"),
        "w": Tensor("N", "K", dtype="x", sample=code_sample, doc="codes of the weights, one row per output column"),
        "x_scale": Tensor("SX", dtype="float32", sample=scale_sample, doc="one per row of x, or one"),
        "w_scale": Tensor("SW", dtype="float32", sample=scale_sample, doc="one per row of w, or one"),
        "bias": Tensor("N", dtype=attr("to"), optional=True, doc="added to every row before the activation"),
    },
    outputs={"y": Tensor("*M", "N", dtype=attr("to"))},
    attributes={
        "to": Attr("bfloat16", choices=HALF[::-1], doc="element type of bias and y"),
        "activation": Attr("none", choices=ACTIVATIONS, doc="applied to the scaled float32 sums"),
    },
    rules=[
        (lambda d: (d.SX == 1) | (d.SX == d.M), "x_scale has one element, or one per row of x"),
        (lambda d: (d.SW == 1) | (d.SW == d.N), "w_scale has one element, or one per row of w"),
        (
            lambda d, dt: dt["x"] != "int8" or d.K <= LONGEST_INT8_SUM,
            f"K of int8 must be at most {LONGEST_INT8_SUM}: longer sums of products can leave int32; split K and add",
        ),
    ],
    # The product keeps about 14 bits of each partial sum (fp8 on sm_90), whose errors cancel in sums of N(0, 1); the
    # result is rounded to 11 or 8.
    tolerance={
        "float16": Tolerance(l2=2e-3, rtol=4e-3, atol=4e-3),
        "bfloat16": Tolerance(l2=5e-3, rtol=1.6e-2, atol=1e-2),
    },
    cases=[
        Case(sizes(1, 8, 16)),
        Case(sizes(7, 33, 65, rows=False), {"activation": "relu"}),
        Case(sizes(17, 1000, 48, columns=False), {"activation": "silu", "to": "float16"}),
        Case(sizes(6, 72, 144), {"activation": "gelu_tanh"}, ("bias",), leading=(2, 3)),
        Case(sizes(19, 72, 272, rows=False, columns=False), {"activation": "gelu_erf"}, ("bias",)),
        Case(sizes(70, 264, 528), {"to": "float16"}, ("bias",)),
        Case(sizes(200, 520, 1168)),  # several tiles for each block of the persistent kernel, on two multiprocessors
        Case(sizes(257, 520, 1040), {"activation": "relu"}, ("bias",), tags=("gpu",)),
        Case(sizes(2100, 4616, 336), {"activation": "gelu_tanh"}, ("bias",), tags=("gpu",)),
        Case(sizes(301, 777, 1001), tags=("gpu",)),
        Case(sizes(1024, 1024, 4096, rows=False), tags=("gpu",)),
        *(Case(sizes(*shape), tags=("bench",), dtypes={"x": kind}) for kind in CODES for shape in BENCHMARK_SHAPES),
    ],
)


@scaled_gemm.reference
def _(x, w, x_scale, w_scale, bias, *, to, activation):
    sums = np.matmul(x.astype(np.float32), w.astype(np.float32).T).astype(np.float64)
    scales = np.broadcast_to(x_scale.astype(np.float64), (sums.size // sums.shape[-1],)).reshape(*x.shape[:-1], 1)
    scaled = sums * scales * w_scale.astype(np.float64)
    return ACTIVATION_FUNCTIONS[activation](scaled if bias is None else scaled + bias.astype(np.float64))


@scaled_gemm.cost
def _(d):
    return Cost(flops=2 * d.M * d.N * d.K)


# ---- kernels -----------------------------------------------------------------------------------------------

SM90_TACTICS = (
    sm90_tile(128, 256, stages=4, cluster_m=1, group_m=16),
    sm90_tile(128, 256, stages=4, cluster_m=2, group_m=8),
    sm90_tile(64, 256, stages=4, cluster_m=1, group_m=16, pingpong=True),
    sm90_tile(64, 256, stages=4, cluster_m=2, group_m=8, pingpong=True),
    sm90_tile(128, 128, stages=6, cluster_m=1, group_m=8),
    sm90_tile(64, 128, stages=8, cluster_m=4, group_m=4),
    sm90_tile(64, 64, stages=8, cluster_m=1, group_m=16),
    sm90_tile(128, 256, stages=4, cluster_m=1, group_m=16) | {"WARP_STORES": 1},
)
WIDE, WIDE_CLUSTER, TURNS, SQUARE, SMALL = (SM90_TACTICS[index] for index in (0, 1, 2, 4, 6))
MMA_TACTICS = (
    mma_tile((128, 128, 128), stages=3, warps=(2, 4, 1)),
    mma_tile((64, 64, 128), stages=4, warps=(2, 2, 1)),
    mma_tile((32, 64, 128), stages=4, warps=(2, 2, 1)),
    mma_tile((16, 64, 128), stages=8, warps=(1, 4, 1)),
    mma_tile((16, 32, 256), stages=6, warps=(1, 2, 2)),
)
MMA_ELEMENTWISE_TACTICS = MMA_TACTICS[1:4]
TRITON_TACTICS = (
    triton_tile(128, 128, 64, num_warps=8, num_stages=3),
    triton_tile(64, 64, 64, num_warps=8, num_stages=3),
    triton_tile(16, 64, 128, num_warps=4, num_stages=3),
)
TRITON_ELEMENTWISE_TACTICS = (triton_tile(32, 32, 64, num_warps=4, num_stages=2),)
MMA_TYPES = (lambda dt, dev: dt["x"] == "int8" or dev.cc >= 89, "multiplies fp8, which mma.sync does from sm_89 on")
TRITON_TYPES = (lambda dt, dev: dt["x"] == "int8" or dev.cc >= 89, "reads fp8, which Triton has from sm_89 on")


def scale_steps(d):
    """0 for one scale, otherwise 1."""
    return minimum(d.SX - 1, 1), minimum(d.SW - 1, 1)


def on_triton(d, t, dt, vector):
    return Launch(
        grid=cdiv(d.M, t.BLOCK_M) * cdiv(d.N, t.BLOCK_N),
        scalars=(d.M, d.N // vector, d.K // vector, *scale_steps(d)),
        constants={"VECTOR": vector, "INTEGER": int(dt["x"] == "int8")},
    )


@scaled_gemm.kernel(
    cuda("scaled_gemm_sm90.cu"),
    name="sm90",
    arch=("sm_90a",),
    tactics=SM90_TACTICS,
    requires=[
        (lambda d: d.K % TMA_ELEMENTS == 0, "loads rows of x and w by TMA, so K must be a multiple of 16"),
        (lambda d: d.N % 8 == 0, "stores rows of y by TMA, so N must be a multiple of 8"),
    ],
)
def _(d, t, dev):
    return sm90_launch(d, t, dev, weights=("w",), element_bytes=1, scalars=scale_steps(d))


@scaled_gemm.kernel(
    cuda("scaled_gemm_mma.cu"),
    name="mma",
    tactics=MMA_TACTICS,
    requires=[
        MMA_TYPES,
        (lambda d: d.K % TMA_ELEMENTS == 0, "copies 16 bytes at a time, so K must be a multiple of 16"),
    ],
)
def _(d, t):
    return mma_launch(d, t, weights=1, wide=True, element_bytes=1, scalars=scale_steps(d))


@scaled_gemm.kernel(
    cuda("scaled_gemm_mma.cu"),
    name="mma_elementwise",
    tactics=MMA_ELEMENTWISE_TACTICS,
    requires=[MMA_TYPES],
    align=4,
)
def _(d, t):
    return mma_launch(d, t, weights=1, wide=False, element_bytes=1, scalars=scale_steps(d))


@scaled_gemm.kernel(
    triton("scaled_gemm_triton.py"),
    tactics=TRITON_TACTICS,
    requires=[
        TRITON_TYPES,
        (lambda d: d.K % TMA_ELEMENTS == 0, "reads 16 bytes at a time, so K must be a multiple of 16"),
        (lambda d: d.N % TMA_ELEMENTS == 0, "writes rows of y 16 elements at a time, so N must be a multiple of 16"),
    ],
)
def _(d, t, dt):
    return on_triton(d, t, dt, TMA_ELEMENTS)


@scaled_gemm.kernel(
    triton("scaled_gemm_triton.py"),
    name="triton_elementwise",
    tactics=TRITON_ELEMENTWISE_TACTICS,
    requires=[TRITON_TYPES],
    align=4,
)
def _(d, t, dt):
    return on_triton(d, t, dt, 1)


@scaled_gemm.heuristic
def _(d, dev):
    """The largest tile whose tiles fill half of the multiprocessors; small products prefer small tiles.

    Clusters of four, which read the weights once for up to 256 rows, were slower than small tiles where they were
    measured. Up to sm_89, mma.sync is what Triton multiplies with too; on later GPUs Triton has faster instructions
    where its requirements hold.
    """
    wide = [("mma", t) for t in by_modeled_time(d, dev, MMA_TACTICS, 1, MMA_TILE_RATE)]
    elementwise = [("mma_elementwise", t) for t in by_modeled_time(d, dev, MMA_ELEMENTWISE_TACTICS, 1, MMA_TILE_RATE)]
    if dev.cc < 90:
        return [*wide, *elementwise]
    others = ["triton", *wide, "triton_elementwise", *elementwise]
    if dev.cc != 90:
        return others
    if cdiv(d.M, 128) * cdiv(d.N, 256) * 2 >= dev.sms:
        tactics = [WIDE, TURNS, WIDE_CLUSTER]
    elif cdiv(d.M, 128) * cdiv(d.N, 128) * 2 >= dev.sms:
        tactics = [SQUARE]
    else:
        tactics = [SMALL]
    order = [("sm90", tactic) for tactic in tactics]
    return [*order, "sm90", *others]


peers.declare(scaled_gemm)
