"""The four granularities, and what the declarations of this family have in common.

x is ``[*M, K]`` (per tile: ``[N, K]``); a group of elements shares one float32 scale:

============  ==================  ==========================================================
granularity   group               scale
============  ==================  ==========================================================
tensor        all of x            ``[1]``
token         one row             ``[*M]``
block         1 x 128 along K     ``[*M, ceil(K / 128)]``; the last block of a row may be short
tile          128 x 128           ``[ceil(N / 128), ceil(K / 128)]``; border tiles may be short
============  ==================  ==========================================================
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from trtforge.bindings.dtypes import dtype
from trtforge.kernels import Attr, Case, Tensor, Tolerance, cdiv, sym
from trtforge.kernels.quantize.reference import QMAX

#: Width of a block, and side of a tile. Also the group width of 4-bit weights.
BLOCK = 128

CODES = ("int8", "float8_e4m3fn", "float8_e5m2")
FLOATS = ("float16", "bfloat16", "float32")

#: Elements of x that one 16-byte access moves.
LANES = {"float16": 8, "bfloat16": 8, "float32": 4, "int8": 16}

#: A scale or a dequantized value is the same float32 arithmetic everywhere: no tolerance.
EXACT = {name: Tolerance(l2=1e-30, rtol=0.0, atol=0.0) for name in FLOATS}

#: Pairs of (x, codes) that cover every type of either side.
PAIRS = (("bfloat16", "float8_e4m3fn"), ("float16", "int8"), ("float32", "float8_e5m2"))
BENCH_PAIRS = (("bfloat16", "float8_e4m3fn"), ("bfloat16", "int8"))
#: Rows and columns of benchmarks: 50 MB of both in bfloat16, which the L2 cache could hold, and 400 MB.
BENCH_SHAPES = ((4096, 4096), (16384, 8192))
MORE_PAIRS = (*PAIRS, ("float16", "float8_e4m3fn"), ("bfloat16", "int8"))

#: Triton refuses the type itself, in pointers too, although these kernels do the conversion by integer arithmetic.
TRITON_TYPES = (
    lambda dt, dev: dev.cc >= 89 or all(dt[name] != "float8_e4m3fn" for name in dt),
    "is in Triton, which has float8_e4m3fn on sm_89 and later only",
)

TO_CODES = Attr("float8_e4m3fn", choices=CODES, doc="format of the codes")
TO_FLOAT = Attr("bfloat16", choices=FLOATS, doc="type of the result")


@dataclass(frozen=True)
class Granularity:
    """One way to share scales. ``group``: rows and columns of a group, 0 for all of them."""

    name: str
    rows: str
    scale: tuple[Any, ...]
    group: tuple[int, int]
    doc: str

    def x(self, dtype: Any, sample: Callable[..., np.ndarray] | None, doc: str) -> Tensor:
        return Tensor(self.rows, "K", dtype=dtype, sample=sample, doc=doc)

    def scales(self, sample: Callable[..., np.ndarray] | None = None) -> Tensor:
        return Tensor(*self.scale, dtype="float32", sample=sample, doc=f"one scale {self.doc}")

    def grid(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """The shape of the scales of a matrix of that shape, as rows and columns."""
        rows, columns = self.group[0] or shape[0], self.group[1] or shape[1]
        return -(-shape[0] // rows), -(-shape[1] // columns)


TENSOR = Granularity("tensor", "*M", (1,), (0, 0), "for all of x")
TOKEN = Granularity("token", "*M", ("*M",), (1, 0), "per row")
BLOCKWISE = Granularity("block", "*M", ("*M", cdiv(sym("K"), BLOCK)), (1, BLOCK), f"per 1 x {BLOCK} block")
TILE = Granularity(
    "tile", "N", (cdiv(sym("N"), BLOCK), cdiv(sym("K"), BLOCK)), (BLOCK, BLOCK), f"per {BLOCK} x {BLOCK} tile"
)
GRANULARITIES = (TENSOR, TOKEN, BLOCKWISE, TILE)


def rows_of(granularity: Granularity, d: Any) -> Any:
    """The number of rows: M, or N of a weight."""
    return d[granularity.rows.lstrip("*")]


def sample_floats(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """N(0, 1) times a power of ten per row; small arrays get a row of zeros, one with NaN and infinities, one of
    subnormal numbers, and one of exact ties (n + 1/2 with a largest magnitude of 127)."""
    x = rng.standard_normal(shape, dtype=np.float32)
    rows = x.reshape(-1, shape[-1])
    if x.size > 1 << 20:
        return x
    rows *= 10.0 ** rng.integers(-2, 3, (rows.shape[0], 1)).astype(np.float32)
    k = shape[-1]
    if rows.shape[0] >= 5:
        rows[0] = 0.0
        rows[1, : min(k, 4)] = np.array([np.nan, np.inf, -np.inf, -0.0], np.float32)[: min(k, 4)]
        rows[2] *= np.float32(1e-40)
        rows[3] = (np.arange(k) % 255 - 127).astype(np.float32) + 0.5
        rows[3, 0] = 127.0
    return x


def sample_scales(rng: np.random.Generator, shape: tuple[int, ...], a: Any) -> np.ndarray:
    """Scales that spread N(0, 1) over the codes and saturate some."""
    qmax = QMAX[a.to] if a.to in QMAX else QMAX["int8"]
    return (rng.uniform(1.0, 6.0, shape) / qmax).astype(np.float32)


def sample_codes(rng: np.random.Generator, shape: tuple[int, ...], dt: Any) -> np.ndarray:
    """All 256 codes, NaN and infinities among them."""
    return rng.integers(0, 256, shape, dtype=np.uint8).view(dtype(dt.y).numpy)


def cases(
    granularity: Granularity,
    *,
    codes_in: bool = False,
    pairs: tuple[tuple[str, str], ...] = PAIRS,
    bench: tuple[tuple[int, int], ...] = BENCH_SHAPES,
) -> list[Case]:
    """Odd sizes for every machine, large ones for a GPU, benchmark shapes; each for the given pairs of types.

    ``codes_in``: the op takes codes (y) and its attribute is the float type, instead of the other way round.
    """
    rows = granularity.rows.lstrip("*")

    def make(m: int, k: int, tags: tuple[str, ...], leading: tuple[int, ...] | None = None) -> list[Case]:
        found = []
        for floats, codes in BENCH_PAIRS if "bench" in tags else pairs:
            attribute, given = (floats, {"y": codes}) if codes_in else (codes, {"x": floats})
            found.append(Case({rows: m, "K": k}, {"to": attribute}, tags=tags, leading=leading, dtypes=given))
        return found

    small = [(1, 1), (3, 5), (7, 129), (5, 1000), (130, 264)]
    large = [(33, 4096), (1000, 8200), (257, 16384), (3, 100001)]
    listed = [case for m, k in small for case in make(m, k, ())]
    if granularity.rows.startswith("*"):
        listed += make(6, 24, (), (2, 1, 3))
    listed += [case for m, k in large for case in make(m, k, ("gpu",))]
    return listed + [case for m, k in bench for case in make(m, k, ("bench",))]
