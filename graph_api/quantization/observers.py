"""Observers: how large the values of a tensor are taken to be when one scale has to serve all that comes.

An observer sees arrays (:meth:`observe`) and gives the magnitude that the largest code stands for (:meth:`largest`).
NaN and infinities are not counted, as in the quantize ops.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from trtforge.bindings.errors import UsageError
from trtforge.kernels.quantize import reference

BINS = 2048
#: Shares of the largest magnitude that the MSE observer tries.
SHARES = np.linspace(0.2, 1.0, 81, dtype=np.float32)


class Observer(Protocol):
    """Anything that looks at arrays and says which magnitude the largest code should stand for."""

    def observe(self, x: np.ndarray) -> None: ...

    def largest(self, to: str) -> float: ...


@dataclass
class AbsMax:
    """The largest magnitude seen: nothing is clipped."""

    seen: float = 0.0

    def observe(self, x: np.ndarray) -> None:
        self.seen = max(self.seen, float(reference.finite_magnitude(x).max(initial=0.0)))

    def largest(self, to: str) -> float:
        return self.seen


@dataclass
class Histogram:
    """Counts of magnitudes in ``BINS`` equal bins from 0 to ``limit``, which doubles (bins merge in pairs) when a
    larger magnitude comes."""

    limit: float = 0.0
    counts: np.ndarray = field(default_factory=lambda: np.zeros(BINS, np.int64))

    def add(self, x: np.ndarray) -> None:
        magnitude = reference.finite_magnitude(x).ravel()
        top = float(magnitude.max(initial=0.0))
        if self.limit == 0.0:
            self.limit = top
        while top > self.limit > 0.0:
            merged = self.counts.reshape(BINS // 2, 2).sum(axis=1)
            self.counts = np.concatenate([merged, np.zeros(BINS // 2, np.int64)])
            self.limit *= 2
        if self.limit > 0.0:
            self.counts += np.histogram(magnitude, BINS, (0.0, self.limit))[0]

    @property
    def edges(self) -> np.ndarray:
        """The upper end of every bin."""
        return np.arange(1, BINS + 1, dtype=np.float64) * (self.limit / BINS)


@dataclass
class Percentile:
    """The magnitude that ``percent`` of all elements do not exceed; the rest saturate."""

    percent: float = 99.99
    histogram: Histogram = field(default_factory=Histogram)

    def __post_init__(self) -> None:
        if not 0.0 < self.percent <= 100.0:
            raise UsageError(f"Percentile: percent is {self.percent!r}; accepted: more than 0, at most 100")

    def observe(self, x: np.ndarray) -> None:
        self.histogram.add(x)

    def largest(self, to: str) -> float:
        total = np.cumsum(self.histogram.counts)
        at = int(np.searchsorted(total, total[-1] * self.percent / 100.0))
        return float(self.histogram.edges[min(at, BINS - 1)])


@dataclass
class MSE:
    """The magnitude that makes the mean squared error of the codes least, among shares of the largest seen."""

    histogram: Histogram = field(default_factory=Histogram)

    def observe(self, x: np.ndarray) -> None:
        self.histogram.add(x)

    def largest(self, to: str) -> float:
        filled = self.histogram.counts > 0
        if not filled.any():
            return 0.0
        middle = (self.histogram.edges - self.histogram.limit / BINS / 2)[filled].astype(np.float32)
        weight = self.histogram.counts[filled]
        top = float(self.histogram.edges[filled][-1])
        errors = []
        for share in SHARES:
            scale = reference.scale_of(np.array(top * share, np.float32), to)
            back = reference.encode(middle / scale, to).astype(np.float32) * scale
            errors.append(float((weight * np.square(back - middle)).sum()))
        return top * float(SHARES[int(np.argmin(errors))])


OBSERVERS = {"absmax": AbsMax, "percentile": Percentile, "mse": MSE}


def fresh(observer: str | Observer) -> Observer:
    """A new observer of that name, or with the settings of the one given. Raises UsageError."""
    if isinstance(observer, str):
        if observer not in OBSERVERS:
            raise UsageError(f"observer is {observer!r}; accepted: {', '.join(OBSERVERS)}, or an observer object")
        return OBSERVERS[observer]()
    if not (hasattr(observer, "observe") and hasattr(observer, "largest")):
        raise UsageError(
            f"observer is {type(observer).__name__}; accepted: {', '.join(OBSERVERS)}, or an object with observe(x) "
            "and largest(to)"
        )
    return deepcopy(observer)
