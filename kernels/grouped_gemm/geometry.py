"""What the grouped products share: how test tokens spread over experts, launch geometry, and the choice of a kernel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from trtforge.kernels import Launch, TensorMap, cdiv
from trtforge.kernels.fused_gemm.geometry import (
    ELEMENT_BYTES,
    MMA_GROUP_M,
    SM90_OUT_BOX,
    SM90_ROW_BYTES,
    Tactic,
    sm90_consumers,
    sm90_shared_bytes,
)

#: Of the tokens of unevenly loaded experts, none to this many less one at the end belong to no expert.
_LEFT_OVER = 5
_IDLE_EXPERTS = 0.2  # of unevenly loaded ones
_ROW_LIMIT = 1 << 31
RULES = [
    (
        lambda d: d.E * d.N < _ROW_LIMIT,
        "E · N must be below 2^31, as rows of the weights are counted in 32 bits: divide the experts among calls",
    )
]


def sizes(experts: int, m: int, n: int, k: int) -> dict[str, int]:
    return {"M": m, "K": k, "E": experts, "N": n}


BENCHMARKS = (
    sizes(16, 16 * 256, 4096, 4096),
    sizes(64, 64 * 64, 2048, 4096),
    sizes(16, 4100, 4096, 4096),  # uneven: not a multiple of 16
)


def weight_sample(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """N(0, 1 / K), so that sums are N(0, 1). Of the shape alone: benchmarks of other M share the weights."""
    weights = rng.standard_normal(shape, dtype=np.float32)
    weights *= shape[-1] ** -0.5
    return weights


def expert_ends(rng: np.random.Generator, d: Any) -> np.ndarray:
    """int32 [E]: the end row of every expert. Equal shares where M is a multiple of E; otherwise shares of random size
    (exponential), one expert in five idle, and M % 5 rows of no expert."""
    if d.M % d.E == 0:
        return (np.arange(1, d.E + 1) * (d.M // d.E)).astype(np.int32)
    shares = rng.exponential(size=d.E) * (rng.random(d.E) >= _IDLE_EXPERTS) + 1e-9
    return np.cumsum(rng.multinomial(d.M - d.M % _LEFT_OVER, shares / shares.sum())).astype(np.int32)


def rows_of_experts(offsets: np.ndarray, rows: int) -> list[slice]:
    """The rows of each expert; offsets as the kernels take them."""
    ends = np.maximum.accumulate(np.clip(offsets.astype(np.int64), 0, rows))
    return [slice(int(a), int(b)) for a, b in zip([0, *ends[:-1]], ends)]


def tiles_at_most(d: Any, block_m: int, block_n: int) -> Any:
    """Tiles of all experts and of the rows of none, whatever the offsets: one row of tiles of each is partly full."""
    return (d.M + (d.E + 1) * (block_m - 1)) // block_m * cdiv(d.N, block_n)


def sm90_launch(d: Any, t: Any, dev: Any, element_bytes: int = ELEMENT_BYTES) -> Launch:
    """Persistent clusters, one block per multiprocessor: only on the device it is known how many tiles there are."""
    block_k = SM90_ROW_BYTES // element_bytes
    return Launch(
        grid=max(dev.sms // t.CLUSTER_M, 1) * t.CLUSTER_M,
        block=(1 + sm90_consumers(t)) * 128,
        shared=sm90_shared_bytes(t, weights=1),
        cluster=(t.CLUSTER_M, 1, 1) if t.CLUSTER_M > 1 else None,
        scalars=(d.M, d.N, d.K, d.E),
        constants={"SHARED_BYTES": sm90_shared_bytes(t, weights=1)},
        tensor_maps=(
            TensorMap("x", shape=(d.K, d.M), box=(block_k, t.BLOCK_M)),
            TensorMap("w", shape=(d.K, d.E * d.N), box=(block_k, t.BLOCK_N // t.CLUSTER_M)),
            TensorMap("y", shape=(d.N, d.M), box=SM90_OUT_BOX),
        ),
    )


def mma_launch(d: Any, t: Any, wide: bool) -> Launch:
    """One block per tile. ``wide``: rows of 16-byte multiples on 16-byte aligned pointers."""
    shared = t.STAGES * (t.BLOCK_M + t.BLOCK_N) * t.BLOCK_K * ELEMENT_BYTES
    return Launch(
        grid=tiles_at_most(d, t.BLOCK_M, t.BLOCK_N),
        block=32 * t.WARPS_M * t.WARPS_N * t.WARPS_K,
        shared=shared,
        scalars=(d.M, d.N, d.K, d.E),
        constants={"WIDE": int(wide), "SHARED_BYTES": shared, "GROUP_M": MMA_GROUP_M},
    )


def triton_launch(d: Any, t: Any, vector: int) -> Launch:
    """One program per tile. N and K are multiples of ``vector``."""
    return Launch(
        grid=tiles_at_most(d, t.BLOCK_M, t.BLOCK_N),
        scalars=(d.M, d.N // vector, d.K // vector, d.E),
        constants={"VECTOR": vector},
    )


def by_rows_of_an_expert(d: Any, tactics: Sequence[Tactic]) -> list[Tactic]:
    """Tactics, first those whose tiles an expert of average size fills with the fewest rows too many; of equals, in
    the table's order."""
    rows = cdiv(d.M, d.E)

    def computed(t: Tactic) -> int:
        tile = t["BLOCK_M"] * t.get("CLUSTER_M", 1)
        return int(cdiv(rows, tile) * tile)

    return sorted(tactics, key=computed)
