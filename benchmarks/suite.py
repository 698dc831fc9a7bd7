"""The declarations' benchmark cases as pytest-benchmark tests: one per case and contender.

All contenders of a case are checked and timed in turn, on the GPU, when the first of them is asked for; each test then
hands its intervals to pytest-benchmark, whose clock is set to them. So its statistics, comparisons, histograms and
JSON are of device time, with a cold L2 cache, and a contender that is wrong has no time: its test fails.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from trtforge.harness import ceilings
from trtforge.harness.bench import Planned, measure, plan
from trtforge.harness.contenders import Contender, Selection, Stage, ours, peers
from trtforge.harness.measurement import Measurement
from trtforge.harness.problem import Problem
from trtforge.harness.timing import Timing, device_clock
from trtforge.kernels import registry

SECONDS = 0.05


class RecordedTime:
    """A clock that stands still but for :meth:`pass_`: pytest-benchmark reads durations that were measured before."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def pass_(self, seconds: float) -> None:
        self.now += seconds


TIME = RecordedTime()


@dataclass
class State:
    """What the tests of a session share: the stream, the ceilings, and the rows of the problem measured last."""

    stage: Stage | None = None
    limits: dict[str, float] = field(default_factory=dict)
    problem: str = ""
    rows: dict[str, tuple[Measurement, Timing | None]] = field(default_factory=dict)

    def measured(self, planned: Planned) -> dict[str, tuple[Measurement, Timing | None]]:
        """Rows by the name of kernel or peer, with their intervals."""
        key = f"{planned.name} {dict(planned.dtypes)}"
        if key == self.problem:
            return self.rows
        if self.stage is None:
            self.stage = Stage().__enter__()
            self.limits = ceilings.measure(ceilings.PRODUCTS)
        self.stage.next_problem()
        problem, selection = Problem(planned.op, planned.case, planned.dtypes), Selection()
        contenders: list[Contender] = [*ours(problem, selection), *peers(problem, selection)]
        timings: dict[int, Timing] = {}

        def keep(row: Measurement, timing: Timing) -> None:
            timings[id(row)] = timing

        rows = measure(problem, contenders, self.limits, SECONDS, device_clock(), on_timing=keep)
        self.problem = key
        self.rows = {row.kernel or row.contender: (row, timings.get(id(row))) for row in rows}
        return self.rows


STATE = State()


#: Suite by suite, the folders of kernels/ whose ops it measures.
FAMILIES = {
    "attention": ("flash_attention", "flash_attention_fp8", "paged_attention", "varlen_attention", "kv_cache"),
    "gemm": ("fused_gemm", "scaled_gemm", "block_scaled_gemm", "weight_only_gemm", "grouped_gemm"),
    "normalization": ("rms_norm",),
    "quantization": ("quantize", "fused_quantize"),
}


def cases(suite: str) -> Callable[[Any], Any]:
    """Parametrize a test over the benchmark cases of a suite's families, and over the contenders of each."""
    registry.load_builtin()
    found = []
    for op in registry.ops():
        if op.file.parent.name not in FAMILIES[suite] or not any("bench" in case.tags for case in op.cases):
            continue
        for planned in plan([op]):
            dtype = next(iter(planned.dtypes.values()))
            for who in [k.name for k in op.kernels] + [p.name for p in op.peers]:
                title = f"{op.name.split('::')[1]}-{planned.case.label}-{dtype}-{who}"
                found.append(pytest.param(planned, who, id=title.replace(" ", "_")))
    return pytest.mark.parametrize(("planned", "who"), found)


def run(benchmark: Any, planned: Planned, who: str) -> None:
    """Give pytest-benchmark the intervals of one contender. Skips what is absent, fails what is wrong."""
    row, timing = STATE.measured(planned).get(who, (None, None))
    if row is None:
        pytest.skip(f"{who} does not serve this case here")
    if timing is None:
        if row.note.startswith("absent"):
            pytest.skip(row.note)
        pytest.fail(f"{row.name}: {row.note}")
    benchmark.group = f"{row.op} [{row.case}] {row.dtype}"
    benchmark.extra_info.update(
        {
            "contender": row.contender,
            row.unit: row.rate,
            "roofline": row.roofline,
            "error": row.error,
            "note": row.note,
        }
    )
    times = iter(timing.times)
    benchmark.pedantic(lambda: TIME.pass_(next(times)), rounds=len(timing.times), iterations=1, warmup_rounds=0)
