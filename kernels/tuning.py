"""Tuning tables: what was measured to be fastest for a call, on one GPU. ``trtforge bench --tactics all`` writes them.

A table is a JSON file per op and GPU, ``tuned/<gpu>/<namespace>.<op>.json`` beside the declaration. An entry is one
call (dimensions, attributes, dtypes, optional inputs) with its kernels and tactics, fastest first. For a call on that
GPU :func:`preferred` takes the entry of that call; else the nearest, where dtypes and optional inputs are the same,
attributes are alike (floats: both zero or both not) and the dimensions lie within :data:`MAX_DISTANCE`. What the table
prefers comes before the declared heuristic, and what cannot serve the call falls through, so a table changes speed
and never results. A kernel or tactic that is declared no more is passed over; one whose source has changed since is
still preferred, and :func:`stale` tells.

``TRTFORGE_TUNING=off`` ignores all tables; a folder there is read before the ones beside declarations.
"""

from __future__ import annotations

import json
import math
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trtforge.bindings.architectures import Architecture
from trtforge.bindings.errors import FileError, UsageError
from trtforge.bindings.files import replace_file
from trtforge.kernels.binding import Binding
from trtforge.kernels.dims import constant_value
from trtforge.kernels.op import Choice, Kernel, Op
from trtforge.kernels.sources import digest

FORMAT = "trtforge.tuning/1"
VARIABLE = "TRTFORGE_TUNING"
OFF = "off"

#: An entry serves calls up to this far from it: the length of the vector of the dimensions' log2 ratios. 1 is one
#: dimension doubled or halved.
MAX_DISTANCE = 1.0

#: Dimensions and times of a file stay where floating-point arithmetic on them is safe.
_LARGEST = 1 << 62


class TuningWarning(UserWarning):
    """A tuning file is damaged and was ignored."""


@dataclass(frozen=True)
class Timed:
    """One kernel and tactic (all of its parameters by name) with its median time."""

    kernel: str
    tactic: Mapping[str, Any]
    microseconds: float


@dataclass(frozen=True)
class Entry:
    """What was measured for one call, fastest first; ``run`` indexes the table's runs."""

    dims: Mapping[str, int]
    attributes: Mapping[str, Any]
    dtypes: Mapping[str, str]
    optional: tuple[str, ...]
    choices: tuple[Timed, ...]
    run: int = 0

    @property
    def key(self) -> str:
        """The call, as text that sorts."""
        call = (self.dims, self.attributes, self.dtypes)
        return json.dumps([*(sorted(part.items()) for part in call), sorted(self.optional)])


@dataclass(frozen=True)
class Table:
    """A file of one op and GPU. A run says where and when entries were measured, ``sources`` a digest per kernel."""

    op: str
    gpu: str
    runs: tuple[Mapping[str, Any], ...]
    entries: tuple[Entry, ...]


# ---- choosing --------------------------------------------------------------------------------------------------------


def preferred(op: Op, binding: Binding, device: Architecture) -> list[Choice]:
    """Kernels and tactics for a call on a device, measured fastest first; empty where no table speaks of such calls."""
    found = (
        nearest([entry for table in load(op, device.gpu) for entry in table.entries], binding) if device.gpu else None
    )
    if found is None:
        return []
    declared = {kernel.name: kernel for kernel in op.kernels}
    pairs = [(declared[timed.kernel], timed.tactic) for timed in found.choices if timed.kernel in declared]
    return [Choice(kernel, index) for kernel, tactic in pairs if (index := _index(kernel, tactic)) is not None]


def nearest(entries: Sequence[Entry], binding: Binding) -> Entry | None:
    """The entry that speaks for a call: the nearest one; of equally near ones the one of the same attributes, then
    the first by dimensions."""
    sizes = {name: constant_value(size) for name, size in binding.dims.items()}
    if None in sizes.values():
        return None
    optional = {name for name, present in binding.has.items() if present}
    kinds = _kinds(binding.attributes)
    ranked: list[tuple[float, bool, str, int, Entry]] = []
    for entry in entries:
        same = entry.dims.keys() == sizes.keys() and set(entry.optional) == optional
        if not (same and dict(entry.dtypes) == dict(binding.dtypes) and _kinds(entry.attributes) == kinds):
            continue
        away = distance(entry.dims, sizes)
        if away <= MAX_DISTANCE:
            ranked.append((away, dict(entry.attributes) != dict(binding.attributes), entry.key, len(ranked), entry))
    return min(ranked)[-1] if ranked else None


