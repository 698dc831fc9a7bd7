"""TensorRT plugins generated from op declarations: ``register``, ``autotune``, ``aot_impl`` and ``impl``.

Everything follows from the declaration. Shapes and dtypes come from the contract, tactics from the kernels' tables,
launch parameters from the one geometry (lowered to TensorRT's symbolic integers), scalars likewise, code from the
compiler. ``aot_impl`` returns PTX that the engine keeps; ``impl`` launches the same kernel on TensorRT's stream.

Registration is explicit and idempotent. When an op is declared anew under its name (a notebook cell that runs again),
registering it makes the plugin follow the new declaration, as long as inputs, outputs and attributes are what TensorRT
was told; otherwise DeclarationError, because TensorRT keeps the first schema for the life of the process.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from trtforge.bindings import device
from trtforge.bindings.architectures import Architecture
from trtforge.bindings.errors import ContractError, DeclarationError, ForgeError
from trtforge.kernels import registry
from trtforge.kernels.compile import compile_kernel
from trtforge.kernels.contract import Launch
from trtforge.kernels.embedded import launch_of
from trtforge.kernels.op import Op
from trtforge.plugins import jit, tactics
from trtforge.plugins.embed import Embedded, embed
from trtforge.plugins.nvidia import Layer, default_layer
from trtforge.plugins.schema import (
    PluginSpec,
    dtype_combinations,
    plugin_spec,
    specs_of,
    spelling,
    to_tensorrt,
    unavailable,
)
from trtforge.plugins.symbolic import SymbolicCall, bind, bind_descriptors, ranges_of, to_shape_expr

_WARP_SIZE = 32
_registering = threading.RLock()
_target: ContextVar[Architecture | None] = ContextVar("trtforge_plugin_target", default=None)


@contextlib.contextmanager
def building_for(target: Architecture) -> Iterator[None]:
    """Generate plugins for this architecture instead of the GPU at hand (the plugin host, on any machine)."""
    token = _target.set(target)
    try:
        yield
    finally:
        _target.reset(token)


def target_architecture() -> Architecture:
    """What plugins are built for: :func:`building_for`, else the current GPU. Raises DeviceError without either."""
    return _target.get() or device.current_device().architecture


@dataclass
class Registered:
    """A plugin as TensorRT holds it: the functions that it was given look the declaration up here."""

    spec: PluginSpec
    layer: Layer


def register(op: Op | str | None = None, *, layer: Layer | None = None) -> list[str]:
    """Make an op (or every registered op) known to TensorRT; returns the plugins' names. Safe to call again.

    ``layer``: TensorRT itself where it is installed, else the plugin host's copy of NVIDIA's plugin layer. Raises
    DeclarationError when a name is taken by another plugin or registered with another schema, MissingDependencyError.
    """
    chosen = layer or default_layer()
    if op is None:
        ops = registry.ops()
    else:
        ops = [registry.get(op) if isinstance(op, str) else op]
    names = []
    with _registering:
        for one in ops:
            for spec in specs_of(one):
                _register(chosen, spec)
                names.append(spec.plugin_id)
    return names


def _register(layer: Layer, spec: PluginSpec) -> None:
    name = spec.plugin_id
    known: Registered | None = layer.registry.get(name)
    if known is not None:
        if known.spec.op is spec.op:
            return
        if known.spec.op.name != spec.op.name or known.spec.schema(layer) != spec.schema(layer):
            raise DeclarationError(
                f"the plugin {name} of {known.spec.op.file} is registered with other inputs, outputs or attributes "
                f"than {spec.op.file} declares; TensorRT keeps the first for the life of the process: start a new one, "
                "or rename the op"
            )
        known.spec = spec
        return
    if name in layer.definitions:
        raise DeclarationError(
            f"the plugin name {name} is taken in {layer} by a plugin that was not registered here; rename the op"
        )
    holder = Registered(spec, layer)
    functions: dict[str, Callable[..., Any]] = {
        "register": functools.partial(_describe, holder),
        "autotune": functools.partial(_autotune, holder),
        "aot_impl": functools.partial(_embed, holder),
        "impl": functools.partial(_enqueue, holder),
    }
    try:
        for role, function in functions.items():
            getattr(layer.plugin, role)(name)(_with_signature(function, spec, layer, role))
    except (ValueError, TypeError, AssertionError) as error:
        raise DeclarationError(f"{layer} refuses the plugin {name}: {error}") from error
    layer.registry[name] = holder


def _with_signature(function: Callable[..., Any], spec: PluginSpec, layer: Layer, role: str) -> Callable[..., Any]:
    def plugin_function(*args: Any, **options: Any) -> Any:
        return function(*args, **options)

    plugin_function.__name__ = f"{spec.op.name.split('::')[1]}_{role}"
    plugin_function.__signature__ = spec.signature(layer, role)  # type: ignore[attr-defined]
    return plugin_function


def complete_attributes(
    op: Op,
    attributes: Mapping[str, Any],
    shapes: Mapping[str, Sequence[int]],
    dtypes: Mapping[str, str],
    *,
    layer: Layer | None = None,
) -> dict[str, Any]:
    """What to pass to ``tensorrt.plugin.op.<namespace>.<name>(*tensors, **attributes)``.

    Every attribute with its value, because TensorRT's layer knows no defaults, in the type that its fields carry.
    ``shapes`` and ``dtypes`` of the present inputs; a size of -1 is a dynamic axis. Raises ContractError.
    """
    spec = plugin_spec(op, tuple(shapes))
    axes = [[None if size < 0 else size for size in shapes[name]] for name in spec.inputs]
    call = bind(spec, axes, {name: dtypes[name] for name in spec.inputs}, attributes)
    return spec.encode(layer or default_layer(), call.binding.attributes)


# ---- register: dtypes and shapes of the outputs ------------------------------------------------------------


def _describe(holder: Registered, *descriptors: Any, **fields: Any) -> Any:
    spec, layer = holder.spec, holder.layer
    attributes = spec.decode(layer, (fields[name] for name in spec.op.attributes))
    call = bind_descriptors(spec, descriptors, attributes)
    outputs = []
    for name, shape in call.binding.outputs.items():
        if name in spec.op.aliases:
            outputs.append(descriptors[spec.inputs.index(spec.op.aliases[name])].aliased())
            continue
        sizes = tuple(to_shape_expr(layer, size, call, descriptors) for size in shape)
        outputs.append(layer.plugin.from_shape_expr(sizes, to_tensorrt(layer, call.binding.dtypes[name])))
    return tuple(outputs)


# ---- autotune: dtype combinations and tactics --------------------------------------------------------------


def _asked_by_jit_plugin() -> bool:
    """Whether NVIDIA's JIT plugin object is calling: its autotune function is not told.

    Read off the calling method's ``self``; anything unexpected counts as ahead-of-time, whose tactics serve both.
    """
    frame = sys._getframe(1)
    while frame is not None and frame.f_code.co_name != "get_supported_format_combinations":
        if frame.f_back is None:
            return False
        frame = frame.f_back
    return hasattr(frame.f_locals.get("self"), "impl_function")


def _autotune(holder: Registered, *arguments: Any) -> list[Any]:
    spec, layer = holder.spec, holder.layer
    descriptors, values = arguments[: len(spec.inputs)], arguments[len(spec.inputs) : -1]
    attributes = spec.decode(layer, values)
    aot = not _asked_by_jit_plugin()
    given = bind_descriptors(spec, descriptors, attributes)
    _check_profile(spec, descriptors, attributes)
    combinations = []
    for dtypes in dtype_combinations(spec, attributes):
        wanted = dtypes == dict(given.binding.dtypes)
        reason = unavailable(dtypes)
        found, refusals = ([], [reason]) if reason else _tactics_for(spec, descriptors, attributes, dtypes, aot, wanted)
        if not found and wanted:
            raise DeclarationError(
                f"{spec.plugin_id} has no {'AOT' if aot else 'JIT'} tactic for {dtypes} with this profile on "
                f"{target_architecture().name}: {'; '.join(dict.fromkeys(r for r in refusals if r))}"
            )
        if found:
            types = ", ".join(spelling(kind) for kind in dtypes.values())
            combinations.append(layer.plugin.AutoTuneCombination(types, "LINEAR", found))
    return combinations


def _check_profile(spec: PluginSpec, descriptors: Sequence[Any], attributes: Mapping[str, Any]) -> None:
    """The contract's rules at the corners of the profile: nothing checks them when an AOT engine runs."""
    call = bind_descriptors(spec, descriptors, attributes)
    dtypes = {name: call.binding.dtypes[name] for name in spec.inputs}
    for corner in ("min", "opt", "max"):
        shapes = {
            name: tuple(getattr(d.shape, corner) if d.shape.is_dynamic else d.shape)
            for name, d in zip(spec.inputs, descriptors)
        }
        try:
            spec.op.bind(shapes, dtypes, attributes)
        except ContractError as error:
            raise ContractError(f"the {corner} shapes of the profile do not fit: {error}") from error


