"""The half of the TensorRT stand-in that is a network definition: layers in NumPy, as NVIDIA documents them."""

from __future__ import annotations

import ctypes
import enum
from collections.abc import Callable
from typing import Any

import numpy as np

from trtforge.bindings.dtypes import DTYPES
from trtforge.graph_api.backends.reference import run_primitive
from trtforge.graph_api.engines.library import TYPE_NAMES
from trtforge.graph_api.primitive import PRIMITIVES
from trtforge.plugins.schema import dtype_combinations

NUMPY = {member: DTYPES[name].numpy for name, member in TYPE_NAMES.items()}
DTYPE_OF = {member: name for name, member in TYPE_NAMES.items()}
FLOATS = ("FLOAT", "HALF", "BF16")


def enumeration(name: str, members: str) -> Any:
    return enum.IntEnum(name, members.split(), start=0)


DataType = enumeration("DataType", " ".join(NUMPY))
UnaryOperation = enumeration("UnaryOperation", "EXP LOG SQRT RECIP ABS NEG SIN COS ERF NOT")
ElementWiseOperation = enumeration(
    "ElementWiseOperation", "SUM PROD MAX MIN SUB DIV POW FLOOR_DIV AND OR XOR EQUAL GREATER LESS"
)
ActivationType = enumeration("ActivationType", "RELU SIGMOID TANH GELU_ERF GELU_TANH")
ReduceOperation = enumeration("ReduceOperation", "SUM PROD MAX MIN AVG")

_UNARY: dict[str, Callable[[Any], Any]] = {
    "EXP": np.exp, "LOG": np.log, "SQRT": np.sqrt, "RECIP": lambda x: 1 / x, "ABS": np.abs, "NEG": lambda x: -x,
    "SIN": np.sin, "COS": np.cos, "NOT": lambda x: ~x, "ERF": lambda x: PRIMITIVES["erf"].run(np, x),
}  # fmt: skip
_BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "SUM": np.add, "PROD": np.multiply, "MAX": np.maximum, "MIN": np.minimum, "SUB": np.subtract, "DIV": np.divide,
    "POW": np.power, "FLOOR_DIV": np.floor_divide, "AND": np.logical_and, "OR": np.logical_or, "XOR": np.logical_xor,
    "EQUAL": np.equal, "GREATER": np.greater, "LESS": np.less,
}  # fmt: skip
_ACTIVATION = {
    "RELU": lambda x: np.maximum(x, 0), "TANH": np.tanh, "SIGMOID": lambda x: PRIMITIVES["sigmoid"].run(np, x),
    "GELU_ERF": lambda x: PRIMITIVES["gelu"].run(np, x, "none"),
    "GELU_TANH": lambda x: PRIMITIVES["gelu"].run(np, x, "tanh"),
}  # fmt: skip


class Tensor:
    def __init__(self, dtype: Any, layer: Layer | None = None, index: int = 0, name: str = ""):
        self.dtype, self.layer, self.index, self.name = dtype, layer, index, name
        self.dimension_names: dict[int, str] = {}

    def set_dimension_name(self, axis: int, name: str) -> None:
        self.dimension_names[axis] = name


class Layer:
    """``compute(*arrays) -> arrays``; attributes that the lowering sets afterwards are read when it runs."""

    def __init__(self, inputs: list[Tensor], dtypes: list[Any], compute: Callable[..., Any]):
        self.name = ""
        self.inputs: list[Any] = list(inputs)
        self.compute = compute
        self.outputs = [Tensor(d, self, i) for i, d in enumerate(dtypes)]
        self.axis = 0
        self.axes = 0
        self.epsilon = 0.0
        self.weights: Any = None
        self.reshape_dims: tuple[int, ...] | None = None
        self.first_transpose: list[int] | None = None

    def get_output(self, index: int) -> Tensor:
        return self.outputs[index]

    def set_input(self, index: int, tensor: Tensor) -> None:
        self.inputs += [None] * (index + 1 - len(self.inputs))
        self.inputs[index] = tensor


