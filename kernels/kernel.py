"""A kernel of an op: where its source is, which calls it can serve, its table of tactics and its launch geometry."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtforge.bindings.architectures import Architecture, serves
from trtforge.bindings.errors import DeclarationError
from trtforge.kernels.binding import Binding
from trtforge.kernels.contract import Launch, Names, Predicate, call_by_name

if TYPE_CHECKING:
    from trtforge.kernels.op import Op


@dataclass(frozen=True)
class Source:
    """Where a kernel's code is: ``language`` "cuda" or "triton", the file, and its entry function."""

    language: str
    path: Path
    entry: str


def declaring_file(depth: int) -> Path:
    """The file of the code ``depth`` calls above the caller."""
    return Path(sys._getframe(depth + 1).f_globals.get("__file__", ""))


def cuda(path: str | Path, entry: str | None = None) -> Source:
    """A CUDA C++ file beside the declaration; ``entry`` is an ``extern "C" __global__`` function (the file's stem)."""
    return Source("cuda", (declaring_file(1).parent / path).resolve(), entry or Path(path).stem)


def triton(path: str | Path, entry: str | None = None) -> Source:
    """A Python file beside the declaration with a ``@triton.jit`` function ``entry`` (the stem without ``_triton``)."""
    source = (declaring_file(1).parent / path).resolve()
    return Source("triton", source, entry or source.stem.removesuffix("_triton"))


@dataclass(frozen=True, eq=False)
class Kernel:
    """One implementation of an op. A tactic is an index into ``tactics``."""

    op: Op
    name: str
    source: Source
    arch: str | tuple[str, ...]
    tactics: tuple[Mapping[str, Any], ...]
    dtypes: Mapping[str, tuple[str, ...]]
    requires: tuple[Predicate, ...]
    align: int
    geometry: Callable[..., Launch]

    def __str__(self) -> str:
        return f"{self.op.name}/{self.name}"

    @property
    def language(self) -> str:
        return self.source.language

    def serves(self, architecture: Architecture) -> bool:
        return serves(self.arch, architecture)

    def tactic_label(self, index: int) -> str:
        return " ".join(f"{k}={v}" for k, v in self.tactics[index].items()) or "-"

    def launch(self, binding: Binding, tactic: int, device: Architecture) -> Launch:
        """The launch geometry for these dimensions: ints, or expressions where the dimensions are symbolic."""
        launch = call_by_name(self.geometry, **self._context(binding, tactic, device))
        if not isinstance(launch, Launch):
            raise DeclarationError(f"{self}: the launch function returned {launch!r}; it must return Launch(...)")
        return launch

    def refusal(self, binding: Binding, tactic: int, device: Architecture, alignment: int = 1 << 30) -> str | None:
        """Why this kernel cannot serve the call, or None when it can. ``alignment`` of the base pointers, bytes."""
        if not self.serves(device):
            accepted = self.arch if isinstance(self.arch, str) else ", ".join(self.arch)
            return f"is built for {accepted}, not for {device.name}"
        for name, accepted_dtypes in self.dtypes.items():
            found = binding.dtypes.get(name)
            if found is not None and found not in accepted_dtypes:
                return f"takes {name} as {' or '.join(accepted_dtypes)}, not {found}"
        if alignment % self.align:
            return f"needs base pointers aligned to {self.align} bytes"
        context = self._context(binding, tactic, device)
        for predicate, message in self.requires:
            if not call_by_name(predicate, **context):
                return message
        return None

    def _context(self, binding: Binding, tactic: int, device: Architecture) -> dict[str, Any]:
        return binding.context(t=Names("tactic parameter", self.tactics[tactic]), dev=device)
