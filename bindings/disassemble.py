"""Reading machine code: the instruction mix of a cubin, through cuobjdump."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections import Counter
from pathlib import Path

from trtforge.bindings.binary import Binary
from trtforge.bindings.errors import CompileError, MissingDependencyError
from trtforge.bindings.triton_compiler import tool

#: Opcodes worth counting, with what they are.
OPCODES = {
    "HGMMA": "wgmma, 16-bit floats",
    "QGMMA": "wgmma, 8-bit floats",
    "IGMMA": "wgmma, integers",
    "UTCHMMA": "tcgen05.mma, 16-bit floats",
    "UTCQMMA": "tcgen05.mma, 8-bit floats",
    "HMMA": "mma.sync, 16-bit floats",
    "QMMA": "mma.sync, 8-bit floats",
    "IMMA": "mma.sync, integers",
    "UTMALDG": "TMA tensor load",
    "UTMASTG": "TMA tensor store",
    "UBLKCP": "TMA bulk copy",
    "LDGSTS": "cp.async",
    "LDSM": "ldmatrix",
    "STSM": "stmatrix",
    "LDG": "global load",
    "STG": "global store",
    "LDS": "shared load",
    "STS": "shared store",
    "LDL": "local load (spill or indexed array)",
    "STL": "local store (spill or indexed array)",
    "SHFL": "warp shuffle",
    "MUFU": "special function",
    "FFMA": "float32 multiply-add",
    "BAR": "block barrier",
    "SYNCS": "mbarrier",
    "WARPGROUP": "warpgroup fence, arrive, wait",
    "USETMAXREG": "setmaxnreg",
}
_INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?(?P<opcode>[A-Z][\w.]*)", re.M)


def _cuobjdump() -> Path:
    try:
        shipped = tool("cuobjdump")
        if shipped.is_file():
            return shipped
    except MissingDependencyError:
        pass  # Triton is not the only place where it may be
    found = shutil.which("cuobjdump")
    if found is None:
        raise MissingDependencyError("reading machine code needs cuobjdump; it ships in the triton package")
    return Path(found)


def sass(binary: Binary) -> str:
    """The disassembly of a cubin."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(binary.cubin)
        command = [str(_cuobjdump()), "--dump-sass", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CompileError(f"cuobjdump cannot read the code of {binary.entry!r}: {done.stderr.strip()}")
    return done.stdout


def instruction_mix(text: str) -> dict[str, int]:
    """How often each opcode of :data:`OPCODES` occurs, and the ``total`` of instructions."""
    counts: Counter[str] = Counter()
    for match in _INSTRUCTION.finditer(text):
        counts[match["opcode"].split(".")[0]] += 1
    mix = {name: counts[name] for name in OPCODES if counts[name]}
    mix["total"] = sum(counts.values()) - counts["NOP"]
    return mix
