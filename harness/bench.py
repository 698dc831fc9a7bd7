"""``trtforge bench``: our kernels and their peers on the declarations' benchmark cases.

Per case, in this order: everything is compiled, the oracle computes parts of the answer, every contender is held
against it on the inputs that will be timed, and those that are right are timed in turn. Ceilings are measured first.
"""

from __future__ import annotations

import importlib.metadata
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from trtforge.bindings import device
from trtforge.bindings.errors import DeviceError, ForgeError, UnknownNameError, UsageError
from trtforge.bindings.optional import available, require
from trtforge.harness import ceilings, peer_compile, telemetry
from trtforge.harness.check import warm_cache
from trtforge.harness.contenders import LAUNCHES, Contender, Selection, Stage, choices, ours, peers
from trtforge.harness.environment import about as environment
from trtforge.harness.jobs import Job
from trtforge.harness.measurement import Measurement, Run
from trtforge.harness.problem import Problem
from trtforge.harness.stopwatch import Stopwatch
from trtforge.harness.timing import Clock, Timing, device_clock, host_seconds, time_alternating
from trtforge.kernels import registry
from trtforge.kernels.binding import Binding
from trtforge.kernels.contract import Case
from trtforge.kernels.op import Op

#: Only calls that take the device less are also timed on the host: longer ones hide it.
_HOST_MATTERS = 5e-4
#: How ``about["stopped"]`` of a run begins that ended because it was told to.
TIME_LIMIT = "time limit"


@dataclass(frozen=True)
class Planned:
    """One case of an op with the dtypes of its inputs."""

    op: Op
    case: Case
    dtypes: Mapping[str, str]

    @property
    def binding(self) -> Binding:
        return self.op.bind_case(self.case, self.dtypes)

    @property
    def name(self) -> str:
        return f"{self.op.name} [{self.case.label}]"


def cases_of(op: Op, text: str = "") -> list[Case]:
    """The op's benchmark cases whose label contains ``text``; of all its cases, where no benchmark case does.

    An op without benchmark cases is measured on its largest case. Raises UnknownNameError, which lists the labels.
    """
    marked = [c for c in op.cases if "bench" in c.tags]
    if not text:
        if marked or not op.cases:
            return marked
        return [max(op.cases, key=lambda c: op.cost_of(op.bind_case(c, op.dtype_combinations(c)[0])).bytes or 0)]
    found = [c for c in marked if text in c.label] or [c for c in op.cases if text in c.label]
    if not found:
        labels = "; ".join(dict.fromkeys(c.label for c in (marked or op.cases)))
        raise UnknownNameError(f"{op.name} has no case whose label contains {text!r}; its benchmark cases: {labels}")
    return found


def plan(ops: Sequence[Op], case: str = "", dtype: str | None = None) -> list[Planned]:
    """What is measured: of every case the first dtypes, or those whose first input is of ``dtype``.

    Raises UnknownNameError when ``case`` or ``dtype`` fits nothing.
    """
    found: list[Planned] = []
    refused: list[UnknownNameError] = []
    offered: dict[str, None] = {}
    for op in ops:
        try:
            listed = cases_of(op, case)
        except UnknownNameError as error:
            refused.append(error)
            continue
        for one in listed:
            combinations = op.dtype_combinations(one)
            first = [next(iter(c.values())) for c in combinations]
            offered.update(dict.fromkeys(first))
            if dtype is None:
                found.append(Planned(op, one, combinations[0]))
            else:
                found += [Planned(op, one, c) for c, name in zip(combinations, first) if name == dtype]
    if found:
        return found
    if offered:
        raise UnknownNameError(f"no benchmark case has a first input of {dtype!r}; there are: {', '.join(offered)}")
    if len(refused) == 1:
        raise refused[0]
    if refused:
        raise UnknownNameError(
            f"no op has a case whose label contains {case!r}; 'trtforge bench OP --case x' lists them"
        )
    raise UsageError("there is no op with a case to measure")


