"""What reading memory costs, by way and size: ``python benchmarks/reading.py --json FILE``.

The floor under every kernel that reads weights or a cache once: cold L2, CUDA graphs, medians, random bytes (zeros are
read at a third more, so a benchmark on zeros says nothing). ``reading.cu`` has the kernels. Needs an sm_90 GPU.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import trtforge.kernels
from trtforge.bindings.device import current_device, require_gpu
from trtforge.bindings.launch import Launcher
from trtforge.bindings.nvrtc import compile_cuda
from trtforge.bindings.optional import require
from trtforge.harness.environment import about
from trtforge.harness.measurement import Measurement, Run, write
from trtforge.harness.timing import time_alternating

SIZES = (4 << 20, 16 << 20, 32 << 20, 64 << 20, 256 << 20, 2 << 30)
SOURCE = Path(__file__).with_suffix(".cu")


@dataclass(frozen=True)
class Way:
    """A kernel of ``reading.cu`` and its geometry; ``per_sm``: CTAs to a multiprocessor's worth of the grid."""

    kernel: str
    per_sm: int = 2
    warps: int = 4
    stages: int = 3
    tile_bytes: int = 8192
    row_bytes: int = 256
    padding: int = 0
    cluster: int = 1
    unroll: int = 4

    @property
    def label(self) -> str:
        text = f"{self.per_sm} x {self.warps} warps"
        if self.kernel == "loads":
            text += f", {self.unroll} loads"
        elif self.kernel != "nothing":
            text += f", {self.stages} x {self.tile_bytes >> 10} KiB"
        text += f", rows padded by {self.padding}" if self.padding else ""
        return text + (f", clusters of {self.cluster}" if self.cluster > 1 else "")

    @property
    def shared(self) -> int:
        """Bytes of dynamic shared memory."""
        if self.kernel not in ("copies", "bulk"):
            return 0
        return self.warps * self.stages * self.tile_bytes // self.row_bytes * (self.row_bytes + self.padding)

    @property
    def macros(self) -> dict[str, str]:
        names = ("warps", "stages", "tile_bytes", "row_bytes", "padding", "unroll")
        return {name.upper(): str(getattr(self, name)) for name in names}


WAYS = (
    Way("nothing"),
    Way("nothing", cluster=8),
    Way("loads", per_sm=8, warps=8),
    Way("loads", per_sm=2, warps=16),
    Way("loads", per_sm=1, warps=32),
    Way("copies"),
    Way("copies", per_sm=4),
    Way("copies", per_sm=1, warps=8),
    Way("copies", per_sm=4, warps=2, stages=2),
    Way("copies", stages=2),
    Way("copies", padding=16),
    Way("copies", cluster=4),
    Way("copies", cluster=8),
    Way("bulk"),
    Way("bulk", per_sm=1, warps=1, tile_bytes=32768),
    Way("bulk", cluster=8),
)


def graph_of(way: Way, data: Any, size: int) -> Callable[[], None]:
    """One launch that reads ``size`` bytes, captured in a CUDA graph."""
    cupy = require("cupy", "reading benchmarks")
    gpu = current_device().architecture
    binary = compile_cuda(SOURCE, way.kernel, gpu.name, way.macros, include=[Path(trtforge.kernels.__file__).parent])
    grid = (way.per_sm * gpu.sms // way.cluster * way.cluster, 1, 1)
    cluster = (way.cluster, 1, 1) if way.cluster > 1 else None
    launcher = Launcher(
        binary, grid, (way.warps * 32, 1, 1), way.shared, inputs=1, outputs=1, scalars=(size >> 10,), cluster=cluster
    )
    sink = cupy.zeros(1, cupy.uint32)
    pointers = (data.data.ptr, sink.data.ptr)
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        launcher(pointers, stream.ptr)
        stream.synchronize()
        stream.begin_capture()
        launcher(pointers, stream.ptr)
        graph = stream.end_capture()
    return lambda: graph.launch(cupy.cuda.get_current_stream())


def measure(seconds: float) -> Run:
    """Every way at every size; ``seconds`` of device time each."""
    require_gpu("reading benchmarks")
    cupy = require("cupy", "reading benchmarks")
    data = cupy.random.default_rng(0).integers(-(2**62), 2**62, max(SIZES) // 8, dtype=cupy.int64).view(cupy.uint8)
    run = Run(about=about())
    for size in SIZES:
        calls = {way: graph_of(way, data, size) for way in WAYS}
        timings = time_alternating({way.kernel + ": " + way.label: call for way, call in calls.items()}, seconds)
        row = Measurement("reading", f"{size >> 20} MiB", "uint8", "", False, unit="GB/s", bytes=size)
        for way in WAYS:
            found = timings[way.kernel + ": " + way.label]
            rate = 0.0 if way.kernel == "nothing" else size / found.median / 1e9
            run.rows.append(
                replace(
                    row,
                    contender=way.label,
                    kernel=way.kernel,
                    launch="graph",
                    microseconds=found.median * 1e6,
                    spread=found.spread,
                    repeats=found.repeats,
                    rate=rate,
                )
            )
    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", metavar="FILE", help="write the measurements")
    parser.add_argument("--seconds", type=float, default=0.005, help="device time per way and size")
    given = parser.parse_args()
    run = measure(given.seconds)
    if given.json:
        write(run, given.json)
    width = max(len(f"{w.kernel}: {w.label}") for w in WAYS) + 2
    print("µs / GB/s".ljust(width) + "".join(f"{size >> 20:>11} MiB" for size in SIZES))
    for way in WAYS:
        rows = [r for r in run.rows if (r.kernel, r.contender) == (way.kernel, way.label)]
        print(f"{way.kernel}: {way.label}".ljust(width) + "".join(f"{r.microseconds:8.1f}/{r.rate:6.0f}" for r in rows))


if __name__ == "__main__":
    main()
