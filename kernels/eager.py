"""Calling an op on arrays.

``y = rms_norm(x, weight, eps=1e-5)``: device arrays run a registered kernel on the caller's current stream and return
arrays of the caller's framework; NumPy arrays run on the GPU when there is one and the reference otherwise. Options:
``kernel=`` and ``tactic=`` pin an implementation, ``out=`` takes preallocated outputs, ``stream=`` a CUstream handle,
``device="cpu"|"cuda"`` decides for NumPy arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trtforge.bindings import arrays, device
from trtforge.bindings.arrays import Framework, View
from trtforge.bindings.dtypes import dtype
from trtforge.bindings.errors import ContractError
from trtforge.kernels.op import Op
from trtforge.kernels.plan import Plan, plan

_OPTIONS = ("kernel", "tactic", "out", "stream", "device")
#: Resolved calls that an op remembers; when there are more, it forgets all of them.
_PLANS_KEPT = 1024


@dataclass(frozen=True, slots=True)
class Ready:
    """A call that was resolved before: its plan, and what its outputs are, in the framework's own terms."""

    plan: Plan
    outputs: tuple[tuple[tuple[int, ...], str], ...]
    #: What ``out=`` arrays of the same framework must be equal to: shape and the framework's own dtype.
    given: tuple[tuple[Any, Any], ...]
    launch: Callable[..., None]
    #: Bytes that output pointers are multiples of.
    align: int
    #: For an op that updates inputs in place: by output, the position of that input, or None.
    updated: tuple[int | None, ...] = ()


def call(op: Op, inputs: Sequence[Any], options: dict[str, Any]) -> Any:
    """Run ``op``; returns one array, or a tuple in declared order. Raises ContractError, DeviceError, CompileError."""
    names = op._input_names
    if len(inputs) != len(names) or (options and not options.keys().isdisjoint(names)):
        inputs = _in_order(op, inputs, options)
    found = _repeated(op, inputs, options)
    return found if found is not None else _resolved(op, inputs, options)


def _in_order(op: Op, inputs: Sequence[Any], options: dict[str, Any]) -> Sequence[Any]:
    """Every declared input by position, None where absent; those given by keyword are taken out of ``options``."""
    names = op._input_names
    if len(inputs) > len(names):
        raise ContractError(f"{op.name} takes {len(names)} inputs ({', '.join(names)}), {len(inputs)} were given")
    for name in names[: len(inputs)]:
        if name in options:
            raise ContractError(f"{op.name}: input {name!r} was given twice")
    return (*inputs, *(options.pop(name, None) for name in names[len(inputs) :]))


def _repeated(op: Op, inputs: Sequence[Any], options: Mapping[str, Any]) -> Any:
    """The result of a call like one that came before, by the shortest way; None where the long way must be taken."""
    framework = arrays.framework_of(type(inputs[0]))
    if framework is None:
        return None
    key, pointers = _signature(op, framework, inputs, options)
    if key is None:
        return None
    try:
        ready = op._ready.get(key)
    except TypeError:  # an option that cannot be a key
        return None
    if ready is None:
        return None
    ordinal, given, stream = key[0], None, None
    if options:
        given, stream = options.get("out"), options.get("stream")
    if ready.updated:
        if given is not None:
            return None
        outputs = [
            framework.empty(shape, name, ordinal) if at is None else inputs[at]
            for (shape, name), at in zip(ready.outputs, ready.updated)
        ]
        pointers += [arrays.framework_of(type(output)).pointer(output) for output in outputs]  # type: ignore[union-attr]
    elif given is None:
        outputs = [framework.empty(shape, name, ordinal) for shape, name in ready.outputs]
        pointers += [arrays.framework_of(type(output)).pointer(output) for output in outputs]  # type: ignore[union-attr]
    else:
        outputs = list(given) if isinstance(given, (tuple, list)) else [given]
        found = _pointers_of(framework, ready, ordinal, outputs)
        if found is None:
            outputs = _outputs(op, ready.plan, framework.name, f"cuda:{ordinal}", given)
            found = [arrays.view(output).pointer for output in outputs]
        pointers += found
    if not device.is_current(ordinal) and device.current_ordinal() != ordinal:  # a context of the caller's own may stay
        device.make_current(ordinal)
    ready.launch(pointers, framework.current(ordinal) if stream is None else int(stream))
    return outputs[0] if len(outputs) == 1 else tuple(outputs)


def _pointers_of(framework: Framework, ready: Ready, ordinal: int, outputs: Sequence[Any]) -> list[int] | None:
    """Where ``out=`` arrays lie that are seen at once to fit; None where :func:`_outputs` must look closer."""
    if len(outputs) != len(ready.given):
        return None
    kinds, ordinal_of, contiguous = framework.kinds, framework.ordinal, framework.contiguous
    pointers = []
    for array, (shape, kind) in zip(outputs, ready.given):
        if type(array) not in kinds or array.dtype != kind or array.shape != shape:
            return None
        pointer = framework.pointer(array)
        if pointer % ready.align or ordinal_of(array) != ordinal or not contiguous(array):
            return None
        pointers.append(pointer)
    return pointers


