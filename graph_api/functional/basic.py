"""Arithmetic, products, reductions, layout, indexing, values, and calls of registered ops."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from trtforge.bindings.dtypes import DTYPES
from trtforge.bindings.dtypes import dtype as dtype_row
from trtforge.bindings.errors import GraphError
from trtforge.graph_api import primitives as _primitives  # noqa: F401  (fills the table of primitives)
from trtforge.graph_api import shapes
from trtforge.graph_api.network import Network, current_network
from trtforge.graph_api.shapes import Dim, DimLike
from trtforge.graph_api.tensor import Tensor
from trtforge.kernels import registry
from trtforge.kernels.dims import Expr

# --- turning arguments into tensors ----------------------------------------------------------------------------------


def network_of(*values: Any) -> Network:
    """The network of the first tensor among ``values``, else the one that is being built."""
    for value in values:
        if isinstance(value, Tensor):
            return value.network
    return current_network()


def as_tensor(value: Any, network: Network, like: Tensor | None = None, op: str = "constant") -> Tensor:
    """``value`` as a tensor of ``network``; Python numbers take the dtype of ``like``."""
    if isinstance(value, Tensor):
        return value
    if hasattr(value, "as_tensor"):  # a Parameter
        return value.as_tensor(network)
    if isinstance(value, (Dim, Expr)):
        return dim_value(value, like.dtype if like is not None and like.dtype in ("int32", "int64") else "int32")
    if isinstance(value, np.ndarray) or (isinstance(value, np.generic) and like is None):
        return network.constant(value)
    if isinstance(value, (bool, int, float, np.generic)):
        return network.constant(_number(value, like, op))
    raise GraphError(f"{op}: a Tensor, number or array is needed, got {type(value).__name__}: {value!r}")


def _number(value: Any, like: Tensor | None, op: str) -> np.ndarray:
    number = value.item() if isinstance(value, np.generic) else value
    if like is None:
        kind = "bool" if isinstance(number, bool) else "int32" if isinstance(number, int) else "float32"
        return np.asarray(number, dtype_row(kind).numpy)
    target = DTYPES[like.dtype]
    fits = isinstance(number, bool) == (target.name == "bool") and (target.floating or not isinstance(number, float))
    if fits and not target.floating and target.name != "bool":
        info = np.iinfo(target.numpy)
        fits = info.min <= number <= info.max
    if not fits:
        raise GraphError(
            f"{op}: the number {number!r} does not fit {like}; accepted: a number that {like.dtype} can hold, or "
            ".cast(...) the tensor first"
        )
    return np.asarray(number, np.float32 if target.floating else target.numpy).astype(target.numpy)


def _emit(op: str, values: Sequence[Any], **attributes: Any) -> Tensor:
    """Add a primitive; numbers take the dtype of the first tensor, None stays absent."""
    network = network_of(*values)
    like = next((v for v in values if isinstance(v, Tensor)), None)
    if like is None:
        for value in values:
            if value is not None and not isinstance(value, (bool, int, float)):
                like = as_tensor(value, network, None, op)
                values = [like if v is value else v for v in values]
                break
    inputs = [None if v is None else as_tensor(v, network, like, op) for v in values]
    return network.emit(op, inputs, attributes)[0]


# --- elementwise -----------------------------------------------------------------------------------------------------


def add(a: Any, b: Any) -> Tensor:
    """a + b, broadcast."""
    return _emit("add", (a, b))


def sub(a: Any, b: Any) -> Tensor:
    """a - b, broadcast."""
    return _emit("sub", (a, b))


def mul(a: Any, b: Any) -> Tensor:
    """a * b, broadcast."""
    return _emit("mul", (a, b))


def div(a: Any, b: Any) -> Tensor:
    """a / b of floats, broadcast."""
    return _emit("div", (a, b))


def floor_div(a: Any, b: Any) -> Tensor:
    """a // b of integers, rounded towards minus infinity, broadcast."""
    return _emit("floor_div", (a, b))


def mod(a: Any, b: Any) -> Tensor:
    """a % b of integers, with the sign of b, broadcast."""
    return _emit("mod", (a, b))


def pow(a: Any, b: Any) -> Tensor:
    """a ** b of floats, broadcast."""
    return _emit("pow", (a, b))


def maximum(a: Any, b: Any) -> Tensor:
    """The larger element, broadcast; NaN in ``a`` stays."""
    return _emit("maximum", (a, b))


def minimum(a: Any, b: Any) -> Tensor:
    """The smaller element, broadcast; NaN in ``a`` stays."""
    return _emit("minimum", (a, b))


