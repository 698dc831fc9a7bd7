"""GPU timing: contenders alternate in one process, the L2 cache is cold, medians are reported.

One interval, as the stream sees it:

    host    flush  begin  call        end   (next contender: flush  begin ...)
    device  [ reads a buffer larger than L2, ~150 us ][begin][ the call's kernels ][end]

The flush reads and writes nothing, so that the cache is left full of clean lines: what a call evicts costs it no
traffic. It also keeps the device busy while the host enqueues the call, so that the interval holds time of the device
alone, for calls of one kernel and of ten. A call that keeps the host busy for longer than the flush takes shows gaps.

``eager`` calls are made as Python makes them. ``graph`` calls are captured before, one call in one CUDA graph, and
replayed: one launch per interval, whatever the call consists of, after a flush of its own. Several calls in one graph
would share their launch latency, but all but the first would find a warm cache.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import numpy as np

from trtforge.bindings.device import current_device, require_gpu, synchronize
from trtforge.bindings.optional import require

Call = Callable[[], Any]

#: The flush reads this many times the L2 cache, at most this share of the memory.
_FLUSH_FACTOR, _FLUSH_SHARE = 12, 16
_SMALLEST_FLUSH = 1 << 26
_MINIMUM_REPEATS, _MAXIMUM_REPEATS = 12, 120
#: Calls of every contender before the first interval, and how long they go on so that the clocks have risen.
_WARM_UP_CALLS, _WARM_UP_SECONDS = 3, 0.02
#: Calls between two waits for the device (fewer than a launch queue holds), and rounds of them.
_HOST_CALLS, _HOST_ROUNDS = 64, 25
#: Slow calls get fewer rounds: about this many seconds together, and no fewer than a median needs.
_HOST_SECONDS, _FEWEST_ROUNDS = 0.1, 5

_READ = r"""
extern "C" __global__ void trtforge_read(const uint4* data, long long count, unsigned* sink) {
  unsigned seen = 0;
  const long long step = (long long)gridDim.x * blockDim.x;
  #pragma unroll 8
  for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += step) {
    const uint4 v = data[i];
    seen ^= v.x ^ v.y ^ v.z ^ v.w;
  }
  if (seen == 0x9e3779b9u) *sink = seen;  // hardly ever taken, and the reads cannot be removed
}
"""
_THREADS, _BLOCKS_PER_SM = 512, 4


@dataclass(frozen=True)
class Timing:
    """Times of one contender in seconds; ``spread`` is the interquartile range over the median of ``times``."""

    median: float
    spread: float
    repeats: int
    times: tuple[float, ...] = ()


class Clock(Protocol):
    """Measures one call: ``start`` enqueues flush, begin, call, end; ``seconds`` waits for that interval."""

    def start(self, call: Call) -> Any: ...

    def seconds(self, interval: Any) -> float: ...


class DeviceClock:
    """Intervals between CUDA events on CuPy's current stream, each behind a flush of the L2 cache."""

    def __init__(self) -> None:
        require_gpu("timing kernels")
        self._cupy = cupy = require("cupy", "timing kernels")
        gpu = current_device()
        size = max(_FLUSH_FACTOR * gpu.l2_bytes, _SMALLEST_FLUSH)
        size = min(size, gpu.memory // _FLUSH_SHARE) // 16 * 16
        #: Fills the L2 cache with clean lines of a buffer that nothing else uses.
        self.flush = reader(cupy.zeros(size, cupy.uint8))

    def start(self, call: Call) -> Any:
        begin, end = self._cupy.cuda.Event(), self._cupy.cuda.Event()
        self.flush()
        begin.record()
        call()
        end.record()
        return begin, end

    def seconds(self, interval: Any) -> float:
        interval[1].synchronize()
        return float(self._cupy.cuda.get_elapsed_time(*interval)) * 1e-3


def reader(buffer: Any) -> Call:
    """A call that reads a CuPy array of whole 16-byte units, with all multiprocessors, on CuPy's current stream."""
    cupy = require("cupy", "timing kernels")
    kernel = cupy.RawKernel(_READ, "trtforge_read")
    grid = (current_device().architecture.sms * _BLOCKS_PER_SM,)
    arguments = (buffer, np.int64(buffer.nbytes // 16), cupy.zeros(1, cupy.uint32))
    return lambda: kernel(grid, (_THREADS,), arguments)


@cache
def device_clock() -> DeviceClock:
    """The clock of this process's current device."""
    return DeviceClock()


def time_alternating(
    contenders: Mapping[str, Call], seconds: float = 0.1, clock: Clock | None = None
) -> dict[str, Timing]:
    """Time calls that launch on CuPy's current stream; each gets about ``seconds`` of device time, flushes not counted.

    A slow contender is called less often than a fast one, spread over the whole time, and at least 12 times. The order
    turns around in every round, so that nobody always follows the same one. Raises DeviceError without a GPU.
    """
    clock = clock or device_clock()
    if not contenders:
        return {}
    once = _warmed_up(contenders, clock)
    counts = {
        name: int(np.clip(seconds / max(took, 1e-7), _MINIMUM_REPEATS, _MAXIMUM_REPEATS)) for name, took in once.items()
    }
    rounds = max(counts.values())
    intervals: dict[str, list[Any]] = {name: [] for name in contenders}
    for turn in range(rounds):
        order = list(contenders) if turn % 2 == 0 else list(contenders)[::-1]
        for name in order:
            if (turn + 1) * counts[name] // rounds > turn * counts[name] // rounds:
                intervals[name].append(clock.start(contenders[name]))
    return {name: summary([clock.seconds(one) for one in found]) for name, found in intervals.items()}


def _warmed_up(contenders: Mapping[str, Call], clock: Clock) -> dict[str, float]:
    """Call everybody until clocks and caches of the host have settled; the last interval of each in seconds."""
    for call in contenders.values():
        for _ in range(_WARM_UP_CALLS):
            call()
    spent, once = 0.0, {}
    while spent < _WARM_UP_SECONDS:
        for name, call in contenders.items():
            once[name] = clock.seconds(clock.start(call))
            spent += max(once[name], 1e-5)
    return once


def summary(times: Sequence[float]) -> Timing:
    """Median and relative interquartile range of times in seconds."""
    values = np.asarray(times, np.float64)
    median = float(np.median(values))
    low, high = np.percentile(values, (25, 75))
    return Timing(median, float((high - low) / median) if median else 0.0, len(values), tuple(values.tolist()))


def host_seconds(call: Call, wait: Call = synchronize) -> float:
    """How long a call keeps the host busy: the median over rounds, each of which begins with an idle device.

    Meant for calls that take the device less than a millisecond: a full launch queue would make the host wait.
    """
    call()
    times: list[float] = []
    while len(times) < _HOST_ROUNDS and (len(times) < _FEWEST_ROUNDS or sum(times) * _HOST_CALLS < _HOST_SECONDS):
        wait()
        begin = time.perf_counter()
        for _ in range(_HOST_CALLS):
            call()
        times.append((time.perf_counter() - begin) / _HOST_CALLS)
    wait()
    return float(np.median(times))
