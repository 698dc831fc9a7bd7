"""The lowering of the functional API to a strongly typed ``INetworkDefinition``.

Each primitive has one rule, declared with :func:`lowers` in the ``rules_*`` modules: a function that adds layers for a
node and gives back its value. The library module is a parameter (``Lowering.trt``): everything here is written
against the Python API that ``tensorrt`` (10.13 to 11) and ``tensorrt_rtx`` (1.5 to 1.7) have in common.

    graph Tensor --- Lowering.values ---> Value (ITensor, symbolic shape, dtype)
    Expr over named dims --- Lowering.extent ---> int64 shape tensor, folded from the shapes of the inputs
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trtforge.bindings.dtypes import DTYPES
from trtforge.bindings.errors import CompileError, GraphError
from trtforge.graph_api.engines.library import errors_of, type_of
from trtforge.graph_api.primitive import PRIMITIVES
from trtforge.graph_api.shapes import Shape, symbol_name
from trtforge.graph_api.tensor import Node, Tensor
from trtforge.kernels.dims import Expr, IntLike, constant_value, free_symbols, is_symbolic, lower

#: What primitives are computed in inside an engine. Eight-bit types exist there as quantized values only.
COMPUTED = ("float32", "float16", "bfloat16", "int64", "int32", "bool")

Rule = Callable[..., "Value"]
#: (node, library module) -> why it cannot be hosted, or None.
Condition = Callable[[Node, Any], str | None]


@dataclass(frozen=True)
class Declared:
    """The rule of one primitive."""

    rule: Rule
    condition: Condition | None


RULES: dict[str, Declared] = {}


def lowers(primitive: str, condition: Condition | None = None) -> Callable[[Rule], Rule]:
    """Declare the rule of a primitive: ``rule(g, node, *values, **attributes) -> Value``."""
    if primitive not in PRIMITIVES or primitive in RULES:
        raise GraphError(f"a lowering of {primitive!r} is declared twice, or there is no such primitive")

    def declare(rule: Rule) -> Rule:
        RULES[primitive] = Declared(rule, condition)
        return rule

    return declare


@dataclass(frozen=True)
class Value:
    """A tensor of the definition with what the graph knows about it."""

    tensor: Any
    shape: Shape
    dtype: str
    layer: Any = None

    @property
    def rank(self) -> int:
        return len(self.shape)


def refusal(node: Node, trt: Any) -> str | None:
    """Why a primitive node cannot be lowered for this library, or None."""
    declared = RULES.get(node.op)
    if declared is None:
        return f"{node.op} is a registered op, not one of the library's"
    for tensor in (*node.tensors, *node.outputs):
        if tensor.dtype not in COMPUTED:
            return f"the library computes nothing with {tensor.dtype} outside its own quantization"
    for value in (*node.attributes.values(), *(d for t in node.outputs for d in t.shape)):
        for expression in value if isinstance(value, tuple) else (value,):
            if isinstance(expression, Expr) and "next_power_of_2" in str(expression):
                return f"the size {expression} cannot be computed by shape tensors"
    return declared.condition(node, trt) if declared.condition is not None else None


class Lowering:
    """A network definition that is being written.

    ``kept`` holds the arrays whose memory the definition points to: it must live until the build is done.
    """

    def __init__(self, trt: Any, network: Any):
        self.trt = trt
        self.network = network
        self.kept: list[Any] = []
        self.values: dict[Tensor, Value] = {}
        #: Weights objects by parameter name, for refit.
        self.weights: dict[str, Any] = {}
        self._symbols: dict[str, tuple[Any, int]] = {}
        self._extents: dict[IntLike, Any] = {}
        self._shapes: dict[str, Any] = {}
        self._sizes: dict[str, Any] = {}
        self._scope = "shapes"
        self._used: set[str] = set()

    # --- values from outside -------------------------------------------------------------------------------------

    def input(self, tensor: Tensor) -> Value:
        """An input of the definition under the tensor's own name, with its symbolic dimensions named."""
        sizes = [-1 if is_symbolic(d) else int(d) for d in tensor.shape]
        added = self.network.add_input(tensor.name, type_of(self.trt, tensor.dtype), tuple(sizes))
        if added is None:
            raise CompileError(f"{tensor} cannot be an engine's input: {errors_of(self.trt)}")
        for axis, size in enumerate(tensor.shape):
            name = symbol_name(size)
            if is_symbolic(size):
                added.set_dimension_name(axis, str(size))
            if name is not None:
                self._symbols.setdefault(name, (added, axis))
        value = self.values[tensor] = Value(added, tensor.shape, tensor.dtype)
        return value

    def weight(self, tensor: Tensor, array: np.ndarray) -> Value:
        """A parameter or constant, by reference to ``array``."""
        if tensor not in self.values:
            self._scope = tensor.name
            self.values[tensor] = self.constant(array, tensor.name)
        return self.values[tensor]

    def constant(self, array: np.ndarray, name: str = "") -> Value:
        """A constant by reference. The library has no bool constants: those are int32 and cast."""
        dtype = next(d.name for d in DTYPES.values() if d.numpy == array.dtype)
        if dtype == "bool":
            return self.cast(self.constant(array.astype(np.int32), name), "bool")
        held = np.ascontiguousarray(array)
        weights = self.trt.Weights(type_of(self.trt, dtype), held.ctypes.data, held.size)
        self.kept += [held, weights]
        if name:
            self.weights[name] = weights
        return self.add(self.network.add_constant(tuple(array.shape), weights), tuple(array.shape), dtype, "constant")

    # --- layers --------------------------------------------------------------------------------------------------

    def add(self, layer: Any, shape: Sequence[IntLike], dtype: str, label: str, output: int = 0) -> Value:
        """Name a layer that was just added, and wrap its output. ``label`` says what it does inside the node."""
        if layer is None:
            raise CompileError(f"{self._scope}: the library refuses a layer ({label}): {errors_of(self.trt)}")
        layer.name = self._unique(f"{self._scope}/{label}")
        return Value(layer.get_output(output), tuple(shape), dtype, layer)

    def node(self, node: Node, arguments: Iterable[Value | None]) -> Value:
        """Lower one primitive; its last layer and its tensor take the node's and the graph tensor's names."""
        self._scope = node.name
        result = RULES[node.op].rule(self, node, *arguments, **node.attributes)
        (output,) = node.outputs
        inside = any(result.tensor is v.tensor for v in self.values.values())
        if result.layer is None or inside:  # the rule gave an input back: a node needs a tensor of its own
            result = self.add(self.network.add_identity(result.tensor), output.shape, output.dtype, "identity")
        result.layer.name = self._unique(node.name)
        result.tensor.name = output.name
        self.values[output] = result
        return result

    def cast(self, x: Value, dtype: str) -> Value:
        if x.dtype == dtype:
            return x
        return self.add(self.network.add_cast(x.tensor, type_of(self.trt, dtype)), x.shape, dtype, f"to_{dtype}")

    def scalar(self, value: float | bool, dtype: str, rank: int) -> Value:
        """A number as a tensor [1, 1, ...] of that rank."""
        return self.constant(np.full((1,) * rank, value, DTYPES[dtype].numpy))

    def unary(self, op: str, x: Value) -> Value:
        layer = self.network.add_unary(x.tensor, getattr(self.trt.UnaryOperation, op))
        return self.add(layer, x.shape, x.dtype, op.lower())

    def activation(self, op: str, x: Value) -> Value:
        layer = self.network.add_activation(x.tensor, getattr(self.trt.ActivationType, op))
        return self.add(layer, x.shape, x.dtype, op.lower())

    def elementwise(self, op: str, a: Value, b: Value, result: str = "") -> Value:
        """A binary layer over operands brought to one rank; ``result``: its dtype where it is another one."""
        a, b = self.align(a, b)
        layer = self.network.add_elementwise(a.tensor, b.tensor, getattr(self.trt.ElementWiseOperation, op))
        return self.add(layer, joint_shape(a.shape, b.shape), result or a.dtype, op.lower())

    def reduce(self, op: str, x: Value, axes: Iterable[int], keepdims: bool) -> Value:
        chosen = {a % x.rank for a in axes}
        layer = self.network.add_reduce(
            x.tensor, getattr(self.trt.ReduceOperation, op), sum(1 << a for a in chosen), keepdims
        )
        kept = [(1 if i in chosen else d) for i, d in enumerate(x.shape) if keepdims or i not in chosen]
        return self.add(layer, kept, x.dtype, op.lower())

    def align(self, *values: Value) -> tuple[Value, ...]:
        """The values at one rank, with leading dimensions of 1."""
        rank = max(v.rank for v in values)
        return tuple(v if v.rank == rank else self.reshape(v, (*(1,) * (rank - v.rank), *v.shape)) for v in values)

    def reshape(self, x: Value, shape: Sequence[IntLike]) -> Value:
        """The same elements in another shape.

        Where at most one dimension is unknown it is written as -1, which keeps shape tensors out of the definition.
        """
        shape = tuple(shape)
        layer = self.network.add_shuffle(x.tensor)
        fixed: list[int] = []
        unknown = 0
        for i, size in enumerate(shape):
            known = constant_value(size)
            if known is not None:
                fixed.append(known)
            elif i < x.rank and size == x.shape[i]:
                fixed.append(0)  # a placeholder: the input's own dimension
            else:
                fixed.append(-1)
                unknown += 1
        if layer is not None and unknown <= 1:
            layer.reshape_dims = tuple(fixed)
        elif layer is not None:
            layer.set_input(1, self.extents(shape))
        return self.add(layer, shape, x.dtype, "reshape")

    def permute(self, x: Value, axes: Sequence[int]) -> Value:
        layer = self.network.add_shuffle(x.tensor)
        if layer is not None:
            layer.first_transpose = self.trt.Permutation(list(axes))
        return self.add(layer, [x.shape[a] for a in axes], x.dtype, "permute")

    def slice(self, x: Value, start: Sequence[IntLike], shape: Sequence[IntLike], stride: Sequence[int]) -> Value:
        """Elements start, start + stride, ... per axis; a stride of 0 repeats one."""
        fixed = [[constant_value(v) for v in part] for part in (start, shape)]
        layer = self.network.add_slice(
            x.tensor,
            tuple(0 if v is None else v for v in fixed[0]),
            tuple(1 if v is None else v for v in fixed[1]),
            tuple(stride),
        )
        for index, (part, known) in enumerate(zip((start, shape), fixed), start=1):
            if layer is not None and None in known:
                layer.set_input(index, self.extents(part))
        return self.add(layer, shape, x.dtype, "slice")

    # --- sizes ---------------------------------------------------------------------------------------------------

    def extents(self, values: Sequence[IntLike]) -> Any:
        """A shape tensor int64 [n] of n dimension expressions."""
        tensors = [self.extent(v) for v in values]
        if len(tensors) == 1:
            return tensors[0]
        return self._shape_layer(self.network.add_concatenation(tensors), "sizes")

    def extent(self, value: IntLike) -> Any:
        """A shape tensor int64 [1] with the value of a dimension expression."""
        key = value if is_symbolic(value) else int(value)
        if key not in self._extents:
            scope, self._scope = self._scope, f"shapes/{value}"
            try:
                self._extents[key] = lower(value, self._sizes_of(value), self._size_constant, self._operations())
            finally:
                self._scope = scope
        return self._extents[key]

    def _sizes_of(self, value: IntLike) -> Mapping[str, Any]:
        return {name: self._size(name) for name in sorted(free_symbols(value))}

    def _size(self, name: str) -> Any:
        if name not in self._symbols:
            raise GraphError(f"the dimension {name} follows from no input of this engine")
        tensor, axis = self._symbols[name]
        if tensor.name not in self._shapes:
            self._shapes[tensor.name] = self._shape_layer(self.network.add_shape(tensor), f"shape_of_{tensor.name}")
        if name not in self._sizes:
            layer = self.network.add_slice(self._shapes[tensor.name], (axis,), (1,), (1,))
            self._sizes[name] = self._shape_layer(layer, f"size_{name}")
        return self._sizes[name]

    def _size_constant(self, value: int) -> Any:
        return self.constant(np.array([value], np.int64)).tensor

    def _operations(self) -> dict[str, Callable[..., Any]]:
        kinds = self.trt.ElementWiseOperation

        def binary(kind: Any, label: str) -> Callable[[Any, Any], Any]:
            return lambda a, b: self._shape_layer(self.network.add_elementwise(a, b, kind), label)

        add, multiply = binary(kinds.SUM, "sum"), binary(kinds.PROD, "product")
        subtract, quotient = binary(kinds.SUB, "difference"), binary(kinds.FLOOR_DIV, "quotient")
        return {
            "+": add,
            "*": multiply,
            "//": quotient,
            "%": lambda a, b: subtract(a, multiply(quotient(a, b), b)),
            "cdiv": lambda a, b: quotient(add(a, subtract(b, self._size_constant(1))), b),
            "min": binary(kinds.MIN, "minimum"),
            "max": binary(kinds.MAX, "maximum"),
        }

    def _shape_layer(self, layer: Any, label: str) -> Any:
        return self.add(layer, (1,), "int64", label).tensor

    def _unique(self, name: str) -> str:
        unique, count = name, 0
        while unique in self._used:
            count += 1
            unique = f"{name}_{count}"
        self._used.add(unique)
        return unique


def joint_shape(a: Shape, b: Shape) -> Shape:
    """The broadcast shape of two shapes of one rank."""
    return tuple(y if constant_value(x) == 1 else x for x, y in zip(a, b))