def neg(x: Tensor) -> Tensor:
    return _emit("neg", (x,))


def exp(x: Tensor) -> Tensor:
    return _emit("exp", (x,))


def log(x: Tensor) -> Tensor:
    return _emit("log", (x,))


def sqrt(x: Tensor) -> Tensor:
    return _emit("sqrt", (x,))


def rsqrt(x: Tensor) -> Tensor:
    """1 / sqrt(x)."""
    return _emit("rsqrt", (x,))


def abs(x: Tensor) -> Tensor:
    return _emit("abs", (x,))


def erf(x: Tensor) -> Tensor:
    """The Gauss error function."""
    return _emit("erf", (x,))


def sin(x: Tensor) -> Tensor:
    return _emit("sin", (x,))


def cos(x: Tensor) -> Tensor:
    return _emit("cos", (x,))


def tanh(x: Tensor) -> Tensor:
    return _emit("tanh", (x,))


def sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + exp(-x))."""
    return _emit("sigmoid", (x,))


def relu(x: Tensor) -> Tensor:
    """max(x, 0)."""
    return _emit("relu", (x,))


def silu(x: Tensor) -> Tensor:
    """x * sigmoid(x)."""
    return _emit("silu", (x,))


def gelu(x: Tensor, approximate: str = "none") -> Tensor:
    """x * Phi(x); ``approximate="tanh"`` takes the tanh form (Hendrycks & Gimpel 2016, arXiv:1606.08415)."""
    return _emit("gelu", (x,), approximate=approximate)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "relu": relu,
    "gelu": gelu,
    "gelu_tanh": lambda x: gelu(x, "tanh"),
    "silu": silu,
    "sigmoid": sigmoid,
    "tanh": tanh,
}


def activation(x: Tensor, kind: str) -> Tensor:
    """The activation of that name: none, relu, gelu, gelu_tanh, silu, sigmoid, tanh."""
    if kind not in ACTIVATIONS:
        raise GraphError(f"activation: unknown kind {kind!r}; accepted: {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[kind](x)


def eq(a: Any, b: Any) -> Tensor:
    """Where the elements are equal, as bool."""
    return _emit("eq", (a, b))


def ne(a: Any, b: Any) -> Tensor:
    return _emit("ne", (a, b))


def lt(a: Any, b: Any) -> Tensor:
    return _emit("lt", (a, b))


def le(a: Any, b: Any) -> Tensor:
    return _emit("le", (a, b))


def gt(a: Any, b: Any) -> Tensor:
    return _emit("gt", (a, b))


def ge(a: Any, b: Any) -> Tensor:
    return _emit("ge", (a, b))


def logical_and(a: Any, b: Any) -> Tensor:
    return _emit("logical_and", (a, b))


def logical_or(a: Any, b: Any) -> Tensor:
    return _emit("logical_or", (a, b))


def logical_not(x: Tensor) -> Tensor:
    return _emit("logical_not", (x,))


def where(condition: Tensor, a: Any, b: Any) -> Tensor:
    """``a`` where the bool ``condition`` holds, else ``b``; all broadcast. One of a and b may be a number."""
    network = network_of(condition, a, b)
    like = next((v for v in (a, b) if isinstance(v, Tensor)), None)
    one = as_tensor(a, network, like, "where")
    return network.emit("where", (condition, one, as_tensor(b, network, one if like is None else like, "where")))[0]


def cast(x: Tensor, dtype: str) -> Tensor:
    """``x`` as another dtype (float32, float16, bfloat16, the integers, bool); floats round to nearest even."""
    return x if isinstance(x, Tensor) and x.dtype == dtype else _emit("cast", (x,), dtype=dtype)


# --- products --------------------------------------------------------------------------------------------------------


def matmul(a: Tensor, b: Tensor, transpose_a: bool = False, transpose_b: bool = False) -> Tensor:
    """a [..., M, K] @ b [..., K, N], batch dimensions broadcast; ``transpose_b`` takes b as [..., N, K].

    Accumulates in float32 and rounds once.
    """
    return _emit("matmul", (a, b), transpose_a=bool(transpose_a), transpose_b=bool(transpose_b))


def linear(x: Tensor, weight: Any, bias: Any = None) -> Tensor:
    """x [..., K] times weight [N, K] transposed, plus bias [N]: a matmul and an add."""
    y = matmul(x, weight, transpose_b=True)
    return y if bias is None else add(y, bias)


# --- reductions and normalizations -----------------------------------------------------------------------------------


def sum(x: Tensor, axis: int | Sequence[int] = -1, keepdims: bool = False) -> Tensor:
    """Sum over one or more axes, accumulated in float32 for floats."""
    return _emit("sum", (x,), axis=_axes(axis), keepdims=bool(keepdims))


def mean(x: Tensor, axis: int | Sequence[int] = -1, keepdims: bool = False) -> Tensor:
    """Mean over one or more axes, accumulated in float32."""
    return _emit("mean", (x,), axis=_axes(axis), keepdims=bool(keepdims))


def max(x: Tensor, axis: int | Sequence[int] = -1, keepdims: bool = False) -> Tensor:
    """Maximum over one or more axes."""
    return _emit("max", (x,), axis=_axes(axis), keepdims=bool(keepdims))


def _axes(axis: int | Sequence[int]) -> Any:
    return tuple(axis) if isinstance(axis, (list, tuple)) else axis


def argmax(x: Tensor, axis: int = -1, keepdims: bool = False) -> Tensor:
    """The int32 index of the first maximum."""
    return _emit("argmax", (x,), axis=axis, keepdims=bool(keepdims))


def softmax(x: Tensor, axis: int = -1) -> Tensor:
    """exp(x - max) / sum, in float32."""
    return _emit("softmax", (x,), axis=axis)


def rms_norm(x: Tensor, weight: Any = None, eps: float = 1e-6) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last axis, in float32 (Zhang & Sennrich, arXiv:1910.07467)."""
    return _emit("rms_norm", (x, weight), eps=eps)


