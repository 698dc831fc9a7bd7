"""Quantization with scales taken from the data: per token, per block, per tile, and per tensor in two ops."""

from typing import Any

import numpy as np

from trtforge.kernels import Case, Cost, Launch, Op, Tensor, attr, cdiv, cuda, next_power_of_2, triton
from trtforge.kernels.quantize import peers, reference
from trtforge.kernels.quantize.granularity import (
    BENCH_SHAPES,
    BLOCK,
    BLOCKWISE,
    EXACT,
    FLOATS,
    LANES,
    MORE_PAIRS,
    PAIRS,
    TENSOR,
    TILE,
    TO_CODES,
    TOKEN,
    TRITON_TYPES,
    Granularity,
    cases,
    rows_of,
    sample_floats,
)

#: Partial maxima of per-tensor quantization: one resident wave of blocks of 512 threads on 128 multiprocessors.
PARTS = 512

#: Threads of a multiprocessor below which a launch takes more threads per row.
FILLED = 768

#: Rows that fit into the registers of the fewest threads leave most of them idle where they are very short.
SMALLEST_ROOM = 256

#: A share of x that one partial maximum covers is a multiple of this many elements: a whole vector of any type.
SHARE_STEP = 8

VECTOR_COLUMNS = (
    lambda d, dt: d.K % LANES[dt.x] == 0,
    "needs K to be a multiple of 8 (float32: 4): rows begin at 16-byte boundaries",
)
VECTOR_COUNT = (
    lambda d, dt: d.M * d.K % LANES[dt.x] == 0,
    "needs the number of elements to be a multiple of 8 (float32: 4)",
)


def dynamic(
    granularity: Granularity,
    doc: str,
    pairs: tuple[tuple[str, str], ...] = PAIRS,
    bench: tuple[tuple[int, int], ...] = BENCH_SHAPES,
) -> Op:
    """The op quantize_<granularity>: contract, reference, cost and cases."""
    op = Op(
        f"trtforge::quantize_{granularity.name}",
        doc=doc,
        inputs={"x": granularity.x(FLOATS, sample_floats, "values")},
        outputs={"y": granularity.x(attr("to"), None, "codes"), "scale": granularity.scales()},
        attributes={"to": TO_CODES},
        tolerance=EXACT,
        cases=cases(granularity, pairs=pairs, bench=bench),
    )

    @op.reference
    def _(x: np.ndarray, *, to: str) -> tuple[np.ndarray, np.ndarray]:
        matrix = reference.as_matrix(x)
        scale = reference.scale_of(reference.absmax(matrix, granularity.group), to)
        y = reference.quantize(matrix, scale, granularity.group, to)
        shape = scale.shape if granularity is TILE else (*x.shape[:-1], scale.shape[1])
        return y.reshape(x.shape), scale.reshape(x.shape[:-1] if granularity is TOKEN else shape)

    @op.cost
    def _(d: Any) -> Cost:
        return Cost(flops=2 * rows_of(granularity, d) * d.K)

    peers.dynamic(op, granularity)
    return op


