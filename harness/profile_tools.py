"""Nsight Compute and Nsight Systems: where they are, what they are asked, and what it means when they fail."""

from __future__ import annotations

import argparse
import contextlib
import glob
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trtforge.bindings.errors import MissingDependencyError, ProfileError

TOOLS = ("ncu", "nsys")
TIME_LIMIT = 600.0
SUFFIX = {"ncu": ".ncu-rep", "nsys": ".nsys-rep"}

#: What ncu collects unless sections or a set are named: all that :mod:`trtforge.harness.profile_reading` looks for.
SECTIONS = (
    "SpeedOfLight",
    "MemoryWorkloadAnalysis",
    "MemoryWorkloadAnalysis_Chart",
    "MemoryWorkloadAnalysis_Tables",
    "ComputeWorkloadAnalysis",
    "SchedulerStats",
    "WarpStateStats",
    "InstructionStats",
    "LaunchStats",
    "Occupancy",
)

_PLACES = {
    "ncu": ("/usr/local/cuda/bin/ncu", "/usr/local/cuda-*/bin/ncu", "/opt/nvidia/nsight-compute/*/ncu"),
    "nsys": (
        "/usr/local/cuda/bin/nsys",
        "/usr/local/cuda-*/bin/nsys",
        "/opt/nvidia/nsight-systems/*/bin/nsys",
        "/opt/nvidia/nsight-systems/*/target-linux-x64/nsys",
    ),
}
_GRACE = 5.0  # seconds that an ended process group has to close its pipes


def add_selection(parser: argparse.ArgumentParser) -> None:
    """The options that say which call of an op."""
    parser.add_argument(
        "--case", metavar="TEXT", help="the case whose label contains this text (default: a bench case)"
    )
    parser.add_argument("--dtype", help="the dtype of the inputs (default: the first that the case has)")
    parser.add_argument("--kernel", help="one kernel of the op (default: what a call would take)")
    parser.add_argument("--tactic", type=int, help="one tactic of that kernel, by index")


def find_tool(tool: str) -> str | None:
    """The path of a tool: on PATH, or where NVIDIA's installers put it (the newest one)."""
    on_path = shutil.which(tool)
    if on_path:
        return on_path
    found = [place for pattern in _PLACES[tool] for place in sorted(glob.glob(pattern), reverse=True)]
    return next((place for place in found if os.access(place, os.X_OK)), None)


def require_tool(tool: str, elsewhere: str) -> str:
    """The path of a tool, or MissingDependencyError with the command line to run where there is one."""
    found = find_tool(tool)
    if found is None:
        name = {"ncu": "Nsight Compute", "nsys": "Nsight Systems"}[tool]
        raise MissingDependencyError(
            f"{tool} ({name}) is neither on PATH nor in /usr/local/cuda/bin nor in /opt/nvidia; it comes with the CUDA "
            f"toolkit and from developer.nvidia.com. {elsewhere}"
        )
    return found


@dataclass(frozen=True)
class Asked:
    """What a tool is to collect. ``target`` is the command line of the process that makes the launches."""

    tool: str
    target: tuple[str, ...]
    report: Path
    sections: tuple[str, ...] = ()
    metric_set: str = ""

    def command(self, executable: str = "") -> list[str]:
        """The command line. Nothing but the launches between cuProfilerStart and cuProfilerStop is collected.

        ncu repeats each launch for every group of counters, with caches emptied before each and at the clocks that
        the GPU takes by itself.
        """
        executable = executable or self.tool
        if self.tool == "nsys":
            return [
                executable,
                "profile",
                "--trace=cuda,nvtx",
                "--sample=none",
                "--cpuctxsw=none",
                "--cuda-graph-trace=node",
                "--capture-range=cudaProfilerApi",
                "--capture-range-end=stop",
                "--force-overwrite=true",
                f"--output={self.report}",
                *self.target,
            ]
        if self.metric_set:
            collected = ["--set", self.metric_set]
            collected += [part for name in self.sections for part in ("--section", name)]
        else:
            collected = [part for name in self.sections or SECTIONS for part in ("--section", name)]
        return [
            executable,
            "--target-processes",
            "all",
            "--profile-from-start",
            "off",
            "--clock-control",
            "none",
            "--cache-control",
            "all",
            *collected,
            "--force-overwrite",
            "--export",
            str(self.report),
            *self.target,
        ]

    def elsewhere(self) -> str:
        """The command line in words, for a machine that has what this one lacks."""
        again = f"; then: trtforge profile {self.report}"
        return f"On a machine with a GPU and {self.tool} type the same command, or without it: {self.line()} {again}"

    def line(self) -> str:
        """The command line as one types it."""
        shown = ["python" if part == sys.executable else part for part in self.command()]
        return shlex.join(shown)


def import_command(executable: str, report: Path) -> list[str]:
    """What turns a stored report into text: ncu's raw page in base units, or nsys's table of kernels."""
    if report.suffix == SUFFIX["nsys"]:
        wanted = ["--report", "cuda_gpu_kern_sum", "--format", "csv", "--force-export=true"]
        return [executable, "stats", *wanted, str(report)]
    return [executable, "--import", str(report), "--csv", "--page", "raw", "--print-units", "base"]


def run(command: Sequence[str], limit: float) -> tuple[int, str]:
    """Exit status and output (both streams) of a command; its whole process group is ended at ``limit`` seconds.

    Raises ProfileError when the time is over.
    """
    process = subprocess.Popen(
        list(command),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        said = _end(process)
        raise ProfileError(
            f"{Path(command[0]).name} did not finish within {limit:g} s and was ended with everything it had started; "
            f"a kernel may hang, or needs more time: --time-limit SECONDS. Its last words: {_tail(said)}"
        ) from None
    except BaseException:
        _end(process)
        raise
    return process.returncode, output


def _end(process: subprocess.Popen[str]) -> str:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    try:
        return process.communicate(timeout=_GRACE)[0]
    except subprocess.TimeoutExpired:  # something left the group and still holds the pipe
        return ""


def _tail(text: str | None, lines: int = 6) -> str:
    kept = [line.strip() for line in (text or "").splitlines() if line.strip()]
    return " | ".join(kept[-lines:]) or "none"


def failure(asked: Asked, status: int, output: str) -> ProfileError | None:
    """What went wrong with a finished tool, or None when there is a report."""
    if "ERR_NVGPUCTRPERM" in output:
        return ProfileError(
            "the driver lets administrators alone read the GPU's counters (ERR_NVGPUCTRPERM): run as root, or in a "
            "container with --cap-add=SYS_ADMIN, or load the module nvidia with NVreg_RestrictProfilingToAdminUsers=0 "
            f"(docs/profiling.md). Or where that is so run: {asked.line()} ; then: trtforge profile {asked.report}"
        )
    if status != 0:
        fate = f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"
        return ProfileError(f"{asked.tool} {fate}: {_tail(output)}. The command was: {asked.line()}")
    if "No kernels were profiled" in output:
        return ProfileError(f"{asked.tool} saw no launch: {_tail(output)}. The command was: {asked.line()}")
    if not asked.report.is_file():
        return ProfileError(f"{asked.tool} left no report {asked.report}: {_tail(output)}")
    return None


def read_text(executable: str, report: Path, limit: float) -> str:
    """The text that a tool makes of a stored report. Raises ProfileError."""
    status, output = run(import_command(executable, report), limit)
    if status != 0:
        raise ProfileError(f"{Path(executable).name} cannot read {report}: {_tail(output)}")
    return output
