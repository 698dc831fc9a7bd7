"""NVTX ranges: what the kit was doing, in the timeline of a profiler.

One domain, ``trtforge``, with three categories: ``launch`` (an op's kernel; the payload holds the dimensions and the
tactic), ``phase`` (build, fuse, upload, capture, replay, prefill, decode) and ``node`` (of a network). Whether a
profiler listens is known when NVTX starts, which is asked once: where none does, or the ``nvtx`` package is absent, a
launch is what it was and costs nothing, and the other ranges are one shared object that does nothing. A launch that was
captured in a CUDA graph shows a range when it is captured, and none when the graph is replayed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cache
from typing import Any

import numpy as np

DOMAIN = "trtforge"
PHASES = ("build", "fuse", "upload", "capture", "replay", "prefill", "decode")
_COLORS = {"launch": 0xFF76B900, "phase": 0xFF4C78A8, "node": 0xFFF58518}
Launch = Callable[..., None]
#: Named numbers, ("tokens", 512) for one.
Sizes = tuple[tuple[str, int], ...]


@cache
def _domain() -> Any:
    """The kit's domain, or None when nobody listens."""
    try:
        import nvtx
    except ImportError:
        return None
    domain = nvtx.get_domain(DOMAIN)
    # A domain that no tool asked for comes as a stand-in whose methods do nothing.
    return None if type(domain).__name__ == "DummyDomain" else domain


def listening() -> bool:
    """Whether a profiler takes NVTX ranges in this process."""
    return _domain() is not None


@cache
def _event(category: str, message: str, payload: Sizes) -> Any:
    domain = _domain()
    found = {"message": message, "category": category, "color": _COLORS[category]}
    if not payload:
        return domain.get_event_attributes(**found)
    fields = np.array(tuple(v for _, v in payload), dtype=[(name, np.int64) for name, _ in payload])
    try:
        return domain.get_event_attributes(**found, payload=fields)
    except (TypeError, ValueError):  # releases of nvtx that take single numbers only
        return domain.get_event_attributes(**found)


class _Silence:
    """No range; entering and leaving it takes half as long as ``contextlib.nullcontext``."""

    __slots__ = ()

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        pass


_SILENT = _Silence()


class _Range:
    """A range around a block; entered on one thread, it can be on several at once."""

    __slots__ = ("_domain", "_event")

    def __init__(self, category: str, message: str, payload: Sizes = ()):
        self._domain = _domain()
        self._event = _event(category, message, payload)

    def __enter__(self) -> None:
        self._domain.push_range(self._event)

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._domain.pop_range()


def phase(name: str, payload: Sizes = ()) -> AbstractContextManager[None]:
    """A range around one of :data:`PHASES`, with the sizes that matter to it."""
    return _SILENT if _domain() is None else _Range("phase", name, payload)


def node(name: str, op: str) -> AbstractContextManager[None]:
    """A range around what runs one node of a network."""
    return _SILENT if _domain() is None else _Range("node", f"{name}: {op}")


def around(launch: Launch, label: str, payload: Callable[[], Mapping[str, int]]) -> Launch:
    """``launch`` inside a range, or ``launch`` itself when nobody listens.

    ``label`` names op, kernel and tactic; ``payload`` is called once, when somebody listens.
    """
    if _domain() is None:
        return launch
    inside = _Range("launch", label, tuple(payload().items()))

    def ranged(pointers: Sequence[int], stream: int = 0) -> None:
        with inside:
            launch(pointers, stream)

    return ranged
