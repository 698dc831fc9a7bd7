"""Keys and values in pages: what the ops that write such a cache and those that read it have in common."""

from collections.abc import Callable
from typing import Any

from trtforge.kernels import Tensor

#: Codes that a cache is kept in, with scales beside it.
EIGHT_BIT = ("float8_e4m3fn", "int8")

#: A rule of ops with an optional block table.
CONTIGUOUS = (
    lambda d, has: has.block_table or d.pages == d.B,
    "without block_table, page b is sequence b: pages must equal B, or pass a block_table",
)


def capacity(d: Any, has: Any) -> Any:
    """Rows that the pages of one sequence hold."""
    return d.page_size * (d.max_pages if has.block_table else 1)


def block_table(sample: Callable[..., Any]) -> Tensor:
    """The input of that name."""
    return Tensor(
        "B",
        "max_pages",
        dtype="int32",
        optional=True,
        sample=sample,
        doc="pages of each sequence; absent: page b is sequence b",
    )
