"""Flash attention of e4m3 queries, keys and values with one scale for each head."""

import numpy as np

from trtforge.kernels import (
    HALF,
    Attr,
    Launch,
    Op,
    Tensor,
    TensorMap,
    Tolerance,
    attr,
    cdiv,
    cuda,
    maximum,
    minimum,
    next_power_of_2,
    triton,
)
from trtforge.kernels.flash_attention.op import attention_and_log_sum_exp, attention_cost, flash_attention
from trtforge.kernels.flash_attention.prefill import SM90_ROWS, SM90_SECTION_BYTES, SM90_SLACK
from trtforge.kernels.flash_attention_fp8 import peers
from trtforge.kernels.flash_attention_fp8.cases import CASES

CHUNK = 128  # columns of a tensor-map box, keys of a chunk of transposed values: 128 bytes


def _scale_sample(rng, shape):
    """About 1, so that codes are N(0, 1) and scores N(0, 1) with the default scale."""
    return rng.uniform(0.7, 1.4, shape).astype(np.float32)


def _scale(heads, doc):
    return Tensor("SB", heads, dtype="float32", sample=_scale_sample, doc=doc)


flash_attention_fp8 = Op(
    "trtforge::flash_attention_fp8",
    doc="""Scaled dot-product attention of e4m3 codes: q, k and v stand for q * q_scale, k * k_scale and v * v_scale,
with one scale for each head (SB = 1), or for each head of each sequence (SB = B). Otherwise it is
trtforge::flash_attention.

Both products are made of 8-bit operands (Shah et al. 2024, arXiv:2407.08608, section 3.3): probabilities are taken
relative to the largest of their row so far, multiplied by 2^8 and rounded to e4m3. Each so carries a relative error of
at most 2^-4, below 2^-14 an absolute one of 2^-18. Sums of probabilities are float32. So are those of p v: what the
tensor cores add alone, a block of keys at most or a call with up to 512 keys, shrinks by up to 2^-11 every 32 keys.

Scales are positive: codes * scale = values, as quantize_tensor makes them of one head.""",
    inputs={
        "q": Tensor("B", "Hq", "Sq", "D", dtype="float8_e4m3fn", doc="queries"),
        "k": Tensor("B", "Hkv", "Sk", "D", dtype="q", doc="keys"),
        "v": Tensor("B", "Hkv", "Sk", "D", dtype="q", doc="values"),
        "q_scale": _scale("Hq", "value of one unit of q"),
        "k_scale": _scale("Hkv", "value of one unit of k"),
        "v_scale": _scale("Hkv", "value of one unit of v"),
    },
    outputs={"o": Tensor("B", "Hq", "Sq", "D", dtype=attr("to"), doc="attention output")},
    attributes={
        "to": Attr("bfloat16", choices=HALF[::-1], doc="element type of o"),
        **{name: flash_attention.attributes[name] for name in ("causal", "window", "scale")},
    },
    rules=[
        *flash_attention.rules,
        (lambda d: (d.SB == 1) | (d.SB == d.B), "scales are [B, heads], or [1, heads] for all sequences"),
    ],
    # Rounding probabilities to four bits of significand: 2.5e-2 of the output of random values, whatever their number.
    # Sums of the tensor cores alone shrink by 2^-11 every 32 keys: up to 8e-3 after LONGEST_SUM keys. Single elements
    # are held against the root mean square of all heads, whose scales differ, and of all queries, some of which see
    # few keys.
    tolerance={name: Tolerance(l2=4e-2, atol=2.0, rtol=0.1) for name in HALF},
    cases=CASES,
)


@flash_attention_fp8.reference
def _(q, k, v, q_scale, k_scale, v_scale, *, to, causal, window, scale):
    q, k, v = (x.astype(np.float32) * s[:, :, None, None] for x, s in ((q, q_scale), (k, k_scale), (v, v_scale)))
    return attention_and_log_sum_exp(q, k, v, None, causal, window, 0.0, scale)[0]


flash_attention_fp8.cost(attention_cost)


# ---- sm90 ----


LONGEST_SUM = 512  # keys that the tensor cores' own sums are accurate enough for


def _sm90_tactic(tile_d: int, block_n: int, persistent: int = 0, sum_by_block: int = 0) -> dict[str, int]:
    return {
        "TILE_D": tile_d,
        "CONSUMERS": 2,
        "BLOCK_N": block_n,
        "STAGES": 3,
        "PINGPONG": 1,
        "PERSISTENT": persistent,
        "SUM_BY_BLOCK": sum_by_block,
    }


