"""Launch geometry and tactic choice of the fused and the gated product; scaled and grouped products share parts of it.

``weights`` is the number of weight matrices that one pass over x multiplies with: 1, or 2 for the gated product.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trtforge.kernels import Launch, TensorMap, cdiv, minimum

ELEMENT_BYTES = 2
WIDE_ELEMENTS = 8  # of 16 bytes
SM90_ROW_BYTES = 128  # of a stage: x and the weights lie in rows of this many bytes
SM90_OUT_BOX = (64, 64)
SM90_WARP_BOX = (64, 16)  # of a warp, with WARP_STORES
SM90_OUT_BOX_BYTES = 64 * 128
SM90_OUT_BOXES = 2
SWIZZLE_PERIOD_BYTES = 1024
MBARRIER_BYTES = 8
MMA_GROUP_M = 8

Tactic = dict[str, int]

#: Estimated share of the tensor cores' rate that a tile's main loop reaches, by (BLOCK_M, weights * BLOCK_N): larger
#: tiles read fewer bytes of shared memory per product. Only their ratios matter, for choosing between tiles.
SM90_TILE_RATE = {(128, 256): 1.0, (128, 128): 0.85, (64, 128): 0.6, (64, 64): 0.45}
MMA_TILE_RATE = {(128, 128): 1.0, (64, 128): 0.8, (64, 64): 0.7, (32, 64): 0.45, (16, 64): 0.3, (16, 32): 0.25}


def sm90_consumers(t: Any) -> int:
    """Warpgroups that multiply: as many as share a tile, times the tiles in work at a time."""
    return t.BLOCK_M // 64 * (1 + t.PINGPONG)


def sm90_shared_bytes(t: Any, weights: int, residual: bool = False) -> int:
    """Dynamic shared memory of an sm90 tactic; sm90_tile.cuh asserts that it is enough."""
    consumers = sm90_consumers(t)
    columns = weights * t.BLOCK_N
    ring = t.STAGES * (t.BLOCK_M + columns) * SM90_ROW_BYTES
    out = consumers * (SM90_OUT_BOXES * SM90_OUT_BOX_BYTES + columns * ELEMENT_BYTES)
    barriers = 2 * t.STAGES + (consumers * SM90_OUT_BOXES if residual else 0)
    return ring + out + barriers * MBARRIER_BYTES + SWIZZLE_PERIOD_BYTES


def sm90_launch(
    d: Any,
    t: Any,
    dev: Any,
    weights: Sequence[str],
    element_bytes: int = ELEMENT_BYTES,
    scalars: Sequence[Any] = (),
    residual: bool = False,
) -> Launch:
    """Persistent clusters, at most one block per multiprocessor; maps of x, the weights, the residual and y."""
    block_k = SM90_ROW_BYTES // element_bytes
    tiles = cdiv(d.M, t.BLOCK_M * t.CLUSTER_M) * cdiv(d.N, t.BLOCK_N)
    shared = sm90_shared_bytes(t, len(weights), residual)
    share = t.BLOCK_N // t.CLUSTER_M  # rows of each weight box that one block of the cluster loads
    return Launch(
        grid=minimum(tiles, max(dev.sms // t.CLUSTER_M, 1)) * t.CLUSTER_M,
        block=(1 + sm90_consumers(t)) * 128,
        shared=shared,
        cluster=(t.CLUSTER_M, 1, 1) if t.CLUSTER_M > 1 else None,
        scalars=(d.M, d.N, d.K, *scalars),
        constants={"SHARED_BYTES": shared},
        tensor_maps=(
            TensorMap("x", shape=(d.K, d.M), box=(block_k, t.BLOCK_M)),
            *(TensorMap(name, shape=(d.K, d.N), box=(block_k, share)) for name in weights),
            *(TensorMap(name, shape=(d.N, d.M), box=SM90_OUT_BOX) for name in (["residual"] if residual else [])),
            TensorMap("y", shape=(d.N, d.M), box=SM90_WARP_BOX if t.get("WARP_STORES") else SM90_OUT_BOX),
        ),
    )


def split_shared_bytes(t: Any, weights: int) -> int:
    """Dynamic shared memory of an sm90_split tactic; sm90_split_tile.cuh asserts that it is enough."""
    ring = t.STAGES * (weights * t.TILE_N + t.TILE_M) * SM90_ROW_BYTES
    return ring + 2 * t.STAGES * MBARRIER_BYTES + SWIZZLE_PERIOD_BYTES


def split_launch(d: Any, t: Any, weights: Sequence[str]) -> Launch:
    """A cluster of SPLIT_K blocks per tile of TILE_M rows of x and TILE_N rows of each matrix of weights."""
    shared = split_shared_bytes(t, len(weights))
    block_k = SM90_ROW_BYTES // ELEMENT_BYTES
    return Launch(
        grid=cdiv(d.M, t.TILE_M) * cdiv(d.N, t.TILE_N) * t.SPLIT_K,
        block=(1 + len(weights) * t.TILE_N // 64) * 128,
        shared=shared,
        cluster=(t.SPLIT_K, 1, 1) if t.SPLIT_K > 1 else None,
        scalars=(d.M, d.N, d.K),
        constants={"SHARED_BYTES": shared},
        tensor_maps=(
            TensorMap("x", shape=(d.K, d.M), box=(block_k, t.TILE_M)),
            *(TensorMap(name, shape=(d.K, d.N), box=(block_k, t.TILE_N)) for name in weights),
        ),
    )


def mma_launch(
    d: Any, t: Any, weights: int, wide: bool, element_bytes: int = ELEMENT_BYTES, scalars: Sequence[Any] = ()
) -> Launch:
    """One block per tile. ``wide``: rows of 16-byte multiples on 16-byte aligned pointers."""
    shared = t.STAGES * (t.BLOCK_M + weights * t.BLOCK_N) * t.BLOCK_K * element_bytes
    return Launch(
        grid=cdiv(d.M, t.BLOCK_M) * cdiv(d.N, t.BLOCK_N),
        block=32 * t.WARPS_M * t.WARPS_N * t.WARPS_K,
        shared=shared,
        scalars=(d.M, d.N, d.K, *scalars),
        constants={"WIDE": int(wide), "SHARED_BYTES": shared, "GROUP_M": MMA_GROUP_M},
    )


def triton_launch(d: Any, t: Any, wide: bool) -> Launch:
    """One program per tile. ``wide``: N and K are multiples of 8 and pointers 16-byte aligned."""
    vector = WIDE_ELEMENTS if wide else 1
    return Launch(
        grid=cdiv(d.M, t.BLOCK_M) * cdiv(d.N, t.BLOCK_N),
        scalars=(d.M, d.N // vector, d.K // vector),
        constants={"VECTOR": vector},
    )


def sm90_tile(block_m: int, block_n: int, stages: int, cluster_m: int, group_m: int, pingpong: bool = False) -> Tactic:
    return {
        "BLOCK_M": block_m,
        "BLOCK_N": block_n,
        "STAGES": stages,
        "CLUSTER_M": cluster_m,
        "GROUP_M": group_m,
        "PINGPONG": int(pingpong),
    }


def split_tile(tile_m: int, tile_n: int, stages: int, split_k: int) -> Tactic:
    return {"TILE_M": tile_m, "TILE_N": tile_n, "STAGES": stages, "SPLIT_K": split_k}


def mma_tile(block: tuple[int, int, int], stages: int, warps: tuple[int, int, int]) -> Tactic:
    """``block`` is (M, N, K) of a stage, ``warps`` its division; all fit the 99 KiB of sm_89 and sm_120."""
    return {
        "BLOCK_M": block[0],
        "BLOCK_N": block[1],
        "BLOCK_K": block[2],
        "STAGES": stages,
        "WARPS_M": warps[0],
        "WARPS_N": warps[1],
        "WARPS_K": warps[2],
    }


def triton_tile(block_m: int, block_n: int, block_k: int, num_warps: int, num_stages: int) -> Tactic:
    return {
        "BLOCK_M": block_m,
        "BLOCK_N": block_n,
        "BLOCK_K": block_k,
        "GROUP_M": 8,
        "num_warps": num_warps,
        "num_stages": num_stages,
    }


def by_modeled_time(
    d: Any, dev: Any, tactics: Sequence[Tactic], weights: int, rates: Mapping[tuple[int, int], float]
) -> list[Tactic]:
    """Tactics, fastest first: rounds of tiles over the multiprocessors times the time of one tile."""

    def time(t: Tactic) -> float:
        tiles = cdiv(d.M, t["BLOCK_M"]) * cdiv(d.N, t["BLOCK_N"])
        tile = t["BLOCK_M"], weights * t["BLOCK_N"]
        return int(cdiv(tiles, dev.sms)) * tile[0] * tile[1] / rates[tile]

    return sorted(tactics, key=time)


def by_split_traffic(d: Any, dev: Any, tactics: Sequence[Tactic], weights: int) -> list[Tactic]:
    """Tactics of the sm90_split kernels: rounds of blocks over the multiprocessors times what a block loads."""

    def loaded(t: Tactic) -> float:
        blocks = cdiv(d.M, t["TILE_M"]) * cdiv(d.N, t["TILE_N"]) * t["SPLIT_K"]
        return int(cdiv(blocks, dev.sms)) * (weights * t["TILE_N"] + t["TILE_M"]) / t["SPLIT_K"]

    return sorted(tactics, key=loaded)


def preferences(
    d: Any,
    dev: Any,
    sm90: Sequence[Tactic],
    split: Sequence[Tactic],
    mma: Sequence[Tactic],
    elementwise: Sequence[Tactic],
    weights: int,
) -> list[Any]:
    """The heuristic of the fused and the gated product. Clusters, ping-pong and split K win on some shapes only: they
    are left to the tables measured on a GPU (tuned/) and to explicit choice.

    Up to 32 rows the bytes of the weights decide, and the mma kernel's 32-column tiles spread them over more
    multiprocessors than the 64 columns of the smallest sm90 tile.
    """
    by_tile = [("mma", t) for t in by_modeled_time(d, dev, mma, weights, MMA_TILE_RATE)]
    by_tile += [("mma_elementwise", t) for t in by_modeled_time(d, dev, elementwise, weights, MMA_TILE_RATE)]
    if dev.cc != 90:
        return by_tile
    single = [t for t in sm90 if t["CLUSTER_M"] == 1 and not t["PINGPONG"]]
    persistent = [("sm90", t) for t in by_modeled_time(d, dev, single, weights, SM90_TILE_RATE)]
    by_split = [("sm90_split", t) for t in by_split_traffic(d, dev, split, weights)]
    return [*by_tile, *persistent, *by_split] if d.M <= 32 else [*persistent, *by_tile, *by_split]
