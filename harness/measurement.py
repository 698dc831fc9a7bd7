"""What a benchmark run found: one :class:`Measurement` per contender, and the :class:`Run` they belong to, in JSON.

The file format is ``trtforge.bench/1``: ``{"format": ..., "about": {...}, "ceilings": {...}, "rows": [...]}``, one
object per row with the fields of :class:`Measurement`. Readers ignore keys that they do not know.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from trtforge.bindings.errors import FileError, UsageError
from trtforge.bindings.files import replace_file

FORMAT = "trtforge.bench/1"
#: Ceilings are named by what they bound: "copy GB/s" (read and written), "read GB/s", "bfloat16 TFLOP/s".
COPY, READ = "copy GB/s", "read GB/s"


@dataclass
class Measurement:
    """One contender on one case.

    ``microseconds``: the median; None when there is no time, and ``note`` says why ("absent: ...", "wrong: ...").
    ``spread``: interquartile range over the median. ``rate`` in ``unit``: TFLOP/s where the op is bound by arithmetic,
    else GB/s, by the declaration's cost. ``roofline``: the least time that the ceilings of the same run allow, over the
    median. ``error``: relative L2 error against the oracle. ``host``: microseconds that one call keeps the host busy
    (eager launches only). ``kernel`` and ``tactic`` are None for peers, ``form`` is "" for them. ``chosen``: this is
    what a plain call of the op runs. ``flops`` and ``bytes``: the declaration's cost of the case.
    """

    op: str
    case: str
    dtype: str
    contender: str
    ours: bool = False
    kernel: str | None = None
    tactic: str | None = None
    form: str = ""
    launch: str = "graph"
    microseconds: float | None = None
    spread: float | None = None
    repeats: int = 0
    rate: float | None = None
    unit: str = "GB/s"
    roofline: float | None = None
    error: float | None = None
    note: str = ""
    host: float | None = None
    chosen: bool = False
    flops: int | None = None
    bytes: int | None = None

    @property
    def problem(self) -> tuple[str, str, str, str]:
        """What contenders must share to be compared: op, case, dtype, way of launching."""
        return self.op, self.case, self.dtype, self.launch

    @property
    def name(self) -> str:
        """The row in words, for messages."""
        return f"{self.op} [{self.case}] {self.dtype} {self.launch}: {self.contender}"


@dataclass
class Run:
    """A benchmark run: ``about`` the machine and versions, ``ceilings`` measured in the same process, and its rows."""

    about: dict[str, Any] = field(default_factory=dict)
    ceilings: dict[str, float] = field(default_factory=dict)
    rows: list[Measurement] = field(default_factory=list)

    def problems(self) -> dict[tuple[str, str, str, str], list[Measurement]]:
        """The rows gathered by op, case, dtype and way of launching, in order."""
        found: dict[tuple[str, str, str, str], list[Measurement]] = {}
        for row in self.rows:
            found.setdefault(row.problem, []).append(row)
        return found

    def to_json(self) -> dict[str, Any]:
        """Plain data in the file format; numbers that are not finite become null."""
        rows = [asdict(row) for row in self.rows]
        plain: dict[str, Any] = _finite(
            {"format": FORMAT, "about": self.about, "ceilings": self.ceilings, "rows": rows}
        )
        return plain


def chosen_of(rows: Iterable[Measurement]) -> Measurement | None:
    """The row of the kernel that a plain call runs, where it has a time; else our fastest direct launch; else None."""
    timed = [row for row in rows if row.ours and row.microseconds]
    direct = [row for row in timed if row.form == "direct"] or timed
    return next((row for row in direct if row.chosen), min(direct, key=_time, default=None))


def _time(row: Measurement) -> float:
    return row.microseconds or math.inf


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def write(run: Run, path: str | Path) -> None:
    """Write a run; the file is replaced whole or left as it was. Raises FileError."""
    replace_file(path, json.dumps(run.to_json(), indent=1, default=str) + "\n")


def read(path: str | Path) -> Run:
    """Read a run. Raises FileError when the file cannot be read, is no JSON, or is of another format."""
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise FileError(f"cannot read the benchmark run {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise FileError(f"{path} is no benchmark run: it is not JSON ({error})") from error
    found = data.get("format") if isinstance(data, dict) else None
    if found != FORMAT:
        raise FileError(
            f"{path} is no benchmark run that this kit reads: its format is {found!r}, accepted is {FORMAT!r}; "
            "make one with 'trtforge bench --json FILE'"
        )
    try:
        return _parse(data)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FileError(f"{path} is a damaged benchmark run: {type(error).__name__}: {error}") from error


def merge(pieces: Mapping[str, Run]) -> Run:
    """Runs of one GPU put together, by their names. Every case comes whole from one run, the last that measured it.

    Contenders that did not alternate are no peers of each other, so cases are never mixed. ``about["runs"]`` keeps what
    each piece says about itself, with its ceilings and the cases taken from it; beside it stands what all pieces agree
    on. A ceiling is the highest of the pieces that were used; each row's ``roofline`` stays that of its own run. Raises
    UsageError for runs of different GPUs, or none.
    """
    gpus = {str(run.about.get("gpu")) for run in pieces.values()}
    if len(gpus) != 1:
        raise UsageError(f"runs of one GPU are put together; these are of {', '.join(sorted(gpus)) or 'none'}")
    rows: dict[tuple[str, str, str, str], tuple[str, list[Measurement]]] = {}
    for name, run in pieces.items():
        rows.update((problem, (name, members)) for problem, members in run.problems().items())
    used = {name: [p for p, (source, _) in rows.items() if source == name] for name in pieces}
    first, *others = (run.about for run in pieces.values())
    made = Run({k: v for k, v in first.items() if all(k in o and o[k] == v for o in others)})
    made.about.pop("stopped", None)
    made.about["date"] = max(str(run.about.get("date", "")) for run in pieces.values())
    made.about["remark"] = f"{len(pieces)} runs put together, each case from one run"
    made.about["runs"] = [
        {"file": name, "about": run.about, "ceilings": run.ceilings, "cases": [" ".join(p) for p in used[name]]}
        for name, run in pieces.items()
    ]
    for name, run in pieces.items():
        if used[name]:
            for ceiling, value in run.ceilings.items():
                made.ceilings[ceiling] = max(value, made.ceilings.get(ceiling, 0.0))
    made.rows = [row for _, members in rows.values() for row in members]
    return made


def _parse(data: Mapping[str, Any]) -> Run:
    known = {f.name for f in fields(Measurement)}
    rows = []
    for row in data["rows"]:
        made = Measurement(**{k: v for k, v in row.items() if k in known})
        for name in ("microseconds", "spread", "rate", "roofline", "error", "host"):
            value = getattr(made, name)
            if value is not None and not isinstance(value, (int, float)):
                raise TypeError(f"{name} of {made.name} is {value!r}, not a number")
        rows.append(made)
    return Run(dict(data["about"]), {k: float(v) for k, v in data["ceilings"].items() if v is not None}, rows)
