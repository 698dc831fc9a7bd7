"""``trtforge profile``: exactly the wanted launches under NVIDIA's profilers, and a reading of what they found.

Nsight Compute ("ncu") counts what one launch does; Nsight Systems ("nsys") draws when things ran. A profile is stored
twice: the tool's own report, and beside it a JSON file of format ``trtforge.profile/1``:
``{"format": ..., "about": {...}, "command": "...", "profiles": [...]}``, one object with the fields of
:class:`Profile` per launch. Readers ignore keys that they do not know.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from trtforge.bindings import device
from trtforge.bindings.errors import DeviceError, FileError, UsageError
from trtforge.bindings.files import replace_file
from trtforge.harness import profile_tools
from trtforge.harness.profile_csv import Launch, parse_nsys, parse_raw
from trtforge.harness.profile_reading import QUANTITIES, Work, read_launch
from trtforge.harness.profile_tools import SUFFIX, TIME_LIMIT, TOOLS, Asked
from trtforge.kernels import registry

FORMAT = "trtforge.profile/1"
_DESCRIPTION = ".target.json"
_ALSO = {"dram_peak_gb_s": "DRAM peak GB/s"}


@dataclass
class Profile:
    """One launch, or for nsys one GPU function with all its launches.

    ``kernel`` is the registered kernel, or the GPU function's name for nsys and plans; ``metrics`` are named with their
    units ("DRAM GB/s"); ``stalls`` are (reason, share of warp time), largest first; ``bound`` says what bounds it;
    ``roofline`` has flops, bytes, intensity and, where known, ceiling, unit, rate, least_us, bound, fraction.
    """

    op: str
    kernel: str
    tactic: str
    case: str
    dtype: str
    tool: str
    report: str
    microseconds: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    stalls: list[tuple[str, float]] = field(default_factory=list)
    occupancy_limiter: str = ""
    bound: str = ""
    findings: list[str] = field(default_factory=list)
    roofline: dict[str, Any] = field(default_factory=dict)
    function: str = ""

    @property
    def name(self) -> str:
        """The launch in words."""
        where = f"{self.op}/{self.kernel}" if self.op else self.kernel
        return " ".join(
            part for part in (where, f"[{self.tactic}]" if self.tactic else "", self.case, self.dtype) if part
        )


def metric_name(key: str) -> str:
    """How a quantity of the reading is named in :attr:`Profile.metrics`."""
    if key in _ALSO:
        return _ALSO[key]
    quantity = QUANTITIES[key]
    return f"{quantity.label} {quantity.unit}".strip()


# ---- storing ------------------------------------------------------------------------------------------------------


def to_json(profiles: Sequence[Profile], about: Mapping[str, Any], command: str) -> dict[str, Any]:
    """Plain data in the file format."""
    return {"format": FORMAT, "about": dict(about), "command": command, "profiles": [asdict(p) for p in profiles]}


def read(path: str | Path, limit: float = TIME_LIMIT) -> list[Profile]:
    """The profiles of a stored file: our JSON, a tool's report (needs the tool), or its raw page as CSV.

    Raises FileError, MissingDependencyError, ProfileError.
    """
    path = Path(path)
    if not path.is_file():
        raise FileError(f"there is no profile {path}")
    if path.suffix in SUFFIX.values():
        tool = next(name for name, suffix in SUFFIX.items() if suffix == path.suffix)
        executable = profile_tools.require_tool(tool, f"Read {path} where it is, or read the .json beside it")
        return _understand(tool, profile_tools.read_text(executable, path, limit), path, _described(path))
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(f"cannot read the profile {path}: {error}") from error
    if path.suffix == ".csv":
        return _understand("nsys" if "Total Time (ns)" in text else "ncu", text, path, _described(path))
    try:
        data = json.loads(text)
        found = data.get("format") if isinstance(data, dict) else None
        if found != FORMAT:
            raise FileError(
                f"{path} is no profile that this kit reads: its format is {found!r}, accepted is {FORMAT!r}"
            )
        known = {f.name for f in fields(Profile)}
        made = [Profile(**{k: v for k, v in row.items() if k in known}) for row in data["profiles"]]
        for one in made:
            one.stalls = [(str(reason), float(share)) for reason, share in one.stalls]
            one.metrics = {str(k): float(v) for k, v in one.metrics.items()}
    except FileError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FileError(f"{path} is a damaged profile: {type(error).__name__}: {error}") from error
    if not made:
        raise FileError(f"{path} holds no profile")
    return made


def _described(report: Path) -> dict[str, Any]:
    """What the watched process wrote about itself; empty where the file is not at hand."""
    try:
        found = json.loads(report.with_suffix(_DESCRIPTION).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


# ---- understanding ------------------------------------------------------------------------------------------------


def _understand(tool: str, text: str, report: Path, target: Mapping[str, Any]) -> list[Profile]:
    if tool == "nsys":
        return [_timed(row, report, target) for row in parse_nsys(text)]
    work = Work(
        int(target.get("flops", 0)),
        int(target.get("bytes", 0)),
        str(target.get("input_dtype", "")),
        int(target.get("cc", 0)),
        int(target.get("sms", 0)),
    )
    return [_counted(launch, work, report, target) for launch in parse_raw(text)]


def _of(target: Mapping[str, Any], function: str, tool: str, report: Path) -> Profile:
    op, tactic, case, dtype = (str(target.get(name, "")) for name in ("op", "tactic", "case", "dtype"))
    kernel = str(target.get("kernel") or function)
    return Profile(op, kernel, tactic, case, dtype, tool, str(report), function=function)


def _counted(launch: Launch, work: Work, report: Path, target: Mapping[str, Any]) -> Profile:
    made = _of(target, launch.function, "ncu", report)
    reading = read_launch(launch, work)
    made.microseconds = reading.metrics.get("time_us")
    made.metrics = {metric_name(key): value for key, value in reading.metrics.items() if key not in ("time_us", "cc")}
    made.stalls, made.occupancy_limiter = reading.stalls, reading.limiter
    made.bound, made.findings, made.roofline = reading.bound, reading.findings, reading.roofline
    return made


def _timed(row: Mapping[str, str], report: Path, target: Mapping[str, Any]) -> Profile:
    def number(column: str) -> float:
        return float((row.get(column) or "0").replace(",", ""))

    made = _of({k: v for k, v in target.items() if k != "kernel"}, row["Name"], "nsys", report)
    made.microseconds = (number("Med (ns)") or number("Avg (ns)")) * 1e-3
    made.metrics = {
        "launches": number("Instances"),
        "share of GPU time %": number("Time (%)"),
        "total µs": number("Total Time (ns)") * 1e-3,
        "least µs": number("Min (ns)") * 1e-3,
        "most µs": number("Max (ns)") * 1e-3,
        "deviation µs": number("StdDev (ns)") * 1e-3,
    }
    return made


def representative(profiles: Sequence[Profile]) -> list[Profile]:
    """One profile per GPU function: the launch of median time, in the order in which functions first ran."""
    groups: dict[tuple[str, str], list[Profile]] = {}
    for one in profiles:
        groups.setdefault((one.kernel, one.function), []).append(one)
    chosen = []
    for members in groups.values():
        middle = statistics.median_low([m.microseconds or 0.0 for m in members])
        chosen.append(next(m for m in members if (m.microseconds or 0.0) == middle))
    return chosen


# ---- profiling ----------------------------------------------------------------------------------------------------


def op_target(
    op: str,
    *,
    case: str | None = None,
    dtype: str | None = None,
    kernel: str | None = None,
    tactic: int | None = None,
    loads: Sequence[str] = (),
    launches: int | None = None,
    tool: str = "ncu",
) -> list[str]:
    """The command line of the process that launches one call of an op. Raises UnknownNameError, UsageError."""
    from trtforge.harness.profile_target import candidates

    for one in loads:
        registry.load(one)
    found = registry.get(op)
    if tactic is not None and kernel is None:
        raise UsageError("--tactic is an index into a kernel's table; name the kernel too: --kernel NAME --tactic N")
    if kernel is not None:
        chosen = found.kernel_named(kernel)
        if tactic is not None:
            found.tactic_index(chosen, tactic)
    candidates(found, case, dtype)
    command = [sys.executable, "-m", "trtforge.harness.profile_target", found.name]
    given = {"--case": case, "--dtype": dtype, "--kernel": kernel, "--tactic": tactic}
    for option, value in given.items():
        if value is not None:
            command += [option, str(value)]
    for one in loads:
        command += ["--load", str(one)]
    return [*command, "--launches", str(launches if launches is not None else 1 if tool == "ncu" else 20)]


def profile(
    op: str,
    report: str | Path | None = None,
    *,
    tool: str = "ncu",
    case: str | None = None,
    dtype: str | None = None,
    kernel: str | None = None,
    tactic: int | None = None,
    loads: Sequence[str] = (),
    launches: int | None = None,
    sections: Sequence[str] = (),
    metric_set: str = "",
    limit: float = TIME_LIMIT,
) -> list[Profile]:
    """Profile one call of an op: the first benchmark case that ``case`` and ``dtype`` leave, by the kernel of a call.

    ``report``: where the tool's report goes (default: ``OP[-KERNEL]`` here), with the JSON beside it. ``launches``:
    how many are collected (default: 1 for ncu, 20 for nsys). See :func:`collect` for the rest, and for errors.
    """
    selection = {"case": case, "dtype": dtype, "kernel": kernel, "tactic": tactic}
    target = op_target(op, **selection, loads=loads, launches=launches, tool=tool)  # type: ignore[arg-type]
    short = registry.get(op).name.split("::")[1]
    stored = report or (f"{short}-{kernel}" if kernel else short)
    return collect(target, stored, tool=tool, sections=sections, metric_set=metric_set, limit=limit)


def collect(
    target: Sequence[str],
    report: str | Path,
    *,
    tool: str = "ncu",
    sections: Sequence[str] = (),
    metric_set: str = "",
    limit: float = TIME_LIMIT,
) -> list[Profile]:
    """Run the process ``target`` (see :func:`op_target`) under a tool; store and read ``report``, with JSON beside it.

    Raises DeviceError without a GPU, MissingDependencyError without the tool, ProfileError when the tool is refused
    the counters, fails, hangs beyond ``limit`` seconds or sees no launch; the message has the command line to run
    elsewhere where that helps.
    """
    if tool not in TOOLS:
        raise UsageError(f"tool is {tool!r}; accepted: {', '.join(TOOLS)}")
    stored = Path(report)
    if stored.suffix != SUFFIX[tool]:
        stored = stored.with_name(stored.name + SUFFIX[tool])
    if not stored.resolve().parent.is_dir():
        raise UsageError(f"--output {report}: there is no folder {stored.resolve().parent}")
    description = stored.with_suffix(_DESCRIPTION)
    asked = Asked(tool, (*target, "--describe", str(description)), stored, tuple(sections), metric_set)
    why = device.why_no_gpu()
    if why:
        raise DeviceError(f"profiling needs an NVIDIA GPU: {why}. {asked.elsewhere()}")
    executable = profile_tools.require_tool(tool, asked.elsewhere())
    stored.unlink(missing_ok=True)
    description.unlink(missing_ok=True)
    status, output = profile_tools.run(asked.command(executable), limit)
    problem = profile_tools.failure(asked, status, output)
    if problem is not None:
        raise problem
    profiles = read(stored, limit)
    about = _described(stored).get("about", {})
    text = json.dumps(to_json(profiles, about, asked.line()), indent=1, default=str)
    replace_file(stored.with_suffix(".json"), text + "\n")
    return profiles