def layer_norm(x: Tensor, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Tensor:
    """(x - mean) / sqrt(var + eps) * weight + bias over the last axis, in float32 (arXiv:1607.06450)."""
    return _emit("layer_norm", (x, weight, bias), eps=eps)


# --- values ----------------------------------------------------------------------------------------------------------


def constant(value: Any, dtype: str | None = None, name: str = "") -> Tensor:
    """A constant from a number or array (float64 becomes float32)."""
    array = np.asarray(value)
    if dtype is not None:
        array = array.astype(dtype_row(dtype).numpy)
    elif not isinstance(value, (np.ndarray, np.generic)) and array.dtype == np.int64:
        array = array.astype(np.int32)
    return current_network().constant(array, name)


def arange(size: DimLike, dtype: str = "int32") -> Tensor:
    """0, 1, ..., size - 1; the size may be dynamic."""
    return current_network().emit("arange", (), {"size": shapes.dim(size), "dtype": dtype})[0]


def dim_value(value: DimLike, dtype: str = "int32") -> Tensor:
    """A dimension (or an expression over dimensions) as a scalar tensor."""
    return current_network().emit("dim_value", (), {"value": shapes.dim(value), "dtype": dtype})[0]


# --- registered ops --------------------------------------------------------------------------------------------------


def call(op: str, *inputs: Any, **options: Any) -> Any:
    """A registered op by name, ``call("namespace::name", x, w, bias=b, eps=1e-5)``: ours or a user's.

    Inputs by position or name, attributes by name. Returns a Tensor, or a tuple if the op has several outputs. What the
    op updates in place must be a network state or an input that nothing else reads; its result is read instead.
    """
    registered = registry.get(op)
    names = list(registered.inputs)
    if len(inputs) > len(names):
        raise GraphError(f"{op}: {len(inputs)} inputs were given; inputs: {registered.contract.signature()}")
    given = dict(zip(names, inputs))
    for name in [n for n in options if n in registered.inputs]:
        if given.get(name) is not None:
            raise GraphError(f"{op}: the input {name!r} was given twice")
        given[name] = options.pop(name)
    network = network_of(*given.values())
    tensors = [None if given.get(n) is None else as_tensor(given[n], network, None, op) for n in names]
    results = network.emit(op, tensors, options)
    return results[0] if len(results) == 1 else results


__all__ = [
    "abs",
    "activation",
    "add",
    "arange",
    "argmax",
    "as_tensor",
    "call",
    "cast",
    "constant",
    "cos",
    "dim_value",
    "div",
    "eq",
    "erf",
    "exp",
    "floor_div",
    "ge",
    "gelu",
    "gt",
    "layer_norm",
    "le",
    "linear",
    "log",
    "logical_and",
    "logical_not",
    "logical_or",
    "lt",
    "matmul",
    "max",
    "maximum",
    "mean",
    "minimum",
    "mod",
    "mul",
    "ne",
    "neg",
    "network_of",
    "pow",
    "relu",
    "rms_norm",
    "rsqrt",
    "sigmoid",
    "silu",
    "sin",
    "softmax",
    "sqrt",
    "sub",
    "sum",
    "tanh",
    "where",
]
