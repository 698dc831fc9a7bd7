"""Calibration: the network runs samples on the reference backend, and what its linear layers read is watched."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from trtforge.bindings.errors import GraphError, UsageError
from trtforge.graph_api.backends.reference import ReferenceExecutable
from trtforge.graph_api.network import Network
from trtforge.graph_api.quantization.observers import Observer
from trtforge.graph_api.tensor import Node, Tensor

#: Rows of each watched value that are kept, for searches and for errors of layers.
ROWS_KEPT = 512

Samples = Iterable[Mapping[str, Any]]


class WatchingExecutable(ReferenceExecutable):
    """The reference backend, showing the arrays of some tensors to ``watch[tensor]`` when the node that reads (or, for
    ``outputs``, makes) them has run."""

    def __init__(self, network: Network, watch: Mapping[Tensor, Callable[[np.ndarray], None]]):
        super().__init__(network)
        self._watch = watch

    def _run(self, node: Node, attributes: Any, sizes: Any, values: dict[int, np.ndarray]) -> None:
        super()._run(node, attributes, sizes, values)
        for tensor in node.outputs:
            if tensor in self._watch:
                self._watch[tensor](values[id(tensor)])

    def __call__(self, **inputs: Any) -> dict[str, np.ndarray]:
        result = super().__call__(**inputs)
        for name, tensor in self.network.inputs.items():
            if tensor in self._watch:
                self._watch[tensor](np.asarray(inputs[name]))
        return result


@dataclass
class Statistics:
    """What calibration knows about a value x [..., K].

    ``largest`` and ``mean``: the largest and the mean magnitude of every column, float32 [K]; ``rows``: some rows of x,
    float32 [at most ROWS_KEPT, K]; ``observer`` sees everything.
    """

    observer: Observer
    total: int
    largest: np.ndarray | None = None
    sums: np.ndarray | None = None
    count: int = 0
    kept: list[np.ndarray] = field(default_factory=list)

    def add(self, x: np.ndarray) -> None:
        self.observer.observe(x)
        rows = x.reshape(-1, x.shape[-1]).astype(np.float32)
        rows = rows[np.isfinite(rows).all(axis=1)]
        if not len(rows):
            return
        magnitude = np.abs(rows)
        top, added = magnitude.max(axis=0), magnitude.sum(axis=0, dtype=np.float64)
        self.largest = top if self.largest is None else np.maximum(self.largest, top)
        self.sums = added if self.sums is None else self.sums + added
        self.count += len(rows)
        share = max(1, ROWS_KEPT // max(1, self.total))
        step = max(1, len(rows) // share)
        if sum(map(len, self.kept)) < ROWS_KEPT:
            self.kept.append(rows[::step][:share])

    @property
    def rows(self) -> np.ndarray:
        return np.concatenate(self.kept)

    @property
    def mean(self) -> np.ndarray:
        assert self.sums is not None
        return (self.sums / max(1, self.count)).astype(np.float32)

    def divided(self, by: np.ndarray) -> None:
        """The columns of x were divided by ``by`` [K]."""
        if self.largest is not None and self.sums is not None:
            self.largest, self.sums = self.largest / by, self.sums / by
            self.kept = [rows / by for rows in self.kept]


def samples_of(data: Any) -> list[Mapping[str, Any]]:
    """The samples as a list: one, or a series of, mappings from input names to arrays. Raises UsageError."""
    if isinstance(data, Mapping):
        return [data]
    if not isinstance(data, Iterable) or isinstance(data, (str, bytes, np.ndarray)):
        raise UsageError(
            f"calibration_data is {type(data).__name__}; accepted: a series of mappings from input names to arrays, "
            'such as [{"x": array}, ...]'
        )
    samples = list(data)
    if not samples:
        raise UsageError("calibration_data is empty; give at least one mapping from input names to arrays")
    for i, sample in enumerate(samples):
        if not isinstance(sample, Mapping):
            raise UsageError(
                f"calibration_data[{i}] is {type(sample).__name__}; accepted: a mapping from input names to arrays"
            )
    return samples


def calibrate(
    network: Network,
    tensors: Iterable[Tensor],
    samples: list[Mapping[str, Any]],
    observer: Callable[[], Observer],
    title: str = "calibrating",
) -> dict[Tensor, Statistics]:
    """Run the samples and return what is known about each tensor; a progress bar is shown on a terminal.

    States are cleared before every sample. Raises GraphError that names the sample which does not fit the network's
    inputs, or a tensor that no finite row reached.
    """
    found = {tensor: Statistics(observer(), len(samples)) for tensor in tensors}
    watch = {tensor: statistics.add for tensor, statistics in found.items()}
    run_all(WatchingExecutable(network, watch), samples, title, "calibration_data")
    for tensor, statistics in found.items():
        if not statistics.count:
            raise GraphError(f"calibration reached {tensor} with NaN or infinite rows only; look at the samples")
    return found


def run_all(executable: ReferenceExecutable, samples: Sequence[Mapping[str, Any]], title: str, argument: str) -> None:
    """Run every sample from cleared states, with a progress bar on a terminal."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=len(samples))
        for i, sample in enumerate(samples):
            executable.reset()
            try:
                executable(**sample)
            except GraphError as error:
                raise GraphError(f"{argument}[{i}]: {error}") from error
            bar.advance(task)
