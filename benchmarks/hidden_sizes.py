"""The curve over hidden sizes of the row kernels: ``python benchmarks/hidden_sizes.py --json FILE [--plot FILE.svg]``.

    rows x hidden size, the same bytes at every width ──▶ the kernel that a plain call runs ──┐ in turn, cold L2,
                                                     ──▶ a device copy of as many bytes ──────┘ CUDA graphs

64 to 65,536 columns, doubling, and some widths of real models between; 64 MB read and written. Every kernel is held
against the oracle first. ``--from FILE --plot FILE.svg`` draws a stored run again, without a GPU; ``--vs`` adds peers.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from trtforge.bindings import device
from trtforge.bindings.architectures import Architecture
from trtforge.bindings.files import replace_file
from trtforge.bindings.optional import require
from trtforge.harness import bench, ceilings, plots, telemetry
from trtforge.harness.contenders import Contender, Selection, Stage, ours, peers
from trtforge.harness.measurement import COPY, Measurement, Run, read, write
from trtforge.harness.plot_data import OURS, Figure, caption, short
from trtforge.harness.problem import Problem
from trtforge.harness.timing import device_clock
from trtforge.kernels import Case, Op, registry
from trtforge.kernels.compile import compile_kernel

OPS = (
    "quantize_token",
    "rms_norm_quantize_token",
    "add_rms_norm_quantize_token",
    "silu_mul_quantize_token",
)
WIDTHS = tuple(sorted([*(1 << i for i in range(6, 17)), 768, 2560, 5120, 11008, 14336, 28672]))
TOTAL = 64_000_000  # bytes read and written
DEVICE_COPY = "device copy of as many bytes"


def case_of(op: Op, width: int, total: int = TOTAL) -> Case:
    """As many rows of that width as move ``total`` bytes, bfloat16 to e4m3."""
    rows, columns = (spec.removeprefix("*") for spec in op.outputs["y"].dims)
    first = next(iter(op.inputs))

    def made(m: int) -> Case:
        return Case({rows: m, columns: width}, {"to": "float8_e4m3fn"}, dtypes={first: "bfloat16"}, name=f"N{width}")

    one = cost_of(op, made(1))
    return made(max(1, round((total - one) / (cost_of(op, made(2)) - one)) + 1))


def cost_of(op: Op, case: Case) -> int:
    return int(op.cost_of(op.bind_case(case, op.dtype_combinations(case)[0])).bytes or 0)


def _compiled(name: str, width: int, target: Architecture) -> None:
    """Put the kernel of one point into the cache on disk."""
    registry.load_builtin()
    op = registry.get(name)
    case = case_of(op, width)
    binding = op.bind_case(case, op.dtype_combinations(case)[0])
    choice = op.choose(binding, target)
    compile_kernel(choice.kernel, binding, choice.tactic, target)


def _copy(size: int) -> Contender:
    """A copy that reads and writes ``size`` bytes together, in a CUDA graph."""
    cupy = require("cupy", "timing a copy")
    source, target = (cupy.zeros(size // 2, cupy.uint8) for _ in range(2))
    stream = cupy.cuda.get_current_stream()
    device.synchronize()
    with device.no_collection():
        stream.begin_capture()
        try:
            target.data.copy_from_device_async(source.data, size // 2, stream)
        finally:
            graph = stream.end_capture()
    return Contender(DEVICE_COPY, "graph", call=lambda: graph.launch(stream), marked=False, held=(source, target))


def measured(names: Sequence[str], widths: Sequence[int], seconds: float, vs: Sequence[str]) -> Run:
    """Time every op at every width. Raises DeviceError without a GPU."""
    device.require_gpu("the curve over hidden sizes")
    target = device.current_device().architecture
    points = [(name, width, target) for name in names for width in widths]
    workers = min(os.cpu_count() or 1, len(points))
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        for made in [pool.submit(_compiled, *point) for point in points]:
            made.result()
    selection = Selection(vs=vs)
    run = Run(about=bench.about())
    with Stage() as stage:
        run.about["before"] = telemetry.read()
        run.ceilings = ceilings.measure(())
        for name, width, _ in points:
            stage.next_problem()
            op = registry.get(name)
            case = case_of(op, width)
            problem = Problem(op, case, op.dtype_combinations(case)[0])
            contenders = [
                next(ours(problem, selection)),
                _copy(int(problem.cost.bytes or 0)),
                *peers(problem, selection),
            ]
            run.rows += bench.measure(problem, contenders, run.ceilings, seconds, device_clock())
            print(*map(line, run.rows[-len(contenders) :]), sep="\n", flush=True)
        run.about["after"] = telemetry.read()
    return run


def line(row: Measurement) -> str:
    """One row, for the terminal."""
    time = f"{row.microseconds:9.1f} us {row.rate:7.0f} GB/s" if row.microseconds and row.rate else "  no time"
    return f"{short(row.op):30} {row.case:8} {time}  {row.contender} {row.note}"


def figure(run: Run) -> Figure:
    """Rates over hidden sizes, a panel per op."""
    panels: list[dict[str, Any]] = []
    for op in dict.fromkeys(row.op for row in run.rows):
        lines: dict[str, list[list[float]]] = {}
        for row in (r for r in run.rows if r.op == op and r.rate):
            name = OURS if row.ours else row.contender
            lines.setdefault(name, []).append([int(row.case.removeprefix("N")), row.rate or 0.0])
        if lines:
            panels.append(
                {"op": short(op), "title": f"{TOTAL // 10**6} MB", "axis": "N", "unit": "GB/s", "lines": lines}
            )
    return Figure("hidden_sizes", "scaling", "quantization over hidden sizes", caption(run, run.rows), panels)


def of_copy(run: Run) -> Iterable[tuple[str, str, float]]:
    """Op, case, and our rate over the copy's of the same bytes."""
    for (op, case, *_), rows in run.problems().items():
        rates = {row.ours: row.rate for row in rows if row.rate and (row.ours or row.contender == DEVICE_COPY)}
        if len(rates) == 2:
            yield op, case, rates[True] / rates[False]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description="quantization of rows over hidden sizes, beside a copy of as many bytes"
    )
    parser.add_argument("ops", nargs="*", help=f"default: {' '.join(OPS)}")
    parser.add_argument("--widths", type=int, nargs="*", default=list(WIDTHS))
    parser.add_argument("--seconds", type=float, default=0.01, help="device time per contender and width")
    parser.add_argument("--vs", nargs="*", default=[], help="peers, by name")
    parser.add_argument("--json", type=Path, help="write the run to this file")
    parser.add_argument("--from", dest="stored", type=Path, help="a stored run instead of a new one")
    parser.add_argument("--plot", type=Path, help="draw the run into this SVG")
    given = parser.parse_args(arguments)
    registry.load_builtin()
    run = read(given.stored) if given.stored else measured(given.ops or OPS, given.widths, given.seconds, given.vs)
    if given.json:
        write(run, given.json)
    if given.plot:
        replace_file(given.plot, plots.svg(figure(run)))
    for op, case, share in of_copy(run):
        print(f"{short(op):30} {case:8} {share:6.1%} of a copy")
    print(f"copy: {run.ceilings.get(COPY, 0):,.0f} GB/s")
    wrong = [row for row in run.rows if row.note.startswith("wrong")]
    if wrong:
        sys.exit("\n".join(f"{row.name}: {row.note}" for row in wrong))


if __name__ == "__main__":
    main()
