"""Normalization or gating, and quantization with one scale per row, in one launch. The fusion pass puts these ops in
place of norm or gate and ``functional.quantize`` (:mod:`trtforge.kernels.fused_quantize.patterns`).

**What is quantized.** The float32 value before it would be rounded to 16 bits: ``y = saturate(round(v / scale))`` with
the rounding, scales, NaN and infinities of :mod:`trtforge.kernels.quantize.op`, and ``v`` the normalized or gated
value. A network that rounds ``v`` to 16 bits first differs in some codes by one step.

==============================  ====================================================  ==========================
op                              v                                                     outputs
==============================  ====================================================  ==========================
``rms_norm_quantize_token``     x / sqrt(mean(x²) + eps) · weight                     y, scale
``add_rms_norm_quantize_token`` the same of ``sum``                                   y, scale, sum
``layer_norm_quantize_token``   (x - mean) / sqrt(variance + eps) · weight (+ bias)   y, scale
``silu_mul_quantize_token``     gate / (1 + exp(-gate)) · up                          y, scale
==============================  ====================================================  ==========================

``sum`` is x + residual, rounded to the type of both, and it is the *rounded* sum that is normalized: what a network
computes that adds first and normalizes the 16-bit result, and what PyTorch models and vLLM's ``fused_add_rms_norm``
do.

**Scales.** One per row, from the data, or with the optional input ``static_scale`` the same given one for all rows (the
output ``scale`` then repeats it, so that what follows need not know).

**Exactness.** ``sum`` is equal to the reference bit for bit. The order in which squares are summed, rsqrt and exp2 move
v by a few units in the last place of float32: scales agree to 1e-5, and a code differs by one step where v / scale lies
that close to a rounding boundary, one element in about 10⁵. Squares are summed in float32: a row whose sum of squares
is beyond 3.4e38 normalizes to zeros.
"""

import numpy as np

from trtforge.kernels import HALF, Attr, Case, Cost, Op, Tensor, Tolerance, attr
from trtforge.kernels.fused_quantize import patterns, peers, reference
from trtforge.kernels.fused_quantize.geometry import row_kernels, triton_kernel
from trtforge.kernels.quantize.granularity import TO_CODES

EPS = Attr(1e-6, minimum=0.0, doc="added to the mean square")

#: Codes: v differs from the reference's by some 1e-7 of itself, so v / scale crosses a rounding boundary in one of 10^5
#: elements (int8) or fewer; but quotients of 8- and 11-bit significands do fall on boundaries exactly, and one element
#: of a case as small as 6 x 24 is the fraction allowed here. Scales: the same relative error; exp2 adds to it for gates
#: of large magnitude.
CODES = Tolerance(steps=1, fraction=7e-3)
EXACT = Tolerance(l2=1e-30, rtol=0.0, atol=0.0)
TOLERANCE = {
    "int8": CODES,
    "float8_e4m3fn": CODES,
    "float8_e5m2": CODES,
    "float32": Tolerance(l2=2e-6, rtol=1e-5, atol=0.0),
    "float16": EXACT,
    "bfloat16": EXACT,
}


