"""The kernels of flash attention for many queries, sm90 (TMA, wgmma) and mma (mma.sync, any GPU since sm_80).

Shared by ``flash_attention`` and ``flash_attention_lse``: tactics, launches, where each can serve, which one.
"""

from collections.abc import Callable
from typing import Any

from trtforge.kernels import Launch, Op, TensorMap, cdiv, cuda, maximum, minimum

SM90_MIN_ROWS = 64  # below, most of a consumer warpgroup's rows would be padding
SM90_ROWS = 64  # queries of one consumer warpgroup
SM90_CHUNK = 64  # columns of a tensor-map box: 128 bytes
SM90_SLACK = 1024 + 192  # aligning the tiles to 1024 bytes, and the barriers
SM90_PERSISTENT_KEYS = 2048  # visible to a query on average; with more, tiles are long enough to be launched one by one
SM90_SECTION_BYTES = 32 << 20  # K and V of the heads that are worked on together; well inside the 50 or 60 MB of L2


def _sm90_tactic(
    tile_d: int, consumers: int, block_n: int, stages: int, pingpong: int, persistent: int, **more: int
) -> dict[str, int]:
    return {
        "TILE_D": tile_d,
        "CONSUMERS": consumers,
        "BLOCK_N": block_n,
        "STAGES": stages,
        "PINGPONG": pingpong,
        "PERSISTENT": persistent,
        **more,
    }


# TILE_D: D rounded up to 64. BLOCK_N and STAGES are what registers and shared memory leave room for.
# PREFETCH_Q, HOST_INVERSES, HANDED_OUT (sm90_config.cuh), INTEGER_MAXIMUM, EXP_FMA, LAZY_RESCALE (online_softmax.cuh):
# 0 where they are not named. What names them is predicted in docs/kernels/flash_attention_prefill.md (section 4), not
# measured yet.
SM90_TACTICS = (
    _sm90_tactic(64, 3, 128, 2, pingpong=1, persistent=0),
    _sm90_tactic(64, 2, 176, 3, pingpong=1, persistent=0),
    _sm90_tactic(128, 2, 128, 2, pingpong=1, persistent=0),
    _sm90_tactic(128, 2, 176, 2, pingpong=1, persistent=0),
    _sm90_tactic(192, 2, 112, 2, pingpong=0, persistent=0),
    _sm90_tactic(192, 2, 96, 2, pingpong=1, persistent=0),
    _sm90_tactic(256, 2, 80, 2, pingpong=0, persistent=0),
    _sm90_tactic(256, 2, 80, 2, pingpong=1, persistent=0),
    _sm90_tactic(64, 3, 128, 3, pingpong=1, persistent=1),
    _sm90_tactic(128, 2, 128, 3, pingpong=1, persistent=1),
    _sm90_tactic(192, 2, 96, 2, pingpong=1, persistent=1),
    _sm90_tactic(256, 2, 80, 2, pingpong=1, persistent=1),
    *(
        _sm90_tactic(tile_d, consumers, 128, 3, pingpong=1, persistent=1, PREFETCH_Q=1, HOST_INVERSES=1, **more)
        for tile_d, consumers, last in ((64, 3, {"EXP_FMA": 2}), (128, 2, {"LAZY_RESCALE": 8}))
        for more in (
            {},
            {"HANDED_OUT": 2},
            {"HANDED_OUT": 2, "INTEGER_MAXIMUM": 1},
            {"HANDED_OUT": 2, "INTEGER_MAXIMUM": 1, **last},
        )
    ),
)

SM90_REQUIRES: list[tuple[Callable[..., Any], str]] = [
    (lambda d: d.D % 8 == 0, "needs D to be a multiple of 8: tensor maps have row pitches of 16 bytes"),
    (lambda d, t: t.TILE_D - 64 < d.D <= t.TILE_D, "has no tactic for this D with this TILE_D"),
    (lambda a, t: t.CONSUMERS == 2 or a.soft_cap == 0.0, "has no registers for a soft cap with three consumers"),
]

MMA_TACTICS = (
    {"WARPS": 4, "M_TILES": 1, "BLOCK_N": 64},
    {"WARPS": 4, "M_TILES": 1, "BLOCK_N": 32},
    {"WARPS": 8, "M_TILES": 1, "BLOCK_N": 64},
    {"WARPS": 4, "M_TILES": 2, "BLOCK_N": 64},
    {"WARPS": 4, "M_TILES": 1, "BLOCK_N": 128},
)
MMA_REQUIRES: list[tuple[Callable[..., Any], str]] = [
    (lambda d, t: t.M_TILES == 1 or d.D <= 64, "holds 32 rows a warp in registers only up to D = 64"),
    (lambda d, t: t.BLOCK_N <= 64 or d.D <= 128, "holds 128 keys of scores in registers only up to D = 128"),
    (
        lambda d, t, dev: mma_shared_bytes(d, t) <= dev.smem_per_block,
        "needs more shared memory for this D than a block of this GPU has",
    ),
]


def _sm90_persistent(d, a, dev):
    """Whether one block per multiprocessor walks over the tiles: it saves the start of every tile but the first.

    Measured on an H200 (docs/kernels/flash_attention_prefill.md): worth it while a query sees up to some 2,048 keys
    on average; beyond, blocks that the hardware hands out one by one balance better.
    """
    visible = d.Sk // 2 if a.causal else d.Sk
    return int(cdiv(d.Sq, 2 * SM90_ROWS) * d.B * d.Hq > dev.sms and visible <= SM90_PERSISTENT_KEYS)


