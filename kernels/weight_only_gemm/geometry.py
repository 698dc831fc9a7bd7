"""Launch geometry, shared memory and tactic choice of the weight-only GEMM kernels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trtforge.kernels import Launch, cdiv, maximum, minimum

MMA_ROWS = 16  # weight rows of one product
MMA_COLUMNS = 8  # rows of x of one product
STEP_BYTES = 128  # of every weight row, in a stage of the ring
LOADS = 2  # groups of 128 codes of 4 bits in a step
GROUP = 128
MOST_SHARED_BYTES = 232448  # of a block of sm_90
SMALL_SHARED_BYTES = 101376  # of a block of sm_89 and sm_120; the ring of a tactic is as deep as this allows
MOST_STAGES = 6

Tactic = dict[str, int]


def block_rows(t: Any) -> int:
    """Weight rows of one CTA."""
    return t["WARPS"] * t["ROW_TILES"] * MMA_ROWS


def stage_bytes(t: Any, bits: int) -> int:
    """Weights, x and scales of one step; see tile.cuh."""
    rows = block_rows(t)
    x_bytes = t["COLUMN_TILES"] * MMA_COLUMNS * STEP_BYTES * 8 // bits * 2
    return rows * STEP_BYTES + x_bytes + (rows * LOADS * 4 if bits == 4 else 0)


def shared_bytes(t: Any, bits: int) -> int:
    """Dynamic shared memory: the ring, or the sums that take its place."""
    rows = block_rows(t)
    sums = t["COLUMN_TILES"] * MMA_COLUMNS * (rows + 4) * 4
    return max(t["STAGES"] * stage_bytes(t, bits), sums)


def _tile(bits: int, column_tiles: int) -> Tactic:
    """STAGES: as many as fit in the shared memory of any GPU."""
    tactic = {"COLUMN_TILES": column_tiles, "WARPS": 4, "ROW_TILES": 1}
    stages = min(SMALL_SHARED_BYTES // stage_bytes(tactic, bits), MOST_STAGES)
    return {**tactic, "STAGES": stages}


def tactics(bits: int) -> tuple[Tactic, ...]:
    """64 weight rows of a CTA, for 8, 16, 32 and 64 rows of x, for every GPU."""
    return tuple(_tile(bits, column_tiles) for column_tiles in (1, 2, 4, 8))


ALIGNED_DEPTH = (lambda d: d.K % 16 == 0, "reads 16 bytes at a time, so K must be a multiple of 16")


def requirements(bits: int) -> list[Any]:
    """Where the CUDA kernel cannot serve."""
    fits = (
        lambda t, dev: shared_bytes(t, bits) <= dev.smem_per_block,
        "needs more shared memory than a block of this GPU has",
    )
    return [fits, ALIGNED_DEPTH] if bits == 8 else [fits, (lambda has: not has.zero, "takes codes without zero points")]


def launch(d: Any, t: Any, bits: int) -> Launch:
    """One CTA for each block of weight rows and block of rows of x."""
    shared = shared_bytes(t, bits)
    return Launch(
        grid=(cdiv(d.N, block_rows(t)), cdiv(d.M, t.COLUMN_TILES * MMA_COLUMNS)),
        block=t.WARPS * 32,
        shared=shared,
        scalars=(d.M, d.N, d.K),
        constants={"BITS": bits, "SPLITS": 1, "SHARED_BYTES": shared},
    )


# ---- the stream: weight_stream.cu ------------------------------------------------------------------------------

STREAM_WARPS = 16
STREAM_K = 512  # elements along K of a warp, 8 rows of x: as many registers as a lane can spare
STREAM_ROW_BYTES = 128  # of each of 16 weight rows, in a slot
MOST_RING_SLOTS = 6
SPARE_SMS = 18  # that clusters of more than two can leave over: GPCs differ in size, and 32 of four do not fit 132
WEIGHT_BYTES = {8: 0, 4: 2 * LOADS * 4}  # beside the codes of a row in a slot: scales, words with zero points


def clusters_at_a_time(sms: int, ctas: int) -> int:
    """How many clusters with one CTA to a multiprocessor surely run together."""
    return max((sms if ctas <= 2 else sms - SPARE_SMS) // ctas, 1)


def stream_parts(t: Mapping[str, int], bits: int) -> tuple[int, int, int]:
    """Bytes of shared memory: all warps' rings and sums of x, the sums of their tiles, the sums of one tile."""
    slot = MMA_ROWS * (STREAM_ROW_BYTES + WEIGHT_BYTES[bits])
    tile = t["COLUMN_TILES"] * MMA_ROWS * MMA_COLUMNS * 4
    x_sums = STREAM_K // GROUP * MMA_COLUMNS * 4 if bits == 4 else 0
    return STREAM_WARPS * (t["RING_SLOTS"] * slot + x_sums), 2 * STREAM_WARPS * tile, tile


