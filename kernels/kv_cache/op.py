"""The KV cache's writes, in place: ops whose outputs are inputs that they update. Rows as they are here; with rotary
embedding and quantization on the way in :mod:`trtforge.kernels.kv_cache.rope`."""

import numpy as np

from trtforge.bindings.dtypes import dtype
from trtforge.kernels import Case, Cost, Launch, Op, Tensor, cdiv, cuda, grid, triton
from trtforge.kernels.kv_cache.rope import rope_kv_cache_update

THREADS = 128
WIDE = 16  # bytes: the widest access
#: What caches are kept in; the kernels move bytes and never look at values.
CACHED = ("float16", "bfloat16", "float32", "float8_e4m3fn", "int8")


def positions(rng, shape, d):
    """Where the new rows of each sequence go, so that all of them fit."""
    return rng.integers(0, d.S - d.T + 1, shape)


kv_cache_update = Op(
    "trtforge::kv_cache_update",
    doc="Rows new[b, h] are written into cache[b, h] from row positions[b] on, in place; rows that would lie outside "
    "of the cache are dropped.",
    inputs={
        "cache": Tensor("B", "H", "S", "D", dtype=CACHED, doc="keys or values of up to S tokens; changed"),
        "new": Tensor("B", "H", "T", "D", dtype="cache", doc="those of T new tokens"),
        "positions": Tensor("B", dtype="int32", sample=positions, doc="row of the first new token, per sequence"),
    },
    outputs={"updated": Tensor(alias="cache")},
    rules=[
        (lambda d: d.T <= d.S, "T must be at most S: more new rows than the cache holds"),
        (lambda d: d.T * d.D < 1 << 28, "T · D must be below 2^28: bytes of a head are counted in 32 bits"),
        (lambda d: d.H <= 65535 and d.B <= 65535, "B and H must be at most 65535, the limit of a grid"),
    ],
    cases=[
        Case({"B": 1, "H": 1, "S": 1, "T": 1, "D": 1}, dtypes={"cache": ("float16", "int8")}),
        Case({"B": 3, "H": 2, "S": 40, "T": 1, "D": 64}),
        Case({"B": 2, "H": 3, "S": 33, "T": 17, "D": 24}),
        Case({"B": 2, "H": 1, "S": 9, "T": 9, "D": 5}),
        Case({"B": 16, "H": 8, "S": 4096, "T": 1, "D": 128}, tags=("gpu",)),
        Case({"B": 2, "H": 8, "S": 2048, "T": 2048, "D": 128}, tags=("gpu",), dtypes={"cache": "bfloat16"}),
    ],
)


@kv_cache_update.reference
def _(cache, new, positions):
    rows, capacity = new.shape[2], cache.shape[2]
    for b, start in enumerate(positions):
        kept = np.flatnonzero((start + np.arange(rows) >= 0) & (start + np.arange(rows) < capacity))
        cache[b, :, start + kept] = new[b, :, kept]
    return cache


@kv_cache_update.cost
def _(d, dt):
    rows = d.B * d.H * d.T * d.D * dtype(dt.new).itemsize
    return Cost(flops=0, bytes=2 * rows + 4 * d.B)


def moved_by(d, dt, access):
    """One block per THREADS accesses of ``access`` bytes within a head."""
    pieces = d.D * dtype(dt.new).itemsize // access
    return Launch(
        grid=(cdiv(d.T * pieces, THREADS), d.H, d.B),
        block=THREADS,
        scalars=(d.T, d.S, pieces),
        constants={"THREADS": THREADS, "ACCESS": access},
    )


@kv_cache_update.kernel(
    cuda("kv_cache_update.cu"),
    requires=[
        (lambda d, dt: d.D * dtype(dt.new).itemsize % WIDE == 0, "moves 16 bytes at a time, and a row is no multiple")
    ],
)
def _(d, dt):
    return moved_by(d, dt, WIDE)


@kv_cache_update.kernel(cuda("kv_cache_update.cu"), name="cuda_bytes", align=1)
def _(d, dt):
    return moved_by(d, dt, 1)


@kv_cache_update.kernel(
    triton("kv_cache_update_triton.py"),
    tactics=grid(BLOCK=(1024,), num_warps=(4,)),
    dtypes={"cache": ("float16", "bfloat16", "float32", "int8")},  # Triton has e4m3 from sm_89 on only
)
def _(d, t):
    return Launch(grid=(cdiv(d.T * d.D, t.BLOCK), d.H, d.B), scalars=(d.T, d.S, d.D))


__all__ = ["kv_cache_update", "rope_kv_cache_update"]
