"""Linear layers whose weights are integers and whose activations are not: y = act(x · dequantize(w)ᵀ + bias).

Weights and scales are what the quantize family makes: ``quantize_token`` (int8, one float32 scale per row of w) and
``pack_int4`` (two codes per byte, one float32 scale per 128 elements of a row); 4-bit codes may have a zero point per
group besides. They are read as they lie there: no shuffle beforehand. Codes become 16-bit floats exactly, products
accumulate in float32, scales, bias and activation are applied in float32, and the result is rounded once. A network
that dequantizes to 16 bits first rounds each weight.
"""

import math

import numpy as np

from trtforge.kernels import HALF, Attr, Case, Cost, Launch, Op, Tensor, cdiv, cuda, sym, triton
from trtforge.kernels.fused_gemm.geometry import triton_tile
from trtforge.kernels.fused_gemm.op import ACTIVATION_FUNCTIONS, ACTIVATIONS, TOLERANCE
from trtforge.kernels.quantize.reference import spread, unpack_int4
from trtforge.kernels.weight_only_gemm import patterns, peers
from trtforge.kernels.weight_only_gemm.geometry import (
    GROUP,
    launch,
    preferences,
    requirements,
    stream_launch,
    stream_requirements,
    stream_tactics,
    tactics,
    wgmma_launch,
    wgmma_requirements,
    wgmma_tactics,
    wide_launch,
    wide_requirements,
    wide_tactics,
)

BENCHMARK_WEIGHTS = ((8192, 8192), (14336, 4096), (28672, 8192))  # N, K; the last has 112 MiB of 4 bits
BENCHMARK_ROWS = (1, 4, 16, 64)
CODE_DEVIATION = {8: 74.0, 4: 4.6}  # of codes that are all equally likely
BF16 = {"x": "bfloat16"}


def sizes(m, n, k):
    return {"M": m, "N": n, "K": k}


def scale_sample(bits):
    """Positive, so that sums over K are about N(0, 1)."""
    return lambda rng, shape, d: (rng.uniform(0.5, 1.5, shape) / (CODE_DEVIATION[bits] * math.sqrt(d.K))).astype(
        np.float32
    )


def declare_op(bits, weights, scales, rules, step, doc, more_inputs=None, more_cases=()):
    """``step``: what K is a multiple of in the cases of the CUDA kernel."""
    return Op(
        f"trtforge::int{bits}_weight_gemm",
        doc=doc,
        inputs={
            "x": Tensor("*M", "K", dtype=HALF, doc="rows to multiply"),
            "w": weights,
            "scale": scales,
            "bias": Tensor("N", dtype="x", optional=True, doc="added to every row before the activation"),
            **(more_inputs or {}),
        },
        outputs={"y": Tensor("*M", "N", dtype="x")},
        attributes={"activation": Attr("none", choices=ACTIVATIONS, doc="applied to the scaled float32 sums")},
        rules=rules,
        tolerance=TOLERANCE,
        cases=[
            Case(sizes(1, 1, step)),
            Case(sizes(1, 300, 9 * step), {"activation": "relu"}, ("bias",)),
            Case(sizes(7, 33, 3 * step), {"activation": "silu"}),
            Case(sizes(6, 72, 5 * step), {"activation": "gelu_tanh"}, ("bias",), leading=(2, 3)),
            Case(sizes(4, 16, 1024)),
            Case(sizes(13, 130, 8 * step), {"activation": "gelu_erf"}, ("bias",)),
            Case(sizes(16, 260, 2048)),
            Case(sizes(19, 65, 1024), {"activation": "silu"}, ("bias",)),
            Case(sizes(33, 71, 4 * step), {"activation": "relu"}),
            Case(sizes(70, 40, 2 * step), {}, ("bias",)),
            Case(sizes(13, 256, 1024), {"activation": "relu"}, ("bias",)),  # whole blocks and slots
            Case(sizes(1, 4096, 4096), {"activation": "silu"}, ("bias",), tags=("gpu",)),
            Case(sizes(5, 1033, 14336), {}, ("bias",), tags=("gpu",)),
            Case(sizes(16, 4096, 14336), {"activation": "gelu_tanh"}, tags=("gpu",)),
            Case(sizes(31, 777, 2048), tags=("gpu",)),
            Case(sizes(64, 4104, 4096), {"activation": "relu"}, ("bias",), tags=("gpu",)),
            Case(sizes(12, 4096, 8192), {"activation": "silu"}, ("bias",), tags=("gpu",)),
            Case(sizes(64, 4096, 4096), tags=("gpu",)),
            Case(sizes(257, 520, 1024), {"activation": "gelu_erf"}, ("bias",), tags=("gpu",)),
            Case(sizes(1000, 1000, 2048), tags=("gpu",)),
            *(
                Case(sizes(m, *shape), tags=("bench",), dtypes=BF16)
                for shape in BENCHMARK_WEIGHTS
                for m in BENCHMARK_ROWS
            ),
            *more_cases,
        ],
    )


