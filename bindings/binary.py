"""Machine code with what is known about it without a GPU: entry, parameters, registers, spills, shared memory."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field
from typing import Any

from trtforge.bindings.errors import CompileError


@dataclass(frozen=True)
class Parameter:
    """One kernel parameter as PTX declares it: kind "pointer", "int32", "float" or "bytes" (a struct); size."""

    kind: str
    size: int


@dataclass(frozen=True)
class Resources:
    """What ptxas reports: registers per thread; bytes of spills, stack and static shared memory; warnings."""

    registers: int
    spill_stores: int
    spill_loads: int
    stack: int
    static_shared: int
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Binary:
    """One compiled kernel. ``metadata`` holds what a language adds (Triton: shared, num_warps, scratch sizes)."""

    language: str
    entry: str
    arch: str
    cubin: bytes
    ptx: str
    log: str
    parameters: tuple[Parameter, ...]
    resources: Resources
    key: str
    compiler: str
    metadata: dict[str, Any] = field(default_factory=dict)

    def describe(self) -> dict[str, Any]:
        """Everything but the code, as plain data."""
        data = asdict(self)
        for bulky in ("cubin", "ptx"):
            del data[bulky]
        return data


_ENTRY = re.compile(r"\.entry\s+(?P<name>[\w$]+)\s*\((?P<parameters>[^)]*)\)", re.S)
_PARAMETER = re.compile(
    r"\.param\s+(?:\.align\s+\d+\s+)?\.(?P<type>[a-z]\d+)(?:\s+\.ptr(?:\s+\.\w+)*(?:\s+\.align\s+\d+)?)?\s+"
    r"[\w$]+(?:\[(?P<count>\d+)\])?"
)


def entry_parameters(ptx: str, entry: str) -> tuple[Parameter, ...]:
    """The parameter list of ``.entry`` in PTX text (PTX ISA, "Kernel Function Parameters")."""
    for match in _ENTRY.finditer(ptx):
        if match["name"] != entry:
            continue
        found = []
        for parameter in _PARAMETER.finditer(match["parameters"]):
            size = int(parameter["type"][1:]) // 8
            if parameter["count"]:
                found.append(Parameter("bytes", size * int(parameter["count"])))
            else:
                plain = {8: "pointer", 4: "int32"}.get(size, "bytes")
                kind = "float" if parameter["type"][0] == "f" else plain
                found.append(Parameter(kind, size))
        return tuple(found)
    entries = ", ".join(m["name"] for m in _ENTRY.finditer(ptx)) or "none"
    raise CompileError(
        f'the compiled code has no kernel {entry!r} (it has: {entries}); declare it extern "C" __global__ under '
        "that name, or pass entry= to the source"
    )


#: ptxas says as "info" that it serialized wgmma, which costs more than most warnings.
_WARNING = re.compile(r"\bwarning\b|potential performance loss", re.I)


def report_resources(log: str, entry: str) -> Resources:
    """Read the ptxas ``-v`` report of one entry."""
    block = log
    start = re.search(rf"Compiling entry function '{re.escape(entry)}'", log)
    if start:
        rest = log[start.end() :]
        following = re.search(r"Compiling entry function", rest)
        block = rest[: following.start()] if following else rest

    def number(pattern: str) -> int:
        match = re.search(pattern, block)
        return int(match[1]) if match else 0

    if not re.search(r"Used \d+ registers", block):
        raise CompileError(f"ptxas reported no resources for {entry!r}:\n{log.strip()}")
    return Resources(
        registers=number(r"Used (\d+) registers"),
        spill_stores=number(r"(\d+) bytes spill stores"),
        spill_loads=number(r"(\d+) bytes spill loads"),
        stack=number(r"(\d+) bytes stack frame"),
        static_shared=number(r"(\d+) bytes smem"),
        warnings=tuple(line.strip() for line in log.splitlines() if _WARNING.search(line)),
    )
