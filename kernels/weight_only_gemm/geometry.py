"""Launch geometry, shared memory and tactic choice of the weight-only GEMM kernels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from trtforge.kernels import Launch, cdiv

MMA_ROWS = 16  # weight rows of one product
MMA_COLUMNS = 8  # rows of x of one product
STEP_BYTES = 128  # of every weight row, in a stage of the ring
LOADS = 2  # groups of 128 codes of 4 bits in a step
GROUP = 128
MOST_SHARED_BYTES = 232448  # of a block of sm_90; the ring of a tactic is as deep as this allows
SMALL_SHARED_BYTES = 101376  # of a block of sm_89 and sm_120
CTA_BYTES = 1024  # that the system keeps for itself in each
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


def _tile(bits: int, column_tiles: int, warps: int, row_tiles: int, splits: int, limit: int) -> Tactic:
    """STAGES: as many as fit in ``limit`` bytes."""
    tactic = {"COLUMN_TILES": column_tiles, "WARPS": warps, "ROW_TILES": row_tiles, "SPLITS": splits}
    stages = min(limit // stage_bytes(tactic, bits), MOST_STAGES)
    return {**tactic, "STAGES": stages}


def tactics(bits: int) -> tuple[Tactic, ...]:
    """For 8, 16, 32 and 64 rows of x. First for GPUs with clusters, 2, 4 or 8 CTAs along K: two CTAs of 128 weight rows
    to a multiprocessor, or one of 256 (more products for each x that is read). Last 64 weight rows for every GPU."""
    table: list[Tactic] = []
    for column_tiles in (1, 2, 4, 8):
        for splits in (4, 2, 8):
            if column_tiles <= 2:
                table.append(_tile(bits, column_tiles, 8, 1, splits, MOST_SHARED_BYTES // 2 - CTA_BYTES))
            table.append(_tile(bits, column_tiles, 8, 2, splits, MOST_SHARED_BYTES))
        table.append(_tile(bits, column_tiles, 4, 1, 1, SMALL_SHARED_BYTES))
    return tuple(table)


def requirements(bits: int) -> list[Any]:
    """Where the CUDA kernel cannot serve."""
    rules: list[Any] = [
        (lambda t, dev: t.SPLITS == 1 or dev.cc >= 90, "splits K over a cluster, which this GPU does not have"),
        (
            lambda t, dev: shared_bytes(t, bits) <= dev.smem_per_block,
            "needs more shared memory than a block of this GPU has",
        ),
    ]
    if bits == 8:
        rules.append((lambda d: d.K % 16 == 0, "reads 16 bytes at a time, so K must be a multiple of 16"))
    return rules


def launch(d: Any, t: Any, bits: int) -> Launch:
    """One cluster for each block of weight rows, a row of clusters for each block of rows of x."""
    shared = shared_bytes(t, bits)
    return Launch(
        grid=(cdiv(d.N, block_rows(t)) * t.SPLITS, cdiv(d.M, t.COLUMN_TILES * MMA_COLUMNS)),
        block=t.WARPS * 32,
        shared=shared,
        cluster=(t.SPLITS, 1, 1) if t.SPLITS > 1 else None,
        scalars=(d.M, d.N, d.K),
        constants={"BITS": bits, "SHARED_BYTES": shared},
    )


FULL_WARPS = 16  # of a multiprocessor, with which loads, conversions and products overlap well
FEW_WARPS_TIME = 1.2  # estimated: with half of them
L2_TIME = 0.5  # estimated: of a byte of x from L2, where a byte of the weights from memory takes 1
MOST_ROWS = 256  # of x: beyond, the weights are few beside the products, and large tiles of x read them less often


def estimated_time(d: Any, dev: Any, t: Mapping[str, int], bits: int) -> float:
    """In units of the time that the weights alone need: only ratios matter, for choosing between tactics."""
    columns = t["COLUMN_TILES"] * MMA_COLUMNS
    warps_per_sm = FULL_WARPS if t["ROW_TILES"] == 1 and t["WARPS"] == 8 else FULL_WARPS // 2
    ctas_per_sm = warps_per_sm // t["WARPS"]
    row_blocks = -(-d.N // block_rows(t))
    load = row_blocks * t["SPLITS"] * -(-d.M // columns) / (dev.sms * ctas_per_sm)
    waves = math.ceil(load) / load  # time over that of an even spread
    x_bytes = row_blocks * d.M * d.K * 2  # each block of weight rows reads all of x, from L2
    weight_bytes = d.N * d.K * bits / 8 * -(-d.M // columns)
    return waves * (1.0 if warps_per_sm == FULL_WARPS else FEW_WARPS_TIME) * (1 + L2_TIME * x_bytes / weight_bytes)


def preferences(d: Any, dev: Any, table: Sequence[Mapping[str, int]], bits: int) -> list[Any]:
    """The fewest column tiles that hold x, and of those the tactics by their estimated time."""
    usable = [t for t in table if dev.cc >= 90 or t["SPLITS"] == 1]
    needed = min(-(-d.M // MMA_COLUMNS), max(t["COLUMN_TILES"] for t in usable))
    column_tiles = min(t["COLUMN_TILES"] for t in usable if t["COLUMN_TILES"] >= needed)

    def order(t: Mapping[str, int]) -> tuple[float, ...]:
        return t["COLUMN_TILES"] != column_tiles, estimated_time(d, dev, t, bits)

    cuda = [("cuda", t) for t in sorted(usable, key=order)]
    if d.M > MOST_ROWS:
        return ["triton", *cuda, "triton_elementwise"]
    return [*cuda, "triton", "triton_elementwise"]
