"""Chooses the next token from logits, in NumPy float64: a seed means the same on every backend."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from trtforge.bindings.errors import GraphError, UsageError


@dataclass(frozen=True)
class Sampling:
    """How a token is chosen.

    ``temperature`` 0 takes the most probable token (the lowest id of several). Otherwise, in this order: the
    logits are divided by ``temperature``; the ``top_k`` most probable tokens are kept (0 keeps all); of their
    renormalized distribution the smallest set of most probable tokens whose mass reaches ``top_p`` is kept
    (nucleus sampling, Holtzman et al. 2020, arXiv:1904.09751), at least one; one token is drawn from what is
    left, renormalized. Of equal logits the lower id counts as more probable. ``seed`` None takes a new one.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        if not _is_number(self.temperature) or not 0.0 <= self.temperature < math.inf:
            raise UsageError(
                f"temperature is {self.temperature!r}; accepted is a finite number of at least 0 (0: greedy)"
            )
        if not _is_integer(self.top_k) or self.top_k < 0:
            raise UsageError(f"top_k is {self.top_k!r}; accepted is an integer of at least 0 (0: every token)")
        if not _is_number(self.top_p) or not 0.0 < self.top_p <= 1.0:
            raise UsageError(f"top_p is {self.top_p!r}; accepted is a number above 0 and at most 1 (1: every token)")
        if self.seed is not None and (not _is_integer(self.seed) or self.seed < 0):
            raise UsageError(f"seed is {self.seed!r}; accepted is an integer of at least 0, or None for a fresh one")


class Sampler:
    """Draws tokens by one :class:`Sampling`; ``seed`` is the seed in use, also where it was chosen here."""

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling
        fresh = int(np.random.SeedSequence().generate_state(1)[0])
        self.seed = fresh if sampling.seed is None else int(sampling.seed)
        self._generator = np.random.Generator(np.random.PCG64(self.seed))

    def choose(self, logits: np.ndarray) -> int:
        """Return a token id for ``logits`` ``[vocabulary]`` of any floating dtype. NaN logits are refused."""
        scores = np.asarray(logits).astype(np.float64)
        if np.isnan(scores).any() or scores.max() == np.inf:
            raise GraphError(
                "the model's logits hold NaN or infinity; weights of this size can overflow float16: "
                'use dtype="bfloat16" or dtype="float32"'
            )
        if self.sampling.temperature == 0:
            return int(scores.argmax())
        tokens, probabilities = candidates(scores, self.sampling)
        steps = np.cumsum(probabilities)
        index = np.searchsorted(steps, self._generator.random() * steps[-1], side="right")
        return int(tokens[min(int(index), len(tokens) - 1)])


def candidates(logits: np.ndarray, sampling: Sampling) -> tuple[np.ndarray, np.ndarray]:
    """Return the tokens that may be drawn, most probable first, and their probabilities (float64, sum 1)."""
    order = np.argsort(-logits, kind="stable")
    if sampling.top_k:
        order = order[: sampling.top_k]
    scores = (logits[order] - logits[order[0]]) / sampling.temperature
    weights = np.exp(scores)
    probabilities = weights / weights.sum()
    if sampling.top_p < 1.0:
        kept = int(np.searchsorted(np.cumsum(probabilities), sampling.top_p, side="left")) + 1
        order, probabilities = order[:kept], probabilities[:kept] / probabilities[:kept].sum()
    return order, probabilities


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


def _is_integer(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)
