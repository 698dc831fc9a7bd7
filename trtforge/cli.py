"""The ``trtforge`` command. Exit status: 0 done, 1 a check failed, 2 a wrong input or a missing part."""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from trtforge import __version__
from trtforge.bindings.errors import FileError, ForgeError

#: What writing says when a disk or a quota is full.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def _common(parser: argparse.ArgumentParser, json_file: bool) -> None:
    parser.add_argument(
        "--load",
        action="append",
        default=[],
        metavar="FILE_OR_MODULE",
        help="declare further ops from a Python file or module (may be repeated)",
    )
    if json_file:
        parser.add_argument("--json", nargs="?", const="-", metavar="FILE", help="write JSON; without FILE print it")
    else:
        parser.add_argument("--json", action="store_true", help="print JSON instead of tables")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="trtforge",
        description="Write a GPU kernel once; have it checked, inspected and shipped as a TensorRT plugin.",
    )
    parser.add_argument("--version", action="version", version=f"trtforge {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(
        name: str, run: Callable[[argparse.Namespace], int], help_text: str, json_file: bool = False
    ) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help_text, description=help_text)
        _common(sub, json_file)
        sub.set_defaults(run=run)
        return sub

    sub = command("list", _list, "list ops and kernels, and which can be AOT plugins")
    sub.add_argument("op", nargs="?", help="one op, with or without its namespace")

    sub = command("check", _check, "run every kernel, tactic, case and dtype against the reference")
    sub.add_argument("op", nargs="?", help="one op (default: all)")
    sub.add_argument("--kernel", help="one kernel of the op")
    sub.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda", "emulate"),
        default="auto",
        help="cuda: launched; cpu: Triton interpreted, CUDA compiled; emulate: CUDA run on the CPU, which needs a C++ "
        "compiler; auto (default): cuda where there is a GPU, else cpu",
    )
    sanitizers = ("address", "undefined", "thread")
    sub.add_argument("--sanitize", choices=sanitizers, help="with --device emulate: watch the kernel with a sanitizer")
    sub.add_argument("--arch", action="append", help="on a CPU: compile for this architecture only (may be repeated)")
    sub.add_argument(
        "--every-case", action="store_true", help="on a CPU: every distinct specialization; emulated: every tactic"
    )
    sub.add_argument(
        "--as-plugin",
        choices=("aot", "jit"),
        help="drive each op as a TensorRT plugin of that kind, in the plugin host",
    )
    sub.add_argument("--bench-cases", action="store_true", help="on a GPU: run the benchmark shapes too")
    sub.add_argument("--seeds", type=int, default=2, help="on a GPU: how many random inputs per row (default 2)")
    sub.add_argument("--workers", type=int, help="worker processes (default: one per core)")
    sub.add_argument(
        "--time-limit",
        type=float,
        default=300.0,
        metavar="SECONDS",
        help="end what takes longer, such as a kernel that hangs, and fail it (default 300)",
    )
    sub.add_argument("--report", metavar="FILE", help="write counts per kernel, failures and versions to a JSON file")
    sub.add_argument("--watch", action="store_true", help="check again whenever a source of the op changes")
    sub.add_argument("-v", "--verbose", action="store_true", help="print every row")

    sub = command("new", _new, "start an op: one folder with a declaration, a kernel and the next steps")
    sub.add_argument("name", metavar="NAME", help="op, or namespace::op (the namespace is 'my' where none is given)")
    from trtforge.harness.new import TEMPLATES

    sub.add_argument("--template", required=True, choices=tuple(TEMPLATES), help="what the op begins as")
    sub.add_argument("--into", default=".", metavar="DIR", help="where the folder is made (default: here)")

    sub = command(
        "inspect", _inspect, "registers, shared memory, occupancy and instructions of a kernel, without a GPU"
    )
    sub.add_argument("target", metavar="OP[/KERNEL]|FILE", help="an op, one of its kernels, or a plan file")
    sub.add_argument("--arch", help="sm_80, sm_89, sm_90a, sm_100a, sm_120a (default: each that the kernel serves)")
    sub.add_argument("--tactic", type=int, help="one tactic, by index (default: all)")
    sub.add_argument("--case", help="the case whose label contains this text")

    from trtforge import benchmark

    benchmark.add_options(command("bench", _bench, "time kernels against each other and their peers", json_file=True))

    from trtforge.reporting import add_options

    add_options(
        command("report", _report, "write a session's checks, inspection, benchmarks, profiles to one HTML page")
    )

    from trtforge import profiling

    profiling.add_options(command("profile", _profile, "profile launches with NVIDIA's tools, and read the counters"))

    sub = command(
        "build", _build, "build a network's TensorRT engines into one plan file; TensorRT for RTX needs no GPU"
    )
    sub.add_argument(
        "model", metavar="MODEL", help="a Llama checkpoint's directory, or FILE.py[:FUNCTION] of a Network"
    )
    sub.add_argument("-o", "--out", required=True, metavar="FILE", help="the plan file to write")
    sub.add_argument("--backend", choices=("tensorrt-rtx", "tensorrt"), default="tensorrt-rtx")
    sub.add_argument(
        "--fuse", action="append", metavar="all|none|NAME", help="ops or patterns (default: the backend's)"
    )
    sub.add_argument("--dtype", choices=("auto", "float16", "bfloat16", "float32"), default="auto")
    sub.add_argument("--batch", type=int, default=1, help="sequences of a language model (default 1)")
    sub.add_argument("--max-length", type=int, help="tokens of its KV cache (default: the model's context)")
    sub.add_argument("--compute-capability", default="auto", help="such as 8.9 (default: the GPU at hand)")
    sub.add_argument(
        "--workspace-mib", type=int, default=0, help="scratch memory of a kernel (0: the library's default)"
    )
    sub.add_argument("--optimization-level", type=int, default=-1, help="0 to 5 (-1: the library's default)")
    sub.add_argument("--plugins", choices=("aot", "jit"), default="aot", help="how ops enter a TensorRT engine")
    sub.add_argument("--timing-cache", default="", metavar="FILE", help="keep timings between builds (TensorRT)")
    sub.add_argument("--tf32", action="store_true", help="allow TF32 products of float32")

    from trtforge import quantizing

    quantizing.add_quantize_options(command("quantize", _quantize, "write a Llama checkpoint with quantized layers"))
    quantizing.add_accuracy_options(
        command("accuracy", _accuracy, "perplexity and layer errors of a model under every recipe", json_file=True)
    )

    sub = command("run", _run, "run a plan file once on arrays")
    sub.add_argument("plan", metavar="FILE")
    sub.add_argument("--inputs", required=True, metavar="X.npz")
    sub.add_argument("-o", "--out", required=True, metavar="Y.npz")

    sub = command("generate", _generate, "write text with a Llama checkpoint in the Hugging Face layout, or its plan")
    sub.add_argument("model", metavar="MODEL", help="the checkpoint's directory, or a plan file of one")
    sub.add_argument("--prompt", required=True)
    sub.add_argument("--max-tokens", type=int, default=100)
    sub.add_argument("--temperature", type=float, default=0.0, help="0 takes the likeliest token (default)")
    sub.add_argument("--top-k", type=int, default=0, help="sample among the K likeliest tokens (0: all)")
    sub.add_argument("--top-p", type=float, default=1.0, help="sample among the likeliest tokens of this total mass")
    sub.add_argument("--seed", type=int, help="repeat a sampled text (default: a fresh one)")
    sub.add_argument("--dtype", choices=("auto", "float16", "bfloat16", "float32"), default="auto")
    sub.add_argument("--backend", choices=("auto", "reference", "cuda", "tensorrt-rtx", "tensorrt"), default="auto")
    sub.add_argument("--explain", action="store_true", help="print the fusion report and where each node runs")

    from trtforge import completion

    completion.add_options(command("completion", _completion, "print a script that completes commands in a shell"))
    return parser


