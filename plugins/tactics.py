"""Tactics of a plugin: one flat, stable table over (kernel, tactic) of the op, and which of it an engine may use.

The identity of a tactic is its position in the table of *all* kernels, counted from 1 (TensorRT keeps 0 for itself),
whether or not it can be used here; so an engine that names a tactic means the same one wherever it is loaded. A JIT
plugin has one more: the last one chooses a kernel for the shapes of every call, as an eager call does.

A kernel's ``requires`` must hold for every shape of the profile. Where a requirement asks for a dynamic dimension, it
is tried for every size that the profile allows, and the tactic is left out when there are too many to try.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from trtforge.bindings.architectures import Architecture
from trtforge.bindings.errors import DeclarationError, ForgeError
from trtforge.kernels import embedded
from trtforge.kernels.binding import Binding
from trtforge.kernels.contract import Launch, Names, call_by_name
from trtforge.kernels.dims import evaluate, free_symbols, substitute
from trtforge.kernels.op import Choice, Kernel, Op
from trtforge.plugins.eligibility import static_symbols

#: TensorRT's alignment of device tensors, bytes.
ALIGNMENT = 256
#: How the reasons begin that concern what an engine can keep, not the shapes of a call.
NOT_EMBEDDED = "cannot be embedded"
_MOST_TRIED = 1 << 14
_INT32 = 2**31 - 1
_GRID_LIMIT = (_INT32, 65535, 65535)

Ranges = Mapping[str, tuple[int, int, int]]


def table(op: Op) -> tuple[Choice, ...]:
    """Every (kernel, tactic) of an op; the identity of an entry is its index + 1."""
    return tuple(Choice(kernel, i) for kernel in op.kernels for i in range(len(kernel.tactics)))


def choosing(op: Op) -> int:
    """The identity of the JIT tactic that chooses per call."""
    return len(table(op)) + 1


def identity(kernel: Kernel, tactic: int) -> int:
    """The tactic id of a kernel's tactic."""
    before = itertools.takewhile(lambda k: k is not kernel, kernel.op.kernels)
    return sum(len(k.tactics) for k in before) + tactic + 1


def entry(op: Op, tactic_id: int) -> Choice:
    """The kernel and tactic of an identity. Raises DeclarationError for one that the op does not have (any more)."""
    entries = table(op)
    if not 1 <= tactic_id <= len(entries):
        raise DeclarationError(
            f"{op.name} has plugin tactics 1 to {len(entries)}, TensorRT asks for {tactic_id}; the engine was built "
            "with another version of this op: build it again"
        )
    return entries[tactic_id - 1]


def label(op: Op, tactic_id: int) -> str:
    """A tactic for people: kernel and parameters."""
    if tactic_id == choosing(op):
        return "chosen per call"
    chosen = entry(op, tactic_id)
    return f"{chosen.kernel.name} [{chosen.kernel.tactic_label(chosen.tactic)}]"


def refusal(
    choice: Choice, binding: Binding, ranges: Ranges, target: Architecture, aot: bool, alignment: int = ALIGNMENT
) -> str | None:
    """Why an engine cannot use this kernel for every shape of its profile, or None when it can.

    ``ranges`` gives smallest, optimal and largest value of each symbol in the binding.
    """
    kernel, tactic = choice.kernel, choice.tactic
    reason = replace(kernel, requires=()).refusal(binding, tactic, target, alignment)
    if reason:
        return reason
    for predicate, message in kernel.requires:
        reason = _broken_requirement(choice, predicate, message, binding, ranges, target)
        if reason:
            return reason
    return embedding_refusal(choice, binding, ranges, target) if aot else None


def embedding_refusal(choice: Choice, binding: Binding, ranges: Ranges, target: Architecture) -> str | None:
    """Why this kernel's code cannot be embedded for a call with these static and symbolic dimensions, or None."""
    try:
        launch = choice.kernel.launch(binding, choice.tactic, target)
        obstacle = embedded.obstacle(choice.kernel, choice.tactic, launch)
        if obstacle:
            return f"{NOT_EMBEDDED}: {obstacle}"
        launch = embedded.launch_of(launch, target)
        needed = static_symbols(launch)
    except ForgeError as error:
        return f"{NOT_EMBEDDED}: {error}"
    if needed:
        return (
            f"is compiled for fixed values of {', '.join(sorted(needed))}, which the engine's profile leaves open; fix "
            "them, or build a JIT plugin"
        )
    return _beyond_limits(launch, {label: largest for label, (_, _, largest) in ranges.items()})


def _beyond_limits(launch: Launch, largest: Mapping[str, int]) -> str | None:
    """What of a launch for the profile's largest sizes CUDA refuses: nothing else looks at it before it is launched."""
    grid = Launch.triple(launch.grid)
    limits = [*(("grid", value, limit) for value, limit in zip(grid, _GRID_LIMIT))]
    limits += [("a scalar", value, _INT32) for value in launch.scalars]
    for what, value, limit in limits:
        if free_symbols(value) <= set(largest):
            found = evaluate(value, largest)
            if found > limit:
                return f"would launch with {what} of {found} for the profile's largest sizes; the limit is {limit}"
    return None


def _broken_requirement(
    choice: Choice, predicate: Callable[..., Any], message: str, binding: Binding, ranges: Ranges, target: Architecture
) -> str | None:
    tactic = Names("tactic parameter", choice.kernel.tactics[choice.tactic])
    symbols: list[str] = []
    while True:
        grown = False
        spans = [range(ranges[s][0], ranges[s][2] + 1) for s in symbols]
        for sizes in itertools.product(*spans):
            dims = {name: substitute(value, dict(zip(symbols, sizes))) for name, value in binding.dims.items()}
            seen: set[str] = set()
            context = replace(binding, dims=dims).context(t=tactic, dev=target)
            context["d"] = Names("dimension", dims, seen)
            try:
                holds = bool(call_by_name(predicate, **context))
            except DeclarationError:
                holds = False
            open_symbols = set().union(*(free_symbols(dims[name]) for name in seen))
            if open_symbols:
                symbols += sorted(open_symbols)
                grown = True
                break
            if not holds:
                return message
        if not grown:
            return None
        count = 1
        for s in symbols:
            if s not in ranges:
                return f"{message}; {s} is not known yet"
            count *= ranges[s][2] - ranges[s][0] + 1
        if count > _MOST_TRIED:
            return f"{message}; this cannot be shown for all sizes of {', '.join(symbols)} in the profile"


def static_for(choice: Choice, binding: Binding, target: Architecture, aot: bool) -> set[str]:
    """Dimensions that this kernel wants fixed: compile-time constants and whatever a requirement asks for."""
    seen: set[str] = set()
    tactic = Names("tactic parameter", choice.kernel.tactics[choice.tactic])
    for predicate, _ in choice.kernel.requires:
        context = binding.context(t=tactic, dev=target)
        context["d"] = Names("dimension", binding.dims, seen)
        call_by_name(predicate, **context)
    if aot:
        launch = choice.kernel.launch(binding.symbolic(), choice.tactic, target)
        seen |= static_symbols(embedded.launch_of(launch, target))
    return seen
