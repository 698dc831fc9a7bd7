"""Who is timed on a problem: our kernels, directly and as plugins, and the peers that the op declares.

    Source ──▶ bind(set of inputs) ──▶ a call on the current stream ──▶ outputs
                 eager   the call itself; the copies of a small problem in turn
                 graph   captured: our launches by CuPy, PyTorch's calls by PyTorch, which knows its own memory

What cannot run here comes back as a row that says why: a peer that is not installed, a call that cannot be captured.
"""

from __future__ import annotations

import gc
import itertools
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from trtforge.bindings.architectures import Architecture
from trtforge.bindings.arrays import Array
from trtforge.bindings.device import current_device, no_collection, synchronize
from trtforge.bindings.errors import ContractError, ForgeError, UnknownNameError, UsageError
from trtforge.bindings.optional import available, require
from trtforge.harness import peer_compile
from trtforge.harness.jobs import Job
from trtforge.harness.problem import Problem, poison
from trtforge.kernels import plan
from trtforge.kernels.binding import Binding
from trtforge.kernels.op import Choice, Op
from trtforge.kernels.peer import Peer

FORMS = ("direct", "jit", "aot")
LAUNCHES = ("eager", "graph")
TACTICS = ("best", "all")
#: More than this share of the device's memory is not kept from one problem to the next.
_MEMORY_SHARE = 4

Bound = Callable[[], Any]


@dataclass
class Contender:
    """Somebody to time: ``call`` is the timed call (None where ``note`` says why there is none).

    ``checked``: calls whose outputs are compared, one per copy of the inputs. ``marked``: held against the oracle; a
    peer that computes less than the op is not. ``held``: what must live as long as the call, since a captured graph
    knows addresses alone (weights that a peer has prepared, say).
    """

    name: str
    launch: str
    ours: bool = False
    kernel: str | None = None
    tactic: str | None = None
    form: str = ""
    chosen: bool = False
    note: str = ""
    call: Callable[[], Any] | None = None
    checked: Sequence[Bound] = ()
    marked: bool = True
    held: Sequence[Any] = ()


@dataclass(frozen=True)
class Selection:
    """Which contenders: one ``kernel`` of ours or all, ``tactics``, ``forms``, ``vs`` (peers by name; None: all)."""

    kernel: str | None = None
    tactics: str = "best"
    forms: Sequence[str] = ("direct",)
    vs: Sequence[str] | None = None
    launches: Sequence[str] = ("graph",)

    def __post_init__(self) -> None:
        for given, accepted, what in (
            ((self.tactics,), TACTICS, "tactics"),
            (self.forms, FORMS, "forms"),
            (self.launches, LAUNCHES, "launch"),
        ):
            for one in given:
                if one not in accepted:
                    raise UsageError(f"{what} is {one!r}; accepted: {', '.join(accepted)}")

    def peers(self, op: Op) -> list[Peer]:
        """The peers of an op that were asked for."""
        wanted = None if self.vs is None else {name.casefold() for name in self.vs}
        return [p for p in op.peers if wanted is None or p.name.casefold() in wanted]

    def check_peers(self, ops: Sequence[Op]) -> None:
        """Raise UnknownNameError for a name in ``vs`` that no op has as a peer ("none" stands for no peers)."""
        known = dict.fromkeys(p.name for op in ops for p in op.peers)
        lowered = {name.casefold() for name in known} | {"none"}
        for name in self.vs or ():
            if name.casefold() not in lowered:
                raise UnknownNameError(f"no peer is called {name!r}; there are: {', '.join(known) or 'none'}")


def choices(op: Op, binding: Binding, target: Architecture, selection: Selection) -> list[tuple[Choice, bool]]:
    """Our kernels and tactics that serve a call, the one that a plain call runs first, which is told of each.

    Empty where none serves it.
    """
    try:
        chosen = op.choose(binding, target)
    except ContractError:
        return []
    found: list[Choice] = []
    for kernel in [op.kernel_named(selection.kernel)] if selection.kernel else op.kernels:
        serving = [i for i in range(len(kernel.tactics)) if kernel.refusal(binding, i, target) is None]
        if serving and selection.tactics == "best":
            found.append(op.choose(binding, target, kernel=kernel.name))
        else:
            found += [Choice(kernel, i) for i in serving]
    return sorted([(choice, choice == chosen) for choice in found], key=lambda item: not item[1])


# ---- ours ----------------------------------------------------------------------------------------------------------


