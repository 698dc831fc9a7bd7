"""One kernel launched in four ways: by the kit, as a JIT plugin, as an AOT plugin, and from inside a TensorRT-RTX plan.

The rows are :class:`~trtforge.harness.measurement.Measurement` with ``form`` "direct", "jit", "aot" or "plan";
``microseconds`` is time on the device, ``host`` what a call keeps the host busy. ``benchmarks/plugin_paths.py``
measures, :func:`table` prints.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from trtforge.bindings.architectures import Architecture
from trtforge.bindings.errors import ContractError, ForgeError
from trtforge.harness import plugin_check
from trtforge.harness.jobs import Job
from trtforge.harness.measurement import Measurement, Run
from trtforge.kernels import plan
from trtforge.kernels.binding import Binding
from trtforge.kernels.contract import Case
from trtforge.kernels.op import Choice, Op
from trtforge.plugins import tactics

FORMS = {
    "direct": "direct launch",
    "jit": "JIT plugin",
    "aot": "AOT plugin",
    "plan": "inside an RTX plan",
}

Launch = Callable[[Sequence[int], int], None]


@dataclass(frozen=True)
class Way:
    """A form with the kernel that it launches; ``launch`` takes (pointers, stream), inputs before outputs."""

    form: str
    choice: Choice
    launch: Launch
    note: str = ""


def ways(op: Op, case: Case, binding: Binding, target: Architecture) -> list[Way]:
    """Direct, JIT and AOT launches of the kernel that an eager call takes, and of the first one that can be embedded.

    Where that kernel cannot be embedded, the AOT plugin is another kernel of the op, and its direct launch is a row
    too. Raises ContractError where nothing serves the case.
    """
    chosen = op.choose(binding, target)
    found = [_direct(chosen, binding), _plugin("jit", op, case, binding, chosen, target)]
    reason = tactics.refusal(chosen, binding, {}, target, aot=True)
    for kernel in sorted(op.kernels, key=lambda k: k is not chosen.kernel):
        try:
            choice = op.choose(binding, target, kernel=kernel.name)
        except ContractError:
            continue
        if tactics.refusal(choice, binding, {}, target, aot=True) is not None:
            continue
        try:
            embedded = _plugin("aot", op, case, binding, choice, target)
        except ForgeError as error:  # scratch memory shows in the compiled code only
            reason = reason or str(error)
            continue
        if (choice.kernel, choice.tactic) != (chosen.kernel, chosen.tactic):
            note = f"{chosen.kernel.name} {reason}" if reason else ""
            return [*found, _direct(choice, binding), Way("aot", choice, embedded.launch, note)]
        return [*found, embedded]
    return found


def _direct(choice: Choice, binding: Binding) -> Way:
    return Way("direct", choice, plan.make(choice.kernel, choice.tactic, binding).launch)


def _plugin(form: str, op: Op, case: Case, binding: Binding, choice: Choice, target: Architecture) -> Way:
    dtypes = {name: binding.dtypes[name] for name in binding.inputs}
    job = Job(f"{form}-cuda", op.name, choice.kernel.name, choice.tactic, 0, dtypes, target.name)
    driven = plugin_check.drive(job, choice.kernel, case, binding)
    return Way(form, choice, plugin_check.launcher(driven, binding))


def table(run: Run) -> str:
    """Markdown: one row per op, case and kernel, for every form the time on the device and the host's time per call."""
    lines = [
        "| op | case | kernel | " + " | ".join(f"{title}, µs" for title in FORMS.values()) + " |",
        "|---|---|---|" + "---:|" * len(FORMS),
    ]
    groups: dict[tuple[str, ...], dict[str, Measurement]] = {}
    for row in run.rows:
        if row.form in FORMS:
            groups.setdefault((row.op, row.case, row.dtype, _kernel(row)), {}).setdefault(row.form, row)
    notes: dict[str, None] = {}
    for (op, case, dtype, kernel), rows in groups.items():
        cells = " | ".join(_cell(rows.get(form)) for form in FORMS)
        lines.append(f"| {op.split('::')[-1]} | {case} {dtype} | {kernel} | {cells} |")
        notes.update((f"{op.split('::')[-1]}, {case}: {row.note}", None) for row in rows.values() if row.note)
    lines += ["", "Time on the device (cold L2 cache, median) / time that the call keeps the host busy."]
    lines += [f"- {note}" for note in notes]
    return "\n".join(lines) + "\n"


def _kernel(row: Measurement) -> str:
    return f"{row.kernel} [{row.tactic}]" if row.tactic not in (None, "", "-") else str(row.kernel)


def _cell(row: Measurement | None) -> str:
    if row is None:
        return "–"
    if row.microseconds is None:
        return "absent" if row.note.startswith("absent") else "wrong"
    return f"{row.microseconds:.1f} / {row.host:.1f}" if row.host is not None else f"{row.microseconds:.1f}"
