"""Direct launch, JIT plugin, AOT plugin, inside a TensorRT-RTX plan: ``python benchmarks/plugin_paths.py --json FILE``.

    inputs ──▶ plan.launch ─────────────────────▶ output ──┐
           ──▶ enqueue through NVIDIA's layer ──▶ output ──┤ bit for bit the direct launch's,
           ──▶ embedded PTX, launched ──────────▶ output ──┤ and that one within tolerance of the reference
           ──▶ CUDA graph of a one-op network ──▶ output ──┘

The plugins are driven by the plugin host: a JIT row's host time is that of NVIDIA's Python layer and ours, without
TensorRT's way into Python; an AOT row's is that of the kit's launcher, where an engine launches from C++. The plan is
built by the backend ``tensorrt-rtx``, which runs registered kernels between its engines; its host time is the launch of
the captured graph. All outputs are poisoned before they are written.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trtforge.bindings import arrays, device
from trtforge.bindings.dtypes import DTYPES
from trtforge.bindings.errors import ForgeError
from trtforge.bindings.optional import require
from trtforge.graph_api import Network
from trtforge.graph_api import functional as F
from trtforge.harness.compare import compare, tolerance_of
from trtforge.harness.environment import about
from trtforge.harness.measurement import Measurement, Run, write
from trtforge.harness.plugin_paths import FORMS, Way, table, ways
from trtforge.harness.timing import host_seconds, time_alternating
from trtforge.kernels import Case, Op, registry
from trtforge.kernels.binding import Binding

_POISON = 0xFF
_HEADS = {"B": 1, "Hq": 16, "Hkv": 16, "D": 128}
#: Per family a problem that fills the GPU and one where launching is what counts; small enough for a NumPy reference.
CASES: Mapping[str, Sequence[Case]] = {
    "flash_attention": (
        Case({**_HEADS, "Sq": 2048, "Sk": 2048}, {"causal": True}, dtypes={"q": "bfloat16"}, name="prefill 2048"),
        Case({**_HEADS, "Sq": 128, "Sk": 128}, {"causal": True}, dtypes={"q": "bfloat16"}, name="prefill 128"),
    ),
    "fused_gemm": (
        Case({"M": 4096, "N": 4096, "K": 4096}, {"activation": "gelu_tanh"}, ("bias",), dtypes={"x": "bfloat16"}),
        Case({"M": 16, "N": 4096, "K": 4096}, {"activation": "gelu_tanh"}, ("bias",), dtypes={"x": "bfloat16"}),
    ),
    "gated_gemm": (
        Case({"M": 2048, "N": 4096, "K": 4096}, dtypes={"x": "bfloat16"}),
        Case({"M": 16, "N": 4096, "K": 4096}, dtypes={"x": "bfloat16"}),
    ),
    "rms_norm": (
        Case({"M": 4096, "N": 4096}, dtypes={"x": "bfloat16"}),
        Case({"M": 16, "N": 4096}, dtypes={"x": "bfloat16"}),
    ),
    "quantize_token": (
        Case({"M": 4096, "K": 4096}, {"to": "float8_e4m3fn"}, dtypes={"x": "bfloat16"}),
        Case({"M": 16, "K": 4096}, {"to": "int8"}, dtypes={"x": "bfloat16"}),
    ),
}


class Problem:
    """The inputs of a case on the host and on the device, buffers for its outputs, and what must come out."""

    def __init__(self, op: Op, case: Case):
        cupy = require("cupy", "timing plugins")
        self.op, self.case = op, case
        self.dtypes = op.dtype_combinations(case)[0]
        self.binding: Binding = op.bind_case(case, self.dtypes)
        self.inputs = op.sample_inputs(case, self.dtypes, seed=0)
        self.expected = op.run_reference(self.inputs, case.attributes)
        self._held = [arrays.to_device(array) for array in self.inputs.values()]
        self._outputs = [cupy.empty(array.nbytes, cupy.uint8) for array in self.expected.values()]
        pointers = [a.storage.data.ptr for a in self._held] + [a.data.ptr for a in self._outputs]
        self.pointers: list[int] = pointers
        self.stream = int(cupy.cuda.get_current_stream().ptr)

    def launched(self, launch: Callable[[Sequence[int], int], None]) -> list[np.ndarray]:
        """The outputs of one launch into poisoned memory, as bytes."""
        for array in self._outputs:
            array.fill(_POISON)
        launch(self.pointers, self.stream)
        device.synchronize()
        return [array.get() for array in self._outputs]

    def error(self, outputs: Sequence[np.ndarray]) -> tuple[float, str]:
        """The worst relative L2 error of outputs given as bytes, and why they are wrong ("" when they are right)."""
        worst, reason = 0.0, ""
        for (name, wanted), raw in zip(self.expected.items(), outputs):
            kind = self.binding.dtypes[name]
            found = raw.view(DTYPES[kind].numpy).reshape(wanted.shape)
            result = compare(found, wanted, tolerance_of(self.op, kind))
            worst = max(worst, result.error)
            reason = reason or ("" if result.passed else f"{name}: {result.reason}")
        return worst, reason


def planned(problem: Problem) -> tuple[Any, list[np.ndarray], str]:
    """The captured graph of a one-op network built by ``tensorrt-rtx``, its outputs as bytes, and the kernel in it."""
    op, binding = problem.op, problem.binding
    with Network(op.name.split("::")[-1]) as net:
        inputs = {
            name: net.input(name, binding.dtypes[name], tuple(int(n) for n in shape))
            for name, shape in binding.inputs.items()
        }
        made = F.call(op.name, **inputs, **problem.case.attributes)
        for name, tensor in zip(binding.outputs, made if isinstance(made, tuple) else (made,)):
            net.mark_output(tensor, f"out_{name}")
    executable: Any = net.build(backend="tensorrt-rtx")
    executable(**problem.inputs)
    executable(**problem.inputs)  # captured now
    found = executable(**problem.inputs)
    outputs = [np.ascontiguousarray(array).reshape(-1).view(np.uint8) for array in found.values()]
    (label,) = (executable.placement[node.name] for node in net.nodes)
    return executable, outputs, label


def measure(op: Op, case: Case, seconds: float) -> list[Measurement]:
    """Every way of launching one case: right first, then timed, the ways in turn."""
    cupy = require("cupy", "timing plugins")
    problem = Problem(op, case)
    target = device.current_device().architecture
    rows: list[Measurement] = []
    calls: list[tuple[Measurement, Callable[[], Any]]] = []
    direct: dict[Any, list[np.ndarray]] = {}

    def add(way: Way, outputs: list[np.ndarray], call: Callable[[], Any]) -> None:
        kernel = way.choice.kernel
        row = _row(problem, way.form, kernel.name, kernel.tactic_label(way.choice.tactic), way.note)
        key = (kernel.name, way.choice.tactic)
        known = direct.setdefault(key, outputs)
        row.error, reason = problem.error(outputs)
        if not reason and not all(map(np.array_equal, outputs, known)):
            reason = "other bits than the direct launch's"
        rows.append(row)
        if reason:
            row.note = f"wrong: {reason}"
        else:
            calls.append((row, call))

    found = ways(op, case, problem.binding, target)
    for way in found:
        launch = way.launch

        def call(launch: Callable[[Sequence[int], int], None] = launch) -> None:
            launch(problem.pointers, problem.stream)

        add(way, problem.launched(launch), call)
    try:
        executable, outputs, label = planned(problem)
    except ForgeError as error:
        rows.append(_row(problem, "plan", found[0].choice.kernel.name, "", f"absent: {error}"))
    else:
        graph, stream = executable.captured().graph, cupy.cuda.get_current_stream()
        chosen = found[0].choice
        agrees = label == f"{chosen.kernel} [{chosen.kernel.tactic_label(chosen.tactic)}]"
        note = "" if agrees else f"the plan runs {label}"
        add(Way("plan", chosen, found[0].launch, note), outputs, lambda: graph.launch(stream))
    timings = time_alternating({str(i): call for i, (_, call) in enumerate(calls)}, seconds)
    for i, (row, call) in enumerate(calls):
        timing = timings[str(i)]
        row.microseconds, row.spread, row.repeats = timing.median * 1e6, timing.spread, timing.repeats
        row.host = host_seconds(call) * 1e6
    return rows


def _row(problem: Problem, form: str, kernel: str, tactic: str, note: str) -> Measurement:
    dtype = next(iter(problem.binding.dtypes.values()))
    launch = "graph" if form == "plan" else "eager"
    return Measurement(
        problem.op.name,
        problem.case.label,
        dtype,
        f"ours: {FORMS[form]}",
        True,
        kernel,
        tactic,
        form,
        launch,
        note=note,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="direct launch, JIT plugin, AOT plugin and RTX plan, side by side")
    parser.add_argument("ops", nargs="*", help="default: one of each family")
    parser.add_argument("--seconds", type=float, default=0.1, help="device time per way and case")
    parser.add_argument("--json", type=Path, help="write the run to this file")
    arguments = parser.parse_args()
    registry.load_builtin()
    run = Run(about())
    for name in arguments.ops or CASES:
        for case in CASES[name]:
            run.rows += measure(registry.get(name), case, arguments.seconds)
    for package in ("tensorrt-rtx-cu12", "tensorrt-cu12-bindings"):
        run.about[package] = _version(package)
    print(table(run))
    if arguments.json:
        write(run, arguments.json)
    wrong = [row for row in run.rows if row.note.startswith("wrong")]
    if wrong:
        raise SystemExit("\n".join(f"{row.name}: {row.note}" for row in wrong))


def _version(package: str) -> str | None:
    import importlib.metadata

    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()