def selected_ops(names: Sequence[str], loads: Sequence[str]) -> list[Op]:
    """The ops of these names, or every op that has benchmark cases."""
    registry.load_builtin()
    for target in loads:
        registry.load(target)
    if names:
        return [registry.get(name) for name in dict.fromkeys(names)]
    return [one for one in registry.ops() if any("bench" in c.tags for c in one.cases)]


def bench(
    *ops: str,
    case: str = "",
    dtype: str | None = None,
    kernel: str | None = None,
    vs: Sequence[str] | None = None,
    launch: str = "graph",
    tactics: str = "best",
    forms: Sequence[str] = ("direct",),
    seconds: float = 0.05,
    loads: Sequence[str] = (),
    workers: int | None = None,
    time_limit: float | None = None,
    on_start: Callable[[Mapping[str, int]], None] | None = None,
    on_case: Callable[[Run, list[Measurement]], None] | None = None,
) -> Run:
    """Measure ops (all that have benchmark cases, where none is named) and their peers; needs a GPU and CuPy.

    ``case``: only cases whose label contains this text. ``dtype`` of the first input. ``kernel``: one of ours. ``vs``:
    names of peers, () for none, None for all. ``launch``: "graph", "eager" or "both". ``tactics``: "best" (one per
    kernel) or "all". ``forms``: "direct", "jit", "aot". ``seconds``: device time per contender and case. ``workers``:
    processes that compile. ``time_limit``: seconds after which no further case is begun. ``on_start`` is told
    how many cases each op has, ``on_case`` the run so far and the rows of each case.

    Returns the run. Where it ended early (a failed GPU, an interrupt, the time limit), ``about["stopped"]`` says why,
    and the rows until then stand; a run that is handed to ``on_case`` is marked so too. ``about["seconds"]`` tells what
    took how long. Raises DeviceError without a GPU, UnknownNameError, UsageError.
    """
    begin = time.monotonic()
    if launch not in (*LAUNCHES, "both"):
        raise UsageError(f"launch is {launch!r}; accepted: {', '.join(LAUNCHES)}, both")
    if not seconds > 0:
        raise UsageError(f"seconds is {seconds!r}; it must be positive")
    if time_limit is not None and not time_limit > 0:
        raise UsageError(f"time_limit is {time_limit!r}; it must be positive")
    selection = Selection(kernel, tactics, tuple(forms), vs, LAUNCHES if launch == "both" else (launch,))
    chosen = selected_ops(ops, loads)
    selection.check_peers(chosen)
    planned = plan(chosen, case, dtype)
    device.require_gpu("bench")
    require("cupy", "bench")
    run = Run(about=about())
    if on_start:
        on_start(Counter(one.op.name for one in planned))
    cores = workers or os.cpu_count() or 1

    def prepare(watch: Stopwatch) -> None:
        with watch.phase("compiling kernels"):
            _compile_ahead(planned, selection, loads, cores)
        with watch.phase("compiling peers"):
            _compile_peers(planned, selection, loads, cores)

    with Stage() as stage:

        def start() -> None:
            run.about["before"] = telemetry.read()
            run.ceilings = ceilings.measure(dict.fromkeys(next(iter(p.binding.dtypes.values())) for p in planned))

        def one_case(one: Planned, watch: Stopwatch) -> list[Measurement]:
            stage.next_problem()
            return _measured(one, selection, run.ceilings, seconds, watch)

        limit = None if time_limit is None else begin + time_limit
        _measure_all(run, planned, prepare, start, one_case, limit, on_case)
        run.about["after"] = telemetry.read()
    run.about["seconds"]["total"] = round(time.monotonic() - begin, 3)
    return run


