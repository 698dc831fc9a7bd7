"""Triton kernels on a CPU: Triton's own interpreter over NumPy arrays. Needs neither a GPU nor PyTorch.

Runs only in a process that was started with ``TRITON_INTERPRET=1`` (the workers of :mod:`trtforge.harness.pool`).
The interpreter computes bfloat16 wrongly (it treats the bits as integers), so bfloat16 tensors are handed to it as
float32 holding bfloat16 values: the kernel's arithmetic is checked, its final rounding is not.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from trtforge.bindings.architectures import Architecture
from trtforge.bindings.dtypes import dtype, name_of
from trtforge.bindings.errors import DeclarationError
from trtforge.harness.emulate.reports import KernelFault
from trtforge.kernels.binding import Binding
from trtforge.kernels.compile import constants_of, triton_arguments, triton_function
from trtforge.kernels.contract import Launch
from trtforge.kernels.dims import evaluate
from trtforge.kernels.op import Kernel

POISON = 0xFF
#: Bytes before and after an output: a block that stores without a mask stays within them and is found.
GUARD = 1 << 16
GUARD_BYTE = 0xA5


class HostTensor:
    """A NumPy array with the attributes that Triton's interpreter asks of a PyTorch tensor."""

    def __init__(self, array: np.ndarray):
        self.array = array
        self.dtype = array.dtype
        self.shape = array.shape
        self.device = "cpu"

    def data_ptr(self) -> int:
        return self.array.ctypes.data

    def stride(self) -> tuple[int, ...]:
        return tuple(s // self.array.itemsize for s in self.array.strides)

    def storage_offset(self) -> int:
        return 0

    def size(self) -> tuple[int, ...]:
        return self.shape

    def _itself(self, *_args: Any, **_options: Any) -> HostTensor:
        return self

    untyped_storage = cpu = new_empty = set_ = copy_ = contiguous = to = _itself


def interpreted_dtype(name: str) -> np.dtype:
    """What the interpreter is given for a dtype: float32 for bfloat16, else the type itself."""
    return np.dtype(np.float32) if name == "bfloat16" else dtype(name).numpy


def _told(error: BaseException, kernel: Kernel) -> str:
    """What went wrong in the kernel, and at which of its lines: the interpreter wraps the error it met in its own."""
    place = ""
    while True:
        lines = traceback.extract_tb(error.__traceback__)
        place = next((f" ({kernel.source.path.name}:{f.lineno})" for f in reversed(lines) if _within(kernel, f)), place)
        if error.__cause__ is None:
            break
        error = error.__cause__
    return f"{type(error).__name__}: {error}{place}"


def _within(kernel: Kernel, frame: traceback.FrameSummary) -> bool:
    return Path(frame.filename) == kernel.source.path


def run(
    kernel: Kernel, binding: Binding, tactic: int, inputs: Mapping[str, np.ndarray], target: Architecture
) -> dict[str, np.ndarray]:
    """Run one Triton kernel; returns its outputs in the declared dtypes.

    Outputs are poisoned before and lie between guard bands; a write outside, or to an input, raises KernelFault, and so
    does an error of the kernel's own. An output that updates an input in place begins as its copy and is that input.
    """
    if os.environ.get("TRITON_INTERPRET") != "1":
        raise DeclarationError("the interpreter runs only in a process started with TRITON_INTERPRET=1")
    fn = triton_function(kernel)
    launch = kernel.launch(binding, tactic, target)
    constants = constants_of(kernel, binding, tactic, launch)
    runtime, constexprs = triton_arguments(kernel, list(fn.arg_names), binding, launch, constants)
    guarded: dict[str, np.ndarray] = {}
    tensors: dict[str, np.ndarray] = {}
    for name, array in inputs.items():
        tensors[name] = np.ascontiguousarray(array.astype(interpreted_dtype(name_of(array.dtype))))
    for name, shape in binding.outputs.items():
        kind = interpreted_dtype(binding.dtypes[name])
        sizes = tuple(int(s) for s in shape)
        count = int(np.prod(sizes)) * kind.itemsize
        buffer = np.full(count + 2 * GUARD, POISON, np.uint8)
        buffer[:GUARD] = buffer[-GUARD:] = GUARD_BYTE
        guarded[name] = buffer
        tensors[name] = buffer[GUARD:-GUARD].view(kind).reshape(sizes)
        if name in binding.aliases:
            tensors[name][...] = tensors[binding.aliases[name]]
            tensors[binding.aliases[name]] = tensors[name]
    scalars = iter(evaluate(s, {}) for s in launch.scalars)
    arguments = {
        name: next(scalars) if carries == "i32" else HostTensor(tensors[carries[1:]])
        for name, carries in runtime.items()
    }
    grid = tuple(evaluate(v, {}) for v in Launch.triple(launch.grid))
    given = {name: tensors[name].copy() for name in inputs if name not in binding.aliases.values()}
    with np.errstate(all="ignore"):
        try:
            fn[grid](**arguments, **constexprs)
        except Exception as error:
            raise KernelFault(_told(error, kernel)) from error
    for name, buffer in guarded.items():
        if (buffer[:GUARD] != GUARD_BYTE).any() or (buffer[-GUARD:] != GUARD_BYTE).any():
            raise KernelFault(f"wrote outside the output {name!r}; is a mask missing at a store?")
    for name, before in given.items():
        if before.tobytes() != tensors[name].tobytes():
            raise KernelFault(
                f"changed the input {name!r}, which no output updates; is the order of the parameters right? It is: "
                f"{', '.join([*inputs, *(['scalars'] if launch.scalars else []), *binding.outputs])}"
            )
    with np.errstate(all="ignore"):
        return {name: tensors[name].astype(dtype(binding.dtypes[name]).numpy) for name in binding.outputs}