def sample_rows(rng, shape):
    """N(0, 1) times a power of ten per row; five and more rows have one of zeros, one with NaN, one with infinities
    and one of numbers near the end of the exponents' range."""
    x = rng.standard_normal(shape, dtype=np.float32)
    rows = x.reshape(-1, shape[-1])
    if x.size > 1 << 20:
        return x
    rows *= 10.0 ** rng.integers(-2, 3, (rows.shape[0], 1)).astype(np.float32)
    if rows.shape[0] >= 5:
        rows[0] = 0.0
        rows[1, shape[-1] // 2] = np.nan
        rows[2, 0], rows[2, -1] = np.inf, -np.inf
        rows[3] *= np.float32(1e-36)
    return x


def sample_gate(rng, shape):
    """N(0, 9), and the same special rows."""
    x = 3.0 * rng.standard_normal(shape, dtype=np.float32)
    rows = x.reshape(-1, shape[-1])
    if rows.shape[0] >= 5 and x.size <= 1 << 20:
        rows[0] = 0.0
        rows[1, shape[-1] // 2] = np.nan
        rows[2, 0], rows[2, -1] = np.inf, -np.inf
        rows[3] *= 30.0
    return x


def sample_scale(rng, shape):
    return rng.uniform(0.01, 0.05, shape).astype(np.float32)


X = Tensor("*M", "N", dtype=HALF, sample=sample_rows, doc="rows to normalize")
WEIGHT = Tensor("N", dtype="x", doc="gain per column")
STATIC = Tensor(
    1, dtype="float32", optional=True, sample=sample_scale, doc="a scale for all rows; absent: from the data"
)
Y = Tensor("*M", "N", dtype=attr("to"), doc="codes")
SCALE = Tensor("*M", dtype="float32", doc="one scale per row")

SMALL = ((1, 1), (3, 257), (7, 1000), (130, 64), (5, 4104), (2, 16384))
LARGE = ((33, 12345), (1000, 8200), (9, 32768), (5, 65536), (3, 100000))
#: Rows and columns of one benchmark each: launch-bound to bandwidth-bound, then 2^26 elements at every width.
BENCH = ((64, 4096), (512, 4096), (4096, 4096), (16384, 8192))
WIDTHS = ((1048576, 64), (262144, 256), (65536, 1024), (32768, 2048), (4096, 16384), (2048, 32768), (1024, 65536))
PAIRS = (("bfloat16", "float8_e4m3fn"), ("float16", "int8"), ("bfloat16", "float8_e5m2"))


def cases(first: str, optional: tuple[str, ...] = ()) -> list[Case]:
    """``first``: the input whose dtype is free; ``optional``: inputs that every second small case has."""
    found = []
    for i, (m, n) in enumerate(SMALL):
        x, to = PAIRS[i % len(PAIRS)]
        found.append(Case({"M": m, "N": n}, {"to": to}, dtypes={first: x}))
        x, to = PAIRS[(i + 1) % len(PAIRS)]
        present = (*optional, *(("static_scale",) if i % 2 else ()))
        found.append(Case({"M": m, "N": n}, {"to": to}, present, dtypes={first: x}))
    found.append(Case({"M": 6, "N": 24}, {"to": "int8"}, leading=(2, 1, 3), dtypes={first: "bfloat16"}))
    for m, n in LARGE:
        for x, to in PAIRS[:2]:
            found.append(Case({"M": m, "N": n}, {"to": to}, optional, tags=("gpu",), dtypes={first: x}))
    bench = {"to": "float8_e4m3fn"}
    return found + [
        Case({"M": m, "N": n}, bench, optional, tags=("bench",), dtypes={first: "bfloat16"})
        for m, n in (*BENCH, *WIDTHS)
    ]


rms_norm_quantize_token = Op(
    "trtforge::rms_norm_quantize_token",
    doc="RMS normalization and per-row quantization in one launch: v = x / sqrt(mean(x²) + eps) · weight in float32 "
    "(arXiv:1910.07467), y = v / scale as in trtforge::quantize_token. A row is read once.",
    inputs={"x": X, "weight": WEIGHT, "static_scale": STATIC},
    outputs={"y": Y, "scale": SCALE},
    attributes={"eps": EPS, "to": TO_CODES},
    tolerance=TOLERANCE,
    cases=cases("x"),
)


@rms_norm_quantize_token.reference
def _(x, weight, static_scale, *, eps, to):
    return reference.quantized_rows(reference.rms_normalized(x, weight, eps), static_scale, to)


add_rms_norm_quantize_token = Op(
    "trtforge::add_rms_norm_quantize_token",
    doc="Residual addition, RMS normalization and per-row quantization in one launch: sum = x + residual, rounded to "
    "the type of both; v = sum / sqrt(mean(sum²) + eps) · weight in float32; y = v / scale as in "
    "trtforge::quantize_token. A row is read once.",
    inputs={
        "x": X,
        "residual": Tensor("*M", "N", dtype="x", sample=sample_rows, doc="added to x"),
        "weight": WEIGHT,
        "static_scale": STATIC,
    },
    outputs={"y": Y, "scale": SCALE, "sum": Tensor("*M", "N", dtype="x", doc="x + residual, the next residual")},
    attributes={"eps": EPS, "to": TO_CODES},
    tolerance=TOLERANCE,
    cases=cases("x"),
)


@add_rms_norm_quantize_token.reference
def _(x, residual, weight, static_scale, *, eps, to):
    total = reference.rounded_sum(x, residual)
    return (*reference.quantized_rows(reference.rms_normalized(total, weight, eps), static_scale, to), total)


layer_norm_quantize_token = Op(
    "trtforge::layer_norm_quantize_token",
    doc="Layer normalization and per-row quantization in one launch: v = (x - mean) / sqrt(variance + eps) · weight "
    "(+ bias) in float32 (arXiv:1607.06450), y = v / scale as in trtforge::quantize_token. A row is read once.",
    inputs={
        "x": X,
        "weight": WEIGHT,
        "bias": Tensor("N", dtype="x", optional=True, doc="shift per column"),
        "static_scale": STATIC,
    },
    outputs={"y": Y, "scale": SCALE},
    attributes={"eps": Attr(1e-5, minimum=0.0, doc="added to the variance"), "to": TO_CODES},
    tolerance=TOLERANCE,
    cases=cases("x", ("bias",)),
)


@layer_norm_quantize_token.reference
def _(x, weight, bias, static_scale, *, eps, to):
    return reference.quantized_rows(reference.layer_normalized(x, weight, bias, eps), static_scale, to)


silu_mul_quantize_token = Op(
    "trtforge::silu_mul_quantize_token",
    doc="The gate of a SwiGLU layer and per-row quantization in one launch: v = gate / (1 + exp(-gate)) · up in "
    "float32 (arXiv:2002.05202), y = v / scale as in trtforge::quantize_token. Both are read once.",
    inputs={
        "gate": Tensor("*M", "N", dtype=HALF, sample=sample_gate, doc="goes through silu"),
        "up": Tensor("*M", "N", dtype="gate", doc="multiplied by it"),
        "static_scale": STATIC,
    },
    outputs={"y": Y, "scale": SCALE},
    attributes={"to": TO_CODES},
    tolerance=TOLERANCE,
    cases=cases("gate"),
)


@silu_mul_quantize_token.reference
def _(gate, up, static_scale, *, to):
    return reference.quantized_rows(reference.silu_times(gate, up), static_scale, to)


row_kernels(rms_norm_quantize_token, "rms_norm_quantize.cu", inputs=1, most_items=8, RESIDUAL=0)
row_kernels(add_rms_norm_quantize_token, "rms_norm_quantize.cu", inputs=2, most_items=8, RESIDUAL=1)
row_kernels(layer_norm_quantize_token, "layer_norm_quantize.cu", inputs=1, most_items=4)
row_kernels(silu_mul_quantize_token, "silu_mul_quantize.cu", inputs=2, most_items=4)

triton_kernel(rms_norm_quantize_token, "rms_norm_quantize")
triton_kernel(add_rms_norm_quantize_token, "add_rms_norm_quantize", SUM_TYPE="sum")
triton_kernel(layer_norm_quantize_token, "layer_norm_quantize")
triton_kernel(silu_mul_quantize_token, "silu_mul_quantize")


@rms_norm_quantize_token.cost
@add_rms_norm_quantize_token.cost
@layer_norm_quantize_token.cost
@silu_mul_quantize_token.cost
def _(d):
    return Cost(flops=7 * d.M * d.N)


for _to in TO_CODES.choices or ():
    patterns.declare(
        {
            "rms_norm": rms_norm_quantize_token,
            "add_rms_norm": add_rms_norm_quantize_token,
            "layer_norm": layer_norm_quantize_token,
            "silu_mul": silu_mul_quantize_token,
        },
        _to,
    )

peers.declare(rms_norm_quantize_token, add_rms_norm_quantize_token, layer_norm_quantize_token, silu_mul_quantize_token)
