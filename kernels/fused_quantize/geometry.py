"""How the rows of this family are spread over threads, and which spread a call gets.

A tactic names ROW_THREADS (threads of a CTA that share a row), THREADS (of a CTA), STAGES (rows that each thread has
under way in shared memory; 0: none, one CTA per ``THREADS / ROW_THREADS`` rows), RESIDENT (CTAs per multiprocessor of
a persistent launch, STAGES > 0), OVERFLOW (1: what does not fit registers is read a second time).
"""

from __future__ import annotations

from typing import Any

from trtforge.kernels import Launch, Op, cdiv, cuda, minimum, next_power_of_2, triton
from trtforge.kernels.quantize.granularity import TRITON_TYPES

#: Elements of a 16-bit type that one access moves.
LANES = 8
#: Elements of an odd row that a thread holds; the rest of the row is read a second time.
SCALAR_ITEMS = 16
SCALAR_SUM = 1024
WIDEST_ROW = 512
#: A persistent launch pays for its ring of rows from here on, in bytes of all inputs.
RING_FROM = 32 << 20
#: Threads of a multiprocessor below which a launch takes more threads per row.
FILLED = 768
#: Shared memory beside the ring: the slots of the reduction, and what the system keeps.
OTHER_SHARED = 2048

Tactic = dict[str, int]


def tactic(row_threads: int, threads: int, stages: int = 0, resident: int = 1, overflow: int = 0) -> Tactic:
    return {
        "ROW_THREADS": row_threads,
        "THREADS": threads,
        "STAGES": stages,
        "RESIDENT": resident,
        "OVERFLOW": overflow,
    }


VECTOR_TACTICS = (
    tactic(8, 256),
    tactic(32, 128),
    tactic(128, 128),
    tactic(256, 256),
    tactic(512, 512),
    tactic(32, 128, 2, 4),
    tactic(128, 128, 2, 4),
    tactic(256, 256, 3, 2),
    tactic(512, 512, 0, 1, overflow=1),
)
CLUSTER_TACTICS = (
    {"THREADS": 512, "CLUSTER": 2},
    {"THREADS": 512, "CLUSTER": 4},
    {"THREADS": 512, "CLUSTER": 8},
)
SCALAR_TACTICS = (tactic(32, 128, overflow=1), tactic(256, 256, overflow=1), tactic(512, 512, overflow=1))

VECTOR_COLUMNS = (
    lambda d: d.N % LANES == 0,
    "needs N to be a multiple of 8: rows begin at 16-byte boundaries",
)


def items(d: Any, row_threads: int) -> Any:
    """Vectors of a row per thread."""
    return cdiv(d.N, LANES * row_threads)


def ring_bytes(d: Any, t: Any, inputs: int) -> Any:
    return t.STAGES * inputs * items(d, t.ROW_THREADS) * t.THREADS * 16


