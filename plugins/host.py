"""The plugin host: drives a generated plugin as TensorRT's builder and runtime do, without libnvinfer.

Everything between the host and the generated functions is NVIDIA's own Python layer. The order of calls is the one of
``IPluginV3``'s documentation: creation with a quick request, clone, output types, symbolic output shapes, supported
combinations, configuration, tactics, then launch parameters and code (ahead of time) or serialization, re-creation
and ``enqueue`` (JIT). Symbolic results are values that can be evaluated for any sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from trtforge.bindings.architectures import Architecture
from trtforge.bindings.errors import DeclarationError, UnknownNameError
from trtforge.kernels.dims import sym
from trtforge.kernels.op import Op
from trtforge.plugins.generate import building_for, register
from trtforge.plugins.nvidia import Layer, host_layer
from trtforge.plugins.schema import PluginSpec, from_tensorrt, plugin_spec, to_tensorrt
from trtforge.plugins.symbols import DimensionExpr, DimsExprs, ExprBuilder, LaunchParams, SymExprs

Shapes = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class Profile:
    """Smallest, optimal and largest shape of every present input, as in an optimization profile."""

    smallest: Shapes
    optimal: Shapes
    largest: Shapes

    def expressions(self, name: str) -> list[DimensionExpr]:
        """One expression per axis: a constant where the profile leaves no choice, else the symbol ``name.axis``."""
        ends = zip(self.smallest[name], self.largest[name])
        return [DimensionExpr(low if low == high else sym(f"{name}.{axis}")) for axis, (low, high) in enumerate(ends)]


def sizes_of(shapes: Shapes) -> dict[str, int]:
    """The values of the host's symbols for concrete input shapes."""
    return {f"{name}.{axis}": int(size) for name, shape in shapes.items() for axis, size in enumerate(shape)}


@dataclass(frozen=True)
class EngineKernel:
    """What an engine keeps of an ahead-of-time plugin: code, and launch parameters as expressions over the shapes."""

    entry: str
    code: bytes
    grid: tuple[DimensionExpr, ...]
    block: tuple[DimensionExpr, ...]
    shared: DimensionExpr
    scalars: tuple[DimensionExpr, ...]

    def geometry(self, shapes: Shapes) -> dict[str, Any]:
        """The launch that the engine's runtime makes for these input shapes; keys as in ``plan.geometry``."""
        sizes = sizes_of(shapes)
        return {
            "grid": tuple(e.at(sizes) for e in self.grid),
            "block": tuple(e.at(sizes) for e in self.block),
            "shared": self.shared.at(sizes),
            "scalars": tuple(e.at(sizes) for e in self.scalars),
            "cluster": None,
        }


