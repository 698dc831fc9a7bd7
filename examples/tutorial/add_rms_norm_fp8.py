"""One op, five kernels, each one idea further than the one before: docs/tutorial.md walks through them.

trtforge check add_rms_norm_fp8 --load examples/tutorial/add_rms_norm_fp8.py
trtforge bench add_rms_norm_fp8 --load examples/tutorial/add_rms_norm_fp8.py
"""

from trtforge.kernels import Attr, Case, Cost, Launch, Op, Tensor, Tolerance, cdiv, cuda, minimum
from trtforge.kernels.fused_quantize import peers
from trtforge.kernels.fused_quantize.geometry import OTHER_SHARED, items, ring_bytes, tactic
from trtforge.kernels.fused_quantize.reference import quantized_rows, rms_normalized, rounded_sum

THREADS = 256
EXACT = Tolerance(l2=1e-30, rtol=0.0, atol=0.0)

add_rms_norm_fp8 = Op(
    "tutorial::add_rms_norm_fp8",
    doc="sum = x + residual; v = sum / sqrt(mean(sum²) + eps) · weight; y = v / scale in e4m3, one scale per row.",
    inputs={
        "x": Tensor("M", "N", dtype="bfloat16"),
        "residual": Tensor("M", "N", dtype="bfloat16"),
        "weight": Tensor("N", dtype="bfloat16"),
    },
    outputs={
        "y": Tensor("M", "N", dtype="float8_e4m3fn"),
        "scale": Tensor("M", dtype="float32"),
        "sum": Tensor("M", "N", dtype="bfloat16"),
    },
    attributes={"eps": Attr(1e-6, minimum=0.0)},
    rules=[
        (lambda d: d.N % 8 == 0, "N must be a multiple of 8, what one access of 16 bytes holds"),
        (lambda d: d.N <= 8192, "N must be at most 8192, what 256 threads hold in registers"),
    ],
    # The order of the sum of squares moves v by some 1e-7 of itself: a code beside a rounding boundary may differ,
    # and one code of the smallest case is the fraction that is allowed.
    tolerance={
        "float8_e4m3fn": Tolerance(steps=1, fraction=7e-3),
        "float32": Tolerance(l2=2e-6, rtol=1e-5, atol=0.0),
        "bfloat16": EXACT,
    },
    cases=[
        Case({"M": 24, "N": 8}),
        Case({"M": 3, "N": 2056}),
        Case({"M": 5, "N": 4096}, {"eps": 1e-3}),
        Case({"M": 2, "N": 8192}),
        Case({"M": 1000, "N": 5120}, tags=("gpu",)),
        Case({"M": 4096, "N": 4096}, tags=("bench",)),
        Case({"M": 16384, "N": 8192}, tags=("bench",)),
    ],
)


@add_rms_norm_fp8.reference
def _(x, residual, weight, *, eps):
    total = rounded_sum(x, residual)
    return (*quantized_rows(rms_normalized(total, weight, eps), None, "float8_e4m3fn"), total)


@add_rms_norm_fp8.cost
def _(d):
    return Cost(flops=7 * d.M * d.N)


def block_per_row(d, **constants):
    return Launch(grid=d.M, block=THREADS, scalars=(d.M, d.N), constants={"THREADS": THREADS, **constants})


@add_rms_norm_fp8.kernel(cuda("step1_naive.cu"), name="step1")
def _(d):
    return block_per_row(d)


@add_rms_norm_fp8.kernel(cuda("step2_vectors.cu"), name="step2")
def _(d):
    return block_per_row(d)


@add_rms_norm_fp8.kernel(cuda("step3_registers.cu"), name="step3")
def _(d):
    return block_per_row(d, ITEMS=cdiv(d.N, 8 * THREADS))


@add_rms_norm_fp8.kernel(cuda("step4_one_barrier.cu"), name="step4")
def _(d):
    return block_per_row(d, ITEMS=cdiv(d.N, 8 * THREADS))


@add_rms_norm_fp8.kernel(
    cuda("../../kernels/fused_quantize/rms_norm_quantize.cu"),
    name="step5",
    tactics=(tactic(256, 256, stages=3, resident=2), tactic(256, 256, stages=2, resident=1)),
    requires=[
        (
            lambda d, t, dev: ring_bytes(d, t, inputs=2) <= dev.smem_per_block // t.RESIDENT - OTHER_SHARED,
            "keeps STAGES rows per CTA in shared memory, and this is too much of it",
        )
    ],
)
def _(d, t, dev):
    return Launch(
        grid=minimum(d.M, dev.sms * t.RESIDENT),
        block=t.THREADS,
        shared=ring_bytes(d, t, inputs=2),
        scalars=(d.M, d.N),
        constants={"ITEMS": items(d, t.ROW_THREADS), "VECTOR": 1, "CLUSTER": 1, "RESIDUAL": 1},
    )


@add_rms_norm_fp8.heuristic
def _():
    return ["step5", "step4"]


@add_rms_norm_fp8.peer("PyTorch eager")
@add_rms_norm_fp8.peer("torch.compile", compile=True)
def _(x, residual, weight, *, eps):
    total = x + residual
    wide = total.float()
    value = wide * (wide.square().mean(-1, keepdim=True) + eps).rsqrt() * weight.float()
    return (*peers.quantized_rows(value, None, "float8_e4m3fn"), total)