def ours(problem: Problem, selection: Selection) -> Iterator[Contender]:
    """Our kernels in every form and way of launching that was asked for."""
    op, binding = problem.op, problem.binding
    target = current_device().architecture
    found = choices(op, binding, target, selection)
    if not found:
        name = f"ours: {selection.kernel}" if selection.kernel else "ours"
        yield Contender(name, selection.launches[0], True, note="absent: no kernel can serve this call here")
    for choice, chosen in found:
        label = choice.kernel.tactic_label(choice.tactic)
        for form in selection.forms:
            if form != "direct" and not chosen:
                continue  # plugins of the kernel that a plain call runs
            launch, note = _launcher(problem, choice, form)
            for way in selection.launches:
                prefix = "ours" if form == "direct" else f"ours ({form.upper()} plugin)"
                made = Contender(
                    f"{prefix}: {choice.kernel.name} [{label}]",
                    way,
                    True,
                    choice.kernel.name,
                    label,
                    form,
                    chosen,
                    note,
                )
                if launch is not None:
                    try:
                        _bind_ours(made, problem, choice, launch)
                    except (ForgeError, RuntimeError) as error:
                        made.note = f"absent: {_one_line(error)}"
                yield made


def _launcher(problem: Problem, choice: Choice, form: str) -> tuple[Callable[..., Any] | None, str]:
    """A function of (pointers, stream), or why there is none."""
    try:
        if form == "direct":
            return plan.make(choice.kernel, choice.tactic, problem.binding).launch, ""
        from trtforge.harness import plugin_check

        dtypes = {name: problem.binding.dtypes[name] for name in problem.binding.inputs}
        arch = current_device().architecture.name
        job = Job(f"{form}-cuda", problem.op.name, choice.kernel.name, choice.tactic, 0, dtypes, arch)
        driven = plugin_check.drive(job, choice.kernel, problem.case, problem.binding)
        return plugin_check.launcher(driven, problem.binding), ""
    except ForgeError as error:
        return None, f"absent: {error}"


def _bind_ours(made: Contender, problem: Problem, choice: Choice, launch: Callable[..., Any]) -> None:
    cupy = require("cupy", "timing kernels")
    stream = cupy.cuda.get_current_stream()
    bound: list[Bound] = []
    timed: list[Callable[[], Any]] = []
    for index, inputs in enumerate(problem.sets):
        if made.launch == "eager" and made.form == "direct":
            call = _eager(problem, choice, index)
            timed.append(call)
            bound.append(_poisoned_memory(problem, index, call))
            continue
        outputs = problem.empty_outputs(index)
        pointers = [a.storage.data.ptr for a in (*inputs.values(), *outputs)]
        call = _launching(launch, pointers, int(stream.ptr))
        if made.launch == "graph":
            call = _captured_by_cupy(call, stream)
        timed.append(call)
        bound.append(_poisoned(problem, index, call, outputs))
    made.call, made.checked = rotating(timed), bound


def _launching(launch: Callable[..., Any], pointers: list[int], stream: int) -> Callable[[], Any]:
    return lambda: launch(pointers, stream)


def _eager(problem: Problem, choice: Choice, index: int) -> Callable[[], Any]:
    """The op called as a user of PyTorch calls it (of the kit's own arrays where PyTorch is absent)."""
    op, attributes = problem.op, dict(problem.binding.attributes)
    inputs = problem.torch(index) if available("torch") else [problem.sets[index].get(n) for n in op.inputs]
    kernel, tactic = choice.kernel.name, choice.tactic
    return lambda: op(*inputs, **attributes, kernel=kernel, tactic=tactic)


def _captured_by_cupy(call: Callable[[], Any], stream: Any) -> Callable[[], Any]:
    call()
    synchronize()
    with no_collection():
        stream.begin_capture()
        try:
            call()
        finally:
            graph = stream.end_capture()
    return lambda: graph.launch(stream)


def _poisoned(problem: Problem, index: int, call: Callable[[], Any], outputs: Sequence[Any]) -> Bound:
    """The call with its outputs filled with ones before: what it does not write shows.

    Not those that are inputs, by declaration or because a peer hands one through.
    """
    given = {a.storage.data.ptr for a in problem.sets[index].values()}

    def run() -> Any:
        problem.restore(index)
        for array in outputs:
            if array is not None and _address(array) not in given:
                poison(array)
        call()
        return tuple(outputs)

    return run


def _address(array: Any) -> int:
    """Where the memory of an array of the kit or of PyTorch begins."""
    return int(array.storage.data.ptr if isinstance(array, Array) else array.untyped_storage().data_ptr())


def _poisoned_memory(problem: Problem, index: int, call: Callable[[], Any]) -> Bound:
    """The call on an allocator whose free blocks of the outputs' sizes hold ones, not an earlier contender's answer."""

    def run() -> Any:
        problem.restore(index)
        sizes = [a.storage.nbytes for a in problem.empty_outputs(index)]  # CuPy's blocks, free again now
        if available("torch"):
            torch = require("torch", "PyTorch arrays")
            for size in sizes:
                torch.full((size,), 0xFF, dtype=torch.uint8, device="cuda")
        return call()

    return run


