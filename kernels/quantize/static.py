"""Quantization with given scales, and dequantization, for every granularity."""

from typing import Any

import numpy as np

from trtforge.bindings.dtypes import dtype
from trtforge.kernels import Cost, Launch, Op, attr, cdiv, cuda, triton
from trtforge.kernels.quantize import peers, reference
from trtforge.kernels.quantize.dynamic import SWEEP, VECTOR_COLUMNS
from trtforge.kernels.quantize.granularity import (
    CODES,
    EXACT,
    FLOATS,
    GRANULARITIES,
    LANES,
    TO_CODES,
    TO_FLOAT,
    TRITON_TYPES,
    Granularity,
    cases,
    rows_of,
    sample_codes,
    sample_floats,
    sample_scales,
)

TRITON_TILE = {"BLOCK_ROWS": 32, "BLOCK_COLUMNS": 128, "num_warps": 4}


def sweep_launch(rows: Any, columns: Any, t: Any, lanes: int, group: tuple[int, int], **constants: int) -> Launch:
    """The launch of a kernel built on sweep.cuh: each thread takes ITEMS vectors of ``lanes`` elements."""
    return Launch(
        grid=cdiv(rows, t.THREADS // t.COLUMN_THREADS * t.ITEMS) * cdiv(columns, t.COLUMN_THREADS * lanes),
        block=t.THREADS,
        scalars=(rows, columns),
        constants={"GROUP_ROWS": group[0], "GROUP_COLUMNS": group[1], **constants},
    )


def triton_sweep_launch(rows: Any, columns: Any, t: Any, group: tuple[int, int] | None, **constants: Any) -> Launch:
    """The launch of a Triton kernel that visits tiles of BLOCK_ROWS x BLOCK_COLUMNS."""
    groups = {"GROUP_ROWS": group[0], "GROUP_COLUMNS": group[1]} if group else {}
    return Launch(
        grid=cdiv(rows, t.BLOCK_ROWS) * cdiv(columns, t.BLOCK_COLUMNS),
        scalars=(rows,),
        constants={"K": columns, **groups, **constants},
    )


def quantize_static(granularity: Granularity) -> Op:
    """The op quantize_<granularity>_static."""
    op = Op(
        f"trtforge::quantize_{granularity.name}_static",
        doc=f"Quantization with a given scale {granularity.doc}: y = x / scale (one IEEE float32 division), rounded to "
        "the nearest code, ties to even, saturating. Infinite quotients saturate; NaN becomes NaN (int8: 0).",
        inputs={
            "x": granularity.x(FLOATS, sample_floats, "values"),
            "scale": granularity.scales(sample_scales),
        },
        outputs={"y": granularity.x(attr("to"), None, "codes")},
        attributes={"to": TO_CODES},
        tolerance=EXACT,
        cases=cases(granularity),
    )
    group = granularity.group

    @op.reference
    def _(x: np.ndarray, scale: np.ndarray, *, to: str) -> np.ndarray:
        matrix = reference.as_matrix(x)
        grid = scale.reshape(granularity.grid(matrix.shape))
        return reference.quantize(matrix, grid, group, to).reshape(x.shape)

    @op.cost
    def _(d: Any) -> Cost:
        return Cost(flops=rows_of(granularity, d) * d.K)

    @op.kernel(cuda("quantize_static.cu"), tactics=(SWEEP,), requires=[VECTOR_COLUMNS])
    def _(d: Any, t: Any, dt: Any) -> Launch:
        return sweep_launch(rows_of(granularity, d), d.K, t, LANES[dt.x], group, VECTOR=1, INT4=0)

    @op.kernel(cuda("quantize_static.cu"), name="cuda_scalar", tactics=(SWEEP,), align=1)
    def _(d: Any, t: Any) -> Launch:
        return sweep_launch(rows_of(granularity, d), d.K, t, 1, group, VECTOR=0, INT4=0)

    @op.kernel(
        triton("quantize_sweep_triton.py", entry="quantize_static"), tactics=(TRITON_TILE,), requires=[TRITON_TYPES]
    )
    def _(d: Any, t: Any) -> Launch:
        return triton_sweep_launch(rows_of(granularity, d), d.K, t, group)

    peers.static(op, granularity)
    return op


def dequantize(granularity: Granularity) -> Op:
    """The op dequantize_<granularity>."""
    op = Op(
        f"trtforge::dequantize_{granularity.name}",
        doc=f"x = float(y) * scale with one scale {granularity.doc}: one float32 product, then one rounding to the "
        "type of the result (float16 overflows to infinity). NaN and infinite codes stay what they are.",
        inputs={
            "y": granularity.x(CODES, sample_codes, "codes"),
            "scale": granularity.scales(sample_scales),
        },
        outputs={"x": granularity.x(attr("to"), None, "values")},
        attributes={"to": TO_FLOAT},
        tolerance=EXACT,
        cases=cases(granularity, codes_in=True),
    )
    group = granularity.group

    @op.reference
    def _(y: np.ndarray, scale: np.ndarray, *, to: str) -> np.ndarray:
        matrix = reference.as_matrix(y)
        grid = scale.reshape(granularity.grid(matrix.shape))
        return reference.dequantize(matrix, grid, group, dtype(to).numpy).reshape(y.shape)

    @op.cost
    def _(d: Any) -> Cost:
        return Cost(flops=rows_of(granularity, d) * d.K)

    @op.kernel(cuda("dequantize.cu"), tactics=(SWEEP,), requires=[VECTOR_COLUMNS])
    def _(d: Any, t: Any, dt: Any) -> Launch:
        return sweep_launch(rows_of(granularity, d), d.K, t, LANES[dt.x], group, VECTOR=1, INT4=0, SCALED=1)

    @op.kernel(cuda("dequantize.cu"), name="cuda_scalar", tactics=(SWEEP,), align=1)
    def _(d: Any, t: Any) -> Launch:
        return sweep_launch(rows_of(granularity, d), d.K, t, 1, group, VECTOR=0, INT4=0, SCALED=1)

    @op.kernel(triton("quantize_sweep_triton.py", entry="dequantize"), tactics=(TRITON_TILE,), requires=[TRITON_TYPES])
    def _(d: Any, t: Any, dt: Any) -> Launch:
        return triton_sweep_launch(rows_of(granularity, d), d.K, t, group, FROM=dt.y)

    peers.dequantization(op, granularity)
    return op


STATIC = {g.name: quantize_static(g) for g in GRANULARITIES}
DEQUANTIZE = {g.name: dequantize(g) for g in GRANULARITIES}
