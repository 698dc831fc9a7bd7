"""Modules: parameters with names by path, and the layers that models are made of.

A module is a plain object. Assigning a :class:`Parameter` or another module to an attribute makes it a child; the
path of attribute names is the name of the weight (``layers.0.mlp.up_proj.weight``) and the scope of the nodes that
``forward`` adds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np

from trtforge.bindings.errors import GraphError
from trtforge.graph_api import functional as F
from trtforge.graph_api.network import Network
from trtforge.graph_api.shapes import text
from trtforge.graph_api.tensor import Tensor


class Parameter:
    """A weight: declared shape and dtype, bound to an array by name before building (or given as ``data``)."""

    def __init__(self, shape: Sequence[int], dtype: str = "float16", data: np.ndarray | None = None, name: str = ""):
        self.shape = tuple(shape)
        self.dtype = dtype
        self.data = data
        self._name = name
        self._parent: Module | None = None

    @property
    def name(self) -> str:
        """The path of attribute names from the root module."""
        if self._parent is None:
            return self._name or "parameter"
        return _join(self._parent.path, self._name)

    def as_tensor(self, network: Network) -> Tensor:
        """This parameter in a network (the same tensor at every use)."""
        fresh = self.name not in network.parameters
        tensor = network.parameter(self.name, self.shape, self.dtype, owner=self)
        if fresh and self.data is not None:
            network.weights.update(_checked(tensor, self.data))
        return tensor

    def __repr__(self) -> str:
        return f"<Parameter {self.name} {self.dtype}{text(self.shape)}>"


def _checked(tensor: Tensor, data: np.ndarray) -> dict[str, np.ndarray]:
    from trtforge.graph_api.weights import matched

    return matched({tensor.name: tensor}, {}, {tensor.name: data}, (), tensor.network.name)


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


class Module:
    """Base of everything with parameters; subclasses define ``forward``."""

    _parent: Module | None = None
    _name: str = ""

    def __setattr__(self, name: str, value: Any) -> None:
        # The first owner names it: a weight that is assigned twice (tied embeddings) keeps its first path.
        if isinstance(value, (Module, Parameter)) and value._parent is None and name != "_parent":
            value._parent, value._name = self, name
        object.__setattr__(self, name, value)

    @property
    def path(self) -> str:
        """The path of attribute names from the root module; empty for the root."""
        return _join(self._parent.path, self._name) if self._parent is not None else self._name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        network = F.network_of(*args, *kwargs.values())
        # A module that is nobody's child has no path: its nodes stay in the scope around the call.
        with network, network.scope(self.path, absolute=True) if self.path else nullcontext():
            return self.forward(*args, **kwargs)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        raise GraphError(f"{type(self).__name__} defines no forward method")

    def children(self) -> Iterator[tuple[str, Module]]:
        """Direct child modules by attribute name."""
        for name, value in vars(self).items():
            if isinstance(value, Module) and name != "_parent":
                yield name, value

    def modules(self) -> Iterator[tuple[str, Module]]:
        """This module and all below it, by path."""
        yield self.path, self
        for _, child in self.children():
            yield from child.modules()

    def parameters(self) -> dict[str, Parameter]:
        """Every parameter below this module by name; shared ones once."""
        found: dict[str, Parameter] = {}
        for _, module in self.modules():
            for value in vars(module).values():
                if isinstance(value, Parameter):
                    found.setdefault(value.name, value)
        return found


class ModuleList(Module):
    """Modules by number: ``layers.0``, ``layers.1``, ..."""

    def __init__(self, modules: Sequence[Module] = ()):
        self._items: list[Module] = []
        for module in modules:
            self.append(module)

    def append(self, module: Module) -> None:
        setattr(self, str(len(self._items)), module)
        self._items.append(module)

    def __iter__(self) -> Iterator[Module]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Module:
        return self._items[index]


class Linear(Module):
    """y = x @ weight.T + bias, weight [out_features, in_features]."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True, dtype: str = "float16"):
        self.weight = Parameter((out_features, in_features), dtype)
        self.bias = Parameter((out_features,), dtype) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class Embedding(Module):
    """Rows of weight [count, width] by index."""

    def __init__(self, count: int, width: int, dtype: str = "float16"):
        self.weight = Parameter((count, width), dtype)

    def forward(self, indices: Tensor) -> Tensor:
        return F.embedding(indices, self.weight)


