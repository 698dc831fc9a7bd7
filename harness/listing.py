"""``trtforge list``: what is registered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trtforge.kernels import registry, tuning
from trtforge.kernels.op import Kernel
from trtforge.plugins.eligibility import aot_eligibility


@dataclass(frozen=True)
class Entry:
    """One kernel of the registry. ``static`` names dimensions that an AOT plugin needs fixed at build time; ``tuned``
    says in which tuning tables the kernel is, and why they may be out of date."""

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
    tuned: str = ""


def list_kernels(op: str | None = None, *, loads: Sequence[str] = ()) -> list[Entry]:
    """Every kernel of every op, or of one. Raises UnknownNameError, DeclarationError."""
    registry.load_builtin()
    for target in loads:
        registry.load(target)
    entries = []
    for one in [registry.get(op)] if op else registry.ops():
        tables = tuning.every(one)
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
                    "; ".join(filter(None, (_tuned(kernel, table) for table in tables))),
                )
            )
    return entries


def _tuned(kernel: Kernel, table: tuning.Table) -> str:
    """What a table says of a kernel: GPU, in how many calls it was measured and in how many it was the fastest."""
    members = [e for e in table.entries if any(timed.kernel == kernel.name for timed in e.choices)]
    if not members:
        return ""
    first = sum(e.choices[0].kernel == kernel.name for e in members)
    reason = tuning.stale(kernel.op, table).get(kernel.name)
    return f"{table.gpu}: fastest in {first} of {len(members)} calls" + (f" (stale: it {reason})" if reason else "")
