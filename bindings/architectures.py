"""GPU architectures: names, and the limits that occupancy follows from.

Source: CUDA C++ Programming Guide, "Technical Specifications per Compute Capability", and the CUDA occupancy
calculator's allocation units.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from trtforge.bindings.errors import UsageError


@dataclass(frozen=True)
class Architecture:
    """A compilation target, and where it is a device, that device's size.

    ``smem_per_sm`` and ``smem_per_block`` in bytes; ``sms`` is the number of multiprocessors of the usual part;
    ``gpu`` is the device's name, "" for a target that is no device at hand.
    """

    name: str
    cc: int
    sms: int
    warps_per_sm: int
    blocks_per_sm: int
    smem_per_sm: int
    smem_per_block: int
    registers_per_sm: int = 65536
    register_unit: int = 256
    smem_unit: int = 1024
    smem_reserved: int = 1024
    gpu: str = ""

    @property
    def arch(self) -> str:
        return self.name

    def occupancy(self, threads: int, registers: int, shared: int) -> tuple[int, str]:
        """Resident blocks per multiprocessor, and what limits them.

        ``registers`` per thread; ``shared`` bytes per block, static and dynamic together.
        """
        warps = -(-threads // 32)
        limits = {"warps": self.warps_per_sm // warps, "blocks": self.blocks_per_sm}
        if registers:
            per_warp = -(-registers * 32 // self.register_unit) * self.register_unit
            limits["registers"] = self.registers_per_sm // per_warp // warps
        per_block = -(-(shared + self.smem_reserved) // self.smem_unit) * self.smem_unit
        limits["shared memory"] = self.smem_per_sm // per_block
        limiter = min(limits, key=lambda name: limits[name])
        return limits[limiter], limiter


_KIB = 1024
_TABLE = {
    a.name: a
    for a in (
        Architecture("sm_80", 80, 108, 64, 32, 164 * _KIB, 163 * _KIB),
        Architecture("sm_86", 86, 84, 48, 16, 100 * _KIB, 99 * _KIB),
        Architecture("sm_87", 87, 16, 48, 16, 164 * _KIB, 163 * _KIB),
        Architecture("sm_89", 89, 142, 48, 24, 100 * _KIB, 99 * _KIB),
        Architecture("sm_90a", 90, 132, 64, 32, 228 * _KIB, 227 * _KIB),
        Architecture("sm_100a", 100, 148, 64, 32, 228 * _KIB, 227 * _KIB),
        Architecture("sm_103a", 103, 148, 64, 32, 228 * _KIB, 227 * _KIB),
        Architecture("sm_120a", 120, 188, 48, 24, 100 * _KIB, 99 * _KIB),
    )
}

#: The targets that ``check`` and ``inspect`` compile for.
INSPECTED = ("sm_80", "sm_89", "sm_90a", "sm_100a", "sm_120a")


def architecture(name: str) -> Architecture:
    """The row of that name (``sm_90`` and ``sm_90a`` are one). Raises UsageError listing the accepted names."""
    for candidate in (name, f"{name}a"):
        if candidate in _TABLE:
            return _TABLE[candidate]
    raise UsageError(f"unknown architecture {name!r}; accepted: {', '.join(_TABLE)}")


def of_device(cc: int, sms: int, smem_per_block: int, gpu: str = "") -> Architecture:
    """The row of a device with that compute capability (90 for 9.0), size and name."""
    rows = [a for a in _TABLE.values() if a.cc == cc]
    if rows:
        return replace(rows[0], sms=sms, smem_per_block=smem_per_block, gpu=gpu)
    older = [a for a in _TABLE.values() if a.cc < cc]
    if not older:
        raise UsageError(f"compute capability {cc // 10}.{cc % 10} is older than 8.0, the oldest that is served")
    return replace(older[-1], name=f"sm_{cc}", cc=cc, sms=sms, smem_per_block=smem_per_block, gpu=gpu)


def serves(declared: str | tuple[str, ...], target: Architecture) -> bool:
    """Whether a kernel declared for ``"sm_80+"`` or ``("sm_90a",)`` can be built for the target."""
    if isinstance(declared, str) and declared.endswith("+"):
        match = re.fullmatch(r"sm_(\d+)a?\+", declared)
        if match is None:
            raise UsageError(f"architecture {declared!r} must read like 'sm_80+' or name targets")
        return target.cc >= int(match[1])
    names = (declared,) if isinstance(declared, str) else declared
    return any(architecture(name).cc == target.cc for name in names)