@dataclass(frozen=True, eq=False)
class Hosted:
    """A plugin inside the host's network: what its builder has learnt from it."""

    spec: PluginSpec
    layer: Layer
    target: Architecture
    aot: bool
    profile: Profile
    attributes: Mapping[str, Any]
    plugin: Any
    output_dtypes: tuple[str, ...]
    output_exprs: tuple[DimsExprs, ...]
    combinations: tuple[tuple[str, ...], ...]
    tactics: tuple[int, ...]
    descriptors: tuple[Any, ...] = field(repr=False)

    def output_shapes(self, shapes: Shapes) -> list[tuple[int, ...]]:
        """The output shapes that the engine's runtime computes for concrete inputs."""
        sizes = sizes_of(shapes)
        return [tuple(e.at(sizes) for e in exprs) for exprs in self.output_exprs]

    def engine_kernel(self, tactic: int) -> EngineKernel:
        """What goes into the engine for this tactic. Raises what the plugin raises."""
        self._require(tactic)
        count = len(self.spec.inputs)
        parameters, scalars, builder = LaunchParams(), SymExprs(), ExprBuilder()
        inputs = [DimsExprs(self.profile.expressions(name)) for name in self.spec.inputs]
        with building_for(self.target), self.layer.expressions_released():
            self.plugin.set_tactic(tactic)
            self.plugin.get_launch_params(inputs, list(self.descriptors), count, parameters, scalars, builder)
            plain = [d.desc for d in self.descriptors]
            entry, code = self.plugin.get_kernel(plain[:count], plain[count:])
        extra = tuple(scalars)
        for index, argument in enumerate(extra):
            if argument.dtype != self.layer.trt.PluginArgDataType.INT32:
                raise DeclarationError(f"{self.spec.plugin_id}: scalar {index} is {argument.dtype}, not INT32")
        p = parameters
        return EngineKernel(
            entry if isinstance(entry, str) else entry.decode(),
            code,
            tuple(v.expr for v in (p.grid_x, p.grid_y, p.grid_z)),
            tuple(v.expr for v in (p.block_x, p.block_y, p.block_z)),
            p.shared_mem.expr,
            tuple(argument.expr for argument in extra),
        )

    def reloaded(self) -> Any:
        """The JIT plugin as a fresh process makes it from the engine: from its serialized fields, for run time."""
        fields = self.plugin.get_fields_to_serialize()
        namespace, name = self.spec.plugin_id.split("::")
        creator = self.layer.trt.get_plugin_registry().get_creator(name, "1", namespace)
        made = creator.create_plugin(name, namespace, fields, self.layer.trt.TensorRTPhase.RUNTIME)
        made.aliased_map = dict(self.plugin.aliased_map)
        sent = self.spec.encode(self.layer, self.attributes)
        if {k: (type(v), v) for k, v in made.attrs.items()} != {k: (type(v), v) for k, v in sent.items()}:
            raise DeclarationError(
                f"{self.spec.plugin_id}: attributes {dict(self.attributes)} came back from the engine as {made.attrs}"
            )
        return made

    def enqueue(self, tactic: int, shapes: Shapes, pointers: Sequence[int], stream: int = 0) -> None:
        """Run the JIT plugin, re-created from its serialized form, on device pointers (inputs, then outputs)."""
        self.enqueuer(tactic, shapes)(pointers, stream)

    def enqueuer(self, tactic: int, shapes: Shapes) -> Callable[[Sequence[int], int], None]:
        """What an execution context keeps for these shapes: a function of (pointers, stream) that calls ``enqueue``.

        The plugin is re-created from its serialized form once; every call goes through NVIDIA's Python layer.
        """
        self._require(tactic)
        plugin = self.reloaded()
        plugin.set_tactic(tactic)
        inputs = [tuple(shapes[name]) for name in self.spec.inputs]
        every = [*inputs, *self.output_shapes(shapes)]
        plain = [_plain(self.layer, d.desc.type, shape) for d, shape in zip(self.descriptors, every)]
        strides = [_strides(shape) for shape in every]
        n = len(inputs)

        def call(pointers: Sequence[int], stream: int = 0) -> None:
            with building_for(self.target):
                plugin.enqueue(
                    plain[:n], plain[n:], list(pointers[:n]), list(pointers[n:]), strides[:n], strides[n:], stream
                )

        return call

    def _require(self, tactic: int) -> None:
        if tactic not in self.tactics:
            raise UnknownNameError(
                f"{self.spec.plugin_id} offers the tactics {list(self.tactics)} for this profile, not {tactic}"
            )


def _strides(shape: Sequence[int]) -> tuple[int, ...]:
    strides, running = [], 1
    for size in reversed(shape):
        strides.append(running)
        running *= size
    return tuple(reversed(strides))


def _plain(layer: Layer, kind: Any, dims: Sequence[int]) -> Any:
    descriptor = layer.trt.PluginTensorDesc()
    descriptor.dims = layer.trt.Dims(list(dims))
    descriptor.type = kind
    descriptor.format = layer.trt.TensorFormat.LINEAR
    descriptor.scale = 1.0
    return descriptor


def _dynamic(layer: Layer, kind: Any, dims: Sequence[int], ends: Sequence[Sequence[int]]) -> Any:
    trt = layer.trt
    descriptor = trt.DynamicPluginTensorDesc()
    descriptor.desc = _plain(layer, kind, dims)
    descriptor.min, descriptor.opt, descriptor.max = (trt.Dims(list(end)) for end in ends)
    return descriptor


def fields_of(layer: Layer, spec: PluginSpec, attributes: Mapping[str, Any]) -> Any:
    """A ``PluginFieldCollection``, encoded as ``tensorrt.plugin.op`` encodes a call's attributes."""
    trt = layer.trt
    kinds = {
        bool: trt.PluginFieldType.INT8,
        int: trt.PluginFieldType.INT64,
        float: trt.PluginFieldType.FLOAT64,
    }
    fields = []
    for name, value in spec.encode(layer, attributes).items():
        if isinstance(value, str):
            fields.append(trt.PluginField(name, value.encode(), trt.PluginFieldType.CHAR))
        else:
            fields.append(trt.PluginField(name, np.array([value]), kinds[type(value)]))
    return trt.PluginFieldCollection(fields)


