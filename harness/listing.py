"""``trtforge list``: what is registered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trtforge.kernels import registry
from trtforge.plugins.eligibility import aot_eligibility


@dataclass(frozen=True)
class Entry:
    """One kernel of the registry. ``static`` names dimensions that an AOT plugin needs fixed at build time."""

    op: str
    kernel: str
    language: str
    architectures: str
    dtypes: str
    tactics: int
    aot: bool
    reason: str
    static: tuple[str, ...]
    source: str


def list_kernels(op: str | None = None, *, loads: Sequence[str] = ()) -> list[Entry]:
    """Every kernel of every op, or of one. Raises UnknownNameError, DeclarationError."""
    registry.load_builtin()
    for target in loads:
        registry.load(target)
    entries = []
    for one in [registry.get(op)] if op else registry.ops():
        free = {n: spec.dtype for n, spec in one.inputs.items() if isinstance(spec.dtype, tuple)}
        for kernel in one.kernels:
            kinds = [f"{n}: {'|'.join(kernel.dtypes.get(n, accepted))}" for n, accepted in free.items()]
            found = aot_eligibility(kernel)
            arch = kernel.arch if isinstance(kernel.arch, str) else ", ".join(kernel.arch)
            entries.append(
                Entry(
                    one.name,
                    kernel.name,
                    kernel.language,
                    arch,
                    "; ".join(kinds) or "fixed",
                    len(kernel.tactics),
                    found.aot,
                    found.reason,
                    found.static,
                    kernel.source.path.name,
                )
            )
    return entries