def _measure_all(
    run: Run,
    planned: Sequence[Planned],
    prepare: Callable[[Stopwatch], None],
    start: Callable[[], None],
    one_case: Callable[[Planned, Stopwatch], list[Measurement]],
    limit: float | None,
    on_case: Callable[[Run, list[Measurement]], None] | None,
) -> None:
    """Measure case by case into ``run``, which is marked as stopped whenever it does not hold all of them.

    ``limit``: the monotonic time after which no case is begun.
    """
    whole = Stopwatch()
    cases: list[dict[str, Any]] = []
    done, at = 0, "compiling"
    run.about["seconds"] = {}

    def note(why: str) -> None:
        run.about["stopped"] = f"{why}; {done} of {len(planned)} cases were measured"
        run.about["seconds"] = {**whole.rounded(), "cases": cases}  # of "measuring": the phases of all cases together

    try:
        note("not finished")
        prepare(whole)
        at = "ceilings"
        with whole.phase(at), _device_failures(at):
            start()
        for one in planned:
            if limit is not None and time.monotonic() > limit:
                note(TIME_LIMIT)
                return
            at = one.name
            watch = Stopwatch()
            with whole.phase("measuring"):
                rows = one_case(one, watch)
            whole.add(watch)
            cases.append({"case": f"{at} {next(iter(one.dtypes.values()))}", **watch.rounded()})
            run.rows += rows
            done += 1
            note("not finished")
            if on_case:
                on_case(run, rows)
    except _Stopped as stopped:
        note(str(stopped))
    except KeyboardInterrupt as interrupt:
        note(f"{at}: {str(interrupt) or 'interrupted'}")
    else:
        del run.about["stopped"]


class _Stopped(Exception):
    """The GPU failed: nothing more can be measured in this process."""


@contextmanager
def _device_failures(what: str) -> Iterator[None]:
    """CUDA errors that PyTorch and CuPy raise as RuntimeError, told once and as what they are."""
    try:
        yield
    except (DeviceError, RuntimeError) as error:
        if isinstance(error, ForgeError) and not isinstance(error, DeviceError):
            raise
        text = " ".join(str(error).split())[:300]
        raise _Stopped(f"{what}: {type(error).__name__}: {text}") from error


def _measured(
    one: Planned, selection: Selection, limits: dict[str, float], seconds: float, watch: Stopwatch
) -> list[Measurement]:
    with _device_failures(one.name):
        try:
            with watch.phase("inputs"):
                problem = Problem(one.op, one.case, one.dtypes)
                device.synchronize()
        except DeviceError:
            raise
        except ForgeError as error:  # a sample that its declaration makes wrongly: the other cases go on
            label = Measurement(one.op.name, one.case.label, next(iter(one.dtypes.values())), "ours", True)
            return [replace(label, note=f"absent: {error}")]
        with watch.phase("our contenders"):
            contenders = [*ours(problem, selection)]
        with watch.phase("peers"):
            contenders += peers(problem, selection)
        return measure(problem, contenders, limits, seconds, device_clock(), watch=watch)


def _compile_ahead(planned: Sequence[Planned], selection: Selection, loads: Sequence[str], workers: int) -> None:
    """Compile every kernel that will be timed, in parallel processes."""
    target = device.current_device().architecture
    jobs = []
    for one in planned:
        index = list(one.op.cases).index(one.case)
        for choice, _ in choices(one.op, one.binding, target, selection):
            jobs.append(
                Job("compile", one.op.name, choice.kernel.name, choice.tactic, index, dict(one.dtypes), target.name)
            )
    warm_cache(jobs, loads, workers)


def _compile_peers(planned: Sequence[Planned], selection: Selection, loads: Sequence[str], workers: int) -> None:
    """Fill the disk cache of torch.compile for the peers that will be timed, in parallel processes."""
    target = device.current_device().architecture
    pairs = []
    for one in planned:
        index = list(one.op.cases).index(one.case)
        context = one.binding.context(dev=target)
        for peer in selection.peers(one.op):
            if peer.compile and not peer.setup and peer.refusal(context) is None:
                pairs.append(peer_compile.Pair(one.op.name, index, dict(one.dtypes), peer.name))
    if pairs:
        peer_compile.warm(pairs, loads, workers)


# ---- one problem ---------------------------------------------------------------------------------------------------


