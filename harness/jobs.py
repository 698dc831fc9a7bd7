"""The unit of work of the harness: one kernel, tactic, case and dtype in one mode; and what comes of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from trtforge.bindings.architectures import Architecture
from trtforge.kernels.contract import Case
from trtforge.kernels.op import Kernel, Op

#: How a job is carried out: in Triton's interpreter, by compiling and inspecting, on the GPU; or as a TensorRT plugin
#: that the plugin host drives, without and with launching what the engine would launch.
MODES = ("interpret", "compile", "cuda", "aot", "jit", "aot-cuda", "jit-cuda")
PLUGIN_MODES = MODES[3:]
#: On the CPU, compiled for it; "emulate-address", "-undefined" and "-thread" under a sanitizer.
EMULATED = "emulate"

_HOW = {
    "cuda": "launched",
    "interpret": "interpreted",
    EMULATED: "emulated",
    f"{EMULATED}-address": "emulated, AddressSanitizer",
    f"{EMULATED}-undefined": "emulated, UndefinedBehaviorSanitizer",
    f"{EMULATED}-thread": "emulated, ThreadSanitizer",
    "aot": "driven as an AOT plugin",
    "jit": "driven as a JIT plugin",
    "aot-cuda": "launched as an AOT plugin",
    "jit-cuda": "launched as a JIT plugin",
}


@dataclass(frozen=True)
class Job:
    """One check. ``case`` is the index in the op's cases; ``arch`` matters to "compile"."""

    mode: str
    op: str
    kernel: str
    tactic: int
    case: int
    dtypes: Mapping[str, str]
    arch: str
    seeds: tuple[int, ...] = (0,)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(data: dict[str, Any]) -> Job:
        return Job(**{**data, "seeds": tuple(data["seeds"])})


@dataclass
class Row:
    """One line of ``check``.

    ``device`` is where it ran; ``how`` is "launched", "interpreted", "compiled for sm_90a" (not run at all),
    "emulated" (compiled for the CPU and run there; with the sanitizer that watched), or "driven"/"launched as an
    AOT/JIT plugin".
    ``status`` is passed, failed or skipped, with the ``reason``.
    """

    op: str
    kernel: str
    language: str
    tactic: str
    tactic_index: int
    case: str
    dtype: str
    device: str
    how: str
    error: float | None = None
    tolerance: float | None = None
    status: str = "passed"
    reason: str = ""
    seconds: float = 0.0
    details: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.error = None if self.error is None else float(self.error)  # JSON carries infinities as text


#: Threads that a block may have on any architecture (CUDA C++ Programming Guide, "Technical Specifications").
_MOST_THREADS = 1024


def beyond(target: Architecture, threads: int, shared: int) -> list[str]:
    """Why no block of so many threads and bytes of shared memory (static and dynamic) can be launched, if so."""
    found = []
    if not 0 < threads <= _MOST_THREADS:
        found.append(f"has {threads} threads per block, {target.name} allows 1 to {_MOST_THREADS}")
    if shared > target.smem_per_block:
        found.append(f"needs {shared} bytes of shared memory, {target.name} allows {target.smem_per_block} per block")
    return found


def plain(value: Any) -> Any:
    """The value as JSON can carry it: numbers that are not finite become text, which ``float`` reads back."""
    if isinstance(value, Mapping):
        return {name: plain(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return repr(float(value))
    return value


def dtype_label(op: Op, dtypes: Mapping[str, str]) -> str:
    """The dtypes of the inputs that are free to vary, "float16" or "x=float16 k=float8_e4m3fn"."""
    free = [name for name, spec in op.inputs.items() if isinstance(spec.dtype, tuple) and name in dtypes]
    if len({dtypes[name] for name in free}) == 1:
        return dtypes[free[0]]
    return " ".join(f"{name}={dtypes[name]}" for name in free) or "-"


def row_of(job: Job, op: Op, kernel: Kernel, case: Case) -> Row:
    """An empty row for a job."""
    how = _HOW.get(job.mode, f"compiled for {job.arch}")
    return Row(
        op.name,
        kernel.name,
        kernel.language,
        kernel.tactic_label(job.tactic),
        job.tactic,
        case.label,
        dtype_label(op, job.dtypes),
        "cuda" if job.mode.endswith("cuda") else "cpu",
        how,
    )