def stream_shared_bytes(t: Mapping[str, int], bits: int) -> int:
    """Dynamic shared memory of a CTA."""
    ring, partial, tile = stream_parts(t, bits)
    return ring + partial + t["TILES"] * tile


def _stream(bits: int, column_tiles: int, splits: int) -> Tactic:
    """RING_SLOTS: as many as fits beside the sums of 16 tiles; TILES: what fits then."""
    least_tiles = 16
    tactic = {"COLUMN_TILES": column_tiles, "SPLITS": splits, "RING_SLOTS": MOST_RING_SLOTS, "TILES": least_tiles}
    while stream_shared_bytes(tactic, bits) > MOST_SHARED_BYTES:
        tactic["RING_SLOTS"] -= 1
    ring, partial, tile = stream_parts(tactic, bits)
    return {**tactic, "TILES": min((MOST_SHARED_BYTES - ring - partial) // tile, 32)}


def stream_tactics(bits: int) -> tuple[Tactic, ...]:
    """For 8 and for 16 rows of x. More parts of K: each CTA reads less of x, and more sums are exchanged."""
    return tuple(_stream(bits, *one) for one in ((1, 1), (1, 2), (1, 4), (2, 1), (2, 2), (2, 4)))


def stream_depth(t: Any) -> int:
    """The largest K."""
    return t["SPLITS"] * STREAM_WARPS * STREAM_K // t["COLUMN_TILES"]


def stream_requirements(bits: int) -> list[Any]:
    """Where the stream cannot serve."""
    return [
        (
            lambda t, dev: stream_shared_bytes(t, bits) <= dev.smem_per_block,
            "needs more shared memory than a block of this GPU has",
        ),
        (lambda d, t: stream_depth(t) >= d.K, "keeps its part of x in registers, so K must be smaller"),
        *([ALIGNED_DEPTH] if bits == 8 else []),
    ]


def stream_launch(d: Any, t: Any, dev: Any, bits: int) -> Launch:
    """As many clusters as run at a time, each with every so many-th tile; more of them where the sums would not fit."""
    tiles = cdiv(d.N, MMA_ROWS)
    clusters = maximum(minimum(tiles, clusters_at_a_time(dev.sms, t.SPLITS)), cdiv(tiles, t.TILES))
    shared = stream_shared_bytes(t, bits)
    return Launch(
        grid=(clusters * t.SPLITS, cdiv(d.M, t.COLUMN_TILES * MMA_COLUMNS)),
        block=STREAM_WARPS * 32,
        shared=shared,
        cluster=(t.SPLITS, 1, 1) if t.SPLITS > 1 else None,
        scalars=(d.M, d.N, d.K),
        constants={"BITS": bits, "SHARED_BYTES": shared},
    )


# ---- the stream in wide slots: weight_stream_wide.cu -----------------------------------------------------------

PART_BYTES = 64  # of a row: a group of 128 codes of 4 bits


def wide_slot_k(t: Mapping[str, int], bits: int) -> int:
    """Elements along K of a slot."""
    return t["PARTS"] * PART_BYTES * 8 // bits


def wide_shared_bytes(t: Mapping[str, int], bits: int, zero: bool) -> int:
    """Dynamic shared memory of a CTA: rings and sums of x of all warps, sums of two tiles, with parts of K of all."""
    groups = t["PARTS"] * (4 + zero) if bits == 4 else 0
    slot = MMA_ROWS * (t["PARTS"] * PART_BYTES + groups)
    tile = t["COLUMN_TILES"] * MMA_ROWS * MMA_COLUMNS * 4
    x_sums = STREAM_K // t["COLUMN_TILES"] // GROUP * t["COLUMN_TILES"] * 64 if bits == 4 else 0
    totals = t["TILES"] if t["SPLITS"] > 1 else 0
    return STREAM_WARPS * (t["RING_SLOTS"] * slot + x_sums) + (2 * STREAM_WARPS + totals) * tile


def _wide(bits: int, column_tiles: int, splits: int, parts: int) -> Tactic:
    """RING_SLOTS: as many as fit; TILES: enough for 28,672 rows of weights in a wave of clusters of two."""
    tactic = {
        "COLUMN_TILES": column_tiles,
        "SPLITS": splits,
        "PARTS": parts,
        "RING_SLOTS": MOST_RING_SLOTS,
        "TILES": 32,
    }
    while wide_shared_bytes(tactic, bits, bits == 4) > MOST_SHARED_BYTES:
        tactic["RING_SLOTS"] -= 1
    return tactic


def wide_tactics(bits: int) -> tuple[Tactic, ...]:
    """For 8 rows of x up to K 8192, with 4 bits in half-sized slots up to 4096; for 16, in two parts of K or one."""
    table = {8: ((1, 1, 4), (2, 2, 2), (2, 1, 2)), 4: ((1, 1, 4), (1, 1, 2), (2, 2, 2), (2, 1, 2))}
    return tuple(_wide(bits, *one) for one in table[bits])


def wide_requirements(bits: int) -> list[Any]:
    """Where the stream in wide slots cannot serve."""
    found = [
        (
            lambda t, dev, has: wide_shared_bytes(t, bits, bits == 4 and has.zero) <= dev.smem_per_block,
            "needs more shared memory than a block of this GPU has",
        ),
        (lambda d, t: stream_depth(t) >= d.K, "keeps its part of x in registers, so K must be smaller"),
        (lambda d, t: d.K % wide_slot_k(t, bits) == 0, "has whole slots, so K must be a multiple of their elements"),
        (lambda d: d.N % MMA_ROWS == 0, f"has whole tiles of weight rows, so N must be a multiple of {MMA_ROWS}"),
    ]
    zeros = (lambda t, has: not has.zero or t.PARTS == 4, "takes zero points with four groups to a slot only")
    return [*found, zeros] if bits == 4 else found


def wide_launch(d: Any, t: Any, dev: Any, has: Any, bits: int) -> Launch:
    """As many clusters as run at a time, each with every so many-th tile; more where parts of K would not fit."""
    tiles = d.N // MMA_ROWS
    clusters = minimum(tiles, clusters_at_a_time(dev.sms, t.SPLITS))
    shared = wide_shared_bytes(t, bits, bits == 4 and has.zero)
    return Launch(
        grid=(
            (maximum(clusters, cdiv(tiles, t.TILES)) if t.SPLITS > 1 else clusters) * t.SPLITS,
            cdiv(d.M, t.COLUMN_TILES * MMA_COLUMNS),
        ),
        block=STREAM_WARPS * 32,
        shared=shared,
        cluster=(t.SPLITS, 1, 1) if t.SPLITS > 1 else None,
        scalars=(d.M, d.N, d.K),
        constants={"BITS": bits, "SHARED_BYTES": shared},
    )


# ---- wgmma: weight_wgmma.cu ------------------------------------------------------------------------------------

WGMMA_ROWS = 256
WGMMA_WARPS = 8  # with weights
WGMMA_THREADS = 384
WGMMA_STAGE_K = 128
WGMMA_MEASURED = (
    (32, 2, 4),
    (32, 3, 4),
    (64, 2, 3),
    (64, 3, 3),
)  # columns, parts of K, slots: what is chosen by default
BARRIER_BYTES = 1024


def wgmma_shared_bytes(t: Mapping[str, int], bits: int) -> int:
    """Dynamic shared memory of a CTA: stages of x, the rings of all warps; or the sums in their place."""
    slot = 2 * MMA_ROWS * (STREAM_ROW_BYTES + WEIGHT_BYTES[bits])
    stages = (t["X_STAGES"] + t["X_AHEAD"]) * t["COLUMNS"] * WGMMA_STAGE_K * 2
    rings = stages + WGMMA_WARPS * t["RING_SLOTS"] * slot
    return BARRIER_BYTES + max(rings, t["COLUMNS"] * (WGMMA_ROWS + 4) * 4)


def _wgmma(columns: int, splits: int, depth: int) -> Tactic:
    return {"COLUMNS": columns, "SPLITS": splits, "X_STAGES": 3, "X_AHEAD": 4, "RING_SLOTS": depth}


def wgmma_tactics() -> tuple[Tactic, ...]:
    """For 32 and for 64 rows of x; with products of two tiles in flight."""
    two = ((64, 1, 3), (64, 2, 3), (64, 3, 3), (32, 1, 4))
    return (
        *(_wgmma(*one) for one in WGMMA_MEASURED),
        *(_wgmma(*one) | {"IN_FLIGHT": 2} for one in two),
    )


def wgmma_requirements(bits: int) -> list[Any]:
    """Where wgmma cannot serve."""
    slot = STREAM_ROW_BYTES * 8 // bits
    whole = (
        lambda d, t: not t.get("IN_FLIGHT") or (d.N % WGMMA_ROWS == 0) & (d.K % slot == 0),
        f"takes whole blocks with IN_FLIGHT: N must be a multiple of {WGMMA_ROWS}, K of {slot}",
    )
    return [whole, ALIGNED_DEPTH] if bits == 8 else [whole]


def wgmma_launch(d: Any, t: Any, bits: int) -> Launch:
    """One cluster for each 256 weight rows, a row of clusters for each block of rows of x."""
    shared = wgmma_shared_bytes(t, bits)
    return Launch(
        grid=(cdiv(d.N, WGMMA_ROWS) * t.SPLITS, cdiv(d.M, t.COLUMNS)),
        block=WGMMA_THREADS,
        shared=shared,
        cluster=(t.SPLITS, 1, 1) if t.SPLITS > 1 else None,
        scalars=(d.M, d.N, d.K),
        constants={"BITS": bits, "SHARED_BYTES": shared},
    )


# ---- what is chosen --------------------------------------------------------------------------------------------

STREAM_ROWS = 16  # of x
MOST_ROWS = 256  # of x: beyond, the weights are few beside the products, and large tiles of x read them less often


def stream_preferences(d: Any, dev: Any, table: Sequence[Mapping[str, int]]) -> list[Any]:
    """The fewest column tiles that hold x, and of those the fewest parts of K: a second part costs 1.5 µs."""
    if dev.cc < 90 or d.M > STREAM_ROWS:
        return []
    column_tiles = 1 if d.M <= MMA_COLUMNS else 2

    def order(t: Mapping[str, int]) -> tuple[int, ...]:
        return t["COLUMN_TILES"] != column_tiles, t["SPLITS"]

    return [("stream", t) for t in sorted(table, key=order) if stream_depth(t) >= d.K]


def wgmma_preferences(d: Any, dev: Any) -> list[Any]:
    """The fewest columns that hold x, and of those what spreads best over the multiprocessors."""
    if dev.cc != 90 or d.M <= STREAM_ROWS or d.M > MOST_ROWS:
        return []
    columns = 32 if d.M <= 32 else 64

    def order(t: Mapping[str, int]) -> tuple[float, ...]:
        clusters = -(-d.N // WGMMA_ROWS) * -(-d.M // t["COLUMNS"])
        waves = -(-clusters // clusters_at_a_time(dev.sms, t["SPLITS"]))
        return t["COLUMNS"] != columns, waves / t["SPLITS"], t["SPLITS"]

    return [("wgmma", t) for t in sorted(wgmma_tactics()[: len(WGMMA_MEASURED)], key=order)]


def preferences(d: Any, dev: Any, table: Sequence[Mapping[str, int]], stream: Sequence[Mapping[str, int]]) -> list[Any]:
    """The stream for few rows of x, wgmma for more; else the fewest column tiles that hold x, and Triton for many."""
    needed = min(-(-d.M // MMA_COLUMNS), max(t["COLUMN_TILES"] for t in table))
    cuda = [("cuda", t) for t in sorted(table, key=lambda t: (t["COLUMN_TILES"] < needed, t["COLUMN_TILES"]))]
    if d.M > MOST_ROWS:
        return ["triton", *cuda, "triton_elementwise"]
    return [*stream_preferences(d, dev, stream), *wgmma_preferences(d, dev), *cuda, "triton", "triton_elementwise"]
