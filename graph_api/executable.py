"""What a backend builds: something to call with arrays, with inputs checked before anything runs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from trtforge.bindings.dtypes import DTYPES
from trtforge.bindings.errors import GraphError
from trtforge.graph_api import shapes, weights
from trtforge.kernels.dims import free_symbols

if TYPE_CHECKING:
    from trtforge.graph_api.network import Network


class Executable(ABC):
    """A network made ready to run.

    Call it with one array per input, by name; it returns the outputs by name. ``refit`` replaces weights, ``reset``
    clears the states.
    """

    backend = ""

    def __init__(self, network: Network, needed: Iterable[str] | None = None):
        """``needed``: the parameters whose arrays must be bound; None means all of them."""
        if not network.outputs:
            raise GraphError(f"network {network.name!r} has no output; call net.mark_output(tensor, 'name')")
        required = network.parameters if needed is None else needed
        unbound = [name for name in required if name not in network.weights]
        if unbound:
            shown = ", ".join(unbound[:8]) + (f" and {len(unbound) - 8} more" if len(unbound) > 8 else "")
            raise GraphError(f"network {network.name!r} has parameters without weights: {shown}; call net.bind_weights")
        self.network = network
        self._revision = network.revision
        self.weights: dict[str, np.ndarray] = dict(network.weights)
        #: What the fusion pass did to the network, None without one.
        self.fusion_report = network.fusion_report
        #: What runs each node, by node name; complete after the first call.
        self.placement: dict[str, str] = {}

    @abstractmethod
    def __call__(self, **inputs: Any) -> dict[str, np.ndarray]:
        """Run once. Raises GraphError for inputs that are missing, extra, misshapen or wrongly typed."""

    @abstractmethod
    def reset(self) -> None:
        """Set every state to zero."""

    def refit(self, source: Mapping[str, np.ndarray]) -> None:
        """Replace some weights by name, with the same shapes and dtypes."""
        found = weights.matched(self.network.parameters, self.weights, source, (), self.network.name)
        self.weights.update(found)
        self._refitted(found)

    @abstractmethod
    def _refitted(self, changed: Mapping[str, np.ndarray]) -> None:
        """Take over weights that ``refit`` replaced in ``self.weights``."""

    def bind_inputs(self, inputs: Mapping[str, Any]) -> dict[str, int]:
        """Check the arrays of one call; returns the value of every dynamic dimension.

        Anything with ``shape`` and ``dtype`` is looked at, nothing is read. Every problem is listed in one GraphError.
        """
        network = self.network
        if network.revision != self._revision:
            raise GraphError(f"network {network.name!r} was changed after this executable was built; build it again")
        problems = [
            f"missing input {name!r} {t.dtype}{shapes.text(t.shape)}"
            for name, t in network.inputs.items()
            if name not in inputs
        ]
        problems += [f"no input is called {name!r}" for name in inputs if name not in network.inputs]
        dims: dict[str, int] = {}
        for _ in range(2):  # the second round checks expressions over names bound by a later input
            for name, tensor in network.inputs.items():
                array = inputs.get(name)
                if array is None:
                    continue
                problem = _mismatch(name, tensor, array, dims)
                if problem and problem not in problems:
                    problems.append(problem)
        for name, value in dims.items():
            limits = network.dims[name]
            if not limits.min <= value <= limits.max:
                problems.append(f"the dimension {name} is {value}, outside {limits.min}..{limits.max}")
        unknown = {s for t in network.inputs.values() for d in t.shape for s in free_symbols(d)} - set(dims)
        if unknown and not problems:
            problems.append(f"the dimensions {', '.join(sorted(unknown))} follow from no input")
        if problems:
            accepted = ", ".join(f"{n} {t.dtype}{shapes.text(t.shape)}" for n, t in network.inputs.items())
            raise GraphError(f"network {network.name!r}: {'; '.join(problems)}; inputs: {accepted or 'none'}")
        return dims


def _mismatch(name: str, tensor: Any, array: Any, dims: dict[str, int]) -> str | None:
    if not hasattr(array, "shape") or not hasattr(array, "dtype"):
        return f"input {name!r} is {type(array).__name__}, but must be an array of {tensor.dtype}"
    if array.dtype != DTYPES[tensor.dtype].numpy:
        return f"input {name!r} is {array.dtype}, but must be {tensor.dtype}; use .astype"
    if len(array.shape) != tensor.rank:
        return f"input {name!r} has shape {list(array.shape)}, but must be {shapes.text(tensor.shape)}"
    for axis, (declared, size) in enumerate(zip(tensor.shape, array.shape)):
        if not shapes.unify(declared, int(size), dims):
            known = f" = {dims[str(declared)]}" if str(declared) in dims else ""
            return f"input {name!r} has shape {list(array.shape)}, but axis {axis} must be {declared}{known}"
    return None
