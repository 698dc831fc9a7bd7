"""The decode kernel of flash attention: few queries, many keys, split over the CTAs of a cluster.

Shared by ``flash_attention`` and the ``paged_attention`` ops: tactics, shared memory, when it can serve, which tactic.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from trtforge.kernels import Launch, Op, cdiv, cuda, maximum, minimum

TILE_KEYS = 16  # keys of one tile of a warp
TILE_ROWS = 8  # packed rows (query, head of the group) of one accumulator tile
MAX_PORTABLE_CLUSTER = 8
LARGE_CLUSTER_CC = (90, 100, 103)  # compute capabilities with clusters of 16


def _tactics(stages: int, splits: tuple[int, ...], warps: int = 4, row_tiles: int = 1) -> list[dict[str, int]]:
    """SPLITS: CTAs of a cluster, each with a part of the keys. STAGES: tiles of K and V that a warp keeps in flight."""
    return [{"SPLITS": n, "WARPS": warps, "STAGES": stages, "ROW_TILES": row_tiles} for n in splits]


# Of 16-bit tiles two stages, with which three CTAs fit a multiprocessor of sm_90 at D 128, were measured ahead of three
# nearly everywhere (docs/kernels/flash_decode.md); an 8-bit tile is half as long. Then what fits GPUs with less shared
# memory, and 16 rows at once.
TACTICS = (
    *_tactics(2, (1, 2, 4, 8, 16)),
    *_tactics(3, (1, 2, 8)),
    *_tactics(2, (1, 8), warps=2),
    *_tactics(2, (1, 4, 16), row_tiles=2),
)
TACTICS_8BIT = (
    *_tactics(4, (1, 2, 4, 8, 16)),
    *_tactics(6, (1, 2, 8)),
    *_tactics(2, (1, 8)),
    *_tactics(2, (1, 4, 16), row_tiles=2),
)


def row_padding(padded_bytes: Any) -> Any:
    """Bytes between rows: none where they fill lines of 128 bytes (or these fill them), which are swizzled."""
    return minimum(padded_bytes % 128, 1) * minimum(128 % padded_bytes, 1) * 16


def shared_bytes(head_dim: Any, t: Any, element_bytes: int) -> Any:
    """Rings (later the warps' partial results) and the inbox of a cluster; see decode_tiles.cuh, decode_combine.cuh."""
    padded_bytes = cdiv(head_dim * element_bytes, 32) * 32
    rows = t.ROW_TILES * TILE_ROWS
    ring = t.STAGES * 2 * TILE_KEYS * (padded_bytes + row_padding(padded_bytes))
    partial = rows * ((padded_bytes // element_bytes + 4) * 4 + 8)
    inbox = cdiv(rows * head_dim // 4, t.SPLITS) * t.SPLITS * 16 + t.SPLITS * rows * 8 + 8 if t.SPLITS > 1 else 0
    return t.WARPS * maximum(ring, partial) + inbox


def requirements(element_bytes: Any) -> list[Any]:
    """Where the kernel cannot serve. ``element_bytes(dt)``: of one element of the cache."""
    return [
        (lambda d: d.D % 8 == 0, "needs D to be a multiple of 8: rows are copied 8 or 16 bytes at a time"),
        (lambda t, dev: t.SPLITS == 1 or dev.cc >= 90, "splits the keys over a cluster, which this GPU does not have"),
        (
            lambda t, dev: t.SPLITS <= MAX_PORTABLE_CLUSTER or dev.cc in LARGE_CLUSTER_CC,
            "uses a cluster of 16, which this GPU does not have",
        ),
        (lambda d, t: t.ROW_TILES == 1 or d.D <= 128, "holds 16 rows a warp in registers only up to D = 128"),
        (
            lambda d, t, dt, dev: shared_bytes(d.D, t, element_bytes(dt)) <= dev.smem_per_block,
            "needs more shared memory for this D than a block of this GPU has",
        ),
    ]


def row_blocks(d: Any, t: Any) -> Any:
    """Blocks of packed rows of one key head."""
    return cdiv(d.Sq * (d.Hq // d.Hkv), t.ROW_TILES * TILE_ROWS)


def preferences(table: Sequence[Mapping[str, int]], d: Any, dev: Any, keys: int) -> list[Mapping[str, int]]:
    """The tactics of a table, those nearest to what a call with ``keys`` keys per sequence should have first.

    That is at most a CTA to a multiprocessor, each with at least one tile for every warp, in clusters of up to eight:
    larger ones, and more of them, wait longer for free multiprocessors of one group than they save.
    """
    rows = d.Sq * (d.Hq // d.Hkv)
    row_tiles = 1 if rows <= TILE_ROWS or d.D > 128 else 2
    clusters = d.B * d.Hkv * -(-rows // (row_tiles * TILE_ROWS))
    most = min(dev.sms // clusters, keys // (4 * TILE_KEYS)) if dev.cc >= 90 else 1
    splits = next((s for s in (MAX_PORTABLE_CLUSTER, 4, 2) if s <= most), 1)
    stages = table[0]["STAGES"]

    def distance(t: Mapping[str, int]) -> tuple[int, ...]:
        octaves = t["SPLITS"].bit_length() - splits.bit_length()
        return abs(t["ROW_TILES"] - row_tiles), abs(octaves), 4 - t["WARPS"], abs(t["STAGES"] - stages)

    return sorted(table, key=distance)


MAX_ROWS = 32  # packed rows up to which the prefill kernels would leave most of their tiles empty


def serves_few_rows(d: Any) -> bool:
    """Whether a call is decoding: few queries, counted with the heads of a group."""
    return d.Sq * (d.Hq // d.Hkv) <= MAX_ROWS and d.D % 8 == 0


def declare(op: Op) -> None:
    """Declare the kernel ``decode`` of ``flash_attention``."""

    @op.kernel(cuda("flash_attention_decode.cu"), name="decode", tactics=TACTICS, requires=requirements(lambda dt: 2))
    def _(d: Any, t: Any) -> Launch:
        return Launch(
            grid=d.B * d.Hkv * row_blocks(d, t) * t.SPLITS,
            block=t.WARPS * 32,
            shared=shared_bytes(d.D, t, 2),
            cluster=(t.SPLITS, 1, 1) if t.SPLITS > 1 else None,
            scalars=(d.Hq, d.Hkv, d.Sq, d.Sk, d.B),
            constants={"HEAD_DIM": d.D},
        )
