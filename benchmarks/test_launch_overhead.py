"""Host time of a cached launch, with pytest-benchmark: ``pytest benchmarks/test_launch_overhead.py``.

The kernel takes less time on the device than its call takes in Python, so what is timed is the call. Each benchmark
checks the output of its last call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from trtforge.bindings import arrays, device
from trtforge.kernels import Case, registry
from trtforge.kernels.eager import plan_for

pytestmark = pytest.mark.gpu

ROUNDS, CALLS = 200, 100
#: The promise of the kit, in seconds per cached launch.
LIMIT = 10e-6
#: What the framework may take for an output of its own, in seconds.
ALLOCATION = 3e-6


def _measure(benchmark: Any, call: Callable[[], Any]) -> float:
    call()
    benchmark.pedantic(call, rounds=ROUNDS, iterations=CALLS, warmup_rounds=5)
    return float(benchmark.stats.stats.median)


def _inputs() -> tuple[Any, Any, Any, Any, np.ndarray]:
    cupy = pytest.importorskip("cupy")
    op = registry.get("rms_norm")
    data = op.sample_inputs(Case({"M": 8, "N": 1024}), {"x": "float16", "weight": "float16"}, seed=0)
    x, weight = cupy.asarray(data["x"]), cupy.asarray(data["weight"])
    return op, x, weight, cupy.empty_like(x), op.run_reference(data)["y"]


def test_planned_launch(benchmark: Any) -> None:
    """A prepared plan on known pointers: what networks and plugins do per node."""
    op, x, weight, y, expected = _inputs()
    plan = plan_for(op, {"x": arrays.view(x), "weight": arrays.view(weight)}, {})
    pointers = [x.data.ptr, weight.data.ptr, y.data.ptr]
    median = _measure(benchmark, lambda: plan.launch(pointers, 0))
    device.synchronize()
    np.testing.assert_allclose(y.get(), expected, rtol=2e-3, atol=2e-3)
    assert median <= LIMIT


@pytest.mark.parametrize("framework", ["cupy", "torch"])
def test_eager_call(benchmark: Any, framework: str) -> None:
    """``op(x, weight, out=y)``: contract lookup, plan cache and launch."""
    op, x, weight, y, expected = _inputs()
    if framework == "torch":
        torch = pytest.importorskip("torch")
        x, weight, y = (torch.from_dlpack(a) for a in (x, weight, y))
    median = _measure(benchmark, lambda: op(x, weight, out=y))
    device.synchronize()
    result = y.cpu().numpy() if framework == "torch" else y.get()
    np.testing.assert_allclose(result, expected, rtol=2e-3, atol=2e-3)
    assert median <= LIMIT


def test_eager_call_that_allocates(benchmark: Any) -> None:
    """``op(x, weight)``: the same with a fresh output from CuPy's pool, which takes 2 to 3 µs of its own."""
    op, x, weight, _, expected = _inputs()
    results: list[Any] = []

    def call() -> None:
        results[:] = [op(x, weight)]

    median = _measure(benchmark, call)
    device.synchronize()
    np.testing.assert_allclose(results[0].get(), expected, rtol=2e-3, atol=2e-3)
    assert median <= LIMIT + ALLOCATION
