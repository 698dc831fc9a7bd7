"""What a registered op looks like to TensorRT: plugin names, element types, attributes, signatures.

A plugin has no optional inputs, so an op with optional inputs becomes one plugin for each subset that can be present:
``trtforge::fused_gemm`` and ``trtforge::fused_gemm_bias``. The rule: the op's name, then ``_`` and each present
optional input in declared order.
"""

from __future__ import annotations

import inspect
import itertools
import types
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trtforge.bindings.errors import ContractError, DeclarationError
from trtforge.kernels.contract import AttributeRef
from trtforge.kernels.op import Op
from trtforge.plugins.nvidia import Layer

#: Contract dtype -> (member of tensorrt.DataType, spelling in AutoTuneCombination).
_TYPES = {
    "float32": ("FLOAT", "FP32"),
    "float16": ("HALF", "FP16"),
    "bfloat16": ("BF16", "BF16"),
    "float8_e4m3fn": ("FP8", "FP8"),
    "int8": ("INT8", "INT8"),
    "int32": ("INT32", "INT32"),
    "int64": ("INT64", "INT64"),
    "bool": ("BOOL", "BOOL"),
    "uint8": ("UINT8", "UINT8"),
}
_NAMES = {member: name for name, (member, _) in _TYPES.items()}


def unavailable(dtypes: Mapping[str, str]) -> str | None:
    """Why TensorRT cannot hold tensors of these dtypes, or None."""
    lacking = [f"{name} is {kind}" for name, kind in dtypes.items() if kind not in _TYPES]
    return f"TensorRT has no such element type: {', '.join(lacking)}" if lacking else None


def to_tensorrt(layer: Layer, name: str) -> Any:
    """The ``tensorrt.DataType`` of a contract dtype. Raises ContractError where there is none."""
    reason = unavailable({"the tensor": name})
    if reason:
        raise ContractError(f"{reason}; TensorRT holds: {', '.join(_TYPES)}")
    return getattr(layer.trt.DataType, _TYPES[name][0])


def from_tensorrt(data_type: Any) -> str:
    """The contract dtype of a ``tensorrt.DataType``. Raises ContractError for one that contracts do not know."""
    if data_type.name not in _NAMES:
        raise ContractError(f"TensorRT's {data_type.name} has no counterpart here; accepted: {', '.join(_NAMES)}")
    return _NAMES[data_type.name]


def spelling(name: str) -> str:
    """How AutoTuneCombination writes a contract dtype."""
    return _TYPES[name][1]


