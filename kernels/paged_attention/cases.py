"""The problems that check and bench run for attention over a paged cache."""

from dataclasses import replace
from typing import Any

from trtforge.kernels import Case

CONTIGUOUS = 0  # in place of a page size: no block table, one page for each sequence
DECODES = ((16, 4096), (64, 8192), (8, 32768), (1, 1024), (1, 4096), (4, 1024), (4, 4096))


def _case(
    b: int,
    hq: int,
    hkv: int,
    sq: int,
    keys: int,
    d: int,
    page: int,
    *,
    spare: int = 0,
    lengths: bool = True,
    tags: tuple[str, ...] = (),
    dtypes: dict[str, Any] | None = None,
    **attributes: Any,
) -> Case:
    """``keys`` is what a sequence may hold; ``spare`` pages belong to nobody."""
    width = 1 if page == CONTIGUOUS else -(-keys // page)
    dims = {"B": b, "Hq": hq, "Hkv": hkv, "Sq": sq, "D": d}
    if page == CONTIGUOUS:
        dims |= {"pages": b, "page_size": keys}
    else:
        dims |= {"pages": b * width + spare, "page_size": page, "max_pages": width}
    optional = ("k_lengths",) * lengths + ("block_table",) * (page != CONTIGUOUS)
    return Case(dims, attributes, optional=optional, tags=tags, dtypes=dtypes or {})


def small() -> list[Case]:
    return [
        _case(1, 4, 1, 1, 1, 64, CONTIGUOUS, lengths=False),
        _case(1, 4, 1, 1, 48, 64, 16, spare=2),
        _case(3, 8, 2, 1, 200, 128, 64, causal=True),
        _case(3, 8, 1, 2, 250, 128, 128, causal=True, window=90, soft_cap=20.0),
        _case(2, 2, 2, 1, 130, 64, 16, lengths=False),
        _case(3, 12, 1, 1, 77, 40, CONTIGUOUS),
        _case(2, 4, 2, 3, 100, 256, 64, spare=1, causal=True, scale=0.2),
        _case(4, 2, 1, 9, 33, 8, 16, window=4, soft_cap=2.0),
    ]


def large() -> list[Case]:
    return [
        _case(7, 32, 8, 1, 3000, 128, 64, spare=9, causal=True, tags=("gpu",)),
        _case(5, 64, 8, 1, 5000, 128, 16, tags=("gpu",)),
        _case(3, 32, 4, 4, 2000, 128, 128, causal=True, tags=("gpu",)),
        _case(2, 8, 1, 1, 9000, 64, 64, causal=True, window=1000, tags=("gpu",)),
        _case(4, 16, 2, 2, 1500, 256, 128, soft_cap=30.0, tags=("gpu",)),
        _case(3, 6, 2, 1, 1111, 72, CONTIGUOUS, tags=("gpu",)),
    ]


def bench(page_sizes: dict[tuple[int, int], tuple[int, ...]], cache: str = "") -> list[Case]:
    """Decoding in bfloat16 with 32 query and 8 key heads, D 128; pages of 64 where ``page_sizes`` says nothing else."""
    dtypes = {"q": "bfloat16"} | ({"k_cache": cache} if cache else {})
    made = [
        _case(b, 32, 8, 1, s, 128, page, lengths=False, tags=("bench",), dtypes=dtypes)
        for b, s in DECODES
        for page in page_sizes.get((b, s), (64,))
    ]
    return [replace(case, name=f"{case.label} {cache}") for case in made] if cache else made
