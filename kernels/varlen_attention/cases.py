"""The problems that check and bench run for packed sequences, and the lengths of their sequences."""

from typing import Any

import numpy as np

from trtforge.kernels import Case

TOKENS = 16384  # of a benchmark
BF16 = {"q": "bfloat16"}
PADDED = 4096  # with fewer tokens, and three sequences or more, some tokens at the end belong to nobody


def offsets(tokens: int, sequences: int, seed: int = 0) -> np.ndarray:
    """int32 [sequences + 1]: where the sequences begin, and where the last ends. The same for the same arguments.

    Cuts at random places: lengths are spread widely around their mean. The second of three or more is empty.
    """
    rng = np.random.default_rng((tokens, sequences, seed))
    end = tokens - (tokens % 5 if sequences >= 3 and tokens < PADDED else 0)
    cuts = np.sort(rng.integers(0, end + 1, sequences - 1))
    if sequences >= 3:
        cuts[1] = cuts[0]
    return np.concatenate([[0], cuts, [end]]).astype(np.int32)


def q_offsets(d: Any) -> np.ndarray:
    return offsets(d.Tq, d.offsets - 1)


def k_offsets(d: Any) -> np.ndarray:
    """Those of the queries where there are as many tokens (self-attention), others where not."""
    return offsets(d.Tk, d.offsets - 1, 0 if d.Tq == d.Tk else 1)


def _case(
    b: int,
    hq: int,
    hkv: int,
    tq: int,
    tk: int,
    d: int,
    tags: tuple[str, ...] = (),
    dtypes: dict[str, str] | None = None,
    **attributes: Any,
) -> Case:
    dims = {"offsets": b + 1, "Hq": hq, "Hkv": hkv, "Tq": tq, "Tk": tk, "D": d}
    return Case(dims, attributes, tags=tags, dtypes=dtypes or {})


SMALL = [
    _case(1, 2, 2, 64, 64, 64),
    _case(1, 1, 1, 1, 1, 1),
    _case(3, 4, 2, 150, 150, 64, causal=True),
    _case(4, 2, 1, 97, 203, 128),
    _case(5, 3, 1, 131, 131, 72, causal=True),
    _case(3, 2, 2, 90, 170, 256, causal=True),
    _case(40, 2, 1, 111, 222, 64, causal=True),
    _case(3, 2, 1, 100, 160, 37, window=20),
    _case(4, 4, 1, 140, 140, 128, causal=True, window=30, soft_cap=20.0),
    _case(2, 2, 2, 75, 33, 80, causal=True),
    _case(3, 2, 1, 60, 90, 192, soft_cap=5.0, scale=0.2),
]

LARGE = [
    _case(7, 4, 2, 3001, 3001, 128, causal=True, tags=("gpu",)),
    _case(5, 4, 4, 2000, 3500, 64, tags=("gpu",)),
    _case(9, 4, 1, 1777, 1777, 72, causal=True, tags=("gpu",)),
    _case(6, 2, 2, 1500, 2100, 256, causal=True, tags=("gpu",)),
    _case(6, 2, 2, 1500, 1500, 256, tags=("gpu",)),
    _case(8, 6, 2, 2500, 2500, 128, causal=True, window=200, soft_cap=30.0, tags=("gpu",)),
    _case(1100, 2, 1, 4000, 6000, 64, causal=True, tags=("gpu",)),
    _case(4, 4, 2, 1234, 999, 192, window=100, tags=("gpu",)),
    _case(3, 2, 1, 700, 900, 61, causal=True, tags=("gpu",)),
]

BENCH = [
    *(
        _case(sequences, 16, 16, TOKENS, TOKENS, 128, causal=causal, tags=("bench",), dtypes=BF16)
        for sequences in (4, 16, 64)
        for causal in (False, True)
    ),
    *(_case(16, 2048 // d, 2048 // d, TOKENS, TOKENS, d, causal=True, tags=("bench",), dtypes=BF16) for d in (64, 256)),
    _case(16, 64, 8, TOKENS, TOKENS, 128, causal=True, tags=("bench",), dtypes=BF16),
]

CASES = [*SMALL, *LARGE, *BENCH]