def create(layer: Layer, spec: PluginSpec, attributes: Mapping[str, Any], request: str) -> Any:
    """A plugin object; ``request`` is a member of QuickPluginCreationRequest: STRICT_AOT, PREFER_AOT, STRICT_JIT …"""
    trt = layer.trt
    namespace, name = spec.plugin_id.split("::")
    creator = trt.get_plugin_registry().get_creator(name, "1", namespace)
    if creator is None:
        raise UnknownNameError(f"the plugin {spec.plugin_id} is not registered in {layer}")
    wanted = getattr(trt.QuickPluginCreationRequest, request)
    return creator.create_plugin(name, namespace, fields_of(layer, spec, attributes), trt.TensorRTPhase.BUILD, wanted)


def build(
    op: Op,
    profile: Profile,
    dtypes: Mapping[str, str],
    attributes: Mapping[str, Any],
    target: Architecture,
    *,
    aot: bool,
    request: str | None = None,
) -> Hosted:
    """Put an op into the host's network as a plugin and ask it everything that a builder asks.

    ``profile`` gives the shapes of the present inputs, ``dtypes`` theirs, ``attributes`` all of them. Raises what the
    plugin or NVIDIA's layer raises, and DeclarationError where the answers contradict each other.
    """
    layer = host_layer()
    register(op, layer=layer)
    spec = plugin_spec(op, [name for name in profile.optimal if op.inputs[name].optional])
    original = create(layer, spec, attributes, request or ("STRICT_AOT" if aot else "STRICT_JIT"))
    if hasattr(original, "aot_impl_function") != aot:
        raise DeclarationError(f"{spec.plugin_id}: {request} gave a plugin of the other kind")
    plugin = original.clone()
    with building_for(target), layer.expressions_released():
        return _ask(layer, spec, plugin, profile, dtypes, attributes, target, aot)


def _ask(
    layer: Layer,
    spec: PluginSpec,
    plugin: Any,
    profile: Profile,
    dtypes: Mapping[str, str],
    attributes: Mapping[str, Any],
    target: Architecture,
    aot: bool,
) -> Hosted:
    count = len(spec.inputs)
    input_types = [to_tensorrt(layer, dtypes[name]) for name in spec.inputs]
    output_types = plugin.get_output_data_types(input_types, [len(profile.optimal[name]) for name in spec.inputs])
    expressions = {name: profile.expressions(name) for name in spec.inputs}
    output_exprs = plugin.get_output_shapes([DimsExprs(e) for e in expressions.values()], [], ExprBuilder())
    if not len(output_types) == len(output_exprs) == plugin.num_outputs == len(spec.outputs):
        raise DeclarationError(f"{spec.plugin_id}: {len(output_types)} types for {len(spec.outputs)} outputs")
    updated = [plugin.get_aliased_input(i) for i in range(plugin.num_outputs)]
    wanted_updates = [spec.inputs.index(spec.op.aliases[n]) if n in spec.op.aliases else -1 for n in spec.outputs]
    if updated != wanted_updates:
        raise DeclarationError(f"{spec.plugin_id}: outputs are aliases of inputs {updated}, declared {wanted_updates}")
    ends = (profile.smallest, profile.optimal, profile.largest)
    descriptors = []
    for name, kind in zip(spec.inputs, input_types):
        dims = [e.get_constant_value() if e.is_constant() else -1 for e in expressions[name]]
        descriptors.append(_dynamic(layer, kind, dims, [end[name] for end in ends]))
    for exprs, kind in zip(output_exprs, output_types):
        dims = [e.get_constant_value() if e.is_constant() else -1 for e in exprs]
        descriptors.append(_dynamic(layer, kind, dims, [[e.at(sizes_of(end)) for e in exprs] for end in ends]))
    offered = plugin.get_supported_format_combinations(descriptors, count)
    width = len(descriptors)
    if len(offered) % width or any(d.format != layer.trt.TensorFormat.LINEAR for d in offered):
        raise DeclarationError(f"{spec.plugin_id}: {len(offered)} descriptors do not make combinations of {width}")
    combinations = tuple(
        tuple(from_tensorrt(d.type) for d in offered[i : i + width]) for i in range(0, len(offered), width)
    )
    wanted = tuple(from_tensorrt(d.desc.type) for d in descriptors)
    if wanted not in combinations:
        raise DeclarationError(f"{spec.plugin_id}: {wanted} is not among the combinations {combinations}")
    plugin.configure_plugin(descriptors[:count], descriptors[count:])
    return Hosted(
        spec,
        layer,
        target,
        aot,
        profile,
        dict(attributes),
        plugin,
        tuple(from_tensorrt(kind) for kind in output_types),
        tuple(output_exprs),
        combinations,
        tuple(sorted(plugin.get_valid_tactics())),
        tuple(descriptors),
    )