int8_weight_gemm = declare_op(
    8,
    Tensor("N", "K", dtype="int8", doc="codes of the weights, one row per output column"),
    Tensor("N", dtype="float32", sample=scale_sample(8), doc="one per row of w"),
    [],
    16,
    "y = activation(x · (w · scale)ᵀ + bias) for int8 weights with one scale per output channel and 16-bit x (W8A16).",
)
int4_weight_gemm = declare_op(
    4,
    Tensor(
        "N", sym("K") // 2, dtype="uint8", doc="packed codes, two per byte along K, the even index in the low nibble"
    ),
    Tensor(
        "N", cdiv(sym("K"), GROUP), dtype="float32", sample=scale_sample(4), doc=f"one per {GROUP} elements of a row"
    ),
    [(lambda d: d.K % GROUP == 0, f"K must be a multiple of {GROUP}: groups of weights are whole")],
    GROUP,
    f"y = activation(x · (w · scale)ᵀ + bias) for 4-bit weights with one scale per {GROUP} elements along K, as "
    "trtforge::pack_int4 makes them (codes are symmetric; -8 is taken as well), and 16-bit x (W4A16). With zero "
    "points, (code - zero) · scale.",
    more_inputs={
        "zero": Tensor(
            "N",
            cdiv(sym("K"), GROUP),
            dtype="int8",
            optional=True,
            sample=lambda rng, shape: rng.integers(-8, 8, shape).astype(np.int8),
            doc="-8 to 7: the code of zero in each group. Unsigned codes and zero points, less 8 each, are these",
        )
    },
    more_cases=[
        Case(sizes(1, 24, 384), {}, ("zero",)),
        Case(sizes(6, 72, 1280), {"activation": "silu"}, ("bias", "zero"), leading=(2, 3)),
        Case(sizes(16, 130, 1024), {}, ("zero",)),
        Case(sizes(40, 33, 512), {"activation": "relu"}, ("bias", "zero")),
        Case(sizes(3, 256, 1024), {}, ("zero",)),
        Case(sizes(4, 1033, 14336), {}, ("zero",), tags=("gpu",)),
        Case(sizes(64, 1000, 2048), {}, ("zero",), tags=("gpu",)),
        Case(sizes(8, 4096, 8192), {}, ("zero",), tags=("gpu",)),
        *(
            Case(sizes(m, *BENCHMARK_WEIGHTS[0]), {}, ("zero",), tags=("bench",), dtypes=BF16)
            for m in (BENCHMARK_ROWS[0], BENCHMARK_ROWS[-1])
        ),
    ],
)


def finished(x, weights, bias, activation):
    """``weights``: float32, codes times scales."""
    sums = np.matmul(x.astype(np.float32), weights.T).astype(np.float64)
    return ACTIVATION_FUNCTIONS[activation](sums if bias is None else sums + bias.astype(np.float64))


@int8_weight_gemm.reference
def _(x, w, scale, bias, *, activation):
    return finished(x, w.astype(np.float32) * scale[:, None], bias, activation)


@int4_weight_gemm.reference
def _(x, w, scale, bias, zero, *, activation):
    codes = unpack_int4(w).astype(np.float32)
    if zero is not None:
        codes -= spread(zero.astype(np.float32), (1, GROUP), codes.shape)
    return finished(x, codes * spread(scale, (1, GROUP), codes.shape), bias, activation)