def _signature(
    op: Op, framework: Framework, inputs: Sequence[Any], options: Mapping[str, Any]
) -> tuple[tuple[Any, ...] | None, list[int]]:
    """What determines a call's plan, and its input pointers; (None, []) for what only the long way understands."""
    ordinal_of, contiguous, pointer_of, kinds = (
        framework.ordinal,
        framework.contiguous,
        framework.pointer,
        framework.kinds,
    )
    ordinal = ordinal_of(inputs[0])
    chosen: tuple[Any, ...] = ()
    if options and (len(options) > 1 or "out" not in options):
        chosen = tuple([(k, v) for k, v in options.items() if k != "out" and k != "stream"])
    pointers: list[int] = []
    parts: list[Any] = [ordinal, framework.name, chosen]
    low = 0
    for array in inputs:
        if array is None:
            parts.append(None)
            continue
        if type(array) not in kinds or ordinal_of(array) != ordinal or not contiguous(array):
            return None, []
        pointer = pointer_of(array)
        pointers.append(pointer)
        low |= pointer
        parts += (array.shape, array.dtype)
    if ordinal < 0:
        return None, []
    parts.append(_alignment(low))
    return tuple(parts), pointers


def _alignment(low: int) -> int:
    """The largest power of two, up to 256, that divides every pointer whose bits were gathered in ``low``."""
    return (low & -low) if low & 255 else 256


def _resolved(op: Op, inputs: Sequence[Any], options: Mapping[str, Any]) -> Any:
    given, attributes, choice = _sort_arguments(op, inputs, options)
    if not given:
        raise ContractError(f"{op.name}: no input was given; inputs: {op.contract.signature()}")
    views = {name: arrays.view(value, f"{op.name}: input {name!r}") for name, value in given.items()}
    if not any(v.device != "cpu" for v in views.values()):
        return _from_host(op, given, attributes, choice)
    placed = {v.device for v in views.values()}
    if len(placed) != 1 or choice.get("device") == "cpu":
        where = ", ".join(f"{n} on {v.device}" for n, v in views.items())
        raise ContractError(f"{op.name}: all inputs must be on one device, got {where}; copy them first")
    result, found = _on_device(op, views, attributes, choice, given)
    framework = arrays.framework_of(type(next(iter(given.values()))))
    if framework is not None:
        key, _ = _signature(op, framework, inputs, options)
        if key is not None:
            _remember(op, key, found, result if isinstance(result, tuple) else (result,))
    return result


def _remember(op: Op, key: tuple[Any, ...], found: Plan, results: tuple[Any, ...]) -> None:
    try:
        hash(key)
    except TypeError:  # a tactic given by its parameters, say: such calls go the long way every time
        return
    if len(op._ready) >= _PLANS_KEPT:
        op._ready.clear()
    binding = found.binding
    shapes = [(tuple(int(n) for n in shape), binding.dtypes[name]) for name, shape in binding.outputs.items()]
    given = tuple([(r.shape, r.dtype) for r in results])
    names, updated = op._input_names, tuple(op.outputs[name].alias for name in binding.outputs)
    places = tuple([names.index(one) if one else None for one in updated]) if op.aliases else ()
    op._ready[key] = Ready(found, tuple(shapes), given, found.launch, found.kernel.align, places)


