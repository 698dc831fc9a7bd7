"""One kernel on the GPU with poisoned outputs and guard bands around every tensor."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from trtforge.bindings import device
from trtforge.bindings.dtypes import dtype
from trtforge.bindings.errors import DeclarationError
from trtforge.bindings.optional import require
from trtforge.kernels import plan
from trtforge.kernels.binding import Binding
from trtforge.kernels.op import Kernel

POISON = 0xFF
GUARD = 4096
GUARD_BYTE = 0xA5


def _guarded(size: int) -> Any:
    cupy = require("cupy", "checking kernels on the GPU")
    buffer = cupy.full(size + 2 * GUARD, POISON, cupy.uint8)
    buffer[:GUARD] = GUARD_BYTE
    buffer[GUARD + size :] = GUARD_BYTE
    return buffer


def _broken(buffer: Any, size: int) -> bool:
    return bool((buffer[:GUARD] != GUARD_BYTE).any()) or bool((buffer[GUARD + size :] != GUARD_BYTE).any())


def run(kernel: Kernel, binding: Binding, tactic: int, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Launch once; returns the outputs. Raises DeclarationError when the kernel wrote outside an output."""
    return run_with(str(kernel), binding, inputs, plan.make(kernel, tactic, binding).launch)


def run_with(
    label: str,
    binding: Binding,
    inputs: Mapping[str, np.ndarray],
    launch: Callable[[Sequence[int], int], None],
) -> dict[str, np.ndarray]:
    """Call ``launch(pointers, stream)`` once on guarded copies of the inputs and poisoned outputs; see :func:`run`.

    An output that updates an input in place is the copy of that input.
    """
    cupy = require("cupy", "checking kernels on the GPU")
    buffers: dict[str, tuple[Any, int]] = {}
    for name, array in inputs.items():
        buffer = _guarded(array.nbytes)
        buffer[GUARD : GUARD + array.nbytes] = cupy.asarray(array.reshape(-1).view(np.uint8))
        buffers[name] = (buffer, array.nbytes)
    for name, shape in binding.outputs.items():
        if name in binding.aliases:
            buffers[name] = buffers[binding.aliases[name]]
            continue
        size = int(np.prod([int(s) for s in shape])) * dtype(binding.dtypes[name]).itemsize
        buffers[name] = (_guarded(size), size)
    pointers = [buffers[name][0].data.ptr + GUARD for name in (*binding.inputs, *binding.outputs)]
    device.synchronize()
    launch(pointers, 0)
    device.synchronize()
    for name, (buffer, size) in buffers.items():
        if _broken(buffer, size):
            raise DeclarationError(f"{label}: wrote outside {name!r}")
    updated = set(binding.aliases.values())
    for name, array in inputs.items():
        if name in updated:
            continue
        held = buffers[name][0][GUARD : GUARD + array.nbytes].get()
        if not np.array_equal(held, array.reshape(-1).view(np.uint8)):
            raise DeclarationError(f"{label}: changed its input {name!r}")
    outputs = {}
    for name, shape in binding.outputs.items():
        buffer, size = buffers[name]
        raw = buffer[GUARD : GUARD + size].get()
        outputs[name] = raw.view(dtype(binding.dtypes[name]).numpy).reshape([int(s) for s in shape])
    return outputs