def distance(one: Mapping[str, int], other: Mapping[str, Any]) -> float:
    """The length of the vector of log2 ratios of two calls' dimensions, which have the same names."""
    return math.hypot(*(math.log2(other[name] / one[name]) for name in sorted(one)))


def _kinds(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """What must be equal of attributes: floats scale values and count by whether they are zero (off), others whole."""
    return {k: bool(v) if isinstance(v, float) else (type(v).__name__, v) for k, v in attributes.items()}


def _index(kernel: Kernel, tactic: Mapping[str, Any]) -> int | None:
    return next((i for i, known in enumerate(kernel.tactics) if dict(known) == dict(tactic)), None)


# ---- files -----------------------------------------------------------------------------------------------------------

_tables: dict[Any, tuple[Table, ...]] = {}


def slug(gpu: str) -> str:
    """A GPU's name as part of a path: ``"NVIDIA H200"`` is ``nvidia_h200``."""
    return re.sub(r"[^a-z0-9]+", "_", gpu.lower()).strip("_") or "gpu"


def folders(op: Op) -> list[Path]:
    """Where tables of an op are looked for: the folder in TRTFORGE_TUNING, then beside the declaration."""
    setting = os.environ.get(VARIABLE, "")
    if setting.lower() == OFF:
        return []
    beside = [op.file.parent / "tuned"] if op.file.name else []
    return [*([Path(setting)] if setting else []), *beside]


def file_of(op: Op, gpu: str, folder: Path) -> Path:
    return folder / slug(gpu) / _file_name(op)


def _file_name(op: Op) -> str:
    return f"{op.name.replace('::', '.')}.json"


def load(op: Op, gpu: str) -> tuple[Table, ...]:
    """The tables of an op for a GPU, read once in a process. A damaged file is ignored, with one TuningWarning."""
    key = (op.name, op.file, gpu, os.environ.get(VARIABLE, ""))
    if key not in _tables:
        _tables[key] = tuple(_readable((file_of(op, gpu, folder) for folder in folders(op)), op.name, gpu))
    return _tables[key]


def every(op: Op) -> list[Table]:
    """The tables of an op for every GPU, as `trtforge list` shows them."""
    return list(_readable((p for folder in folders(op) for p in sorted(folder.glob(f"*/{_file_name(op)}"))), op.name))


def _readable(paths: Iterable[Path], op: str, gpu: str | None = None) -> Iterator[Table]:
    for path in paths:
        try:
            if path.is_file():
                yield read(path, op, gpu)
        except OSError as error:
            warnings.warn(f"{error}; it is ignored", TuningWarning, stacklevel=2)


def forget() -> None:
    """Read tables anew when they are next asked for."""
    _tables.clear()


def read(path: Path, op: str | None = None, gpu: str | None = None) -> Table:
    """Read a table, of that op and GPU where they are given. Raises FileError naming the file and what is wrong."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        _demand(isinstance(data, dict), "it holds no JSON object")
        _demand(data.get("format") == FORMAT, f"its format is {data.get('format')!r}, not {FORMAT!r}")
        for name, expected in (("op", op), ("gpu", gpu)):
            _demand(isinstance(data.get(name), str), f"{name!r} is no text")
            _demand(expected is None or data[name] == expected, f"it is of the {name} {data[name]!r}, not {expected!r}")
        runs, entries = data.get("runs"), data.get("entries")
        _demand(isinstance(runs, list) and all(isinstance(r, dict) for r in runs), "'runs' is no list of objects")
        _demand(all(_texts(r.get("sources")) for r in runs), "the 'sources' of a run are no digests by kernel")
        _demand(isinstance(entries, list), "'entries' is no list")
        parsed = tuple(_entry(one, f"entry {i}", len(runs)) for i, one in enumerate(entries))
    except (OSError, ValueError, RecursionError) as error:
        raise FileError(f"{path} is no tuning table: {error}; delete it, or tune again") from error
    return Table(data["op"], data["gpu"], tuple(runs), parsed)


def _demand(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ValueError(otherwise)


def _texts(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(v, str) for v in value.values())


def _scalars(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(v, (bool, int, float, str)) for v in value.values())


def _entry(data: Any, where: str, runs: int) -> Entry:
    _demand(isinstance(data, dict), f"{where} is no object")
    dims, attributes, dtypes = data.get("dims"), data.get("attributes"), data.get("dtypes")
    sizes = isinstance(dims, dict) and all(type(v) is int and 1 <= v <= _LARGEST for v in dims.values())
    _demand(sizes, f"the dims of {where} are no positive integers")
    _demand(_scalars(attributes), f"the attributes of {where} are no numbers and texts")
    _demand(_texts(dtypes), f"the dtypes of {where} are no texts")
    optional, run, choices = data.get("optional"), data.get("run"), data.get("choices")
    _demand(isinstance(optional, list) and all(isinstance(o, str) for o in optional), f"{where} has no list 'optional'")
    _demand(type(run) is int and 0 <= run < runs, f"{where} is of the run {run!r}, which is not there")
    _demand(isinstance(choices, list) and bool(choices), f"{where} has no choices")
    timed = []
    for one in choices:
        _demand(isinstance(one, dict) and isinstance(one.get("kernel"), str), f"a choice of {where} names no kernel")
        _demand(_scalars(one.get("tactic")), f"a choice of {where} has no tactic parameters")
        time = one.get("us")
        right = isinstance(time, (int, float)) and not isinstance(time, bool) and 0 < time <= _LARGEST
        _demand(right, f"a choice of {where} took {time!r} us")
        timed.append(Timed(one["kernel"], one["tactic"], float(time)))
    return Entry(dims, attributes, dtypes, tuple(optional), tuple(sorted(timed, key=lambda t: t.microseconds)), run)


# ---- writing ---------------------------------------------------------------------------------------------------------


def entry(binding: Binding, timings: Iterable[tuple[Kernel, int, float]]) -> Entry:
    """The entry of one call from (kernel, tactic index, median microseconds) of kernels that computed it rightly.

    Raises UsageError for no timings, times that are not positive, and dimensions that are not known.
    """
    dims = {name: constant_value(size) for name, size in binding.dims.items()}
    if None in dims.values():
        raise UsageError(f"{binding.op}: only calls with known dimensions can be tuned, got {dict(binding.dims)}")
    timed = []
    for kernel, tactic, microseconds in timings:
        if not (math.isfinite(microseconds) and microseconds > 0):
            raise UsageError(f"{kernel} [{kernel.tactic_label(tactic)}] took {microseconds!r} us; a time is positive")
        timed.append(Timed(kernel.name, dict(kernel.tactics[tactic]), microseconds))
    if not timed:
        raise UsageError(f"{binding.op}: there is no timing to make a tuning entry of")
    return Entry(
        {name: int(size) for name, size in dims.items() if size is not None},
        dict(binding.attributes),
        dict(binding.dtypes),
        tuple(name for name, present in binding.has.items() if present),
        tuple(sorted(timed, key=lambda t: t.microseconds)),
    )


def rows_from(op: Op, measurements: Iterable[Any]) -> list[Entry]:
    """Entries from the measurements of one op's declared cases (:class:`trtforge.harness.measurement.Measurement`).

    Rows count that are ours, launched directly, and have a time; of a case that was timed with CUDA graphs, those.
    Raises UsageError for a case, kernel or tactic that is not declared.
    """
    groups: dict[tuple[str, str], list[Any]] = {}
    for row in measurements:
        if row.op == op.name and row.ours and row.kernel and row.microseconds and row.form in ("", "direct"):
            groups.setdefault((row.case, row.dtype), []).append(row)
    entries = []
    for (case, kind), rows in groups.items():
        graphs = [row for row in rows if row.launch == "graph"]
        best: dict[tuple[str, int], float] = {}
        for row in graphs or rows:
            labels = {
                op.kernel_named(row.kernel).tactic_label(i): i for i in range(len(op.kernel_named(row.kernel).tactics))
            }
            if row.tactic not in labels:
                raise UsageError(f"{op.name}/{row.kernel} has no tactic {row.tactic!r}; it has: {'; '.join(labels)}")
            at = (row.kernel, labels[row.tactic])
            best[at] = min(row.microseconds, best.get(at, math.inf))
        timings = [(op.kernel_named(name), index, time) for (name, index), time in best.items()]
        entries.append(entry(_binding_of(op, case, kind), timings))
    return entries


def calls_of(op: Op, label: str, kind: str) -> list[Binding]:
    """The calls of declared cases with that label whose dtypes are told by ``kind``, as in a measurement.

    That is the dtype of the first input, or ``name=dtype`` for several inputs.
    """
    named = dict(part.split("=", 1) for part in kind.split() if "=" in part)
    bindings = [op.bind_case(c, dtypes) for c in op.cases if c.label == label for dtypes in op.dtype_combinations(c)]
    fitting = [
        b
        for b in bindings
        if (named.items() <= b.dtypes.items() if named else kind in ("-", next(iter(b.dtypes.values()))))
    ]
    different: list[Binding] = []
    for one in fitting:
        if one not in different:
            different.append(one)
    return different


def _binding_of(op: Op, label: str, kind: str) -> Binding:
    found = calls_of(op, label, kind)
    if len(found) != 1:
        raise UsageError(
            f"{op.name}: {len(found)} declared cases are {label!r} with {kind}; tuning.entry takes any call"
        )
    return found[0]


def write(
    op: Op, gpu: str, entries: Sequence[Entry], about: Mapping[str, Any], where: str | Path | None = None
) -> Path:
    """Write entries that were measured now into the table of an op and GPU; returns its file.

    Entries of the same calls are replaced, others are kept with the run they came from. ``about`` says with what was
    measured. ``where``: the folder of tables (the one in TRTFORGE_TUNING, else beside the declaration). Raises
    FileError when the file cannot be written: then set TRTFORGE_TUNING to a folder of your own.
    """
    if not entries:
        raise UsageError(f"{op.name}: there are no tuning entries to write")
    places = [Path(where)] if where is not None else folders(op)
    if not places:
        raise UsageError(f"{op.name}: {VARIABLE}={OFF} leaves no place for a tuning table; unset it or name a folder")
    path = file_of(op, gpu, places[0])
    runs: list[Mapping[str, Any]] = []
    merged: dict[str, Entry] = {}

    def add(run: Mapping[str, Any], members: Iterable[Entry]) -> None:
        if run not in runs:
            runs.append(run)
        merged.update({e.key: replace(e, run=runs.index(run)) for e in members})

    for table in _written(path, op.name, gpu):
        for index, run in enumerate(table.runs):
            add(run, [e for e in table.entries if e.run == index])
    names = dict.fromkeys(timed.kernel for e in entries for timed in e.choices)
    sources = {name: digest(op.kernel_named(name)) for name in names}
    add(json.loads(json.dumps({**about, "sources": sources}, default=str)), entries)
    replace_file(path, _text(op.name, gpu, runs, sorted(merged.values(), key=lambda e: e.key)))
    forget()
    op._plans.clear()
    op._ready.clear()
    return path


def _written(path: Path, op: str, gpu: str) -> list[Table]:
    """The table that is there; a damaged one is replaced, with a warning."""
    if not path.is_file():
        return []
    try:
        return [read(path, op, gpu)]
    except FileError as error:
        warnings.warn(f"{error}; it is replaced", TuningWarning, stacklevel=3)
        return []


def _text(op: str, gpu: str, runs: Sequence[Mapping[str, Any]], entries: Sequence[Entry]) -> str:
    """The file: one choice a line, so that a change of the order can be read in a diff."""
    used = sorted({e.run for e in entries})
    blocks = []
    for e in entries:
        call = {"dims": e.dims, "attributes": e.attributes, "dtypes": e.dtypes, "optional": e.optional}
        head = json.dumps({**call, "run": used.index(e.run)})[:-1]
        lines = [
            json.dumps({"kernel": t.kernel, "tactic": t.tactic, "us": round(t.microseconds, 3)}) for t in e.choices
        ]
        blocks.append(f'  {head}, "choices": [\n   ' + ",\n   ".join(lines) + "\n  ]}")
    head = json.dumps({"format": FORMAT, "op": op, "gpu": gpu}, indent=1)[:-2]
    kept = ",\n".join("  " + json.dumps(runs[i]) for i in used)
    return f'{head},\n "runs": [\n{kept}\n ],\n "entries": [\n' + ",\n".join(blocks) + "\n ]\n}\n"


# ---- staleness -------------------------------------------------------------------------------------------------------


def stale(op: Op, table: Table) -> dict[str, str]:
    """Why what the table says of a kernel may have changed, by the kernel's name; empty when it is up to date."""
    declared = {kernel.name: kernel for kernel in op.kernels}
    reasons: dict[str, str] = {}
    for one in table.entries:
        sources = table.runs[one.run]["sources"]
        for timed in one.choices:
            if timed.kernel in reasons:
                continue
            kernel = declared.get(timed.kernel)
            if kernel is None:
                reasons[timed.kernel] = "is declared no more"
            elif _index(kernel, timed.tactic) is None:
                reasons[timed.kernel] = (
                    f"has no tactic {' '.join(f'{k}={v}' for k, v in timed.tactic.items())} any more"
                )
            elif sources.get(timed.kernel) != digest(kernel):
                reasons[timed.kernel] = "has changed since it was tuned"
    return reasons
