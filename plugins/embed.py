"""The code that an ahead-of-time plugin puts into an engine: PTX with exactly the parameters that TensorRT passes.

TensorRT passes input pointers, int32 scalars and output pointers. Triton appends pointers to scratch memory to every
kernel; where the code never reads them they are taken out of the parameter list, else the kernel is refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from trtforge.bindings.binary import Binary, Parameter, entry_parameters
from trtforge.bindings.errors import DeclarationError

_PARAMETER_NAME = re.compile(r"\.param\s[^,)]*?([\w$]+)(?:\[\d+\])?\s*(?=,|$)", re.S)


@dataclass(frozen=True)
class Embedded:
    """What goes into the engine. ``static_shared`` bytes per block, for launching it by hand."""

    entry: str
    ptx: str
    parameters: tuple[Parameter, ...]
    static_shared: int


def embed(label: str, binary: Binary) -> Embedded:
    """PTX to embed. Raises DeclarationError when the kernel uses scratch memory."""
    scratch = binary.metadata.get("scratch_parameters", 0)
    ptx = binary.ptx
    for kind in ("global", "profile"):
        size = binary.metadata.get(f"{kind}_scratch_size", 0)
        if size:
            raise DeclarationError(
                f"{label} cannot be embedded: it needs {size} bytes of Triton's {kind} scratch memory, which an engine "
                "does not provide; use it as a JIT plugin, or write it without device-side descriptors"
            )
    if scratch:
        ptx = without_trailing_parameters(label, ptx, binary.entry, scratch)
    parameters = entry_parameters(ptx, binary.entry)
    if parameters != binary.parameters[: len(binary.parameters) - scratch]:
        raise DeclarationError(f"{label}: taking scratch parameters out of the PTX changed the others: {parameters}")
    return Embedded(binary.entry, ptx, parameters, binary.resources.static_shared)


def without_trailing_parameters(label: str, ptx: str, entry: str, count: int) -> str:
    """PTX whose entry has lost its last ``count`` parameters. Raises DeclarationError when the code names one."""
    header = re.search(rf"\.entry\s+{re.escape(entry)}\s*\(([^)]*)\)", ptx)
    if header is None:
        raise DeclarationError(f"{label}: the PTX has no entry {entry!r}")
    pieces = header[1].split(",")
    if len(pieces) < count:
        raise DeclarationError(f"{label}: the entry has {len(pieces)} parameters, {count} of them scratch")
    for piece in pieces[len(pieces) - count :]:
        found = _PARAMETER_NAME.search(piece.strip())
        if found is None:
            raise DeclarationError(f"{label}: the PTX parameter {piece.strip()!r} is not understood")
        if len(re.findall(rf"(?<![\w$]){re.escape(found[1])}(?![\w$])", ptx)) != 1:
            raise DeclarationError(
                f"{label} cannot be embedded: it reads the scratch pointer {found[1]}, which TensorRT does not pass"
            )
    kept = ",".join(pieces[: len(pieces) - count])
    return f"{ptx[: header.start(1)]}{kept}\n{ptx[header.end(1) :]}"
