"""Tables of a report: what each section shows, as plain data that the page lays out."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from trtforge.bindings.disassemble import OPCODES
from trtforge.harness.inspection import Inspection
from trtforge.harness.report.sources import Checks
from trtforge.kernels.op import Op

_OPTIONS_TOLD = re.compile(r" \(--gpu-architecture[^)]*\)")
_SENTENCE = re.compile(r"(?<!al)\.\s|\n\n")
NONE = "–"


@dataclass(frozen=True)
class Cell:
    """A cell. ``value`` is the number that it sorts by (None: by its text); ``kind`` a class of the style sheet;
    ``bar`` draws a bar behind it, 0 to 1 of its width."""

    text: str
    value: float | None = None
    kind: str = ""
    bar: float | None = None


@dataclass
class Table:
    """A table with its heading; ``name`` identifies it in the page."""

    name: str
    title: str
    columns: Sequence[str]
    rows: list[list[Cell]] = field(default_factory=list)
    note: str = ""
    dense: bool = False

    def numeric(self, column: int) -> bool:
        """Whether a column holds numbers (and gaps) alone, so that it is set flush right."""
        cells = [row[column] for row in self.rows]
        numbers = [c.value is not None for c in cells if c.text != NONE]
        return bool(numbers) and all(numbers)


def text(value: object, kind: str = "") -> Cell:
    shown = str(value)
    return Cell(shown if shown else NONE, kind=kind)


def number(value: float | None, shown: str = "{:,}", kind: str = "") -> Cell:
    """A number, or the sign for none; what is not finite sorts last."""
    if value is None:
        return Cell(NONE)
    if not math.isfinite(value):
        return Cell("NaN" if math.isnan(value) else "∞" if value > 0 else "-∞", sys.float_info.max, kind)
    return Cell(shown.format(value), float(value), kind)


def share(value: float | None, digits: int = 0, kind: str = "", bar: bool = False) -> Cell:
    """A fraction of one as a percentage, with a bar if wanted."""
    if value is None or not math.isfinite(value):
        return number(value, kind=kind)
    drawn = min(max(value, 0.0), 1.0) if bar else None
    return Cell(f"{value * 100:.{digits}f}%", float(value), kind, drawn)


def count(value: int, kind: str) -> Cell:
    """A count that is colored where it is not zero."""
    return Cell(f"{value:,}", float(value), kind if value else "")


def versions(about: dict[str, Any]) -> list[tuple[str, str]]:
    """What was run where and when, in words: names and values."""
    words = {"gpu": "GPU", "no_gpu": "no GPU because", "driver_cuda": "driver's CUDA", "nvrtc": "NVRTC"}
    found = []
    for name, value in about.items():
        if value is None or value == "" or isinstance(value, (dict, list)):
            continue
        found.append((words.get(name, name.replace("_", " ")), str(value)))
    return found


# ---- ops and checks ---------------------------------------------------------------------------------------------


def op_table(ops: Sequence[Op]) -> Table:
    table = Table("ops", "Ops", ("op", "what it computes", "inputs", "outputs", "cases", "kernels"))
    for op in ops:
        table.rows.append(
            [
                text(op.name, "name"),
                text(_SENTENCE.split(op.doc)[0].replace("\n", " ").rstrip(".")),
                text(", ".join(op.inputs), "code"),
                text(", ".join(op.outputs), "code"),
                number(len(op.cases)),
                number(len(op.kernels)),
            ]
        )
    return table


def kernel_table(entries: Iterable[Any]) -> Table:
    columns = ("op", "kernel", "language", "architectures", "dtypes", "tactics", "AOT plugin")
    table = Table("kernels", "Kernels", columns)
    for e in entries:
        static = f" ({', '.join(e.static)} static)" if e.static else ""
        aot = text(f"yes{static}", "good") if e.aot else text(f"no: {e.reason}")
        table.rows.append(
            [
                text(e.op, "name"),
                text(e.kernel, "code"),
                text(e.language),
                text(e.architectures),
                text(e.dtypes),
                number(e.tactics),
                aot,
            ]
        )
    return table


def check_table(checks: Checks, name: str) -> Table:
    columns = ("op", "kernel", "how", "passed", "failed", "skipped", "worst error, of the tolerance")
    table = Table(name, "Kernels against their references", columns)
    for k in checks.kernels:
        worst = k["worst_over_tolerance"]
        table.rows.append(
            [
                text(k["op"], "name"),
                text(k["kernel"], "code"),
                text(k["how"]),
                count(k["passed"], "good"),
                count(k["failed"], "bad"),
                count(k["skipped"], "dim"),
                share(worst, kind="bad" if worst is not None and worst > 1 else "", bar=True),
            ]
        )
    return table


def failure_table(checks: Checks, name: str) -> Table:
    """Failed rows; those that differ in tactic, case or dtype alone are one line."""
    kinds: dict[tuple[str, str, str, str], list[dict[str, Any]]] = {}
    for row in checks.failed:
        reason = _OPTIONS_TOLD.sub("", row["reason"])
        kinds.setdefault((row["op"], row["kernel"], row["how"], reason), []).append(row)
    table = Table(name, "Failures", ("op", "kernel", "how", "rows", "first: tactic, case, dtype", "reason"))
    for (op, kernel, how, reason), rows in kinds.items():
        first = rows[0]
        table.rows.append(
            [
                text(op, "name"),
                text(kernel, "code"),
                text(how),
                number(len(rows), kind="bad"),
                text(f"{first['tactic']}; {first['case']}; {first['dtype']}"),
                text(reason, "pre"),
            ]
        )
    return table


# ---- inspection -------------------------------------------------------------------------------------------------


def resource_table(op: str, found: Sequence[Inspection], name: str) -> Table:
    columns = (
        "kernel",
        "architecture",
        "tactic",
        "registers",
        "spills, B",
        "shared, B",
        "threads",
        "blocks/SM",
        "occupancy",
        "limited by",
        "cubin, B",
    )
    table = Table(name, f"{op}: resources", columns)
    for i in found:
        table.rows.append(
            [
                text(i.kernel, "code"),
                text(i.arch),
                text(i.tactic, "tactic"),
                number(i.registers),
                count(i.spills, "bad"),
                number(i.static_shared + i.dynamic_shared),
                number(i.threads),
                number(i.blocks_per_sm),
                share(i.occupancy, bar=True),
                text(i.limiter),
                number(i.cubin_bytes),
            ]
        )
    cases = ", ".join(dict.fromkeys(f"{i.case} {i.dtype}" for i in found))
    compilers = ", ".join(dict.fromkeys(i.compiler for i in found))
    table.note = (
        f"Compiled by {compilers} for {cases}. Occupancy: resident warps over the most that the architecture holds."
    )
    return table


def mix_table(op: str, found: Sequence[Inspection], name: str) -> Table:
    """How often each instruction worth counting occurs, in the first tactic of each kernel and architecture."""
    first = {(i.kernel, i.arch): i for i in reversed(found)}
    shown = [i for i in found if first[i.kernel, i.arch] is i]
    opcodes = [name for name in OPCODES if any(name in i.instructions for i in shown)]
    table = Table(name, f"{op}: instructions of the first tactic", ("kernel", "architecture", *opcodes, "total"))
    table.dense = True
    for i in shown:
        counts = [number(i.instructions.get(o)) for o in opcodes]
        table.rows.append([text(i.kernel, "code"), text(i.arch), *counts, number(i.instructions["total"])])
    return table


def uninspected_table(missing: Sequence[tuple[str, str, str]]) -> Table:
    table = Table("uninspected", "Not inspected", ("kernel", "architecture", "why"))
    table.rows = [[text(kernel, "name"), text(arch), text(why, "pre")] for kernel, arch, why in missing]
    return table
