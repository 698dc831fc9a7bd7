"""Clocks, power and temperature of the GPU, read from nvidia-smi. Nothing here sets anything."""

from __future__ import annotations

import subprocess
from typing import Any

from trtforge.bindings.device import checked, current_ordinal, driver, has_gpu

_TIME_LIMIT = 15.0
#: What is asked, with the name that it is told under.
_FIELDS = {
    "clocks.sm": "sm_mhz",
    "clocks.mem": "memory_mhz",
    "clocks.max.sm": "sm_max_mhz",
    "power.draw": "watts",
    "power.limit": "watts_limit",
    "temperature.gpu": "celsius",
    "driver_version": "driver",
}


def read() -> dict[str, Any]:
    """What nvidia-smi says of the current GPU now, or ``{"absent": why}``. Never raises."""
    command = ["nvidia-smi", f"--query-gpu={','.join(_FIELDS)}", "--format=csv,noheader,nounits", *_which()]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIME_LIMIT, check=False)
    except FileNotFoundError:
        return {"absent": "nvidia-smi is not installed"}
    except (OSError, subprocess.TimeoutExpired) as error:
        return {"absent": f"nvidia-smi cannot be run: {error}"}
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        return {"absent": f"nvidia-smi ended with status {done.returncode}: {said[-1] if said else 'no message'}"}
    return parse(done.stdout)


def parse(text: str) -> dict[str, Any]:
    """One line of nvidia-smi's CSV by our names; numbers where they are numbers, None for "[N/A]"."""
    lines = [line for line in text.splitlines() if line.strip()]
    cells = [cell.strip() for cell in lines[0].split(",")] if lines else []
    if len(cells) != len(_FIELDS):
        return {"absent": f"nvidia-smi answered {text.strip()[:100]!r}"}
    return {name: _value(cell, name) for name, cell in zip(_FIELDS.values(), cells)}


def _value(cell: str, name: str) -> Any:
    if name == "driver":
        return cell
    try:
        return float(cell)
    except ValueError:
        return None


def _which() -> list[str]:
    """The current GPU by its bus address: its number here may differ where some GPUs are hidden."""
    if not has_gpu():
        return []
    cu = driver()
    status, address = cu.cuDeviceGetPCIBusId(32, checked(cu.cuDeviceGet(current_ordinal())))
    return [] if int(status) else ["-i", address.split(b"\0")[0].decode()]