# ---- kernels -----------------------------------------------------------------------------------------------

TRITON_INT8_TACTICS = (
    triton_tile(16, 64, 128, num_warps=4, num_stages=4),
    triton_tile(64, 128, 64, num_warps=8, num_stages=3),
)
TRITON_INT4_TACTICS = (
    {"BLOCK_M": 16, "BLOCK_N": 64, "GROUP_M": 8, "num_warps": 4, "num_stages": 4},
    {"BLOCK_M": 64, "BLOCK_N": 128, "GROUP_M": 8, "num_warps": 8, "num_stages": 2},
)
ELEMENTWISE_INT4_TACTICS = (  # smaller: every element has an address of its own, in registers
    {"BLOCK_M": 16, "BLOCK_N": 32, "GROUP_M": 8, "num_warps": 4, "num_stages": 2},
    {"BLOCK_M": 32, "BLOCK_N": 32, "GROUP_M": 8, "num_warps": 4, "num_stages": 2},
)
WIDE = 16


def triton_launch(d, t, vector, constants, depth):
    return Launch(
        grid=cdiv(d.M, t.BLOCK_M) * cdiv(d.N, t.BLOCK_N),
        scalars=(d.M, d.N // vector, depth),
        constants={"VECTOR": vector, **constants},
    )


def declare_cuda(op, bits):
    table, stream = tactics(bits), stream_tactics(bits)

    @op.kernel(
        cuda("weight_stream.cu"),
        name="stream",
        arch="sm_90+",
        tactics=stream,
        requires=stream_requirements(bits),
    )
    def _(d, t, dev):
        return stream_launch(d, t, dev, bits)

    @op.kernel(cuda("weight_only_gemm.cu"), tactics=table, requires=requirements(bits))
    def _(d, t):
        return launch(d, t, bits)

    @op.kernel(
        cuda("weight_wgmma.cu"),
        name="wgmma",
        arch=("sm_90a",),
        tactics=wgmma_tactics(),
        requires=wgmma_requirements(bits),
    )
    def _(d, t):
        return wgmma_launch(d, t, bits)

    @op.kernel(
        cuda("weight_stream_wide.cu"),
        name="stream_wide",
        arch="sm_90+",
        tactics=wide_tactics(bits),
        requires=wide_requirements(bits),
    )
    def _(d, t, dev, has):
        return wide_launch(d, t, dev, has, bits)

    @op.heuristic
    def _(d, dev):
        return preferences(d, dev, table, stream)

    @op.cost
    def _(d):
        return Cost(flops=2 * d.M * d.N * d.K)


def declare_triton_int8(name, vector, **options):
    @int8_weight_gemm.kernel(
        triton("weight_only_gemm_triton.py", entry="int8_weight_gemm"),
        name=name,
        tactics=TRITON_INT8_TACTICS,
        **options,
    )
    def _(d, t):
        return triton_launch(d, t, vector, {}, d.K // vector)


def declare_triton_int4(name, vector, table, **options):
    @int4_weight_gemm.kernel(
        triton("weight_only_gemm_triton.py", entry="int4_weight_gemm"),
        name=name,
        tactics=table,
        **options,
    )
    def _(d, t):
        return triton_launch(d, t, vector, {"GROUP": GROUP}, d.K // GROUP)


WIDE_COLUMNS = (lambda d: d.N % WIDE == 0, f"N must be a multiple of {WIDE}")
WIDE_DEPTH = (lambda d: d.K % WIDE == 0, f"reads {WIDE} bytes at a time, so K must be a multiple of {WIDE}")

declare_cuda(int8_weight_gemm, 8)
declare_cuda(int4_weight_gemm, 4)
declare_triton_int8("triton", WIDE, requires=[WIDE_COLUMNS, WIDE_DEPTH])
declare_triton_int8("triton_elementwise", 1, align=4)
declare_triton_int4("triton", WIDE, TRITON_INT4_TACTICS, requires=[WIDE_COLUMNS])
declare_triton_int4("triton_elementwise", 1, ELEMENTWISE_INT4_TACTICS, align=4)

patterns.declare(int8_weight_gemm, int4_weight_gemm)
peers.declare(int8_weight_gemm, int4_weight_gemm)
