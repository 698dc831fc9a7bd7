"""Calling an op on arrays.

``y = rms_norm(x, weight, eps=1e-5)``: device arrays run a registered kernel on the caller's current stream and return
arrays of the caller's framework; NumPy arrays run on the GPU when there is one and the reference otherwise. Options:
``kernel=`` and ``tactic=`` pin an implementation, ``out=`` takes preallocated outputs, ``stream=`` a CUstream handle,
``device="cpu"|"cuda"`` decides for NumPy arrays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from trtforge.bindings import arrays, device
from trtforge.bindings.arrays import View
from trtforge.bindings.errors import ContractError
from trtforge.kernels.op import Op
from trtforge.kernels.plan import Plan, plan

_OPTIONS = ("kernel", "tactic", "out", "stream", "device")
_PLANS_KEPT = 1024


def call(op: Op, inputs: Sequence[Any], options: Mapping[str, Any]) -> Any:
    """Run ``op``; returns one array, or a tuple in declared order. Raises ContractError, DeviceError, CompileError."""
    given, attributes, choice = _sort_arguments(op, inputs, options)
    views = {name: arrays.view(value, f"{op.name}: input {name!r}") for name, value in given.items()}
    on_device = [v for v in views.values() if v.device != "cpu"]
    if not on_device:
        return _from_host(op, given, attributes, choice)
    placed = {v.device for v in views.values()}
    if len(placed) != 1 or choice.get("device") == "cpu":
        where = ", ".join(f"{n} on {v.device}" for n, v in views.items())
        raise ContractError(f"{op.name}: all inputs must be on one device, got {where}; copy them first")
    return _on_device(op, views, attributes, choice)


def _sort_arguments(
    op: Op, inputs: Sequence[Any], options: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    names = list(op.inputs)
    if len(inputs) > len(names):
        raise ContractError(f"{op.name} takes {len(names)} inputs ({', '.join(names)}), {len(inputs)} were given")
    given = dict(zip(names, inputs))
    attributes: dict[str, Any] = {}
    choice: dict[str, Any] = {}
    for name, value in options.items():
        if name in op.inputs:
            if name in given:
                raise ContractError(f"{op.name}: input {name!r} was given twice")
            given[name] = value
        elif name in op.attributes:
            attributes[name] = value
        elif name in _OPTIONS:
            choice[name] = value
        else:
            known = ", ".join([*names, *op.attributes, *_OPTIONS])
            raise ContractError(f"{op.name}: no argument {name!r}; accepted: {known}")
    ordered = {name: given[name] for name in names if given.get(name) is not None}
    return ordered, attributes, choice


def _from_host(op: Op, given: Mapping[str, Any], attributes: Mapping[str, Any], choice: Mapping[str, Any]) -> Any:
    wanted = choice.get("device", "cuda" if choice.get("kernel") or device.has_gpu() else "cpu")
    if wanted not in ("cpu", "cuda"):
        raise ContractError(f"{op.name}: device is {wanted!r}; accepted: 'cpu', 'cuda'")
    if choice.get("out") is not None:
        raise ContractError(f"{op.name}: out= takes device arrays; NumPy inputs return new arrays")
    host = {name: np.asarray(value) for name, value in given.items()}
    if wanted == "cpu":
        if choice.get("kernel"):
            raise ContractError(f"{op.name}: kernel={choice['kernel']!r} needs device='cuda'")
        results = list(op.run_reference(host, attributes).values())
    else:
        device.require_gpu(f"{op.name} on NumPy arrays with device='cuda'")
        copied = {name: arrays.view(arrays.to_device(value)) for name, value in host.items()}
        raw = _on_device(op, copied, attributes, choice)
        results = [r.to_numpy() for r in (raw if isinstance(raw, tuple) else (raw,))]
    return results[0] if len(results) == 1 else tuple(results)


def _on_device(op: Op, views: Mapping[str, View], attributes: Mapping[str, Any], choice: Mapping[str, Any]) -> Any:
    first = next(iter(views.values()))
    _make_device_current(first.device)
    found = plan_for(op, views, attributes, choice.get("kernel"), choice.get("tactic"))
    outputs = _outputs(op, found, first, choice.get("out"))
    pointers = [v.pointer for v in views.values()]
    pointers += [arrays.view(o).pointer for o in outputs]
    stream = choice.get("stream")
    found.launch(pointers, arrays.current_stream(first.framework) if stream is None else int(stream))
    results = [arrays.finish(o, first.framework) for o in outputs]
    return results[0] if len(results) == 1 else tuple(results)


def _make_device_current(name: str) -> None:
    ordinal = int(name.partition(":")[2] or 0)
    if device.current_ordinal() != ordinal:
        device.make_current(ordinal)


def plan_for(
    op: Op,
    views: Mapping[str, View],
    attributes: Mapping[str, Any],
    kernel: str | None = None,
    tactic: int | Mapping[str, Any] | None = None,
) -> Plan:
    """The plan of a call, from the op's cache when the same shapes, dtypes, attributes and alignment came before."""
    low_bits = 0
    for v in views.values():
        low_bits |= v.pointer
    alignment = (low_bits & -low_bits) if low_bits & 255 else 256
    first = next(iter(views.values()))
    pinned = tuple(sorted(tactic.items())) if isinstance(tactic, Mapping) else tactic
    key = (
        tuple((n, v.shape, v.dtype) for n, v in views.items()),
        tuple(attributes.items()),
        kernel,
        pinned,
        alignment,
        first.device,
    )
    try:
        found = op._plans.get(key)
    except TypeError:
        raise ContractError(f"{op.name}: attributes must be plain numbers or strings, got {dict(attributes)}") from None
    if found is None:
        for name, v in views.items():
            if not v.contiguous:
                raise ContractError(
                    f"{op.name}: input {name!r} {list(v.shape)} is not contiguous in row-major order; make a "
                    "contiguous copy first (numpy/cupy.ascontiguousarray, tensor.contiguous())"
                )
        found = plan(
            op,
            {n: v.shape for n, v in views.items()},
            {n: v.dtype for n, v in views.items()},
            attributes,
            kernel=kernel,
            tactic=tactic,
            alignment=alignment,
        )
        if len(op._plans) >= _PLANS_KEPT:
            op._plans.clear()
        op._plans[key] = found
    elif not all(v.contiguous for v in views.values()):
        bad = next(n for n, v in views.items() if not v.contiguous)
        raise ContractError(f"{op.name}: input {bad!r} is not contiguous in row-major order; copy it first")
    return found


def _outputs(op: Op, found: Plan, like: View, out: Any) -> list[Any]:
    binding = found.binding
    if out is None:
        return [
            arrays.empty_like_framework(like, shape, binding.dtypes[name])  # type: ignore[arg-type]
            for name, shape in binding.outputs.items()
        ]
    given = list(out) if isinstance(out, (tuple, list)) else [out]
    if len(given) != len(binding.outputs):
        raise ContractError(f"{op.name}: out= has {len(given)} arrays, {len(binding.outputs)} are needed")
    for (name, shape), array in zip(binding.outputs.items(), given):
        v = arrays.view(array, f"{op.name}: output {name!r}")
        expected = (tuple(shape), binding.dtypes[name], like.device, True)
        if (tuple(v.shape), v.dtype, v.device, v.contiguous) != expected:
            raise ContractError(
                f"{op.name}: output {name!r} must be a contiguous {binding.dtypes[name]} array {list(shape)} on "
                f"{like.device}, got {v.dtype} {list(v.shape)} on {v.device}"
            )
        if v.pointer % found.kernel.align:
            raise ContractError(f"{op.name}: output {name!r} must be aligned to {found.kernel.align} bytes")
    return given