def _json(value: Any) -> str:
    from trtforge.harness.jobs import plain

    return json.dumps(plain(value), indent=1, default=str, allow_nan=False)


def _print_json(value: Any) -> None:
    print(_json(value))


def _list(arguments: argparse.Namespace) -> int:
    from trtforge.harness.listing import list_kernels

    entries = list_kernels(arguments.op, loads=arguments.load)
    if arguments.json:
        _print_json([asdict(e) for e in entries])
    else:
        from trtforge import show

        show.console().print(show.listing(entries))
    return 0


def _new(arguments: argparse.Namespace) -> int:
    from trtforge.harness.new import new, qualified

    folder = new(arguments.name, arguments.template, into=Path(arguments.into))
    op = "::".join(qualified(arguments.name))
    command = f"trtforge check {op} --load {shlex.quote(str(folder))}"
    if arguments.json:
        _print_json({"op": op, "folder": str(folder), "next": command})
    else:
        print(f"{folder}\nnext: {command}   (more in {folder / 'README.md'})")
    return 0


def _check(arguments: argparse.Namespace) -> int:
    if arguments.watch:
        from trtforge.harness.watch import follow

        return follow(arguments.typed, arguments.op, arguments.load)
    from trtforge import show
    from trtforge.bindings.architectures import INSPECTED
    from trtforge.bindings.errors import UsageError
    from trtforge.harness.check import check, report, summary

    for option in ("seeds", "workers"):
        given = getattr(arguments, option)
        if given is not None and given < 1:
            raise UsageError(f"--{option} is {given}; at least 1 is needed")
    if not arguments.time_limit > 0:
        raise UsageError(f"--time-limit is {arguments.time_limit:g}; it must be above 0 seconds")
    if arguments.report and not Path(arguments.report).resolve().parent.is_dir():
        raise UsageError(f"--report {arguments.report}: there is no folder {Path(arguments.report).resolve().parent}")
    out = show.console()
    with show.progress(show.console(stderr=True)) as bar:
        task = bar.add_task("checking", total=None)
        rows = check(
            arguments.op,
            kernel=arguments.kernel,
            device=arguments.device,
            loads=arguments.load,
            architectures=arguments.arch or INSPECTED,
            every_case=arguments.every_case,
            as_plugin=arguments.as_plugin,
            sanitize=arguments.sanitize,
            include=("gpu", "bench") if arguments.bench_cases else ("gpu",),
            seeds=range(arguments.seeds),
            workers=arguments.workers,
            time_limit=arguments.time_limit,
            on_start=lambda total: bar.update(task, total=total),
            on_row=lambda row: bar.update(task, advance=1, description=f"{row.op}/{row.kernel}"),
        )
    if arguments.report:
        from trtforge.bindings.files import replace_file

        replace_file(arguments.report, _json(report(rows)) + "\n")
    nothing = UsageError(_nothing(arguments, len(rows))) if all(row.status == "skipped" for row in rows) else None
    if arguments.json:
        told = {"rows": [asdict(r) for r in rows], "summary": summary(rows)}
        _print_json({**told, **_error(nothing)} if nothing else told)
    elif rows:
        show.check_rows(out, rows, arguments.verbose)
    if nothing:
        return _refuse(nothing)
    return 1 if summary(rows)["failed"] else 0


