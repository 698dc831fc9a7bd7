"""Attention over a key and value cache in pages: PagedAttention (Kwon et al. 2023, arXiv:2309.06180)."""

from typing import Any

import numpy as np

from trtforge.bindings.dtypes import dtype
from trtforge.kernels import HALF, Cost, Launch, Op, Tensor, cdiv, cuda, triton
from trtforge.kernels.flash_attention import decode, triton_tiles
from trtforge.kernels.flash_attention.op import RULES, flash_attention, visible_keys
from trtforge.kernels.kv_cache import paging
from trtforge.kernels.kv_cache.paging import EIGHT_BIT
from trtforge.kernels.paged_attention import cases, peers

# 16 rows are the least that tl.dot takes, 32 keys are for D over 128; 64 rows serve many queries, such as a piece of a
# long prompt.
TRITON_TACTICS = (
    {"BLOCK_M": 16, "BLOCK_N": 64, "num_warps": 4, "num_stages": 3},
    {"BLOCK_M": 16, "BLOCK_N": 32, "num_warps": 4, "num_stages": 3},
    {"BLOCK_M": 64, "BLOCK_N": 32, "num_warps": 4, "num_stages": 3},
)
# Without maxnreg ptxas spills single registers to reach an occupancy.
TRITON_TACTICS_8BIT = tuple({**t, "maxnreg": 248} for t in TRITON_TACTICS)


def triton_shared_bytes(d: Any, t: Any, element_bytes: int) -> Any:
    """Queries, probabilities, tiles of K and V: num_stages at most (one less where mma.sync reads 16 rows)."""
    tiles = t.num_stages - (t.BLOCK_M == 16)
    tile = t.BLOCK_N * triton_tiles.width(d) * element_bytes
    return t.BLOCK_M * 2 * (triton_tiles.width(d) + t.BLOCK_N) + 2 * tiles * tile


_DOC = """Attention of a few queries per sequence over keys and values in pages (Kwon et al. 2023, arXiv:2309.06180).

Page p holds `page_size` keys of every key head; `block_table[b, i]` is the page of the keys from i * page_size on of
sequence b. Without a block table the cache is contiguous: page b is sequence b.

Semantics are those of trtforge::flash_attention with n = k_lengths[b] keys (all that the pages hold where absent):
queries aligned to the end of the keys, `causal`, `window`, `soft_cap`, grouped heads, zeros for a query that sees no
key. Entries of the table past a sequence's last key are never read. A page number outside of 0 to pages - 1 is clamped:
the result is then wrong, but no memory outside of the cache is read."""

_SCALED = """

The cache has 8 bits: key = k_cache * k_scale[head], value = v_cache * v_scale[head]. Products are computed in float16
with float32 sums (rows of q are scaled by powers of two first, so that bfloat16 queries fit). NaN codes of e4m3 count
as 480."""


def _sample_lengths(rng: Any, shape: Any, d: Any, has: Any) -> np.ndarray:
    """Lengths from 0 to what the pages hold; the last sequence is full, and of three or more the first is empty."""
    capacity = int(paging.capacity(d, has))
    lengths = rng.integers(1, capacity + 1, shape)
    lengths[-1] = capacity
    if shape[0] > 2:
        lengths[0] = 0
    return lengths


