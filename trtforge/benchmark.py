"""``trtforge bench``: the command line around :func:`trtforge.harness.bench.bench`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from trtforge.bindings.errors import UsageError

if TYPE_CHECKING:
    from trtforge.harness.measurement import Measurement, Run


def add_options(sub: argparse.ArgumentParser) -> None:
    """The arguments of ``trtforge bench``."""
    sub.add_argument("ops", nargs="*", metavar="OP", help="ops (default: all that have benchmark cases)")
    sub.add_argument("--case", default="", metavar="TEXT", help="only cases whose label contains this text")
    sub.add_argument("--dtype", help="dtype of the first input (default: the first that the case allows)")
    sub.add_argument("--kernel", help="one of our kernels (default: all)")
    sub.add_argument("--vs", action="append", metavar="PEER", help="only this peer (may be repeated); none: no peers")
    sub.add_argument("--launch", choices=("eager", "graph", "both"), default="graph", help="how calls are launched")
    sub.add_argument(
        "--tactics", choices=("best", "all"), default="best", help="all: every tactic, and write the tuning tables"
    )
    sub.add_argument("--no-tables", action="store_true", help="with --tactics all: leave the tuning tables alone")
    sub.add_argument("--forms", default="direct", metavar="direct,jit,aot", help="also as TensorRT plugins")
    sub.add_argument("--seconds", type=float, default=0.05, help="device time per contender and case (default 0.05)")
    sub.add_argument("--workers", type=int, help="processes that compile (default: one per core)")
    sub.add_argument("--plot", metavar="FILE", help="draw the run (.svg or .png)")
    sub.add_argument("--against", metavar="STORED.json", help="a stored run to compare with")
    sub.add_argument(
        "--fail-below",
        type=float,
        metavar="RATIO",
        help="exit with 1 where a peer's time (with --against: the stored time) over ours is below this",
    )


def run(arguments: argparse.Namespace) -> int:
    """Measure, print, write; 1 when a row falls below ``--fail-below`` or the GPU failed."""
    from trtforge import show
    from trtforge.bench_tables import tables
    from trtforge.harness import measurement
    from trtforge.harness.bench import bench

    stored = measurement.read(arguments.against) if arguments.against else None
    _refuse_early(arguments)
    quiet = arguments.json == "-"
    out = show.console()
    with show.progress(show.console(stderr=True)) as bar:
        task = bar.add_task("measuring", total=None)

        def on_rows(rows: list[Measurement]) -> None:
            bar.update(task, advance=1, description=f"{rows[0].op} [{rows[0].case}]" if rows else "")

        found = bench(
            *arguments.ops,
            case=arguments.case,
            dtype=arguments.dtype,
            kernel=arguments.kernel,
            vs=[] if arguments.vs == ["none"] else arguments.vs,
            launch=arguments.launch,
            tactics=arguments.tactics,
            forms=[form.strip() for form in arguments.forms.split(",") if form.strip()],
            seconds=arguments.seconds,
            loads=arguments.load,
            workers=arguments.workers,
            on_start=lambda total: bar.update(task, total=total),
            on_rows=on_rows,
        )
    found.about["command"] = " ".join(["trtforge", *arguments.typed])
    if arguments.json and not quiet:
        measurement.write(found, arguments.json)
    if quiet:
        print(json.dumps(found.to_json(), indent=1, default=str))
    else:
        tables(out, found)
    if arguments.plot:
        from trtforge.harness import plots

        plots.write(found, arguments.plot)
    if arguments.tactics == "all" and not (arguments.no_tables or arguments.kernel or "stopped" in found.about):
        written, refused = tune(found)
        for line in (*(f"wrote {path}" for path in written), *refused):
            show.console(stderr=True).print(line, markup=False)
        if refused:
            return max(1, _verdict(found, stored, arguments))
    return _verdict(found, stored, arguments)


def _refuse_early(arguments: argparse.Namespace) -> None:
    """Raise UsageError for what would be noticed only after minutes of measuring."""
    if arguments.against and arguments.fail_below is None:
        raise UsageError("--against compares for --fail-below RATIO; give both")
    for name in ("json", "plot"):
        given = getattr(arguments, name)
        if given and given != "-" and not Path(given).resolve().parent.is_dir():
            raise UsageError(f"--{name} {given}: there is no folder {Path(given).resolve().parent}")
    if arguments.plot and Path(arguments.plot).suffix not in (".svg", ".png"):
        raise UsageError(f"--plot {arguments.plot}: a plot is written as .svg or .png")


def _verdict(found: Run, stored: Run | None, arguments: argparse.Namespace) -> int:
    from trtforge import show
    from trtforge.harness import regressions

    errors = show.console(stderr=True)
    wrong = [row for row in found.rows if row.ours and row.note.startswith("wrong")]
    for row in wrong:
        errors.print(f"{row.name}: {row.note}", style="bold red", markup=False)
    if "stopped" in found.about:
        errors.print(f"stopped: {found.about['stopped']}", style="bold red", markup=False)
    lines: list[str] = []
    if arguments.fail_below is not None:
        if stored is not None:
            lines = regressions.below_stored(found, stored, arguments.fail_below)
        else:
            lines = regressions.below_peers(found, arguments.fail_below)
        for line in lines:
            errors.print(line, style="bold red", markup=False)
    return 1 if wrong or lines or "stopped" in found.about else 0


def tune(found: Run) -> tuple[list[Path], list[str]]:
    """Write the tuning tables of a run with all tactics; returns their files, and why an op has none."""
    from trtforge.bindings import device
    from trtforge.bindings.errors import ForgeError
    from trtforge.kernels import registry, tuning

    gpu = device.current_device().name
    written, refused = [], []
    for name in dict.fromkeys(row.op for row in found.rows):
        op = registry.get(name)
        try:
            entries = tuning.rows_from(op, found.rows)
            if entries:
                written.append(tuning.write(op, gpu, entries, found.about))
        except ForgeError as error:
            refused.append(f"no tuning table of {name}: {error}")
    return written, refused
