"""10,000 runs with alternating shapes: the memory of the device and of the process stays as it is after a warm-up."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trtforge.graph_api import Dim, Network
from trtforge.graph_api import functional as F
from trtforge.graph_api.engines import library

pytestmark = pytest.mark.gpu

RUNS, WARM_UP = 10_000, 600
MIB = 1 << 20
#: Growth that is no leak: what allocators round up to.
DEVICE_SLACK, HOST_SLACK = 2 * MIB, 12 * MIB
WIDTH = 64
ABSENT = library.why_absent("tensorrt-rtx")


def tiny(rows: int) -> Network:
    """Something for an engine, a registered kernel between, and a state that is updated in place."""
    length = Dim("S", min=1, opt=8, max=rows)
    with Network("tiny") as net:
        x = net.input("x", "float16", (1, 1, length, WIDTH))
        cache = net.state("cache", "float16", (1, 1, rows, WIDTH))
        kept = F.kv_cache_update(cache, F.exp(x * 0.1), net.input("at", "int32", (1,)))
        y = F.call("trtforge::rms_norm", x + x, net.parameter("w", (WIDTH,), "float16"))
        net.mark_output(y * 2.0, "y")
        net.mark_output(kept[:, :, :1] + 1.0, "first")
    net.bind_weights({"w": np.ones(WIDTH, np.float16)})
    return net


def inputs(rows: int) -> dict[str, np.ndarray]:
    x = np.random.default_rng(rows).standard_normal((1, 1, rows, WIDTH))
    return {"x": x.astype(np.float16), "at": np.zeros(1, np.int32)}


def used() -> tuple[int, int]:
    """Bytes in use on the device, and resident bytes of this process."""
    import cupy

    gc.collect()
    free, total = cupy.cuda.runtime.memGetInfo()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return total - free, pages * 4096


def soak(exe: Any, reference: Callable[..., Any], sizes: list[int]) -> None:
    """Every shape right before and after; memory flat in between."""
    given = {rows: inputs(rows) for rows in sizes}

    def right() -> None:
        for rows in sizes:
            found, expected = exe(**given[rows]), reference(**given[rows])
            for name, wanted in expected.items():
                np.testing.assert_allclose(found[name].astype(np.float32), wanted.astype(np.float32), atol=2e-2)

    def run(count: int) -> tuple[int, int]:
        for i in range(count):
            exe(**given[sizes[i % len(sizes)]])
        return used()

    right()
    device_before, host_before = run(WARM_UP)
    device_after, host_after = run(RUNS)
    right()
    assert device_after - device_before <= DEVICE_SLACK, f"{(device_after - device_before) / MIB:.1f} MiB more"
    assert host_after - host_before <= HOST_SLACK, f"{(host_after - host_before) / MIB:.1f} MiB more"


BACKENDS = ["cuda", pytest.param("tensorrt-rtx", marks=pytest.mark.skipif(bool(ABSENT), reason=ABSENT))]


@pytest.mark.parametrize("backend", BACKENDS)
def test_alternating_shapes(backend: str) -> None:
    net = tiny(64)
    soak(net.build(backend=backend), net.build(), [1, 64, 7, 33, 8])


@pytest.mark.parametrize("backend", BACKENDS)
def test_evicted_graphs_are_freed(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """More shapes than graphs are kept for: each one that goes takes its buffers and contexts along."""
    net = tiny(16)
    exe: Any = net.build(backend=backend)
    monkeypatch.setattr(exe, "graphs_kept", 4)
    gone: list[weakref.ref[Any]] = []

    def sweep() -> tuple[int, int]:
        for rows in range(1, 17):
            for _ in range(3):  # step by step, captured, replayed
                exe(**inputs(rows))
            gone.append(weakref.ref(next(reversed(exe._captured.values()))))
        return used()

    for _ in range(3):
        device_before, host_before = sweep()
    for _ in range(10):
        device_after, host_after = sweep()
    assert len(exe._captured) == 4 and sum(ref() is not None for ref in gone) == 4
    if backend == "tensorrt-rtx":
        assert set(exe._own) == set(exe._captured)
    assert device_after - device_before <= DEVICE_SLACK, f"{(device_after - device_before) / MIB:.1f} MiB more"
    assert host_after - host_before <= HOST_SLACK, f"{(host_after - host_before) / MIB:.1f} MiB more"
