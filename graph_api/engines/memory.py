"""One stretch of memory for everything that lives during a run, planned ahead."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

ALIGNMENT = 256  # bytes; what TensorRT asks of device memory, and the best that our kernels ask for


@dataclass(frozen=True)
class Block:
    """``size`` bytes that are needed from step ``first`` to step ``last``, both included."""

    name: str
    size: int
    first: int
    last: int

    def meets(self, other: Block) -> bool:
        """Whether both are needed at one step."""
        return self.first <= other.last and other.first <= self.last


@dataclass(frozen=True)
class Arena:
    """Where each block lies: offsets in bytes, multiples of 256; ``size`` of the whole."""

    offsets: Mapping[str, int]
    size: int


def plan_arena(blocks: Iterable[Block]) -> Arena:
    """Give each block the lowest place that is free for as long as it lives, the largest blocks first.

    Greedy by size (Pisarchyk & Lee 2020, arXiv:2001.03288): within a few percent of the lower bound on networks.
    """
    placed: list[tuple[int, int, Block]] = []
    offsets: dict[str, int] = {}
    total = 0
    for block in sorted(blocks, key=lambda b: (-b.size, b.first, b.name)):
        size = -(-max(block.size, 1) // ALIGNMENT) * ALIGNMENT
        at = 0
        for start, end, other in placed:  # sorted by start
            if not block.meets(other):
                continue
            if start - at >= size:
                break
            at = max(at, end)
        offsets[block.name] = at
        placed.append((at, at + size, block))
        placed.sort(key=lambda entry: entry[0])
        total = max(total, at + size)
    return Arena(offsets, total)