class Weights:
    def __init__(self, dtype: Any, pointer: int, count: int):
        self.dtype, self.pointer, self.count = dtype, pointer, count

    def read(self) -> np.ndarray:
        numpy_type = NUMPY[self.dtype.name]
        raw = (ctypes.c_char * (self.count * numpy_type.itemsize)).from_address(self.pointer)
        return np.frombuffer(bytes(raw), numpy_type)


def _wide(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float32) if x.dtype in (NUMPY["HALF"], NUMPY["BF16"]) else x


class INetworkDefinition:
    def __init__(self) -> None:
        self.name = ""
        self.inputs: list[Tensor] = []
        self.outputs: list[Tensor] = []
        self.layers: list[Layer] = []
        self.cache_updates: list[Layer] = []
        #: Plugins that write into their inputs: the layer, and for outputs the inputs, by position.
        self.in_place: list[tuple[Layer, dict[int, int]]] = []
        self.named: dict[str, Layer] = {}
        self.plugins: list[tuple[str, bool]] = []

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    def get_layer(self, index: int) -> Layer:
        return self.layers[index]

    def _layer(self, inputs: list[Tensor], dtypes: list[Any], compute: Callable[..., Any]) -> Layer:
        layer = Layer(inputs, dtypes, compute)
        self.layers.append(layer)
        return layer

    def add_input(self, name: str, dtype: Any, shape: tuple[int, ...]) -> Tensor:
        assert name not in [t.name for t in self.inputs]
        self.inputs.append(Tensor(dtype, name=name))
        return self.inputs[-1]

    def mark_output(self, tensor: Tensor) -> None:
        assert tensor.layer is not None, "an input cannot be an output"
        self.outputs.append(tensor)

    def add_constant(self, shape: tuple[int, ...], weights: Weights) -> Layer:
        assert weights.dtype.name not in ("BOOL", "UINT8"), "no constants of this type"
        assert weights.count == int(np.prod(shape, dtype=int))
        layer = self._layer([], [weights.dtype], lambda: weights.read().reshape(shape))
        layer.weights = weights
        return layer

    def add_cast(self, x: Tensor, dtype: Any) -> Layer:
        return self._layer([x], [dtype], lambda a: _wide(a))

    def add_identity(self, x: Tensor) -> Layer:
        return self._layer([x], [x.dtype], lambda a: a)

    def add_unary(self, x: Tensor, op: Any) -> Layer:
        assert (op.name == "NOT") == (x.dtype.name == "BOOL")
        assert x.dtype.name in FLOATS or op.name in ("ABS", "NEG", "NOT")
        return self._layer([x], [x.dtype], lambda a: _UNARY[op.name](_wide(a)))

    def add_activation(self, x: Tensor, op: Any) -> Layer:
        assert x.dtype.name in FLOATS
        return self._layer([x], [x.dtype], lambda a: _ACTIVATION[op.name](_wide(a)))

    def add_elementwise(self, a: Tensor, b: Tensor, op: Any) -> Layer:
        assert a.dtype == b.dtype, (a.dtype, b.dtype)
        assert (op.name in ("AND", "OR", "XOR")) == (a.dtype.name == "BOOL") or op.name == "EQUAL"
        result = DataType.BOOL if op.name in ("EQUAL", "GREATER", "LESS") else a.dtype

        def compute(x: Any, y: Any) -> Any:
            assert x.ndim == y.ndim, (x.shape, y.shape)
            return _BINARY[op.name](_wide(x), _wide(y))

        return self._layer([a, b], [result], compute)

    def add_select(self, condition: Tensor, a: Tensor, b: Tensor) -> Layer:
        assert condition.dtype.name == "BOOL" and a.dtype == b.dtype

        def compute(c: Any, x: Any, y: Any) -> Any:
            assert c.ndim == x.ndim == y.ndim
            return np.where(c, x, y)

        return self._layer([condition, a, b], [a.dtype], compute)

    def add_matrix_multiply(self, a: Tensor, op_a: Any, b: Tensor, op_b: Any) -> Layer:
        assert a.dtype == b.dtype and a.dtype.name in FLOATS

        def compute(x: Any, y: Any) -> Any:
            assert x.ndim == y.ndim >= 2
            x = _wide(x).swapaxes(-1, -2) if op_a.name == "TRANSPOSE" else _wide(x)
            y = _wide(y).swapaxes(-1, -2) if op_b.name == "TRANSPOSE" else _wide(y)
            return x @ y

        return self._layer([a, b], [a.dtype], compute)

    def add_reduce(self, x: Tensor, op: Any, axes: int, keep_dims: bool) -> Layer:
        assert x.dtype.name != "BOOL"
        function: Any = {"SUM": np.sum, "MAX": np.max, "AVG": np.mean}[op.name]
        return self._layer([x], [x.dtype], lambda a: function(_wide(a), axis=_bits(axes), keepdims=keep_dims))

    def add_topk(self, x: Tensor, op: Any, k: int, axes: int) -> Layer:
        (axis,) = _bits(axes)

        def compute(a: Any) -> Any:
            assert k == 1 and a.ndim >= 2 and axis >= a.ndim - 4
            wide = _wide(a)
            return [wide.max(axis, keepdims=True), wide.argmax(axis, keepdims=True)]

        return self._layer([x], [x.dtype, DataType.INT32], compute)

    def add_softmax(self, x: Tensor) -> Layer:
        def compute(a: Any) -> Any:
            (axis,) = _bits(layer.axes)
            return PRIMITIVES["softmax"].run(np, _wide(a), axis=axis)

        layer = self._layer([x], [x.dtype], compute)
        return layer

    def add_normalization_v2(self, x: Tensor, scale: Tensor, bias: Tensor, axes: int) -> Layer:
        assert x.dtype == scale.dtype == bias.dtype

        def compute(a: Any, s: Any, b: Any) -> Any:
            assert s.shape == b.shape and s.ndim == a.ndim >= 2
            centered = a - a.mean(_bits(axes), keepdims=True)
            return centered / np.sqrt((centered**2).mean(_bits(axes), keepdims=True) + layer.epsilon) * s + b

        layer = self._layer([x, scale, bias], [x.dtype], compute)
        return layer

    def add_shape(self, x: Tensor) -> Layer:
        return self._layer([x], [DataType.INT64], lambda a: np.array(a.shape, np.int64))

    def add_shuffle(self, x: Tensor) -> Layer:
        def compute(a: Any, sizes: Any = None) -> Any:
            if layer.first_transpose is not None:
                a = a.transpose(layer.first_transpose)
            if sizes is None and layer.reshape_dims is None:
                return a
            wanted = layer.reshape_dims if sizes is None else tuple(sizes.tolist())
            assert wanted is not None
            return a.reshape([a.shape[i] if n == 0 else n for i, n in enumerate(wanted)])

        layer = self._layer([x], [x.dtype], compute)
        return layer

    def add_slice(self, x: Tensor, start: Any, shape: Any, stride: Any) -> Layer:
        def compute(a: Any, first: Any = None, sizes: Any = None) -> Any:
            begin = start if first is None else first.tolist()
            count = shape if sizes is None else sizes.tolist()
            assert len(begin) == len(count) == len(stride) == a.ndim
            for axis, (b, n, s) in enumerate(zip(begin, count, stride)):
                index = b + s * np.arange(n)
                assert index.min() >= 0 and index.max() < a.shape[axis], "a slice out of bounds"
                a = np.take(a, index, axis)
            return a

        return self._layer([x], [x.dtype], compute)

    def add_concatenation(self, tensors: list[Tensor]) -> Layer:
        assert len({t.dtype for t in tensors}) == 1
        layer = self._layer(list(tensors), [tensors[0].dtype], lambda *a: np.concatenate(a, layer.axis))
        return layer

    def add_gather(self, x: Tensor, indices: Tensor, axis: int) -> Layer:
        assert indices.dtype.name in ("INT32", "INT64")
        return self._layer([x, indices], [x.dtype], lambda a, i: np.take(a, i, axis))

    def add_fill(self, shape: Any, op: Any, dtype: Any) -> Layer:
        def compute(sizes: Any, first: Any, step: Any) -> Any:
            assert first.ndim == 0 and step.shape == (1,) and sizes.shape == (1,)
            return first + step[0] * np.arange(int(sizes[0]))

        return self._layer([], [dtype], compute)

    def add_kv_cache_update(self, cache: Tensor, new: Tensor, positions: Tensor, mode: Any) -> Layer:
        assert cache.layer is None and cache.dtype == new.dtype and positions.dtype.name == "INT32"
        layer = self._layer([cache, new, positions], [cache.dtype], lambda c, n, p: _written(c, n, p))
        self.cache_updates.append(layer)
        return layer

    def set_weights_name(self, weights: Weights, name: str) -> bool:
        self.named[name] = next(layer for layer in self.layers if layer.weights is weights)
        return True

    def add_plugin(self, call: tuple[Any, tuple[Tensor, ...], dict[str, Any]], aot: bool) -> Layer:
        """A registered op by its reference; TensorRT passes every attribute, and present inputs only."""
        spec, tensors, attributes = call
        assert set(attributes) == set(spec.op.attributes) and len(tensors) == len(spec.inputs)
        given = {name: DTYPE_OF[t.dtype.name] for name, t in zip(spec.inputs, tensors)}
        (types_,) = [
            c for c in dtype_combinations(spec, attributes) if all(c[name] == kind for name, kind in given.items())
        ]
        outputs = [getattr(DataType, TYPE_NAMES[types_[name]]) for name in spec.outputs]

        def compute(*arrays: Any) -> Any:
            return list(spec.op.run_reference(dict(zip(spec.inputs, arrays)), attributes).values())

        self.plugins.append((spec.plugin_id, aot))
        layer = self._layer(list(tensors), outputs, compute)
        if spec.op.aliases:
            places = [(spec.outputs.index(o), spec.inputs.index(i)) for o, i in spec.op.aliases.items()]
            self.in_place.append((layer, dict(places)))
        return layer