def row_kernels(op: Op, rows: str, group: int, vector: Any, scalar: Any, packed: bool = False) -> None:
    """The kernels of quantize_row.cu and its Triton twin; ``group`` 0: one group is a whole row."""
    constants = {"GROUP": group, "INT4": int(packed)}

    def groups(d: Any) -> Any:
        return d[rows] * cdiv(d.K, group) if group else d[rows]

    def launch(d: Any, t: Any, wide: int) -> Launch:
        return Launch(
            grid=cdiv(groups(d), t.THREADS // t.GROUP_THREADS),
            block=t.THREADS,
            scalars=(d[rows], d.K),
            constants={**constants, "VECTOR": wide, "CLUSTER": 1},
        )

    def held(d: Any, t: Any, dt: Any) -> bool:
        return bool(t.OVERFLOW) or fitting(group or d.K, t.GROUP_THREADS * t.ITEMS * LANES[dt.x], bool(group))

    whole = (held, "holds a group in the registers of its threads, a quarter of them at work")

    @op.kernel(cuda("quantize_row.cu"), tactics=vector, requires=[VECTOR_COLUMNS, whole])
    def _(d: Any, t: Any) -> Launch:
        return launch(d, t, 1)

    @op.kernel(cuda("quantize_row.cu"), name="cuda_scalar", tactics=scalar, align=1)
    def _(d: Any, t: Any) -> Launch:
        return launch(d, t, 0)

    fits = (lambda d: d.K <= 32768, "holds one row in registers: K must be at most 32768")

    @op.kernel(
        triton("quantize_row_triton.py"),
        tactics=({"GROUPS": 16, "num_warps": 4},) if group else ({"GROUPS": 1, "num_warps": 8},),
        requires=[TRITON_TYPES] if group else [TRITON_TYPES, fits],
    )
    def _(d: Any, t: Any) -> Launch:
        width = group or d.K
        extra: dict[str, Any] = {"TO": "int4"} if packed else {}
        return Launch(
            grid=cdiv(groups(d), t.GROUPS),
            scalars=(groups(d),),
            constants={"K": d.K, "WIDTH": width, "BLOCK": next_power_of_2(width), **extra},
        )


def fitting(width: Any, room: int, exactly: bool = False) -> bool:
    """Whether a group of ``width`` elements fits into registers for ``room`` of them, and not far too many."""
    return bool(width == room if exactly else width <= room and (room <= SMALLEST_ROOM or 4 * width >= room))


def row_tactic(threads: int, group_threads: int, items: int, overflow: int = 0) -> dict[str, int]:
    """THREADS of a block, those that share a group, vectors that each of them holds, and whether there may be more."""
    return {"THREADS": threads, "GROUP_THREADS": group_threads, "ITEMS": items, "OVERFLOW": overflow}


quantize_token = dynamic(
    TOKEN,
    "Per-token quantization: each row of x gets the scale max(absmax / qmax, 2^-126) and y = x / scale, rounded to "
    "the nearest code, ties to even, saturating. Infinities saturate; NaN becomes NaN (int8: 0); neither sets a "
    "scale. A row is read once.",
    MORE_PAIRS,
    ((64, 4096), (512, 4096), *BENCH_SHAPES),
)
#: From a quarter of a warp to a block per row; 48 warps of 64 bytes per thread, or 32 of 128, fit a multiprocessor.
TOKEN_VECTOR = (
    row_tactic(256, 8, 4),
    row_tactic(256, 32, 4),
    row_tactic(256, 128, 4),
    row_tactic(256, 256, 4),
    row_tactic(512, 512, 4),
    row_tactic(512, 512, 8),
    row_tactic(512, 512, 4, overflow=1),
)
#: Longer rows than a block has registers for.
TOKEN_CLUSTER = ({"THREADS": 512, "CLUSTER": 4, "ITEMS": 4}, {"THREADS": 512, "CLUSTER": 8, "ITEMS": 4})
row_kernels(
    quantize_token, "M", 0, TOKEN_VECTOR, (row_tactic(256, 256, 8, overflow=1), row_tactic(256, 32, 4, overflow=1))
)


@quantize_token.kernel(
    cuda("quantize_row.cu"),
    name="cluster",
    arch=("sm_90a", "sm_100a"),
    tactics=TOKEN_CLUSTER,
    requires=[
        VECTOR_COLUMNS,
        (
            lambda d, t, dt: fitting(d.K, t.THREADS * t.CLUSTER * t.ITEMS * LANES[dt.x]),
            "holds a row in the registers of a cluster, a quarter of them at work",
        ),
    ],
)
def _(d: Any, t: Any) -> Launch:
    return Launch(
        grid=d.M * t.CLUSTER,
        block=t.THREADS,
        cluster=(t.CLUSTER, 1, 1),
        scalars=(d.M, d.K),
        constants={"GROUP": 0, "INT4": 0, "VECTOR": 1, "GROUP_THREADS": t.THREADS, "OVERFLOW": 0},
    )


@quantize_token.heuristic
def _(d: Any, dt: Any, dev: Any) -> list[Any]:
    """Four vectors per thread, fewer where there are few rows to fill the device with."""
    vectors = cdiv(d.K, LANES[dt.x])
    widths = (8, 32, 128, 256, 512)
    at = next((i for i, w in enumerate(widths) if vectors <= 4 * w), len(widths) - 1)
    while at + 1 < len(widths) and d.M * widths[at] < FILLED * dev.sms and vectors >= widths[at + 1]:
        at += 1
    held = {"GROUP_THREADS": widths[at], "ITEMS": 4, "OVERFLOW": 0}
    order: list[Any] = [("cuda", held), ("cuda", {"ITEMS": 8})]
    if vectors > 8 * 512 or (vectors > 4 * 512 and dev.sms >= 2 * d.M):
        order = [("cluster", {"CLUSTER": c}) for c in (4, 8)] + order
    scalar_threads = 32 if d.K <= 256 else 256
    return [*order, ("cuda", {"OVERFLOW": 1}), ("cuda_scalar", {"GROUP_THREADS": scalar_threads}), "triton"]


quantize_block = dynamic(
    BLOCKWISE,
    f"Per-block quantization of activations: every run of {BLOCK} elements along K has its own scale (the layout of "
    "DeepSeek-V3, arXiv:2412.19437, section 3.3). Rounding, NaN and infinities as in trtforge::quantize_token.",
)
#: Two vectors per thread: of 16-bit elements, of float32.
BLOCK_VECTOR = (row_tactic(256, 8, 2), row_tactic(256, 16, 2))
row_kernels(quantize_block, "M", BLOCK, BLOCK_VECTOR, (row_tactic(256, 32, 4),))

quantize_tile = dynamic(
    TILE,
    f"Per-tile quantization of weights: every {BLOCK} x {BLOCK} tile has its own scale (the layout of DeepSeek-V3, "
    "arXiv:2412.19437, section 3.3). Rounding, NaN and infinities as in trtforge::quantize_token.",
)


def _tile_launch(d: Any, t: Any, wide: int) -> Launch:
    return Launch(
        grid=cdiv(d.N, BLOCK) * cdiv(d.K, BLOCK),
        block=t.THREADS,
        scalars=(d.N, d.K),
        constants={"TILE": BLOCK, "INT4": 0, "VECTOR": wide},
    )


@quantize_tile.kernel(cuda("quantize_tile.cu"), tactics=({"THREADS": 512},), requires=[VECTOR_COLUMNS])
def _(d: Any, t: Any) -> Launch:
    return _tile_launch(d, t, 1)


@quantize_tile.kernel(cuda("quantize_tile.cu"), name="cuda_scalar", tactics=({"THREADS": 1024},), align=1)
def _(d: Any, t: Any) -> Launch:
    return _tile_launch(d, t, 0)


@quantize_tile.kernel(
    triton("quantize_sweep_triton.py", entry="quantize_tile"), tactics=({"num_warps": 8},), requires=[TRITON_TYPES]
)
def _(d: Any) -> Launch:
    return Launch(grid=cdiv(d.N, BLOCK) * cdiv(d.K, BLOCK), scalars=(d.N,), constants={"K": d.K, "TILE": BLOCK})


absmax_partials = Op(
    "trtforge::absmax_partials",
    doc=f"Largest finite magnitudes of {PARTS} equal shares of x: the first half of dynamic per-tensor quantization. "
    f"Share p holds the elements p * s to (p + 1) * s of the flattened x, s = ceil(M * K / {PARTS}) rounded up to a "
    f"multiple of {SHARE_STEP}; a share beyond the end gives 0. NaN and infinities do not count. Deterministic.",
    inputs={"x": TENSOR.x(FLOATS, sample_floats, "values")},
    outputs={"partials": Tensor(PARTS, dtype="float32", doc="largest finite magnitude of each share")},
    tolerance=EXACT,
    cases=[
        Case(case.dims, tags=case.tags, leading=case.leading, dtypes=case.dtypes)
        for case in {(*case.dims.values(), case.dtypes["x"]): case for case in cases(TENSOR)}.values()
        if case.dims["K"] not in (5, 24, 1000)
    ],
)


@absmax_partials.reference
def _(x: np.ndarray) -> np.ndarray:
    return reference.absmax_partials(x, PARTS, SHARE_STEP)


@absmax_partials.cost
def _(d: Any) -> Cost:
    return Cost(flops=d.M * d.K)


def _partials_launch(d: Any, t: Any, wide: int) -> Launch:
    return Launch(
        grid=PARTS,
        block=t.THREADS,
        scalars=(d.M, d.K),
        constants={"VECTOR": wide, "PARTS": PARTS, "SHARE_STEP": SHARE_STEP},
    )


@absmax_partials.kernel(cuda("absmax_partials.cu"), tactics=({"THREADS": 512, "ITEMS": 4},), requires=[VECTOR_COUNT])
def _(d: Any, t: Any) -> Launch:
    return _partials_launch(d, t, 1)


@absmax_partials.kernel(
    cuda("absmax_partials.cu"), name="cuda_scalar", tactics=({"THREADS": 512, "ITEMS": 8},), align=1
)
def _(d: Any, t: Any) -> Launch:
    return _partials_launch(d, t, 0)


@absmax_partials.kernel(
    triton("quantize_sweep_triton.py", entry="absmax_partials"),
    tactics=({"SHARES": 4, "BLOCK": 2048, "num_warps": 16},),
)
def _(d: Any, t: Any) -> Launch:
    return Launch(
        grid=PARTS // t.SHARES,
        scalars=(d.M,),
        constants={"K": d.K, "PARTS": PARTS, "SHARE_STEP": SHARE_STEP},
    )


quantize_tensor = Op(
    "trtforge::quantize_tensor",
    doc="Per-tensor quantization, second half: the scale is max(max(partials) / qmax, 2^-126), then y = x / scale as "
    "in trtforge::quantize_token. partials comes from trtforge::absmax_partials, or from several of them (of shards, "
    "say) joined end to end.",
    inputs={
        "x": TENSOR.x(FLOATS, sample_floats, "values"),
        "partials": Tensor(
            "P",
            dtype="float32",
            sample=lambda rng, shape: np.abs(rng.standard_normal(shape)).astype(np.float32),
            doc="magnitudes whose maximum is mapped to qmax; NaN and infinities do not count",
        ),
    },
    outputs={"y": TENSOR.x(attr("to"), None, "codes"), "scale": TENSOR.scales()},
    attributes={"to": TO_CODES},
    tolerance=EXACT,
    cases=[
        Case(
            {**case.dims, "P": 5 if case.dims["M"] == 3 else PARTS},
            case.attributes,
            tags=case.tags,
            leading=case.leading,
            dtypes=case.dtypes,
        )
        for case in cases(TENSOR)
    ],
)


@quantize_tensor.reference
def _(x: np.ndarray, partials: np.ndarray, *, to: str) -> tuple[np.ndarray, np.ndarray]:
    matrix = reference.as_matrix(x)
    scale = reference.scale_of(reference.finite_magnitude(partials).max().reshape(1, 1), to)
    return reference.quantize(matrix, scale, TENSOR.group, to).reshape(x.shape), scale.reshape(1)


@quantize_tensor.cost
def _(d: Any) -> Cost:
    return Cost(flops=d.M * d.K)


def _tensor_launch(d: Any, t: Any, dt: Any, wide: int) -> Launch:
    lanes = LANES[dt.x] if wide else 1
    return Launch(
        grid=cdiv(d.M, t.THREADS // t.COLUMN_THREADS * t.ITEMS) * cdiv(d.K, t.COLUMN_THREADS * lanes),
        block=t.THREADS,
        scalars=(d.M, d.K, d.P),
        constants={"VECTOR": wide, "INT4": 0, "GROUP_ROWS": 0, "GROUP_COLUMNS": 0},
    )


SWEEP = {"THREADS": 256, "COLUMN_THREADS": 64, "ITEMS": 4}


@quantize_tensor.kernel(cuda("quantize_tensor.cu"), tactics=(SWEEP,), requires=[VECTOR_COLUMNS])
def _(d: Any, t: Any, dt: Any) -> Launch:
    return _tensor_launch(d, t, dt, 1)


@quantize_tensor.kernel(cuda("quantize_tensor.cu"), name="cuda_scalar", tactics=(SWEEP,), align=1)
def _(d: Any, t: Any, dt: Any) -> Launch:
    return _tensor_launch(d, t, dt, 0)


@quantize_tensor.kernel(
    triton("quantize_sweep_triton.py", entry="quantize_tensor"),
    tactics=({"BLOCK_ROWS": 32, "BLOCK_COLUMNS": 128, "num_warps": 4},),
    requires=[TRITON_TYPES],
)
def _(d: Any, t: Any) -> Launch:
    return Launch(
        grid=cdiv(d.M, t.BLOCK_ROWS) * cdiv(d.K, t.BLOCK_COLUMNS),
        scalars=(d.M,),
        constants={"K": d.K, "PARTS": d.P},
    )


peers.tensor(absmax_partials, quantize_tensor, PARTS)

__all__ = ["absmax_partials", "quantize_block", "quantize_tensor", "quantize_tile", "quantize_token"]
