"""Attention in one pass over keys and values: the declaration, from which the kit derives everything else."""

import numpy as np

from trtforge.kernels import (
    HALF,
    Attr,
    Case,
    Cost,
    Launch,
    Op,
    Tensor,
    Tolerance,
    cdiv,
    maximum,
    next_power_of_2,
    triton,
)


def sizes(b, h, sq, sk, d):
    return {"B": b, "H": h, "Sq": sq, "Sk": sk, "D": d}


op = Op(
    "NAMESPACE::OPNAME",
    doc="o = softmax(q kᵀ scale) v. causal: query i sees the keys up to Sk - Sq + i; one that sees none gives zeros.",
    inputs={
        "q": Tensor("B", "H", "Sq", "D", dtype=HALF, doc="queries"),
        "k": Tensor("B", "H", "Sk", "D", dtype="q", doc="keys"),
        "v": Tensor("B", "H", "Sk", "D", dtype="q", doc="values"),
    },
    outputs={"o": Tensor("B", "H", "Sq", "D", dtype="q")},
    attributes={
        "causal": Attr(False, doc="hide the keys after the query"),
        "scale": Attr(lambda d: int(d.D) ** -0.5, minimum=0.0, doc="factor of the scores; D ** -0.5 by default"),
    },
    rules=[(lambda d: d.D <= 128, "D must be at most 128: a row of the output is held in registers")],
    tolerance={
        "float16": Tolerance(l2=1e-3, rtol=1e-2, atol=1e-2),
        "bfloat16": Tolerance(l2=6e-3, rtol=5e-2, atol=5e-2),
    },
    cases=[
        Case(sizes(1, 1, 1, 1, 1)),
        Case(sizes(1, 2, 33, 70, 40)),
        Case(sizes(2, 1, 70, 33, 64), {"causal": True, "scale": 0.25}),
        Case(sizes(2, 3, 333, 777, 128), {"causal": True}, tags=("gpu",)),
        Case(sizes(4, 16, 4096, 4096, 128), {"causal": True}, tags=("bench",), dtypes={"q": "bfloat16"}),
    ],
)


# ==== THE FORMULA: edit it here and in OPNAME_triton.py ====
def formula(product, query, key, scale):
    """The score of a query and a key; ``query`` and ``key`` are their positions among the keys."""
    return product * scale


# ===========================================================


@op.reference
def _(q, k, v, *, causal, scale):
    q, k, v = (x.astype(np.float64) for x in (q, k, v))
    queries, keys = q.shape[-2], k.shape[-2]
    query, key = np.arange(queries)[:, None] + keys - queries, np.arange(keys)
    scores = formula(q @ np.swapaxes(k, -1, -2), query, key, scale)
    if causal:
        scores = np.where(key <= query, scores, -np.inf)
    highest = scores.max(axis=-1, keepdims=True)
    p = np.exp(scores - np.where(np.isfinite(highest), highest, 0.0))
    total = p.sum(axis=-1, keepdims=True)
    return p @ v / np.where(total > 0, total, 1.0)


@op.cost
def _(d, a):
    """Two products for every pair of a query and a key that it sees."""
    seen = np.clip(np.arange(d.Sq) + d.Sk - d.Sq + 1, 0, d.Sk).sum() if a.causal else d.Sq * d.Sk
    return Cost(flops=4 * d.B * d.H * int(seen) * d.D)


@op.part
def _(rng, d):
    """One head: what `bench` holds against the reference where the whole would take too long."""
    b, h = rng.integers(d.B), rng.integers(d.H)
    head = np.s_[b : b + 1, h : h + 1]
    return {"q": head, "k": head, "v": head}, {"o": head}


# What `bench` times beside the kernels, on PyTorch tensors. It changes with the formula; one that differs has no time.
@op.peer(
    "PyTorch SDPA",
    requires=[(lambda d, a: d.Sq == d.Sk or not a.causal, "aligns its mask with the first key, so it needs Sq = Sk")],
)
def _(q, k, v, *, causal, scale):
    from torch.nn import functional

    return functional.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale)


@op.kernel(
    triton("OPNAME_triton.py", entry="OPNAME_kernel"),
    tactics=(
        {"BLOCK_M": 128, "BLOCK_N": 64, "num_warps": 8, "num_stages": 2},
        {"BLOCK_M": 64, "BLOCK_N": 32, "num_warps": 4, "num_stages": 2},
    ),
)
def _(d, t):
    return Launch(
        grid=cdiv(d.Sq, t.BLOCK_M) * d.B * d.H,
        scalars=(d.Sq, d.Sk),
        constants={"HEAD_DIM": d.D, "BLOCK_D": maximum(16, next_power_of_2(d.D))},
    )