def _tactics_for(
    spec: PluginSpec,
    descriptors: Sequence[Any],
    attributes: Mapping[str, Any],
    dtypes: Mapping[str, str],
    aot: bool,
    wanted: bool,
) -> tuple[list[int], list[str]]:
    """Tactics that serve every shape of the profile with these dtypes, and the reasons against the others."""
    given = bind_descriptors(spec, descriptors, attributes)
    axes = [[size if isinstance(size, int) else None for size in given.binding.inputs[name]] for name in spec.inputs]
    try:
        call = bind(spec, axes, {name: dtypes[name] for name in spec.inputs}, attributes)
    except ContractError as error:  # a rule about dtypes: the network cannot call the op with these
        return [], [str(error)]
    ranges, target = ranges_of(call, descriptors), target_architecture()
    found, refusals = [], []
    for number, choice in enumerate(tactics.table(spec.op), start=1):
        reason = tactics.refusal(choice, call.binding, ranges, target, aot)
        if reason is None and aot and wanted and choice.kernel.language == "triton":
            try:  # whether Triton's scratch memory is in use shows in the compiled code only
                embedded(choice, call, target)
            except ForgeError as error:
                reason = str(error)
        if reason is None:
            found.append(number)
        else:
            refusals.append(f"{choice.kernel.name} {reason}")
    if not aot:
        found.append(tactics.choosing(spec.op))
    return found, refusals


