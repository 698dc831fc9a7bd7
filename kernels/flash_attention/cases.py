"""The problems that check and bench run for flash attention."""

from typing import Any

from trtforge.kernels import Case

TOKENS = 16384  # of a prefill benchmark: B * S
MODEL_WIDTH = 2048  # Hq * D of a prefill benchmark
BF16 = {"q": "bfloat16"}


def _case(
    b: int,
    hq: int,
    hkv: int,
    sq: int,
    sk: int,
    d: int,
    *,
    lengths: bool = False,
    tags: tuple[str, ...] = (),
    dtypes: dict[str, str] | None = None,
    **attributes: Any,
) -> Case:
    dims = {"B": b, "Hq": hq, "Hkv": hkv, "Sq": sq, "Sk": sk, "D": d}
    return Case(dims, attributes, optional=("k_lengths",) if lengths else (), tags=tags, dtypes=dtypes or {})


SMALL = [
    _case(1, 2, 2, 64, 64, 64),
    _case(1, 1, 1, 1, 1, 1),
    _case(2, 4, 2, 33, 65, 32, causal=True),
    _case(1, 4, 1, 1, 77, 64),
    _case(1, 2, 1, 17, 1, 40, causal=True),
    _case(1, 1, 1, 70, 40, 72, causal=True),
    _case(2, 2, 2, 48, 100, 80, causal=True, window=20),
    _case(1, 2, 2, 50, 50, 96, soft_cap=5.0, scale=0.3),
    _case(3, 2, 1, 20, 60, 128, lengths=True, causal=True),
    _case(3, 4, 2, 1, 130, 64, lengths=True, causal=True, window=40, soft_cap=20.0),
    _case(1, 1, 1, 40, 90, 192, causal=True),
    _case(1, 2, 1, 35, 45, 256),
    _case(1, 2, 1, 19, 23, 37, causal=True, window=5),
    _case(1, 2, 2, 30, 80, 64, window=16),
    _case(3, 2, 2, 90, 30, 42, lengths=True),
    _case(3, 2, 1, 9, 33, 8, lengths=True, window=4, soft_cap=2.0),
]

LARGE = [
    _case(2, 4, 2, 515, 1030, 128, causal=True, tags=("gpu",)),
    _case(2, 4, 4, 512, 512, 128, tags=("gpu",)),
    _case(1, 6, 2, 1000, 1000, 64, causal=True, tags=("gpu",)),
    _case(2, 3, 3, 777, 900, 64, tags=("gpu",)),
    _case(1, 4, 1, 300, 777, 256, causal=True, tags=("gpu",)),
    _case(1, 2, 2, 400, 333, 256, tags=("gpu",)),
    _case(1, 2, 1, 333, 700, 192, causal=True, window=128, tags=("gpu",)),
    _case(2, 2, 2, 640, 320, 96, causal=True, tags=("gpu",)),
    _case(2, 4, 2, 1024, 1500, 128, causal=True, window=300, soft_cap=30.0, tags=("gpu",)),
    _case(4, 4, 2, 260, 1500, 128, lengths=True, causal=True, tags=("gpu",)),
    _case(4, 4, 2, 260, 700, 80, lengths=True, tags=("gpu",)),
    _case(3, 4, 4, 200, 600, 256, lengths=True, window=64, soft_cap=10.0, tags=("gpu",)),
    _case(1, 4, 4, 500, 700, 61, causal=True, tags=("gpu",)),
    _case(4, 32, 8, 1, 4096, 128, lengths=True, causal=True, tags=("gpu",)),
    _case(2, 16, 2, 7, 1000, 64, causal=True, tags=("gpu",)),
    _case(1, 2, 2, 200, 300, 128, window=50, tags=("gpu",)),
]


def _prefill(d: int, s: int, causal: bool) -> Case:
    heads = MODEL_WIDTH // d
    return _case(TOKENS // s, heads, heads, s, s, d, causal=causal, tags=("bench",), dtypes=BF16)


def _grouped_prefill(s: int, causal: bool) -> Case:
    return _case(TOKENS // s, 64, 8, s, s, 128, causal=causal, tags=("bench",), dtypes=BF16)


def _decode(b: int, s: int) -> Case:
    return _case(b, 32, 8, 1, s, 128, tags=("bench",), dtypes=BF16)


PREFILL_LENGTHS = {64: (2048, 8192, 16384), 128: (512, 2048, 4096, 8192, 16384), 256: (2048, 8192, 16384)}

BENCH = [
    *(_prefill(d, s, causal) for d, lengths in PREFILL_LENGTHS.items() for causal in (False, True) for s in lengths),
    *(_grouped_prefill(s, causal) for s in (2048, 8192) for causal in (False, True)),
    *(_decode(b, s) for b, s in ((16, 4096), (64, 8192), (8, 32768), (1, 1024), (1, 4096), (4, 1024), (4, 4096))),
]

CASES = [*SMALL, *LARGE, *BENCH]
