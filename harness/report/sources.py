"""Result files as they are handed to a report: read whole, held against their format, refused by name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from trtforge.bindings.errors import FileError
from trtforge.kernels import registry

#: Where a checkout of the repository keeps results; an installed kit has none.
COMMITTED = Path(registry.__file__).parent.parent / "benchmarks" / "results"
_TYPES = {"str": (str,), "bool": (bool,), "int": (int,), "float": (int, float), "list": (list,), "dict": (dict,)}
_COUNTS = ("passed", "failed", "skipped")
_KERNEL = {"op": str, "kernel": str, "how": str, **dict.fromkeys(_COUNTS, int)}
_FAILED = dict.fromkeys(("op", "kernel", "tactic", "case", "dtype", "how", "reason"), str)


@dataclass
class Checks:
    """The outcome of one ``check``: the fields of the file that ``check --report`` writes, and where they are from."""

    source: str
    about: dict[str, Any]
    summary: dict[str, int]
    kernels: list[dict[str, Any]]
    failed: list[dict[str, Any]]

    def only(self, ops: set[str]) -> Checks:
        """The part that concerns these ops."""
        kernels = [k for k in self.kernels if k["op"] in ops]
        counts = {name: sum(k[name] for k in kernels) for name in _COUNTS}
        return Checks(self.source, self.about, counts, kernels, [f for f in self.failed if f["op"] in ops])


def _refused(path: Path, why: str) -> FileError:
    return FileError(f"{path}: {why}; accepted is a file that 'trtforge check --report FILE' wrote")


def _held(path: Path, value: Any, place: str, kinds: Mapping[str, type]) -> None:
    """Refuse a record that lacks a field or has one of another kind."""
    if not isinstance(value, dict):
        raise _refused(path, f"{place} is no object")
    for name, kind in kinds.items():
        given = value.get(name)
        if not isinstance(given, kind) or isinstance(given, bool):
            what = f"is {given!r}" if name in value else "is missing"
            raise _refused(path, f"{place}.{name} {what}, which should be {kind.__name__}")


def _worst(path: Path, kernel: dict[str, Any], place: str) -> float | None:
    """Infinities come as text: JSON has none."""
    given = kernel.get("worst_over_tolerance")
    try:
        return None if given is None else float(given)
    except (TypeError, ValueError):
        raise _refused(path, f"{place}.worst_over_tolerance is {given!r}, which should be a number") from None


def read_checks(file: str | Path) -> Checks:
    """Read what ``check --report`` wrote. Raises FileError, which names the file and the field that is wrong."""
    path = Path(file)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FileError(f"{path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise _refused(path, f"it is no JSON, or cut short ({error})") from error
    if isinstance(data, dict) and "rows" in data and "kernels" not in data:
        raise _refused(path, "it holds single rows, as 'check --json' prints them")
    _held(path, data, "the file", {"about": dict, "summary": dict, "kernels": list, "failed": list})
    _held(path, data["summary"], "summary", dict.fromkeys(_COUNTS, int))
    for index, kernel in enumerate(data["kernels"]):
        _held(path, kernel, f"kernels[{index}]", _KERNEL)
        kernel["worst_over_tolerance"] = _worst(path, kernel, f"kernels[{index}]")
    for index, row in enumerate(data["failed"]):
        _held(path, row, f"failed[{index}]", _FAILED)
    return Checks(str(path), data["about"], data["summary"], data["kernels"], data["failed"])


def hold_types(file: str | Path, record: Any) -> None:
    """Refuse a record of a result file whose fields are of other types than its dataclass says. Raises FileError."""
    for one in fields(record):
        given = getattr(record, one.name)
        accepted = next((kinds for start, kinds in _TYPES.items() if str(one.type).startswith(start)), None)
        optional = given is None and str(one.type).endswith("None")
        if (
            accepted
            and not optional
            and (not isinstance(given, accepted) or isinstance(given, bool) != (bool in accepted))
        ):
            name = type(record).__name__.lower()
            raise FileError(f"{file} is damaged: {one.name} of a {name} is {given!r}, which should be {one.type}")


def named(source: str) -> str:
    """A file as the page names it: those of a checkout from its top, which is elsewhere on every machine."""
    path, top = Path(source).resolve(), COMMITTED.parent.parent.resolve()
    return path.relative_to(top).as_posix() if path.is_relative_to(COMMITTED.resolve()) else source


def committed(name: str) -> list[Path]:
    """The files of that name among the results of a checkout, such as ``check.json``; none elsewhere."""
    return sorted(COMMITTED.glob(f"*/{name}"))