SM90_TACTICS = (
    _sm90_tactic(128, 96, sum_by_block=1),
    _sm90_tactic(128, 128, persistent=1),
    _sm90_tactic(64, 128, sum_by_block=1),
    _sm90_tactic(256, 64),
)


def sm90_shared_bytes(t):
    """Q, and STAGES tiles of K, of V as it lands and of V transposed."""
    row = cdiv(t.TILE_D, CHUNK) * CHUNK
    q = t.CONSUMERS * SM90_ROWS * row
    transposed = cdiv(t.BLOCK_N, CHUNK) * CHUNK * t.TILE_D
    return q + t.STAGES * (2 * t.BLOCK_N * row + transposed) + SM90_SLACK


@flash_attention_fp8.kernel(
    cuda("flash_attention_fp8_sm90.cu"),
    name="sm90",
    arch=("sm_90a",),
    tactics=SM90_TACTICS,
    requires=[
        (lambda d: d.D % 16 == 0, "needs D to be a multiple of 16: tensor maps have row pitches of 16 bytes"),
        (
            lambda d, t: d.D <= t.TILE_D and (t.TILE_D == 64 or d.D > t.TILE_D // 2),
            "has no tactic for this D with this TILE_D",
        ),
        (
            lambda d, t: t.SUM_BY_BLOCK == 1 or d.Sk <= LONGEST_SUM,
            f"adds up at most {LONGEST_SUM} keys in the tensor cores, whose 8-bit products drop bits of long sums",
        ),
    ],
)
def _(d, t, dev):
    rows = t.CONSUMERS * SM90_ROWS
    heads = d.B * d.Hq
    query_blocks = cdiv(d.Sq, rows)
    tiles = query_blocks * heads
    grid = minimum(tiles, dev.sms) if t.PERSISTENT else tiles
    q_shape, kv_shape = (d.D, d.Sq, heads), (d.D, d.Sk, d.B * d.Hkv)
    section = minimum(maximum(1, SM90_SECTION_BYTES // (2 * d.Sk * d.D)) * (d.Hq // d.Hkv), heads)
    section = minimum(section, cdiv(heads, 2)) if t.PERSISTENT else section
    return Launch(
        grid=grid,
        block=rows * 2 + 128,
        shared=sm90_shared_bytes(t),
        scalars=(heads, d.Hq, d.Hkv, d.Sq, d.Sk, section, query_blocks, tiles, grid, minimum(d.SB - 1, 1)),
        constants={"HEAD_DIM": d.D, "EIGHT_BIT": 1, "WITH_LSE": 0, "HAS_K_LENGTHS": 0, "SOFT_CAP": 0.0},
        tensor_maps=(
            TensorMap("q", shape=q_shape, box=(CHUNK, SM90_ROWS, 1), swizzle=128),
            *(TensorMap(x, shape=kv_shape, box=(CHUNK, t.BLOCK_N, 1), swizzle=128) for x in "kv"),
        ),
    )


# ---- triton ----

TRITON_TACTICS = (
    {"BLOCK_M": 128, "BLOCK_N": 64, "num_warps": 8, "num_stages": 3},
    {"BLOCK_M": 64, "BLOCK_N": 64, "num_warps": 8, "num_stages": 2},
)


@flash_attention_fp8.kernel(
    triton("flash_attention_fp8_triton.py"),
    tactics=TRITON_TACTICS,
    requires=[
        (lambda dev: dev.cc >= 89, "reads e4m3, which Triton has from sm_89 on"),
        (lambda d, t: t.BLOCK_M <= 64 or d.D <= 128, "holds 128 rows in registers only up to D = 128"),
    ],
)
def _(d, t):
    return Launch(
        grid=cdiv(d.Sq, t.BLOCK_M) * d.B * d.Hq,
        scalars=(d.B * d.Hq, d.Hq, d.Hkv, d.Sq, d.Sk, minimum(d.SB - 1, 1)),
        constants={"HEAD_DIM": d.D, "BLOCK_D": maximum(32, next_power_of_2(d.D))},
    )


# ---- which kernel ----


@flash_attention_fp8.heuristic
def _(d, dev):
    """sm90, with sums by block beyond LONGEST_SUM keys; Triton where sm90 does not serve (D > 128 and so many keys)."""
    if dev.cc != 90 or d.D % 16 != 0:
        return ["triton"]
    order = [{"TILE_D": 128, "PERSISTENT": 1}] if d.Sk <= LONGEST_SUM else [{"TILE_D": 128, "SUM_BY_BLOCK": 1}]
    return [*(("sm90", t) for t in order), "sm90", "triton"]


peers.declare(flash_attention_fp8)