# ---- peers ---------------------------------------------------------------------------------------------------------


def peers(problem: Problem, selection: Selection) -> Iterator[Contender]:
    """The peers that the op declares, each as it is launched; absent ones say why."""
    context = problem.binding.context(dev=current_device().architecture)
    for peer in selection.peers(problem.op):
        reason = peer.refusal(context)
        calls: list[Callable[[], Any]] = []
        if reason is None:
            try:
                calls = _peer_calls(peer, problem)
            except Exception as error:  # whatever a library raises
                reason = _one_line(error)
        for way in selection.launches:
            made = Contender(peer.name, way, note=peer.instead, marked=not peer.instead)
            if reason is None:
                try:
                    _bind_peer(made, problem, calls)
                except Exception as error:
                    made.note = f"absent: {_one_line(error)}"
            else:
                made.note = f"absent: {reason}"
            yield made


def _peer_calls(peer: Peer, problem: Problem) -> list[Callable[[], Any]]:
    """The peer on every copy of the inputs, set up and compiled once each."""
    attributes = peer_compile.plain(problem.binding.attributes)
    compiled = peer_compile.compiled if peer.compile else lambda fn: fn
    if peer.setup:
        made = [peer.fn(*problem.torch(i), **attributes) for i in range(len(problem.sets))]
        return [compiled(fn) for fn in made]
    fn = compiled(peer.fn)
    return [partial(fn, *problem.torch(i), **attributes) for i in range(len(problem.sets))]


def _bind_peer(made: Contender, problem: Problem, calls: Sequence[Callable[[], Any]]) -> None:
    torch = require("torch", "timing peers")
    bound: list[Bound] = []
    timed: list[Callable[[], Any]] = []
    for index, call in enumerate(calls):
        if made.launch == "graph":
            replay, outputs = _captured_by_torch(call, torch)
            timed.append(replay)
            bound.append(_poisoned(problem, index, replay, outputs))
        else:
            timed.append(call)
            bound.append(_poisoned_memory(problem, index, call))
    made.call, made.checked, made.held = rotating(timed), bound, calls


def _captured_by_torch(call: Callable[[], Any], torch: Any) -> tuple[Callable[[], Any], tuple[Any, ...]]:
    """A replay of the call, and the outputs that it writes. The capture runs on a stream of PyTorch's own."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):  # compiles, and allocates what libraries keep per stream
            call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with no_collection(), torch.cuda.stream(side):
        graph.capture_begin(capture_error_mode="thread_local")
        try:
            outputs = call()
        finally:
            graph.capture_end()
    torch.cuda.synchronize()
    replay: Callable[[], Any] = graph.replay
    return replay, tuple(outputs) if isinstance(outputs, (tuple, list)) else (outputs,)


def rotating(calls: Sequence[Callable[[], Any]]) -> Callable[[], Any]:
    """One call after the other, for ever."""
    if len(calls) == 1:
        return calls[0]
    endless = itertools.cycle(calls)
    return lambda: next(endless)()


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}"


@contextmanager
def _quiet() -> Iterator[None]:
    """What PyTorch's compiler warns of would stand between the tables; what it cannot compile becomes a row's note."""
    loggers = [logging.getLogger(name) for name in ("torch._dynamo", "torch._inductor")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"torch\.")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels):
                logger.setLevel(level)


# ---- the stream ----------------------------------------------------------------------------------------------------


@dataclass
class Stage:
    """The stream that everything of a run is launched on, CuPy's and PyTorch's current one while it is entered."""

    stack: ExitStack = field(default_factory=ExitStack)

    def __enter__(self) -> Stage:
        cupy = require("cupy", "timing kernels")
        current_device()
        stream = cupy.cuda.Stream(non_blocking=True)
        self.stack.enter_context(stream)
        if available("torch"):
            torch = require("torch", "timing peers")
            torch.cuda.init()
            self.stack.enter_context(torch.cuda.stream(torch.cuda.ExternalStream(stream.ptr)))
            self.stack.enter_context(torch.no_grad())
            self.stack.enter_context(_quiet())
        return self

    def __exit__(self, *error: object) -> None:
        self.stack.close()

    def next_problem(self) -> None:
        """Give back memory when much is held, and let PyTorch compile afresh: of one function it stops at 8 shapes."""
        pool = require("cupy", "timing kernels").get_default_memory_pool()
        torch = require("torch", "timing peers") if available("torch") else None
        held = pool.total_bytes() + (torch.cuda.memory_reserved() if torch else 0)
        if held > current_device().memory // _MEMORY_SHARE:
            gc.collect()
            synchronize()
            pool.free_all_blocks()
            if torch:
                torch.cuda.empty_cache()
        if torch:
            torch.compiler.reset()
