"""The Triton kernels of flash attention: tiles of queries and keys, where they fit, launches.

Shared by ``flash_attention``, ``flash_attention_lse`` and ``flash_attention_varlen``.
"""

from collections.abc import Callable
from typing import Any

from trtforge.kernels import Launch, Op, cdiv, maximum, next_power_of_2, triton

TACTICS = (
    {"BLOCK_M": 64, "BLOCK_N": 32, "num_warps": 4, "num_stages": 2},
    {"BLOCK_M": 128, "BLOCK_N": 32, "num_warps": 8, "num_stages": 2},
    {"BLOCK_M": 64, "BLOCK_N": 64, "num_warps": 8, "num_stages": 2},
    {"BLOCK_M": 16, "BLOCK_N": 64, "num_warps": 4, "num_stages": 2},
)
_SMALLEST_WIDTH = 16  # of an operand of tl.dot
NEEDS_SHARED = "needs more shared memory for this D than a block of this GPU has"


def width(d: Any) -> Any:
    """D as the tiles have it."""
    return maximum(_SMALLEST_WIDTH, next_power_of_2(d.D))


REQUIRES: list[tuple[Callable[..., Any], str]] = [
    (
        lambda d, t, dev: (t.BLOCK_M + 2 * t.num_stages * t.BLOCK_N) * 2 * width(d) <= dev.smem_per_block,
        NEEDS_SHARED,
    ),
    (lambda d, t: t.BLOCK_M <= 64 or d.D <= 64, "holds 128 rows in registers only up to D = 64"),
]


def widths(d: Any) -> dict[str, Any]:
    """The constants HEAD_DIM and BLOCK_D."""
    return {"HEAD_DIM": d.D, "BLOCK_D": width(d)}


def declare(op: Op, entry: str) -> None:
    """Give a form of ``flash_attention`` its kernel ``triton``."""

    @op.kernel(triton("flash_attention_triton.py", entry=entry), tactics=TACTICS, requires=REQUIRES)
    def _(d: Any, t: Any) -> Launch:
        return Launch(
            grid=cdiv(d.Sq, t.BLOCK_M) * d.B * d.Hq,
            scalars=(d.B * d.Hq, d.Hq, d.Hkv, d.Sq, d.Sk),
            constants=widths(d),
        )