def measure(
    problem: Any,
    contenders: Sequence[Contender],
    limits: dict[str, float],
    seconds: float,
    clock: Clock,
    host: Callable[[Callable[[], Any]], float] = host_seconds,
    on_timing: Callable[[Measurement, Timing], None] | None = None,
    watch: Stopwatch | None = None,
) -> list[Measurement]:
    """Check every contender, time those that are right in turn, and return a row for each.

    An eager call counts with the longer of its times on the device and on the host; the note says when the host is it.
    ``on_timing`` is told every row with its intervals, ``watch`` what took how long.
    """
    watch = watch or Stopwatch()
    rows = [_row(problem, contender) for contender in contenders]
    try:
        with watch.phase("oracle"):
            problem.answers  # noqa: B018  (before anybody changes an input that is updated in place)
    except ForgeError as error:
        for row, contender in zip(rows, contenders):
            row.note = f"unchecked: {error}" if contender.call else row.note
        return rows
    right: dict[str, tuple[Measurement, Contender]] = {}
    with watch.phase("checking"):
        for index, (row, contender) in enumerate(zip(rows, contenders)):
            if contender.call is not None and _is_right(problem, contender, row):
                right[str(index)] = (row, contender)
    with watch.phase("timing"):
        timings = time_alternating({key: c.call for key, (_, c) in right.items() if c.call}, seconds, clock)
    for key, (row, contender) in right.items():
        timing = timings[key]
        row.microseconds, row.spread, row.repeats = timing.median * 1e6, timing.spread, timing.repeats
        if contender.launch == "eager" and contender.call and timing.median < _HOST_MATTERS:
            with watch.phase("timing the host"):
                _host_time(row, host(contender.call) * 1e6)
        _rate(row, problem, limits)
        if on_timing:
            on_timing(row, timing)
    return rows


def _is_right(problem: Any, contender: Contender, row: Measurement) -> bool:
    """Run a contender on every copy of the inputs and compare; what it says when it cannot run goes into the row."""
    for bound in contender.checked:
        try:
            outputs = bound()
            if not contender.marked:
                continue
            error, wrong = problem.judge(outputs)
        except ForgeError as failure:
            row.note = f"absent: {failure}"
            return False
        except RuntimeError as failure:
            text = " ".join(str(failure).split())
            if "CUDA error" in text or "cudaError" in text or "CUDA_ERROR" in text:
                raise
            row.note = f"absent: {type(failure).__name__}: {text[:200]}"
            return False
        row.error = error if row.error is None else max(row.error, error)
        if wrong:
            row.note = f"wrong: {wrong}"
            return False
    return True


def _row(problem: Any, contender: Contender) -> Measurement:
    cost = problem.cost
    return Measurement(
        problem.op.name,
        problem.case.label,
        problem.dtype,
        contender.name,
        contender.ours,
        contender.kernel,
        contender.tactic,
        contender.form,
        contender.launch,
        unit="TFLOP/s" if ceilings.compute_bound(cost) else "GB/s",
        note=contender.note,
        chosen=contender.chosen,
        flops=int(cost.flops),
        bytes=int(cost.bytes or 0),
    )


def _host_time(row: Measurement, host: float) -> None:
    row.host = host
    on_device = row.microseconds
    if on_device is not None and host > on_device:
        row.microseconds = host
        row.note = "; ".join(n for n in (row.note, f"host-bound: {on_device:.1f} µs on the device") if n)


def _rate(row: Measurement, problem: Any, limits: dict[str, float]) -> None:
    assert row.microseconds is not None
    took = row.microseconds * 1e-6
    cost = problem.cost
    row.rate = cost.flops / took / 1e12 if row.unit == "TFLOP/s" else (cost.bytes or 0) / took / 1e9
    least = ceilings.least_seconds(cost, problem.dtype, limits, problem.written)
    row.roofline = None if least is None else least / took


# ---- what it was measured with ---------------------------------------------------------------------------------------


def about() -> dict[str, Any]:
    """Machine, versions and date, with those of the libraries that the peers come from."""
    found = environment()
    found["kit"] = found.pop("trtforge", None)
    if available("torch"):
        torch = require("torch", "timing peers")
        found["cuda"], found["cudnn"] = torch.version.cuda, _cudnn(torch)
    for package in ("nvidia-cublas", "nvidia-cublas-cu13", "nvidia-cublas-cu12"):
        try:
            found["cublas"] = importlib.metadata.version(package)
            break
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _cudnn(torch: Any) -> str | None:
    version = torch.backends.cudnn.version()
    return None if version is None else f"{version // 10000}.{version // 100 % 100}.{version % 100}"