def _sample_table(rng: Any, shape: Any, d: Any) -> np.ndarray:
    """Pages in no order, none of them twice while there are enough."""
    count = shape[0] * shape[1]
    pages = np.concatenate([rng.permutation(d.pages) for _ in range(-(-count // d.pages))])
    return pages[:count].reshape(shape)


def _sample_scale(rng: Any, shape: Any, dt: Any) -> np.ndarray:
    low, high = (0.005, 0.02) if dt.k_cache == "int8" else (0.5, 2.0)
    return rng.uniform(low, high, shape)


def _attention(
    q: np.ndarray,
    k_cache: np.ndarray,
    v_cache: np.ndarray,
    k_scale: np.ndarray | None,
    v_scale: np.ndarray | None,
    k_lengths: np.ndarray | None,
    block_table: np.ndarray | None,
    **attributes: Any,
) -> np.ndarray:
    """One sequence after the other, with its pages in one piece."""
    attend = flash_attention._reference
    assert attend is not None
    pages, heads, page_size, width = k_cache.shape
    o = np.zeros(q.shape, dtype=np.float32)
    capacity = page_size * (1 if block_table is None else block_table.shape[1])
    for b in range(q.shape[0]):
        n = capacity if k_lengths is None else int(np.clip(k_lengths[b], 0, capacity))
        if n == 0:
            continue
        own = np.array([b]) if block_table is None else np.clip(block_table[b, : -(-n // page_size)], 0, pages - 1)
        pieces = []
        for cache, scale in ((k_cache, k_scale), (v_cache, v_scale)):
            whole = cache[own].astype(np.float32).swapaxes(0, 1).reshape(1, heads, -1, width)[:, :, :n]
            pieces.append(whole if scale is None else whole * scale.reshape(1, heads, 1, 1))
        o[b] = attend(q[b : b + 1], *pieces, None, **attributes)[0]
    return o


def _cost(d: Any, a: Any, dt: Any, has: Any) -> Cost:
    """Two products per visible (query, key) pair; lengths are data, so all keys count, but no page of nobody's."""
    keys = int(paging.capacity(d, has))
    first, end = visible_keys(d.Sq, keys, keys, a.causal, a.window)
    pairs = int(np.maximum(end - first, 0).sum())
    read = int(max(0, end.max() - first.min()))
    cache = 2 * d.B * d.Hkv * read * d.D * dtype(dt.k_cache).itemsize
    return Cost(flops=4 * d.B * d.Hq * pairs * d.D, bytes=cache + 2 * d.B * d.Hq * d.Sq * d.D * 2)


def _part(rng: Any, d: Any, has: Any, scaled: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """One sequence and one key head with its group; the pages of all sequences stay."""
    b, g = int(rng.integers(d.B)), int(rng.integers(d.Hkv))
    group = d.Hq // d.Hkv
    rows = np.s_[b : b + 1, g * group : (g + 1) * group]
    cache = np.s_[:, g : g + 1] if has.block_table else np.s_[b : b + 1, g : g + 1]
    index: dict[str, Any] = {"q": rows, "k_cache": cache, "v_cache": cache}
    if scaled:
        index |= {"k_scale": np.s_[g : g + 1], "v_scale": np.s_[g : g + 1]}
    index |= {name: np.s_[b : b + 1] for name in ("k_lengths", "block_table") if has[name]}
    return index, {"o": rows}


def _declare(name: str, doc: str, cache_dtype: Any, scales: dict[str, Tensor], declared_cases: list[Any]) -> Op:
    op = Op(
        name,
        doc=doc,
        inputs={
            "q": Tensor("B", "Hq", "Sq", "D", dtype=HALF, doc="queries"),
            "k_cache": Tensor("pages", "Hkv", "page_size", "D", dtype=cache_dtype, doc="keys, page by page"),
            "v_cache": Tensor("pages", "Hkv", "page_size", "D", dtype="k_cache", doc="values, page by page"),
            **scales,
            "k_lengths": Tensor(
                "B",
                dtype="int32",
                optional=True,
                sample=_sample_lengths,
                doc="valid keys of each sequence, 0 to what its pages hold (values outside are clamped)",
            ),
            "block_table": paging.block_table(_sample_table),
        },
        outputs={"o": Tensor("B", "Hq", "Sq", "D", dtype="q", doc="attention output")},
        attributes=flash_attention.attributes,
        rules=[
            *RULES,
            (lambda d, has: paging.capacity(d, has) < 1 << 31, "a sequence must have fewer than 2^31 rows"),
            (
                lambda d: (d.page_size * d.D < 1 << 31) & (d.Sq * d.D * (d.Hq // d.Hkv) < 1 << 31),
                "a page of a head, and the queries that share a key head, must be fewer than 2^31 elements each: their "
                "rows are addressed with 32 bits",
            ),
            (lambda d: d.D % 8 == 0, "D must be a multiple of 8: rows are copied 8 or 16 bytes at a time; pad it"),
            (
                lambda d, has: not has.block_table or d.page_size % decode.TILE_KEYS == 0,
                "page_size must be a multiple of 16: 16 keys are read at a time and must lie in one page",
            ),
            paging.CONTIGUOUS,
        ],
        tolerance=flash_attention.tolerance,
        cases=declared_cases,
    )

    tactics = decode.TACTICS_8BIT if scales else decode.TACTICS

    @op.kernel(
        cuda("paged_attention.cu"),
        name="decode",
        tactics=tactics,
        requires=decode.requirements(lambda dt: dtype(dt.k_cache).itemsize),
    )
    def _(d: Any, t: Any, dt: Any, has: Any) -> Launch:
        return Launch(
            grid=d.B * d.Hkv * decode.row_blocks(d, t) * t.SPLITS,
            block=t.WARPS * 32,
            shared=decode.shared_bytes(d.D, t, dtype(dt.k_cache).itemsize),
            cluster=(t.SPLITS, 1, 1) if t.SPLITS > 1 else None,
            scalars=(d.Hq, d.Hkv, d.Sq, d.pages, d.page_size, d.max_pages if has.block_table else 1),
            constants={"HEAD_DIM": d.D, "HAS_SCALES": int(bool(scales))},
        )

    widest = 64 if scales else 128  # D of 64 rows

    @op.kernel(
        triton("paged_attention_triton.py", entry=name.split("::")[1]),
        tactics=TRITON_TACTICS_8BIT if scales else TRITON_TACTICS,
        requires=[
            (
                lambda dt, dev: dt.k_cache != "float8_e4m3fn" or dev.cc >= 89,
                "reads e4m3, which Triton has from sm_89 on",
            ),
            (
                lambda d, t, dt, dev: triton_shared_bytes(d, t, dtype(dt.k_cache).itemsize) <= dev.smem_per_block,
                triton_tiles.NEEDS_SHARED,
            ),
            (lambda d, t: t.BLOCK_M + t.BLOCK_N > 48 or d.D > 128, "has tiles of 64 keys for this D"),
            (
                lambda d, t: t.BLOCK_M == 16 or int(d.D) <= widest,
                f"holds 64 rows in registers only up to D = {widest}",
            ),
            (
                lambda d, t: t.BLOCK_N == 32 or d.D <= 128 or not scales,
                "holds 64 keys of 8 bits in registers only up to D = 128",
            ),
        ],
    )
    def _(d: Any, t: Any, has: Any) -> Launch:
        return Launch(
            grid=cdiv(d.Sq * (d.Hq // d.Hkv), t.BLOCK_M) * d.B * d.Hkv,
            scalars=(d.Hq, d.Hkv, d.Sq, d.pages, d.page_size, d.max_pages if has.block_table else 1),
            constants=triton_tiles.widths(d),
        )

    @op.heuristic
    def _(d: Any, has: Any, dev: Any) -> list[Any]:
        return [*(("decode", t) for t in decode.preferences(tactics, d, dev, paging.capacity(d, has))), "triton"]

    op.cost(_cost)
    return op


_PAGE_SIZES = {(64, 8192): (16, 64, 128, cases.CONTIGUOUS), (8, 32768): (16, 64, 128), (1, 4096): (16, 64)}

paged_attention = _declare(
    "trtforge::paged_attention",
    _DOC,
    "q",
    {},
    [*cases.small(), *cases.large(), *cases.bench(_PAGE_SIZES)],
)

paged_attention_8bit = _declare(
    "trtforge::paged_attention_8bit",
    _DOC.replace("in pages (", "of 8 bits in pages (", 1) + _SCALED,
    EIGHT_BIT,
    {
        "k_scale": Tensor("Hkv", dtype="float32", sample=_sample_scale, doc="value of one unit of k_cache"),
        "v_scale": Tensor("Hkv", dtype="float32", sample=_sample_scale, doc="value of one unit of v_cache"),
    },
    [
        *cases.small(),
        *cases.large(),
        *(case for kind in EIGHT_BIT for case in cases.bench({(64, 8192): (64, cases.CONTIGUOUS)}, kind)),
    ],
)


@paged_attention.reference
def _(q, k_cache, v_cache, k_lengths, block_table, **attributes):
    return _attention(q, k_cache, v_cache, None, None, k_lengths, block_table, **attributes)


@paged_attention_8bit.reference
def _(q, k_cache, v_cache, k_scale, v_scale, k_lengths, block_table, **attributes):
    return _attention(q, k_cache, v_cache, k_scale, v_scale, k_lengths, block_table, **attributes)


@paged_attention.part
def _(rng, d, has):
    return _part(rng, d, has, scaled=False)


@paged_attention_8bit.part
def _(rng, d, has):
    return _part(rng, d, has, scaled=True)


peers.declare(paged_attention)
peers.declare_8bit(paged_attention_8bit)
