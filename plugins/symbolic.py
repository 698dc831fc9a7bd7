"""From the tensor descriptors of TensorRT to a bound call with symbols for the dynamic dimensions, and back.

TensorRT gives every axis of every input its own expression; a contract speaks of named dimensions. An axis that is
static anywhere fixes its dimension; otherwise the dimension becomes one symbol, whose value is the first axis that has
that name. Under ahead-of-time plugins nothing can compare the sizes of two dynamic axes when the engine runs, so that
they agree is the duty of the network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trtforge.kernels.binding import Binding
from trtforge.kernels.dims import Expr, IntLike, is_symbolic, lower, product, substitute, sym
from trtforge.plugins.nvidia import Layer
from trtforge.plugins.schema import PluginSpec, from_tensorrt

#: Per axis: a size, or None where it is dynamic.
Axes = Sequence["int | None"]


@dataclass(frozen=True)
class SymbolicCall:
    """A bound call. ``sources``: symbol -> (index of the input, axis) whose size it stands for."""

    binding: Binding
    sources: Mapping[str, tuple[int, int]]


def bind(
    spec: PluginSpec, shapes: Sequence[Axes], dtypes: Mapping[str, str], attributes: Mapping[str, Any]
) -> SymbolicCall:
    """Bind shapes with unknown sizes to the contract. Raises ContractError where what is known does not fit."""
    names = [_axis_names(spec, name, len(axes)) for name, axes in zip(spec.inputs, shapes)]
    known: dict[str, int] = {}
    sources: dict[str, tuple[int, int]] = {}
    for index, (labels, axes) in enumerate(zip(names, shapes)):
        for axis, (label, size) in enumerate(zip(labels, axes)):
            if isinstance(label, str):
                sources.setdefault(label, (index, axis))
                if size is not None:
                    known.setdefault(label, size)
    values: dict[str, IntLike] = {label: known.get(label, sym(label)) for label in sources}
    dims = {label: value for label, value in values.items() if "." not in label}
    for run in {label.split(".")[0] for label in values if "." in label}:
        dims[run] = product(value for label, value in values.items() if label.split(".")[0] == run and "." in label)
    for name in spec.inputs:
        run_name = spec.op.inputs[name].run
        if run_name is not None:
            dims.setdefault(run_name, 1)

    def size_of(label: Any, size: int | None) -> IntLike:
        if isinstance(label, Expr):
            wanted = substitute(label, dims)
            return wanted if size is None or is_symbolic(wanted) else size
        if size is not None:
            return size
        return values[label] if isinstance(label, str) else label

    bound = {
        name: tuple(size_of(label, size) for label, size in zip(labels, axes))
        for name, labels, axes in zip(spec.inputs, names, shapes)
    }
    binding = spec.op.bind(bound, dtypes, attributes)
    return SymbolicCall(binding, {label: at for label, at in sources.items() if label not in known})


def _axis_names(spec: PluginSpec, name: str, rank: int) -> list[Any]:
    """For each axis a label (a dimension's name, or "M.0" inside the run M), an int or an expression."""
    tensor = spec.op.inputs[name]
    lead = max(0, rank - len(tensor.fixed_dims))
    run = tensor.run or name
    return [f"{run}.{i}" for i in range(lead)] + list(tensor.fixed_dims[: rank - lead])


def bind_descriptors(spec: PluginSpec, descriptors: Sequence[Any], attributes: Mapping[str, Any]) -> SymbolicCall:
    """Bind ``TensorDesc`` objects, in any of the phases in which TensorRT hands them out."""
    shapes = [[_static_size(d, axis) for axis in range(d.ndim)] for d in descriptors]
    dtypes = {name: from_tensorrt(d.dtype) for name, d in zip(spec.inputs, descriptors)}
    return bind(spec, shapes, dtypes, attributes)


def _static_size(descriptor: Any, axis: int) -> int | None:
    expression = descriptor.shape_expr[axis]
    if not expression.is_fake and expression.is_constant:
        return int(expression.constant_value())
    if descriptor.has_shape:
        smallest, _, largest = axis_range(descriptor, axis)
        return smallest if smallest == largest else None
    return None


def axis_range(descriptor: Any, axis: int) -> tuple[int, int, int]:
    """Smallest, optimal and largest size of an axis in the profile that is being built for."""
    shape = descriptor.shape
    if not shape.is_dynamic:
        return (int(shape[axis]),) * 3
    return int(shape.min[axis]), int(shape.opt[axis]), int(shape.max[axis])


def ranges_of(call: SymbolicCall, descriptors: Sequence[Any]) -> dict[str, tuple[int, int, int]]:
    """The profile's range of every symbol (empty where TensorRT has given no shapes yet)."""
    return {
        label: axis_range(descriptors[index], axis)
        for label, (index, axis) in call.sources.items()
        if descriptors[index].has_shape
    }


def to_shape_expr(layer: Layer, value: IntLike, call: SymbolicCall, descriptors: Sequence[Any]) -> Any:
    """Fold an expression into TensorRT's ``ShapeExpr``. Raises DeclarationError for what it cannot express."""
    plugin = layer.plugin
    symbols = {label: descriptors[index].shape_expr[axis] for label, (index, axis) in call.sources.items()}
    return lower(
        value,
        symbols,
        plugin.ShapeExpr,
        {
            "+": lambda a, b: a + b,
            "*": lambda a, b: a * b,
            "//": lambda a, b: a // b,
            "%": lambda a, b: a - (a // b) * b,
            "cdiv": plugin.cdiv,
            "min": plugin.min,
            "max": plugin.max,
        },
    )
