"""GPU timing: contenders alternate in one process, the L2 cache is cold, medians are reported."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from trtforge.bindings.device import current_device, require_gpu
from trtforge.bindings.optional import require

#: The buffer that is overwritten before each timed call is this many times the L2 cache.
_FLUSH_FACTOR = 4
_MINIMUM_REPEATS, _MAXIMUM_REPEATS = 15, 200


@dataclass(frozen=True)
class Timing:
    """Times of one contender in seconds; ``spread`` is the interquartile range over the median."""

    median: float
    spread: float
    repeats: int


def time_alternating(contenders: Mapping[str, Callable[[], Any]], seconds: float = 0.3) -> dict[str, Timing]:
    """Time callables that launch on CuPy's current stream; each gets about ``seconds`` of device time."""
    require_gpu("timing kernels")
    cupy = require("cupy", "timing kernels")
    flush = cupy.empty(_FLUSH_FACTOR * max(current_device().l2_bytes, 1 << 25), cupy.uint8)

    def once(call: Callable[[], Any]) -> tuple[Any, Any]:
        flush.fill(0)
        begin, end = cupy.cuda.Event(), cupy.cuda.Event()
        begin.record()
        call()
        end.record()
        return begin, end

    def elapsed(pair: tuple[Any, Any]) -> float:
        pair[1].synchronize()
        return float(cupy.cuda.get_elapsed_time(*pair)) * 1e-3

    longest = 0.0
    for call in contenders.values():
        for _ in range(3):
            call()
        longest = max(longest, elapsed(once(call)))
    repeats = int(np.clip(seconds / max(longest, 1e-6), _MINIMUM_REPEATS, _MAXIMUM_REPEATS))
    pairs: dict[str, list[tuple[Any, Any]]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, call in contenders.items():
            pairs[name].append(once(call))
    timings = {}
    for name, recorded in pairs.items():
        times = np.array([elapsed(pair) for pair in recorded])
        median = float(np.median(times))
        quarter, three_quarters = np.percentile(times, (25, 75))
        timings[name] = Timing(median, float((three_quarters - quarter) / median), repeats)
    return timings
