"""A JIT plugin's ``impl``: launch a kernel of the op on TensorRT's stream with TensorRT's pointers.

TensorRT's tensors offer ``__cuda_array_interface__``, but not for bfloat16, fp8 and int4: the pointers are taken as
they are. A plan (compiled, loaded, prepared) is kept per shapes, dtypes, attributes and tactic.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

from trtforge.bindings import device
from trtforge.bindings.errors import ContractError
from trtforge.kernels import plan
from trtforge.plugins import tactics
from trtforge.plugins.schema import PluginSpec, from_tensorrt

_PLANS_KEPT = 512
_plans: OrderedDict[Any, plan.Plan] = OrderedDict()
_lock = threading.Lock()


def launch(
    spec: PluginSpec,
    inputs: Sequence[Any],
    attributes: Mapping[str, Any],
    outputs: Sequence[Any],
    stream: int,
    tactic: int,
) -> None:
    """Launch without waiting. Raises ContractError, DeclarationError, CompileError, DeviceError."""
    if any(0 in tuple(tensor.shape) for tensor in outputs):
        return  # nothing to write
    pointers = [int(tensor.data_ptr) for tensor in (*inputs, *outputs)]
    prepare(spec, inputs, attributes, tactic, pointers).launch(pointers, stream)


def prepare(
    spec: PluginSpec, inputs: Sequence[Any], attributes: Mapping[str, Any], tactic: int, pointers: Sequence[int]
) -> plan.Plan:
    """The plan of a call: from the table, or compiled and loaded now."""
    shapes = tuple(tuple(map(int, tensor.shape)) for tensor in inputs)
    dtypes = tuple(from_tensorrt(tensor.dtype) for tensor in inputs)
    alignment = _common_alignment(pointers)
    key = (spec.op, spec.inputs, device.current_ordinal(), shapes, dtypes, *attributes.items(), tactic, alignment)
    with _lock:
        found = _plans.get(key)
        if found is not None:
            _plans.move_to_end(key)
            return found
    target = device.current_device().architecture
    binding = spec.op.bind(dict(zip(spec.inputs, shapes)), dict(zip(spec.inputs, dtypes)), attributes)
    if tactic == tactics.choosing(spec.op):
        choice = spec.op.choose(binding, target, alignment=alignment)
    else:
        choice = tactics.entry(spec.op, tactic)
        reason = choice.kernel.refusal(binding, choice.tactic, target, alignment)
        if reason:
            raise ContractError(f"{choice.kernel} was chosen when the engine was built, but {reason}")
    made = plan.make(choice.kernel, choice.tactic, binding)
    with _lock:
        _plans[key] = made
        if len(_plans) > _PLANS_KEPT:
            _plans.popitem(last=False)
    return made


def _common_alignment(pointers: Sequence[int]) -> int:
    """The largest power of two, up to TensorRT's 256 bytes, that divides every pointer."""
    alignment = tactics.ALIGNMENT
    for pointer in pointers:
        while pointer % alignment:
            alignment //= 2
    return alignment
