"""The tables that NVIDIA's profilers print, as numbers in base units."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import dataclass

from trtforge.bindings.errors import ProfileError


@dataclass(frozen=True)
class Launch:
    """One profiled launch: the GPU function, and every metric that is a number, in seconds, bytes, hertz, percent."""

    function: str
    metrics: dict[str, float]
    device: str = ""


_PREFIX = {"n": 1e-9, "u": 1e-6, "m": 1e-3, "": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
_UNIT = re.compile(r"([numkKMGT]?)(second|sec|s|byte|hz|Hz|cycle|inst)")
_NUMBER = re.compile(r"\s*(-?[\d,]*\.?\d+(?:[eE][-+]?\d+)?)(?:\s|$)")


def scale_of(unit: str) -> float:
    """What a value in ``unit`` ("Gbyte/s", "usecond", "%") is multiplied by to be in seconds, bytes, hertz, percent."""
    above, _, below = unit.partition("/")
    scale = 1.0
    for part, power in ((above, 1), (below, -1)):
        found = _UNIT.fullmatch(part.strip())
        if found:
            scale *= _PREFIX[found[1]] ** power
    return scale


def _value(text: str, unit: str) -> float | None:
    found = _NUMBER.match(text or "")
    return float(found[1].replace(",", "")) * scale_of(unit) if found else None


def parse_raw(text: str) -> list[Launch]:
    """The launches of ``ncu --import FILE --csv --page raw``, wide or one metric a line. Raises ProfileError."""
    lines = text.splitlines()
    start = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), None)
    if start is None:
        raise ProfileError(
            f'this is no CSV of ncu\'s raw page: it has no line that begins with "ID"; got {text[:200]!r}'
        )
    rows = [row for row in csv.reader(io.StringIO("\n".join(lines[start:]))) if row]
    header = rows[0]
    if "Metric Name" in header:
        return _long(header, rows[1:])
    if len(rows) < 3:
        raise ProfileError("the report holds no kernel: its table of launches is empty")
    units = rows[1]
    launches = []
    for row in rows[2:]:
        given = dict(zip(header, row))
        metrics = {}
        for name, unit, cell in zip(header, units, row):
            value = _value(cell, unit) if "__" in name else None
            if value is not None:
                metrics[name] = value
        launches.append(Launch(given.get("Kernel Name", "?"), metrics, given.get("device__attribute_display_name", "")))
    return launches


def _long(header: list[str], rows: list[list[str]]) -> list[Launch]:
    launches: dict[str, Launch] = {}
    for row in rows:
        given = dict(zip(header, row))
        one = launches.setdefault(given["ID"], Launch(given.get("Kernel Name", "?"), {}))
        value = _value(given["Metric Value"], given.get("Metric Unit", ""))
        if value is not None and "__" in given["Metric Name"]:
            one.metrics[given["Metric Name"]] = value
    if not launches:
        raise ProfileError("the report holds no kernel: its table of launches is empty")
    return list(launches.values())


def parse_nsys(text: str) -> list[dict[str, str]]:
    """The rows of ``nsys stats --report cuda_gpu_kern_sum --format csv``. Raises ProfileError when there are none."""
    lines = text.splitlines()
    start = next((i for i, line in enumerate(lines) if "Total Time (ns)" in line), None)
    rows = [] if start is None else list(csv.DictReader(io.StringIO("\n".join(lines[start:]))))
    rows = [row for row in rows if row.get("Name")]
    if not rows:
        raise ProfileError(f"nsys lists no kernel in this report; it says: {text.strip()[-300:]!r}")
    return rows
