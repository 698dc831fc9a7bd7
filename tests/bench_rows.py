"""Rows, runs and a clock that the tests of benchmarks make up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from trtforge.bindings.architectures import architecture
from trtforge.harness.measurement import Measurement, Run

H200 = architecture("sm_90a")


class FakeClock:
    """Every call says how long it took, by returning seconds."""

    def __init__(self) -> None:
        self.order: list[float] = []

    def start(self, call: Callable[[], Any]) -> float:
        self.order.append(call())
        return self.order[-1]

    def seconds(self, interval: float) -> float:
        return interval


def row(**changes: Any) -> Measurement:
    made = Measurement("a::op", "M4096 N4096", "bfloat16", "ours: cuda [T=1]", True, "cuda", "T=1", "direct")
    made.microseconds, made.spread, made.repeats, made.rate, made.error, made.chosen = (
        100.0,
        0.01,
        50,
        3000.0,
        1e-3,
        True,
    )
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def peer(name: str, microseconds: float | None, **changes: Any) -> Measurement:
    given = {"contender": name, "ours": False, "kernel": None, "tactic": None, "form": "", "chosen": False}
    return row(**{**given, "microseconds": microseconds, **changes})


def a_run() -> Run:
    rows = [row(), peer("cuDNN", 120.0), peer("torch.compile", None, note="absent: not installed", error=None)]
    return Run({"gpu": "NVIDIA H200", "date": "2026-11-23"}, {"copy GB/s": 4275.0}, rows)