def sm90_forms(d, persistent):
    """Tile shapes, best first (measured as above)."""
    if d.D <= 64:  # the second where a soft cap leaves no registers for three consumers
        return ({"TILE_D": 64, "CONSUMERS": 3, "PERSISTENT": persistent}, {"TILE_D": 64, "CONSUMERS": 2})
    if d.D <= 128:
        return ({"TILE_D": 128, "BLOCK_N": 128, "PERSISTENT": persistent},)
    if d.D <= 192:
        return ({"TILE_D": 192, "PINGPONG": 1, "PERSISTENT": persistent},)
    return ({"TILE_D": 256, "PINGPONG": persistent, "PERSISTENT": persistent},)


def preferences(d, a, dev):
    """sm90 where it serves, then mma."""
    order: list[object] = []
    if dev.cc == 90 and d.Sq >= SM90_MIN_ROWS and d.D % 8 == 0:
        persistent = _sm90_persistent(d, a, dev)
        order += [("sm90", form) for form in sm90_forms(d, persistent)]
        order.append("sm90")
    return order + mma_preferences(d, d.Sq * (d.Hq // d.Hkv))


def mma_preferences(d, rows):
    """Tactics of mma for so many packed rows, best first."""
    order: list[object] = []
    if rows > 64 and d.D <= 64:
        order.append(("mma", {"WARPS": 4, "M_TILES": 2, "BLOCK_N": 64}))
    if rows > 64 and d.D <= 128:
        order.append(("mma", {"WARPS": 8, "M_TILES": 1, "BLOCK_N": 64}))
    return [*order, "mma"]


def sm90_shared_bytes(t):
    """Q, and STAGES tiles of K and of V."""
    return (t.CONSUMERS * SM90_ROWS + 2 * t.STAGES * t.BLOCK_N) * 2 * t.TILE_D + SM90_SLACK


def mma_shared_bytes(d, t):
    """Q, one K and one V tile; rows are D rounded up to 16, and 16 bytes that keep ldmatrix free of bank conflicts."""
    row_bytes = cdiv(d.D, 16) * 32 + 16
    return (t.WARPS * t.M_TILES * 16 + 2 * t.BLOCK_N) * row_bytes


def declare(op: Op, with_lse: bool = False) -> None:
    """Give the op both kernels. ``with_lse``: the op's second output is the log-sum-exp of each query."""
    # With a log-sum-exp the 128 registers of three consumer warpgroups do not hold what the later tactics add.
    tactics = tuple(t for t in SM90_TACTICS if not (with_lse and t["TILE_D"] == 64 and "PREFETCH_Q" in t))

    @op.kernel(
        cuda("flash_attention_sm90.cu"),
        name="sm90",
        arch=("sm_90a",),
        tactics=tactics,
        requires=SM90_REQUIRES,
    )
    def _(d, t, dev):
        rows = t.CONSUMERS * SM90_ROWS
        heads = d.B * d.Hq
        query_blocks = cdiv(d.Sq, rows)
        tiles = walked = query_blocks * heads
        grid = walkers = minimum(tiles, dev.sms) if t.PERSISTENT else tiles
        if t.get("HANDED_OUT"):
            walked = minimum(maximum(tiles // dev.sms + 1 - t.HANDED_OUT, 1) * dev.sms, tiles)
            walkers = minimum(walked, dev.sms)
            grid = walkers + (tiles - walked)
        q_shape, kv_shape = (d.D, d.Sq, heads), (d.D, d.Sk, d.B * d.Hkv)
        q_map = TensorMap("q", shape=q_shape, box=(SM90_CHUNK, SM90_ROWS, 1), swizzle=128)
        k_map, v_map = (TensorMap(x, shape=kv_shape, box=(SM90_CHUNK, t.BLOCK_N, 1), swizzle=128) for x in "kv")
        o_map = TensorMap("o", shape=q_shape, box=(SM90_CHUNK, SM90_ROWS, 1), swizzle=128)
        # Heads of a section of the causal order (tile_order.cuh); persistent blocks need two sections at least.
        section = minimum(maximum(1, SM90_SECTION_BYTES // (4 * d.Sk * d.D)) * (d.Hq // d.Hkv), heads)
        section = minimum(section, cdiv(heads, 2)) if t.PERSISTENT else section
        inverses: tuple[Any, ...] = ()
        if t.get("HOST_INVERSES"):
            last_section = cdiv(heads, section) - 1
            divisors = (query_blocks, section * query_blocks, section, heads - last_section * section)
            inverses = (*((2**31 - 1) // divisor for divisor in divisors), last_section)
        return Launch(
            grid=grid,
            block=(t.CONSUMERS + 1) * 128,
            shared=sm90_shared_bytes(t),
            scalars=(heads, d.Hq, d.Hkv, d.Sq, d.Sk, section, query_blocks, walked, walkers, *inverses),
            constants={"HEAD_DIM": d.D, "WITH_LSE": int(with_lse)},
            tensor_maps=(q_map, k_map, v_map) if t.PERSISTENT else (q_map, k_map, v_map, o_map),
        )

    # cp.async, ldmatrix and mma.sync, for any shape
    @op.kernel(
        cuda("flash_attention_mma.cu"),
        name="mma",
        tactics=MMA_TACTICS,
        requires=MMA_REQUIRES,
    )
    def _(d, t):
        rows = t.WARPS * t.M_TILES * 16
        return Launch(
            grid=cdiv(d.Sq * (d.Hq // d.Hkv), rows) * d.B * d.Hkv,
            block=t.WARPS * 32,
            shared=mma_shared_bytes(d, t),
            scalars=(d.Hq, d.Hkv, d.Sq, d.Sk),
            constants={"HEAD_DIM": d.D, "WITH_LSE": int(with_lse)},
        )