@dataclass(frozen=True, eq=False)
class PluginSpec:
    """One plugin: an op with a fixed subset of its optional inputs. ``inputs`` in declared order."""

    op: Op
    inputs: tuple[str, ...]

    @property
    def plugin_id(self) -> str:
        return "_".join([self.op.name, *(n for n in self.inputs if self.op.inputs[n].optional)])

    @property
    def outputs(self) -> tuple[str, ...]:
        return tuple(self.op.outputs)

    def attributes(self, layer: Layer) -> dict[str, type]:
        """Attribute types as plugin fields carry them: bool, int, float; str, or the index of the choice (an int)."""
        kinds = {name: attribute.kind for name, attribute in self.op.attributes.items()}
        return kinds if layer.strings else {name: int if kind is str else kind for name, kind in kinds.items()}

    def encode(self, layer: Layer, attributes: Mapping[str, Any]) -> dict[str, Any]:
        """Attribute values as this TensorRT's plugin fields carry them, in declared order."""
        return {name: self._encoded(layer, name, attributes[name]) for name in self.op.attributes}

    def _encoded(self, layer: Layer, name: str, value: Any) -> Any:
        choices = self.op.attributes[name].choices or ()
        return choices.index(value) if isinstance(value, str) and not layer.strings else value

    def decode(self, layer: Layer, values: Iterable[Any]) -> dict[str, Any]:
        """The op's attributes from plugin field values in declared order."""
        decoded = {}
        for (name, attribute), value in zip(self.op.attributes.items(), values):
            indexed = attribute.kind is str and not isinstance(value, str)
            decoded[name] = (attribute.choices or ())[value] if indexed else value
        return decoded

    def schema(self, layer: Layer) -> tuple[Any, ...]:
        """What TensorRT was told: a plugin cannot change it once it is registered."""
        return self.inputs, len(self.outputs), tuple(self.attributes(layer).items()), tuple(self.op.aliases.items())

    def signature(self, layer: Layer, role: str) -> inspect.Signature:
        """The signature that NVIDIA's validator wants of "register", "autotune", "aot_impl" or "impl"."""
        p = layer.plugin
        tensor = p.Tensor if role == "impl" else p.TensorDesc
        names: dict[str, Any] = dict.fromkeys(self.inputs, tensor)
        names.update(self.attributes(layer))
        result: Any = types.GenericAlias(tuple, (p.TensorDesc,) * len(self.outputs))
        if role != "register":
            names["outputs"] = types.GenericAlias(tuple, (tensor,) * len(self.outputs))
        if role == "autotune":
            result = types.GenericAlias(list, (p.AutoTuneCombination,))
        elif role == "aot_impl":
            names["tactic"] = int
            text = str | bytes
            result = types.GenericAlias(tuple, (text, text, p.KernelLaunchParams, p.SymExprs))
        elif role == "impl":
            names |= {"stream": int, "tactic": int}
            result = None
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        parameters = [inspect.Parameter(name, kind, annotation=annotation) for name, annotation in names.items()]
        return inspect.Signature(parameters, return_annotation=result)


def plugin_spec(op: Op, present: Sequence[str] = ()) -> PluginSpec:
    """The plugin of an op with these optional inputs present."""
    unknown = [name for name in present if name not in op.inputs]
    if unknown:
        raise ContractError(f"{op.name}: no input {', '.join(unknown)}; inputs: {op.contract.signature()}")
    return PluginSpec(op, tuple(n for n, spec in op.inputs.items() if not spec.optional or n in present))


def plugin_name(op: Op, present: Sequence[str] = ()) -> str:
    """``namespace::name`` of the plugin of an op with these optional inputs present."""
    return plugin_spec(op, present).plugin_id


def specs_of(op: Op) -> list[PluginSpec]:
    """Every plugin of an op. Raises DeclarationError for an op that TensorRT cannot take as a plugin."""
    if not any(not spec.optional for spec in op.inputs.values()):
        raise DeclarationError(f"{op.name}: a TensorRT plugin needs an input that is always there")
    optional = [name for name, spec in op.inputs.items() if spec.optional]
    subsets = itertools.chain.from_iterable(itertools.combinations(optional, n) for n in range(len(optional) + 1))
    return [plugin_spec(op, subset) for subset in subsets]


def dtype_combinations(spec: PluginSpec, attributes: Mapping[str, Any]) -> list[dict[str, str]]:
    """Every assignment of dtypes to inputs and outputs that the contract allows, given the attributes."""
    op = spec.op
    free = {
        name: kinds if isinstance(kinds := op.inputs[name].dtype, tuple) else (None,)
        for name in (*spec.inputs, *spec.outputs)
        if name in op.inputs
    }
    found = []
    for values in itertools.product(*free.values()):
        chosen: dict[str, str] = {name: kind for name, kind in zip(free, values) if kind is not None}
        for name in (*spec.inputs, *spec.outputs):
            declared = (op.inputs.get(name) or op.outputs[name]).dtype
            if isinstance(declared, AttributeRef):
                chosen[name] = attributes[declared.name]
            elif isinstance(declared, str):
                chosen[name] = chosen.get(declared, declared)
            elif name not in chosen:
                chosen[name] = declared[0]
        found.append({name: chosen[name] for name in (*spec.inputs, *spec.outputs)})
    return found