def _sort_arguments(
    op: Op, inputs: Sequence[Any], options: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Present inputs by name, attributes, and the choices of :data:`_OPTIONS`."""
    attributes: dict[str, Any] = {}
    choice: dict[str, Any] = {}
    for name, value in options.items():
        if name in op.attributes:
            attributes[name] = value
        elif name in _OPTIONS:
            choice[name] = value
        else:
            known = ", ".join([*op._input_names, *op.attributes, *_OPTIONS])
            raise ContractError(f"{op.name}: no argument {name!r}; accepted: {known}")
    given = {name: value for name, value in zip(op._input_names, inputs) if value is not None}
    return given, attributes, choice


def _from_host(op: Op, given: Mapping[str, Any], attributes: Mapping[str, Any], choice: Mapping[str, Any]) -> Any:
    wanted = choice.get("device", "cuda" if choice.get("kernel") or device.has_gpu() else "cpu")
    if wanted not in ("cpu", "cuda"):
        raise ContractError(f"{op.name}: device is {wanted!r}; accepted: 'cpu', 'cuda'")
    if choice.get("out") is not None:
        raise ContractError(f"{op.name}: out= takes device arrays; NumPy inputs return new arrays")
    host = {name: np.asarray(value) for name, value in given.items()}
    for name in op.aliases.values():
        if name in given and not (isinstance(given[name], np.ndarray) and host[name].flags.writeable):
            raise ContractError(f"{op.name}: input {name!r} is updated in place; give a writable NumPy array")
    if wanted == "cpu":
        if choice.get("kernel"):
            raise ContractError(f"{op.name}: kernel={choice['kernel']!r} needs device='cuda'")
        results = list(op.run_reference(host, attributes).values())
    else:
        device.require_gpu(f"{op.name} on NumPy arrays with device='cuda'")
        placed = {name: arrays.to_device(value) for name, value in host.items()}
        copied = {name: arrays.view(value) for name, value in placed.items()}
        raw, _ = _on_device(op, copied, attributes, choice, placed)
        results = [r.to_numpy() for r in (raw if isinstance(raw, tuple) else (raw,))]
    for i, name in enumerate(op.outputs):
        if name in op.aliases:
            target = host[op.aliases[name]]
            target[...] = results[i]
            results[i] = target
    return results[0] if len(results) == 1 else tuple(results)


def _on_device(
    op: Op,
    views: Mapping[str, View],
    attributes: Mapping[str, Any],
    choice: Mapping[str, Any],
    given: Mapping[str, Any],
) -> tuple[Any, Plan]:
    first = next(iter(views.values()))
    ordinal = int(first.device.partition(":")[2] or 0)
    if device.current_ordinal() != ordinal:
        device.make_current(ordinal)
    found = plan_for(op, views, attributes, choice.get("kernel"), choice.get("tactic"))
    framework = arrays.framework_named(first.framework)
    if op.aliases and first.framework == "jax":
        raise ContractError(f"{op.name} updates {', '.join(op.aliases.values())} in place; JAX arrays are immutable")
    if choice.get("out") is None:
        binding = found.binding
        outputs = [
            given[binding.aliases[name]]
            if name in binding.aliases
            else framework.empty(tuple(int(n) for n in shape), binding.dtypes[name], ordinal)
            for name, shape in binding.outputs.items()
        ]
    else:
        outputs = _outputs(op, found, first.framework, first.device, choice["out"])
    pointers = [v.pointer for v in views.values()] + [arrays.view(o).pointer for o in outputs]
    for name, pointer in zip(found.binding.outputs, pointers[len(views) :]):
        source = found.binding.aliases.get(name)
        if source is not None and pointer != views[source].pointer:
            raise ContractError(
                f"{op.name}: output {name!r} is {source!r} updated in place; leave out= away, or give {source!r} itself"
            )
    stream = choice.get("stream")
    found.launch(pointers, framework.current(ordinal) if stream is None else int(stream))
    results = [arrays.finish(o, first.framework) for o in outputs]
    return (results[0] if len(results) == 1 else tuple(results)), found


def plan_for(
    op: Op,
    views: Mapping[str, View],
    attributes: Mapping[str, Any],
    kernel: str | None = None,
    tactic: int | Mapping[str, Any] | None = None,
) -> Plan:
    """The plan of a call on device arrays. Raises ContractError for arrays that no kernel can read as they lie."""
    low = 0
    for name, v in views.items():
        low |= v.pointer
        if not v.contiguous:
            raise ContractError(
                f"{op.name}: input {name!r} {list(v.shape)} is not contiguous in row-major order; make a "
                "contiguous copy first (numpy/cupy.ascontiguousarray, tensor.contiguous())"
            )
        if v.pointer % dtype(v.dtype).itemsize:
            raise ContractError(f"{op.name}: input {name!r} is not aligned to its {v.dtype} elements; copy it first")
    pinned = tuple(sorted(tactic.items())) if isinstance(tactic, Mapping) else tactic
    key = (
        next(iter(views.values())).device,
        tuple((n, v.shape, v.dtype) for n, v in views.items()),
        tuple(attributes.items()),
        kernel,
        pinned,
        _alignment(low),
    )
    try:
        found = op._plans.get(key)
    except TypeError:
        raise ContractError(f"{op.name}: attributes must be numbers or strings, got {dict(attributes)}") from None
    if found is None:
        found = plan(
            op,
            {n: v.shape for n, v in views.items()},
            {n: v.dtype for n, v in views.items()},
            attributes,
            kernel=kernel,
            tactic=tactic,
            alignment=_alignment(low),
        )
        if len(op._plans) >= _PLANS_KEPT:
            op._plans.clear()
        op._plans[key] = found
    return found


def _outputs(op: Op, found: Plan, framework: str, where: str, out: Any) -> list[Any]:
    binding = found.binding
    given = list(out) if isinstance(out, (tuple, list)) else [out]
    if len(given) != len(binding.outputs):
        raise ContractError(f"{op.name}: out= has {len(given)} arrays, {len(binding.outputs)} are needed")
    for (name, shape), array in zip(binding.outputs.items(), given):
        v = arrays.view(array, f"{op.name}: output {name!r}")
        expected = (tuple(shape), binding.dtypes[name], where, True)
        if (tuple(v.shape), v.dtype, v.device, v.contiguous) != expected:
            raise ContractError(
                f"{op.name}: output {name!r} must be a contiguous {binding.dtypes[name]} array {list(shape)} on "
                f"{where}, got {v.dtype} {list(v.shape)} on {v.device}"
            )
        if v.pointer % found.kernel.align:
            raise ContractError(f"{op.name}: output {name!r} must be aligned to {found.kernel.align} bytes")
    return given
