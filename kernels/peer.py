"""Peers: what an op is timed against, declared beside its kernels with ``@op.peer(...)``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from trtforge.bindings.optional import available
from trtforge.kernels.contract import Predicate, call_by_name


@dataclass(frozen=True, eq=False)
class Peer:
    """Another implementation of an op, on PyTorch tensors.

    ``fn(*inputs, **attributes)`` has the signature of the op's reference: inputs in declared order (None where absent),
    every attribute by keyword; it returns the outputs in declared order, None for one that it does not compute.
    ``setup``: ``fn`` is called once, untimed, and returns the call to time. ``compile``: what is timed goes through
    torch.compile. ``requires``: (predicate, message) pairs over d, a, dt, has, dev: where the peer cannot serve.
    ``modules``: what must be importable. ``instead``: what the peer computes, where that is less than the op does (a
    product without its activation, say): such a peer is a mark on the scale and is not held against the oracle.
    """

    name: str
    fn: Callable[..., Any]
    compile: bool = False
    setup: bool = False
    requires: tuple[Predicate, ...] = ()
    modules: tuple[str, ...] = ()
    instead: str = ""

    def refusal(self, context: Mapping[str, Any]) -> str | None:
        """Why the peer cannot serve a call, or None when it can; ``context`` holds d, a, dt, has, dev."""
        for module in ("torch", *self.modules):
            if not available(module):
                return f"the Python module {module!r} is not installed"
        for predicate, message in self.requires:
            if not call_by_name(predicate, **context):
                return message
        return None