class RMSNorm(Module):
    """x / sqrt(mean(x^2) + eps) * weight over the last axis."""

    def __init__(self, width: int, eps: float = 1e-6, dtype: str = "float16"):
        self.weight = Parameter((width,), dtype)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight, self.eps)


class LayerNorm(Module):
    """(x - mean) / sqrt(var + eps) * weight + bias over the last axis."""

    def __init__(self, width: int, eps: float = 1e-5, bias: bool = True, dtype: str = "float16"):
        self.weight = Parameter((width,), dtype)
        self.bias = Parameter((width,), dtype) if bias else None
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight, self.bias, self.eps)


class Attention(Module):
    """Multi-head attention with grouped key/value heads (Ainslie et al. 2023, arXiv:2305.13245).

    x [B, S, width] -> [B, S, width]. ``written_out`` builds it in primitive ops, for fusion to replace; otherwise the
    registered op trtforge::flash_attention is called.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        kv_heads: int | None = None,
        head_dim: int | None = None,
        *,
        bias: bool = False,
        out_bias: bool | None = None,
        causal: bool = True,
        window: int = -1,
        soft_cap: float = 0.0,
        scale: float | None = None,
        written_out: bool = False,
        dtype: str = "float16",
    ):
        self.heads, self.kv_heads = heads, kv_heads or heads
        self.head_dim = head_dim or width // heads
        self.q_proj = Linear(width, self.heads * self.head_dim, bias, dtype)
        self.k_proj = Linear(width, self.kv_heads * self.head_dim, bias, dtype)
        self.v_proj = Linear(width, self.kv_heads * self.head_dim, bias, dtype)
        self.o_proj = Linear(self.heads * self.head_dim, width, bias if out_bias is None else out_bias, dtype)
        self.causal, self.window, self.soft_cap, self.scale = causal, window, soft_cap, scale
        self.written_out = written_out

    def forward(
        self,
        x: Tensor,
        rope: tuple[Tensor, Tensor] | None = None,
        cache: tuple[Tensor, Tensor] | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """``rope``: float32 tables (cos, sin) of the rows of x. ``cache``: states (k, v) [B, kv_heads, Smax, head_dim];
        then ``positions`` (int32 [B]) is the row that each sequence's first new key is written to.
        """
        batch, rows, _ = x.shape
        q = self._split_heads(self.q_proj(x), self.heads)
        k = self._split_heads(self.k_proj(x), self.kv_heads)
        v = self._split_heads(self.v_proj(x), self.kv_heads)
        if rope is not None:
            q, k = F.rope(q, *rope), F.rope(k, *rope)
        k_lengths = None
        if cache is not None:
            if positions is None:
                raise GraphError("Attention: a cache needs positions, int32 [B]: the row of each first new key")
            k = F.kv_cache_update(cache[0], k, positions)
            v = F.kv_cache_update(cache[1], v, positions)
            k_lengths = positions + rows
        attend = F.attention_written_out if self.written_out else F.attention
        y = attend(
            q,
            k,
            v,
            k_lengths=k_lengths,
            causal=self.causal,
            window=self.window,
            soft_cap=self.soft_cap,
            scale=self.scale,
        )
        return self.o_proj(y.transpose(1, 2).reshape(batch, rows, self.heads * self.head_dim))

    def _split_heads(self, x: Tensor, heads: int) -> Tensor:
        batch, rows, _ = x.shape
        return x.reshape(batch, rows, heads, self.head_dim).transpose(1, 2)


class MLP(Module):
    """down_proj(activation(up_proj(x))), in primitives: fusion puts fused ops in their place."""

    def __init__(self, width: int, hidden: int, activation: str = "gelu", bias: bool = True, dtype: str = "float16"):
        self.up_proj = Linear(width, hidden, bias, dtype)
        self.down_proj = Linear(hidden, width, bias, dtype)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.activation(self.up_proj(x), self.activation))


class GatedMLP(Module):
    """down_proj(activation(gate_proj(x)) * up_proj(x)) (Shazeer 2020, arXiv:2002.05202), in primitives."""

    def __init__(self, width: int, hidden: int, activation: str = "silu", bias: bool = False, dtype: str = "float16"):
        self.gate_proj = Linear(width, hidden, bias, dtype)
        self.up_proj = Linear(width, hidden, bias, dtype)
        self.down_proj = Linear(hidden, width, bias, dtype)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.mul(F.activation(self.gate_proj(x), self.activation), self.up_proj(x)))
