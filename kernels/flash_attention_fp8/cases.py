"""The problems that check and bench run for 8-bit flash attention."""

from typing import Any

from trtforge.kernels import Case
from trtforge.kernels.flash_attention.cases import MODEL_WIDTH, TOKENS


def _case(
    b: int,
    hq: int,
    hkv: int,
    sq: int,
    sk: int,
    d: int,
    *,
    scales: int | None = None,
    tags: tuple[str, ...] = (),
    **attributes: Any,
) -> Case:
    dims = {"B": b, "Hq": hq, "Hkv": hkv, "Sq": sq, "Sk": sk, "D": d, "SB": b if scales is None else scales}
    return Case(dims, attributes, tags=tags)


SMALL = [
    _case(1, 2, 2, 64, 64, 128),
    _case(1, 1, 1, 1, 1, 16),
    _case(2, 4, 2, 70, 201, 128, causal=True),
    _case(2, 4, 1, 33, 150, 64, scales=1, to="float16"),
    _case(1, 2, 1, 90, 40, 96, causal=True),
    _case(3, 2, 1, 40, 77, 112, scales=1, causal=True, window=30, to="float16"),
    _case(1, 1, 1, 35, 139, 256, causal=True),
    _case(1, 2, 2, 65, 133, 48, window=50, scale=0.3),
]

LARGE = [
    _case(2, 4, 2, 515, 1030, 128, causal=True, tags=("gpu",)),
    _case(2, 4, 4, 512, 512, 128, tags=("gpu",)),
    _case(3, 6, 2, 1000, 1000, 128, causal=True, scales=1, to="float16", tags=("gpu",)),
    _case(20, 16, 8, 300, 700, 128, causal=True, tags=("gpu",)),
    _case(2, 3, 3, 777, 900, 64, tags=("gpu",)),
    _case(1, 4, 1, 300, 777, 256, causal=True, tags=("gpu",)),
    _case(1, 2, 1, 333, 700, 192, causal=True, window=128, tags=("gpu",)),
    _case(2, 4, 2, 1024, 1500, 128, window=300, tags=("gpu",)),
    _case(1, 4, 4, 500, 700, 128, causal=True, tags=("gpu",)),
]


def _prefill(d: int, s: int, causal: bool) -> Case:
    heads = MODEL_WIDTH // d
    return _case(TOKENS // s, heads, heads, s, s, d, causal=causal, tags=("bench",))


BENCH = [
    *(_prefill(128, s, causal) for causal in (False, True) for s in (512, 2048, 8192, 16384)),
    *(_prefill(d, 8192, False) for d in (64, 256)),
    *(_case(2, 64, 8, 8192, 8192, 128, causal=causal, tags=("bench",)) for causal in (False, True)),
]

CASES = [*SMALL, *LARGE, *BENCH]