# ---- aot_impl: code, launch parameters, scalars ------------------------------------------------------------


def embedded(choice: Any, call: SymbolicCall, target: Architecture) -> Embedded:
    """The code that an engine keeps for this tactic. Raises DeclarationError, CompileError."""
    return embed(str(choice.kernel), compile_kernel(choice.kernel, call.binding, choice.tactic, target, embedded=True))


def _embed(holder: Registered, *arguments: Any) -> tuple[str, str, Any, Any]:
    spec, layer = holder.spec, holder.layer
    plugin = layer.plugin
    *rest, _, tactic = arguments
    descriptors, attributes = rest[: len(spec.inputs)], spec.decode(layer, rest[len(spec.inputs) :])
    call, target = bind_descriptors(spec, descriptors, attributes), target_architecture()
    choice = tactics.entry(spec.op, tactic)
    reason = tactics.refusal(choice, call.binding, ranges_of(call, descriptors), target, aot=True)
    if reason:
        raise DeclarationError(f"{choice.kernel} cannot be tactic {tactic} of {spec.plugin_id} here: it {reason}")
    binary = compile_kernel(choice.kernel, call.binding, choice.tactic, target, embedded=True)
    code = embed(str(choice.kernel), binary)
    launch = launch_of(choice.kernel.launch(call.binding, choice.tactic, target), target)
    block, shared = Launch.triple(launch.block), launch.shared
    if binary.language == "triton":
        block, shared = (_WARP_SIZE * binary.metadata["num_warps"], 1, 1), binary.metadata["shared"]

    def lowered(value: Any) -> Any:
        return plugin.SymInt32(to_shape_expr(layer, value, call, descriptors))

    parameters = plugin.KernelLaunchParams()
    parameters.grid_x, parameters.grid_y, parameters.grid_z = map(lowered, Launch.triple(launch.grid))
    parameters.block_x, parameters.block_y, parameters.block_z = map(lowered, block)
    parameters.shared_mem = lowered(shared)
    scalars = plugin.SymIntExprs(len(launch.scalars))
    for index, value in enumerate(launch.scalars):
        scalars[index] = lowered(value)
    return code.entry, code.ptx, parameters, scalars


# ---- impl: the same kernel, launched by the engine's process -----------------------------------------------


def _enqueue(holder: Registered, *arguments: Any) -> None:
    spec = holder.spec
    *rest, outputs, stream, tactic = arguments
    tensors, attributes = rest[: len(spec.inputs)], spec.decode(holder.layer, rest[len(spec.inputs) :])
    jit.launch(spec, tensors, attributes, outputs, stream, tactic)