def _written(cache: Any, new: Any, positions: Any) -> Any:
    return run_primitive(PRIMITIVES["kv_cache_update"], [cache, new, positions], {}, _names(cache))[0]


def _names(array: np.ndarray) -> list[str]:
    return [next(d.name for d in DTYPES.values() if d.numpy == array.dtype)]


def _bits(mask: int) -> tuple[int, ...]:
    return tuple(i for i in range(8) if mask >> i & 1)


def evaluate(definition: INetworkDefinition, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Outputs by name; every layer's results are rounded to its types."""
    known: dict[int, list[np.ndarray]] = {}

    def of(tensor: Tensor | None) -> Any:
        if tensor is None:
            return None
        if tensor.layer is None:
            array = inputs[tensor.name]
            assert array.dtype == NUMPY[tensor.dtype.name], tensor.name
            return array
        if id(tensor.layer) not in known:
            with np.errstate(all="ignore"):
                raw = tensor.layer.compute(*map(of, tensor.layer.inputs))
            results = raw if isinstance(raw, list) else [raw]
            types = [NUMPY[t.dtype.name] for t in tensor.layer.outputs]
            known[id(tensor.layer)] = [np.asarray(r).astype(t, copy=False) for r, t in zip(results, types)]
        return known[id(tensor.layer)][tensor.index]

    return {t.name: of(t) for t in definition.outputs}
