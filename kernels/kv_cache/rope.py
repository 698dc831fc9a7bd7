"""New keys and values into a KV cache in one launch: rotary embedding, quantization, and the write in place."""

from typing import Any

import numpy as np

from trtforge.bindings.dtypes import dtype
from trtforge.kernels import HALF, Case, Cost, Launch, Op, Tensor, cdiv, cuda, minimum, next_power_of_2, sym, triton
from trtforge.kernels.kv_cache import paging, patterns, peers
from trtforge.kernels.kv_cache.paging import EIGHT_BIT
from trtforge.kernels.quantize import reference as quantization
from trtforge.kernels.quantize.granularity import EXACT, TRITON_TYPES
from trtforge.kernels.quantize.reference import QMAX

THREADS = 128
#: Elements of a 16-bit type that one access moves.
LANES = 8
#: Elements of one half of all heads that a Triton program holds.
TRITON_TILE = 8192


def _sample_positions(rng: Any, shape: Any, d: Any, has: Any) -> np.ndarray:
    """Rows that fit; of three or more sequences the first begins before the cache and the last ends behind it."""
    capacity = int(paging.capacity(d, has))
    found = rng.integers(0, max(capacity - d.T, 0) + 1, shape)
    if shape[0] > 2:
        found[0], found[-1] = -(d.T // 2) - 1, capacity - (d.T + 1) // 2
    return found


def _sample_table(rng: Any, shape: Any, d: Any) -> np.ndarray:
    """Pages in no order, none of them twice; of three or more sequences one has a page that does not exist."""
    pages = rng.permutation(d.pages)[: shape[0] * shape[1]].reshape(shape)
    if shape[0] > 2:
        pages[1, 0] = d.pages
    return pages


def _sample_scale(rng: Any, shape: Any, dt: Any) -> np.ndarray:
    """Scales that spread N(0, 1) over the codes and saturate some."""
    return (rng.uniform(1.0, 6.0, shape) / QMAX[dt.k_cache]).astype(np.float32)


def _sample_angle(function: Any) -> Any:
    return lambda rng, shape: function(rng.uniform(-np.pi, np.pi, shape)).astype(np.float32)


def _cache(doc: str, kind: Any) -> Tensor:
    return Tensor("pages", "H", "page_size", "D", dtype=kind, doc=doc)


def _scale(name: str) -> Tensor:
    return Tensor(
        "scales",
        dtype="float32",
        optional=True,
        sample=_sample_scale,
        doc=f"value of one unit of {name}: one, or one by head",
    )


def _table(function: Any, name: str) -> Tensor:
    return Tensor("B", "T", sym("D") // 2, dtype="float32", sample=_sample_angle(function), doc=f"{name} of the angles")


def _case(
    b: int, h: int, t: int, d: int, room: int, new: str, kept: str, page: int = 0, scales: int = 0, **more: Any
) -> Case:
    """``room``: rows of each sequence; ``page``: rows of a page, 0 for a contiguous cache; ``scales``: how many an
    8-bit cache has, 0 for one by head."""
    dims = {"B": b, "H": h, "T": t, "D": d}
    if kept in EIGHT_BIT:
        dims["scales"] = scales or h
    if page:
        dims |= {"pages": b * -(-room // page) + 2, "page_size": page, "max_pages": -(-room // page)}
    else:
        dims |= {"pages": b, "page_size": room}
    optional = ("k_scale", "v_scale") * (kept in EIGHT_BIT) + ("block_table",) * bool(page)
    return Case(dims, optional=optional, dtypes={"k": new, "k_cache": kept}, **more)


rope_kv_cache_update = Op(
    "trtforge::rope_kv_cache_update",
    doc="New keys and values go into a KV cache in place, in one launch. Keys are turned by their rotary angles (Su et "
    "al., arXiv:2104.09864; halves as in GPT-NeoX and Llama): first·cos - second·sin and second·cos + first·sin, "
    "products and sums rounded to float32; values stay. An 8-bit cache gets saturate(round(x / scale)) with one scale "
    "per head, as trtforge::paged_attention_8bit reads it, or one for all heads, with the rounding and NaN of "
    "trtforge::quantize_token; a 16-bit cache, of the type of k, the nearest number.\n\n"
    "Token t of sequence b goes to row positions[b] + t. Row r lies in row r % page_size of page block_table[b, r // "
    "page_size]; without a block table the cache is contiguous: page b is sequence b. Rows beyond the cache and rows "
    "of page numbers outside of 0 to pages - 1 are dropped. No two sequences may write the same page.",
    inputs={
        "k_cache": _cache("keys, page by page; changed", (*HALF, *EIGHT_BIT)),
        "v_cache": _cache("values, page by page; changed", "k_cache"),
        "k": Tensor("B", "H", "T", "D", dtype=HALF, doc="keys of T new tokens, not turned yet"),
        "v": Tensor("B", "H", "T", "D", dtype="k", doc="their values"),
        "cos": _table(np.cos, "cosines"),
        "sin": _table(np.sin, "sines"),
        "positions": Tensor("B", dtype="int32", sample=_sample_positions, doc="row of the first new token"),
        "k_scale": _scale("k_cache"),
        "v_scale": _scale("v_cache"),
        "block_table": paging.block_table(_sample_table),
    },
    outputs={"k_updated": Tensor(alias="k_cache"), "v_updated": Tensor(alias="v_cache")},
    rules=[
        (lambda d: d.D % 2 == 0, "D must be even: rotary embedding turns pairs"),
        (lambda d: d.D <= 1024, "D must be at most 1024"),
        (
            lambda dt, has: has.k_scale == has.v_scale == (dt.k_cache in EIGHT_BIT),
            "an 8-bit cache needs k_scale and v_scale, and a 16-bit cache takes neither",
        ),
        (
            lambda d, has: not has.k_scale or d.scales in (1, d.H),
            "k_scale and v_scale must have one element, or one for each of the H heads",
        ),
        (
            lambda dt: dt.k_cache in EIGHT_BIT or dt.k_cache == dt.k,
            "a 16-bit cache must have the dtype of k: cast one of them",
        ),
        paging.CONTIGUOUS,
        (lambda d: d.B * d.H * d.T * d.D < 1 << 31, "B · H · T · D must be below 2^31: threads are counted in 32 bits"),
        (lambda d, has: paging.capacity(d, has) < 1 << 31, "a sequence must have fewer than 2^31 rows"),
    ],
    tolerance=EXACT,
    cases=[
        _case(1, 1, 1, 2, 1, "float16", "float16"),
        _case(3, 2, 5, 32, 40, "bfloat16", "bfloat16"),
        _case(3, 2, 5, 32, 40, "bfloat16", "float8_e4m3fn"),
        _case(4, 3, 3, 64, 48, "float16", "int8", page=16),
        _case(3, 2, 20, 80, 48, "float16", "float8_e4m3fn", page=16),
        _case(3, 2, 6, 6, 7, "bfloat16", "int8"),
        _case(3, 2, 5, 32, 40, "float16", "float8_e4m3fn", scales=1),
        _case(3, 2, 6, 6, 12, "bfloat16", "int8", page=3, scales=1),
        _case(3, 2, 6, 6, 12, "float16", "float16", page=3),
        _case(16, 8, 1, 128, 4096, "bfloat16", "float8_e4m3fn", tags=("gpu",)),
        _case(5, 8, 700, 128, 1500, "float16", "int8", page=64, tags=("gpu",)),
        _case(2, 8, 2048, 256, 2048, "bfloat16", "bfloat16", tags=("gpu",)),
        _case(64, 8, 1, 128, 8192, "bfloat16", "float8_e4m3fn", tags=("bench",)),
        _case(1, 8, 16384, 128, 16384, "bfloat16", "float8_e4m3fn", tags=("bench",)),
        _case(1, 8, 16384, 128, 16384, "bfloat16", "bfloat16", tags=("bench",)),
    ],
)


def rotated(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """x [B, H, T, D] turned by angles [B, T, D/2], in float32 without a fused multiply-add."""
    half = x.shape[-1] // 2
    first, second = x[..., :half].astype(np.float32), x[..., half:].astype(np.float32)
    cosine, sine = cos[:, None], sin[:, None]
    return np.concatenate([first * cosine - second * sine, second * cosine + first * sine], axis=-1)


@rope_kv_cache_update.reference
def _(
    k_cache: np.ndarray,
    v_cache: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    cos: np.ndarray,
    sin: np.ndarray,
    positions: np.ndarray,
    k_scale: np.ndarray | None,
    v_scale: np.ndarray | None,
    block_table: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray]:
    pages, _, page_size, _ = k_cache.shape
    table = np.arange(pages)[:, None] if block_table is None else block_table
    rows = positions.astype(np.int64)[:, None] + np.arange(k.shape[2])
    known = (rows >= 0) & (rows < table.shape[1] * page_size)
    page = np.take_along_axis(table, np.where(known, rows // page_size, 0), axis=1)
    sequence, token = np.nonzero(known & (page >= 0) & (page < pages))
    where = page[sequence, token], rows[sequence, token] % page_size
    with np.errstate(all="ignore"):
        for cache, scale, new in ((k_cache, k_scale, rotated(k, cos, sin)), (v_cache, v_scale, v.astype(np.float32))):
            if scale is None:
                kept = new.astype(cache.dtype)
            else:
                kept = quantization.encode(new / scale[:, None, None], cache.dtype.name)
            cache[where[0], :, where[1]] = kept[sequence, :, token]
    return k_cache, v_cache


@rope_kv_cache_update.cost
def _(d: Any, dt: Any) -> Cost:
    elements = 2 * d.B * d.H * d.T * d.D
    moved = elements * (dtype(dt.k).itemsize + dtype(dt.k_cache).itemsize)
    return Cost(flops=3 * elements, bytes=moved + 4 * d.B * d.T * d.D + 4 * d.B)


@rope_kv_cache_update.part
def _(rng: Any, d: Any, has: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """One head."""
    h = int(rng.integers(d.H))
    index: dict[str, Any] = dict.fromkeys(("k_cache", "v_cache", "k", "v"), np.s_[:, h : h + 1])
    if has.k_scale and d.scales == d.H:
        index |= dict.fromkeys(("k_scale", "v_scale"), np.s_[h : h + 1])
    return index, {"k_updated": np.s_[:, h : h + 1], "v_updated": np.s_[:, h : h + 1]}


def _scale_stride(d: Any, has: Any) -> Any:
    """Elements from a head's scale to the next head's: 0 where all heads have one."""
    return minimum(d.scales - 1, 1) if has.k_scale else 0


def _launch(d: Any, has: Any, lanes: int) -> Launch:
    return Launch(
        grid=cdiv(d.B * d.H * d.T * (d.D // (2 * lanes)), THREADS),
        block=THREADS,
        scalars=(d.B, d.H, d.T, d.pages, d.page_size, d.max_pages if has.block_table else 1),
        constants={"THREADS": THREADS, "LANES": lanes, "HEAD_DIM": d.D, "SCALE_STRIDE": _scale_stride(d, has)},
    )


@rope_kv_cache_update.kernel(
    cuda("rope_kv_cache_update.cu"),
    requires=[
        (lambda d: d.D % (2 * LANES) == 0, "needs D to be a multiple of 16: a half row is whole 16-byte vectors")
    ],
)
def _(d: Any, has: Any) -> Launch:
    return _launch(d, has, LANES)


@rope_kv_cache_update.kernel(cuda("rope_kv_cache_update.cu"), name="cuda_scalar", align=4)
def _(d: Any, has: Any) -> Launch:
    return _launch(d, has, 1)


@rope_kv_cache_update.kernel(
    triton("rope_kv_cache_update_triton.py"),
    tactics=({"num_warps": 4, "enable_fp_fusion": False},),
    requires=[
        TRITON_TYPES,
        (
            lambda d: next_power_of_2(d.H) * next_power_of_2(d.D // 2) <= TRITON_TILE,
            f"holds all heads of a token in one program, {TRITON_TILE} elements of half a row at most",
        ),
    ],
    align=4,
)
def _(d: Any, dt: Any, has: Any) -> Launch:
    return Launch(
        grid=d.B * d.T,
        scalars=(d.H, d.T, d.pages, d.page_size, d.max_pages if has.block_table else 1),
        constants={
            "HALF": d.D // 2,
            "BLOCK_HEADS": next_power_of_2(d.H),
            "BLOCK_HALF": next_power_of_2(d.D // 2),
            "SCALE_STRIDE": _scale_stride(d, has),
            "TO": dt.k_cache,
        },
    )


patterns.declare(rope_kv_cache_update)
peers.declare(rope_kv_cache_update)