def _nothing(arguments: argparse.Namespace, skipped: int) -> str:
    """Why a check that ran nothing is not a passed one, and what would run something."""
    if skipped:
        return f"nothing was checked: all {skipped} rows were skipped, for the reasons above"
    what = "/".join(filter(None, (arguments.op or "every op", arguments.kernel)))
    if arguments.device == "emulate":
        return f"nothing was checked: no CUDA kernel of {what} has a small case here; --device cpu interprets Triton"
    where = f" for {', '.join(arguments.arch)}" if arguments.arch else ""
    return (
        f"nothing was checked: {what} has no kernel with a case{where}; see trtforge list {arguments.op or ''}".rstrip()
    )


def _build(arguments: argparse.Namespace) -> int:
    from trtforge import plans

    return plans.build(arguments)


def _run(arguments: argparse.Namespace) -> int:
    from trtforge import plans

    return plans.run(arguments)


def _inspect(arguments: argparse.Namespace) -> int:
    if Path(arguments.target).is_file():
        from trtforge import plans

        return plans.inspect(arguments)
    from trtforge.harness.inspection import inspect

    found = inspect(
        arguments.target, arch=arguments.arch, tactic=arguments.tactic, case=arguments.case, loads=arguments.load
    )
    if arguments.json:
        _print_json([asdict(i) for i in found])
    else:
        from trtforge import show

        show.inspections(show.console(), found)
    return 0


def _bench(arguments: argparse.Namespace) -> int:
    from trtforge.benchmark import run

    return run(arguments)


def _report(arguments: argparse.Namespace) -> int:
    from trtforge.reporting import run

    return run(arguments)


def _profile(arguments: argparse.Namespace) -> int:
    from trtforge.profiling import run

    return run(arguments)


def _completion(arguments: argparse.Namespace) -> int:
    from trtforge.completion import script

    made = script(_parser(), arguments.shell, arguments.load)
    if arguments.json:
        _print_json({"shell": arguments.shell, "script": made})
    else:
        print(made)
    return 0


def _quantize(arguments: argparse.Namespace) -> int:
    from trtforge.quantizing import quantize

    return quantize(arguments)


def _accuracy(arguments: argparse.Namespace) -> int:
    from trtforge.quantizing import accuracy

    return accuracy(arguments)


def _generate(arguments: argparse.Namespace) -> int:
    from trtforge.generation import run

    return run(arguments)


def _error(error: ForgeError) -> dict[str, Any]:
    """An error in the JSON of a command."""
    return {"error": {"type": type(error).__name__, "message": str(error)}}


def _refuse(error: ForgeError) -> int:
    """Tell people of an error; returns the exit status."""
    print(f"trtforge: {type(error).__name__}: {error}", file=sys.stderr)
    return 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    typed = list(sys.argv[1:] if argv is None else argv)
    arguments = _parser().parse_args(typed)
    arguments.typed = typed
    try:
        status = int(arguments.run(arguments))
        sys.stdout.flush()
        return status
    except ForgeError as error:
        if arguments.json is True or arguments.json == "-":
            _print_json(_error(error))
        return _refuse(error)
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    except OSError as error:
        if error.errno not in _FULL:
            raise
        with contextlib.suppress(OSError, ValueError):  # what is still buffered has nowhere to go
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _refuse(FileError(f"cannot write the output: {error.strerror}"))
    except KeyboardInterrupt:
        print("trtforge: interrupted", file=sys.stderr)
        return 130
