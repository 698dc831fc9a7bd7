"""What a program's last words mean: the emulation's own findings and those of the sanitizers, in one plain line."""

from __future__ import annotations

import re
from pathlib import Path

from trtforge.bindings.errors import ForgeError, MissingDependencyError
from trtforge.harness.emulate.toolchain import SOURCES
from trtforge.harness.emulate.translate import NotEmulated

_OWN = re.compile(r"^TRTFORGE-EMULATE ([^:]+): (.*)$", re.M)
_FRAME = re.compile(r"^\s*#\d+ .*? (/[^\s:]+):(\d+)", re.M)
_ACCESS = re.compile(r"^(READ|WRITE) of size (\d+)", re.M)
_ADDRESS = re.compile(r"AddressSanitizer: (\S+)")
_UNDEFINED = re.compile(r"^(\S+?):(\d+):\d+: runtime error: (.*)$", re.M)
_RACE = re.compile(
    r"^ {2}((?:Previous )?(?:atomic )?(?:[Ww]rite|[Rr]ead)) of size (\d+) at \S+ by (.*?):\n((?: {4}#.*\n)*)", re.M
)
_NO_SPACE = re.compile(r"ThreadSanitizer: unexpected memory mapping|failed to (?:reserve|allocate)|CHECK failed", re.I)


class KernelFault(ForgeError):
    """A fault that running a kernel found: out of bounds, a race, a divergent barrier, undefined behavior."""


def _place(stack: str) -> str:
    """The innermost frame that is the kernel's own."""
    for file, line in _FRAME.findall(stack):
        if SOURCES not in Path(file).parents and "/sanitizer" not in file and "libsanitizer" not in file:
            return f"{Path(file).name}:{line}"
    return "an unknown line"


def _address(text: str) -> str:
    kind = _ADDRESS.search(text)
    access = _ACCESS.search(text)
    stack = text[access.end() :] if access else text
    if kind is None or access is None:
        return f"AddressSanitizer: {kind[1] if kind else 'a fault'} at {_place(stack)}"
    verb = "reads" if access[1] == "READ" else "writes"
    where = "outside of every tensor and shared array" if kind[1] == "use-after-poison" else f"({kind[1]})"
    return f"out of bounds: {verb} {access[2]} bytes {where} at {_place(stack)} (AddressSanitizer)"


def _race(text: str) -> str:
    sides = []
    for access, size, who, stack in _RACE.findall(text)[:2]:
        named = re.search(r"'(thread [^']*)'", who)
        sides.append(f"{access.lower()} of {size} bytes at {_place(stack)} by {named[1] if named else who}")
    return f"data race: {', '.join(sides) or 'no stack'} (ThreadSanitizer)"


def fault(status: int, output: str) -> ForgeError:
    """The error of a program that did not end well."""
    own = _OWN.search(output)
    if own is not None and own[1] == "not emulated":
        return NotEmulated(own[2])
    if "WARNING: ThreadSanitizer: data race" in output:
        return KernelFault(_race(output))
    if own is not None:
        return KernelFault(f"{own[1]}: {own[2]}")
    if "AddressSanitizer:" in output:
        return KernelFault(_address(output))
    undefined = _UNDEFINED.search(output)
    if undefined is not None:
        where = f"{Path(undefined[1]).name}:{undefined[2]}"
        return KernelFault(f"undefined behavior: {undefined[3]} at {where} (UndefinedBehaviorSanitizer)")
    if _NO_SPACE.search(output):
        return MissingDependencyError(
            "the sanitizer cannot lay out its memory on this system (too much address randomization: try "
            "'setarch -R', or sysctl vm.mmap_rnd_bits=28)"
        )
    last = " | ".join(output.strip().splitlines()[-3:])
    fate = f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"
    return KernelFault(f"the emulated kernel {fate}{': ' + last if last else ''}")