def row_kernels(op: Op, source: str, inputs: int, most_items: int, **constants: int) -> None:
    """The CUDA kernels of an op: ``inputs`` tensors of the rows' shape, at most ``most_items`` vectors per thread."""

    def launch(d: Any, t: Any, dev: Any) -> Launch:
        rows = cdiv(d.M, t.THREADS // t.ROW_THREADS)
        held = items(d, t.ROW_THREADS)
        return Launch(
            grid=minimum(rows, dev.sms * t.RESIDENT) if t.STAGES else rows,
            block=t.THREADS,
            shared=ring_bytes(d, t, inputs),
            scalars=(d.M, d.N),
            constants={
                "ITEMS": minimum(held, 4) if t.OVERFLOW else held,
                "VECTOR": 1,
                "CLUSTER": 1,
                **constants,
            },
        )

    def most(t: Any) -> int:
        """Vectors that the registers of a thread have room for."""
        return min(4, most_items) if inputs == 2 and (t.STAGES or t.THREADS >= 512) else most_items

    def spread(d: Any, t: Any) -> bool:
        enough = t.ROW_THREADS <= 8 or 4 * d.N > LANES * t.ROW_THREADS
        return bool(t.OVERFLOW) or (enough and items(d, t.ROW_THREADS) <= most(t))

    fits = (
        spread,
        "holds a row in 1 to 8 vectors of 8 per thread (1 to 4 of some ops and tactics), a quarter of them at work",
    )
    ring = (
        lambda d, t, dev: ring_bytes(d, t, inputs) <= dev.smem_per_block // t.RESIDENT - OTHER_SHARED,
        "keeps STAGES rows per CTA in shared memory, and this is too much of it",
    )

    @op.kernel(cuda(source), tactics=VECTOR_TACTICS, requires=[VECTOR_COLUMNS, fits, ring])
    def _(d: Any, t: Any, dev: Any) -> Launch:
        return launch(d, t, dev)

    @op.kernel(
        cuda(source),
        name="cluster",
        arch=("sm_90a", "sm_100a"),
        tactics=CLUSTER_TACTICS,
        requires=[
            VECTOR_COLUMNS,
            (
                lambda d, t: items(d, t.THREADS * t.CLUSTER) <= 4 and 2 * d.N >= LANES * t.THREADS * t.CLUSTER,
                "holds a row in 1 to 4 vectors of 8 per thread of a cluster, half of the threads at work",
            ),
        ],
    )
    def _(d: Any, t: Any) -> Launch:
        return Launch(
            grid=d.M * t.CLUSTER,
            block=t.THREADS,
            cluster=(t.CLUSTER, 1, 1),
            scalars=(d.M, d.N),
            constants={
                "ITEMS": items(d, t.THREADS * t.CLUSTER),
                "VECTOR": 1,
                "ROW_THREADS": t.THREADS,
                "STAGES": 0,
                "RESIDENT": 1,
                "OVERFLOW": 0,
                **constants,
            },
        )

    @op.kernel(
        cuda(source),
        name="cuda_scalar",
        tactics=SCALAR_TACTICS,
        requires=[
            (
                lambda d, t: t.ROW_THREADS == WIDEST_ROW or d.N <= SCALAR_SUM * t.ROW_THREADS,
                f"adds at most {SCALAR_SUM} squares one after the other, for the sake of the sum's last bits",
            )
        ],
        align=2,
    )
    def _(d: Any, t: Any) -> Launch:
        return Launch(
            grid=cdiv(d.M, t.THREADS // t.ROW_THREADS),
            block=t.THREADS,
            scalars=(d.M, d.N),
            constants={
                "ITEMS": minimum(cdiv(d.N, t.ROW_THREADS), SCALAR_ITEMS),
                "VECTOR": 0,
                "CLUSTER": 1,
                **constants,
            },
        )

    @op.heuristic
    def _(d: Any, dev: Any) -> list[Any]:
        return preferences(d, dev, inputs, most_items)


def preferences(d: Any, dev: Any, inputs: int, most_items: int) -> list[Any]:
    """Kernels in order: about four vectors per thread (two of each of two inputs), fewer where there are few rows."""
    vectors = cdiv(d.N, LANES)
    widths = (8, 32, 128, 256, 512)
    wanted = cdiv(vectors, 4 if inputs == 1 else 2)
    row_threads = 8 if vectors <= 16 else next((r for r in widths[1:] if wanted <= r), 512)
    while d.M * row_threads < FILLED * dev.sms and vectors > row_threads and row_threads < 512:
        row_threads = widths[widths.index(row_threads) + 1]
    order: list[Any] = []
    if vectors > 256 * (most_items if inputs == 1 else 4):  # no ring: one CTA would have room for one row at a time
        sizes = [c for c in (2, 4, 8) if vectors <= 2 * 512 * c] + [c for c in (2, 4, 8) if vectors <= 4 * 512 * c]
        order += [("cluster", {"THREADS": 512, "CLUSTER": c}) for c in sizes]
    elif d.M * d.N * 2 * inputs >= RING_FROM and vectors >= 128:
        order += [("cuda", {"ROW_THREADS": 256, "STAGES": 3})] if vectors > 256 else []
        order += [("cuda", {"ROW_THREADS": r, "STAGES": 2}) for r in (32, 128) if vectors <= 4 * r]
    order += [("cuda", {"ROW_THREADS": r, "STAGES": 0}) for r in (row_threads, *widths) if r >= row_threads]
    scalar = 32 if d.N <= 256 else 256 if d.N <= 4096 else 512
    return [*order, ("cuda", {"OVERFLOW": 1}), ("cuda_scalar", {"ROW_THREADS": scalar})]


#: Elements of a row that one warp of a Triton program holds.
TRITON_WARP_COLUMNS = 1024


def triton_kernel(op: Op, entry: str, **by_dtype: str) -> None:
    """The Triton kernel of an op: one program per row. ``by_dtype``: constants that hold the dtype of a tensor."""

    @op.kernel(
        triton("fused_quantize_triton.py", entry=entry),
        tactics=({"num_warps": 4}, {"num_warps": 8}, {"num_warps": 16}, {"num_warps": 32}),
        requires=[
            TRITON_TYPES,
            (
                lambda d, t: next_power_of_2(d.N) <= TRITON_WARP_COLUMNS * t.num_warps,
                f"holds a row in one program, {TRITON_WARP_COLUMNS} columns in a warp, 32768 at most",
            ),
        ],
        align=2,
    )
    def _(d: Any, dt: Any) -> Launch:
        constants = {"BLOCK": next_power_of_2(d.N), **{name: dt[tensor] for name, tensor in by_dtype.items()}}
        return Launch(grid=d.M, scalars=(d.M, d.N), constants=constants)
