"""Group-wise 4-bit weights: two signed codes per byte, one float32 scale per 128 elements along K."""

from typing import Any

import numpy as np

from trtforge.bindings.dtypes import dtype
from trtforge.kernels import Case, Cost, Launch, Op, Tensor, attr, cdiv, cuda, sym, triton
from trtforge.kernels.quantize import peers, reference
from trtforge.kernels.quantize.dynamic import BLOCK_VECTOR, SWEEP, row_kernels, row_tactic
from trtforge.kernels.quantize.granularity import (
    BLOCK,
    EXACT,
    FLOATS,
    LANES,
    TO_FLOAT,
    sample_floats,
    sample_scales,
)
from trtforge.kernels.quantize.static import TRITON_TILE, sweep_launch, triton_sweep_launch

GROUP = (1, BLOCK)
SMALL = ((1, 2), (3, 6), (7, 130), (5, 1000), (9, 256))
LARGE = ((33, 4096), (1000, 8200))
BENCH = ((4096, 4096), (8192, 8192))


def _cases(dim: str, divide: int, types: tuple[dict[str, Any], ...]) -> list[Case]:
    listed = []
    for shapes, tags in ((SMALL, ()), (LARGE, ("gpu",)), (BENCH, ("bench",))):
        for n, k in shapes:
            for one in types[:1] if "bench" in tags else types:
                listed.append(
                    Case({"N": n, dim: k // divide}, one.get("attributes", {}), tags=tags, dtypes=one.get("dtypes", {}))
                )
    return listed


pack_int4 = Op(
    "trtforge::pack_int4",
    doc=f"4-bit group-wise quantization of weights: scale = max(absmax / 7, 2^-126) over {BLOCK} elements along K (the "
    "last group of a row may be short), codes = x / scale rounded to nearest, ties to even, in -7..7: symmetric, -8 "
    "is never produced. Two codes per byte along K, the even index in the low nibble. NaN gives 0, infinities "
    "saturate, neither sets a scale.",
    inputs={"x": Tensor("N", "K", dtype=FLOATS, sample=sample_floats, doc="weights")},
    outputs={
        "y": Tensor("N", sym("K") // 2, dtype="uint8", doc="packed codes"),
        "scale": Tensor("N", cdiv(sym("K"), BLOCK), dtype="float32", doc=f"one scale per {BLOCK} elements"),
    },
    rules=[(lambda d: d.K % 2 == 0, "K must be even: two codes share a byte")],
    tolerance=EXACT,
    cases=_cases("K", 1, tuple({"dtypes": {"x": t}} for t in ("bfloat16", "float16", "float32"))),
)
row_kernels(
    pack_int4,
    "N",
    BLOCK,
    BLOCK_VECTOR,
    (row_tactic(256, 32, 2),),
    packed=True,
)


@pack_int4.reference
def _(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scale = reference.scale_of(reference.absmax(x, GROUP), "int4")
    return reference.pack_int4(reference.quantize(x, scale, GROUP, "int4")), scale


@pack_int4.cost
def _(d: Any) -> Cost:
    return Cost(flops=2 * d.N * d.K)


unpack_int4 = Op(
    "trtforge::unpack_int4",
    doc="The signed codes of packed 4-bit values, one per int8: the low nibble first. The inverse of the packing in "
    "trtforge::pack_int4; also takes -8.",
    inputs={"y": Tensor("N", "H", dtype="uint8", doc="packed codes, two per byte")},
    outputs={"x": Tensor("N", sym("H") * 2, dtype="int8", doc="codes, -8..7")},
    cases=_cases("H", 2, ({},)),
)


@unpack_int4.reference
def _(y: np.ndarray) -> np.ndarray:
    return reference.unpack_int4(y)


dequantize_int4 = Op(
    "trtforge::dequantize_int4",
    doc=f"x = code * scale for packed 4-bit values with one scale per {BLOCK} elements along K (the last group may be "
    "short): one float32 product, then one rounding to the type of the result.",
    inputs={
        "y": Tensor("N", "H", dtype="uint8", doc="packed codes, two per byte"),
        "scale": Tensor("N", cdiv(sym("H") * 2, BLOCK), dtype="float32", sample=sample_scales, doc="group scales"),
    },
    outputs={"x": Tensor("N", sym("H") * 2, dtype=attr("to"), doc="weights")},
    attributes={"to": TO_FLOAT},
    tolerance=EXACT,
    cases=_cases("H", 2, tuple({"attributes": {"to": t}} for t in ("bfloat16", "float16", "float32"))),
)


@dequantize_int4.reference
def _(y: np.ndarray, scale: np.ndarray, *, to: str) -> np.ndarray:
    return reference.dequantize(reference.unpack_int4(y), scale, GROUP, dtype(to).numpy)


@dequantize_int4.cost
def _(d: Any) -> Cost:
    return Cost(flops=2 * d.N * d.H)


def _unpacking_kernels(op: Op, entry: str, scaled: int) -> None:
    """The kernels of dequantize.cu on packed codes; ``entry`` names the Triton twin."""
    wide = (
        lambda d, dt: 2 * d.H % LANES[dt.x] == 0,
        "needs 2 * H to be a multiple of the 8 (float32: 4, int8: 16) elements that 16 bytes hold",
    )

    @op.kernel(cuda("dequantize.cu"), tactics=(SWEEP,), requires=[wide])
    def _(d: Any, t: Any, dt: Any) -> Launch:
        return sweep_launch(d.N, 2 * d.H, t, LANES[dt.x], GROUP, VECTOR=1, INT4=1, SCALED=scaled)

    @op.kernel(cuda("dequantize.cu"), name="cuda_scalar", tactics=(SWEEP,), align=1)
    def _(d: Any, t: Any) -> Launch:
        return sweep_launch(d.N, 2 * d.H, t, 2, GROUP, VECTOR=0, INT4=1, SCALED=scaled)

    @op.kernel(triton("quantize_sweep_triton.py", entry=entry), tactics=(TRITON_TILE,))
    def _(d: Any, t: Any) -> Launch:
        return triton_sweep_launch(d.N, 2 * d.H, t, GROUP, FROM="int4")


_unpacking_kernels(unpack_int4, "unpack_int4", 0)
_unpacking_kernels(dequantize_int4, "dequantize", 1)
peers.int4(pack_int4, unpack_int4, dequantize_int4)
