"""``trtforge profile``: launches under NVIDIA's profilers, a reading of them, and two readings side by side."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from trtforge.bindings.errors import UsageError
from trtforge.harness.profile_tools import SUFFIX, TIME_LIMIT, TOOLS, add_selection

if TYPE_CHECKING:
    from trtforge.harness.profile import Profile

_STORED = (*SUFFIX.values(), ".csv", ".json")


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument(
        "target", nargs="?", metavar="OP|PLAN|REPORT", help="an op, a plan file, or a stored report to be read again"
    )
    parser.add_argument("--tool", choices=TOOLS, default="ncu", help="ncu counts (default), nsys draws a timeline")
    add_selection(parser)
    parser.add_argument("--section", action="append", default=[], help="ncu: collect this section (may be repeated)")
    parser.add_argument("--set", default="", help="ncu: collect this set, such as full")
    parser.add_argument("--launches", type=int, help="launches, or runs of a plan (default: 1 for ncu, 20 for nsys)")
    parser.add_argument("--inputs", metavar="X.npz", help="a plan's arrays (default: made at the tuned dimensions)")
    parser.add_argument("--graphs", action="store_true", help="a plan: replay its CUDA graph, not step by step")
    parser.add_argument("-o", "--output", metavar="FILE", help="the tool's report (default: named after the target)")
    parser.add_argument("--time-limit", type=float, default=TIME_LIMIT, metavar="SECONDS", help="default 600")
    parser.add_argument("--compare", nargs=2, metavar=("A", "B"), help="two stored profiles side by side")


def run(arguments: argparse.Namespace) -> int:
    """Carry out the command; raises UsageError, DeviceError, MissingDependencyError, ProfileError, FileError."""
    if arguments.compare:
        if arguments.target:
            raise UsageError(f"--compare reads two stored profiles; leave {arguments.target!r} out")
        return _compare(arguments)
    if not arguments.target:
        raise UsageError("name an op, a plan file or a stored report, or two stored profiles with --compare A B")
    if arguments.launches is not None and arguments.launches < 1:
        raise UsageError(f"--launches is {arguments.launches}; at least 1 is needed")
    if not arguments.time_limit > 0:
        raise UsageError(f"--time-limit is {arguments.time_limit:g}; it must be above 0 seconds")
    found = _profiles(arguments)
    if arguments.json:
        from trtforge.harness.environment import about
        from trtforge.harness.profile import to_json

        print(json.dumps(to_json(found, about(), shlex.join(["trtforge", *arguments.typed])), indent=1, default=str))
    else:
        from trtforge import profile_show, show

        profile_show.readings(show.console(), found)
    return 0


def _profiles(arguments: argparse.Namespace) -> list[Profile]:
    from trtforge.harness.profile import collect, profile, read

    target = Path(arguments.target)
    if target.suffix in _STORED:
        return read(target, arguments.time_limit)
    asked = {
        "tool": arguments.tool,
        "sections": arguments.section,
        "metric_set": arguments.set,
        "limit": arguments.time_limit,
    }
    if target.is_file():
        return collect(_plan_target(arguments), arguments.output or target.stem, **asked)
    return profile(
        arguments.target,
        arguments.output,
        case=arguments.case,
        dtype=arguments.dtype,
        kernel=arguments.kernel,
        tactic=arguments.tactic,
        loads=arguments.load,
        launches=arguments.launches,
        **asked,
    )


def _plan_target(arguments: argparse.Namespace) -> list[str]:
    chosen = [f"--{name}" for name in ("case", "dtype", "kernel", "tactic") if getattr(arguments, name) is not None]
    if chosen:
        raise UsageError(f"{', '.join(chosen)} select a call of an op; {arguments.target} is a plan file")
    from trtforge.graph_api.engines.plan import read_plan
    from trtforge.kernels import registry

    for one in arguments.load:
        registry.load(one)
    read_plan(arguments.target)  # a damaged file is refused before any tool starts
    command = [sys.executable, "-m", "trtforge.profile_plan", arguments.target]
    if arguments.inputs:
        command += ["--inputs", arguments.inputs]
    if arguments.graphs:
        command.append("--graphs")
    for one in arguments.load:
        command += ["--load", one]
    return [*command, "--launches", str(arguments.launches or (1 if arguments.tool == "ncu" else 20))]


def _compare(arguments: argparse.Namespace) -> int:
    from trtforge import profile_show, show
    from trtforge.harness.profile import read

    before, after = (profile_show.longest(read(path, arguments.time_limit)) for path in arguments.compare)
    if arguments.json:
        pairs = profile_show.pairs_of(before, after)
        changes = {name: {"a": a, "b": b, "change": profile_show.change(a, b)} for name, (a, b) in pairs.items()}
        print(json.dumps({"a": asdict(before), "b": asdict(after), "metrics": changes}, indent=1))
    else:
        profile_show.comparison(show.console(), before, after, arguments.compare)
    return 0
