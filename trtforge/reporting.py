"""``trtforge report``: a session on one HTML page."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any


def add_options(sub: argparse.ArgumentParser) -> None:
    """The options of the command."""
    sub.add_argument("ops", nargs="*", metavar="OP", help="ops to check, inspect and show (default: all, not checked)")
    sub.add_argument("-o", "--out", required=True, metavar="FILE", help="the HTML file to write")
    sub.add_argument("--checks", action="append", default=[], metavar="JSON", help="what check --report wrote")
    sub.add_argument("--bench", action="append", default=[], metavar="JSON", help="what bench --json wrote")
    sub.add_argument(
        "--profile", action="extend", nargs="+", default=[], metavar="JSON", help="what profile --json wrote"
    )
    sub.add_argument("--title", help="the page's heading")
    sub.add_argument("--arch", action="append", help="inspect for this architecture only (may be repeated)")
    sub.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where named ops are checked")
    sub.add_argument("--workers", type=int, help="worker processes (default: one per core)")


def run(arguments: argparse.Namespace) -> int:
    """Write the page; raises FileError, UsageError, UnknownNameError, DeviceError, MissingDependencyError."""
    from rich.progress import TaskID

    from trtforge import show
    from trtforge.bindings.architectures import INSPECTED
    from trtforge.harness.report import report

    tasks: dict[str, TaskID] = {}
    with show.progress(show.console(stderr=True)) as bar:

        def start(stage: str, total: int) -> None:
            tasks[stage] = bar.add_task(stage, total=total)

        session = report(
            arguments.out,
            arguments.ops,
            checks=arguments.checks,
            bench=arguments.bench,
            profiles=arguments.profile,
            title=arguments.title,
            architectures=arguments.arch or INSPECTED,
            device=arguments.device,
            loads=arguments.load,
            workers=arguments.workers,
            on_start=start,
            on_step=lambda stage: bar.update(tasks[stage], advance=1),
        )
    told: dict[str, Any] = {
        "out": str(arguments.out),
        "bytes": Path(arguments.out).stat().st_size,
        "ops": len(session.ops),
        "checks": [c.source for c in session.checks],
        "failed": sum(c.summary["failed"] for c in session.checks),
        "inspections": len(session.inspections),
        "not_inspected": len(session.uninspected),
        "benchmarks": [source for source, _ in session.runs],
        "profiles": [source for source, _ in session.profiles],
    }
    if arguments.json:
        print(json.dumps(told, indent=1))
    else:
        parts = [
            _counted(told["ops"], "op"),
            f"{_counted(len(session.checks), 'check')} ({told['failed']} failed)",
            f"{_counted(told['inspections'], 'compilation')} inspected",
            _counted(len(session.runs), "benchmark run"),
            _counted(len(session.profiles), "profile"),
        ]
        print(f"wrote {told['out']}: {told['bytes'] / 1024:.0f} KiB; {', '.join(parts)}")
    return 0


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
