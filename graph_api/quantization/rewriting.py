"""Putting quantized products, and a quantized KV cache, in place of float ones."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from trtforge.bindings.dtypes import name_of
from trtforge.graph_api import functional as F
from trtforge.graph_api import shapes
from trtforge.graph_api.network import Network
from trtforge.graph_api.primitive import FLOATS
from trtforge.graph_api.quantization.linears import Linear
from trtforge.graph_api.quantization.packing import PackedLinear
from trtforge.graph_api.tensor import Node, Tensor

#: What the product of codes gives; in other float dtypes codes are dequantized and multiplied.
PRODUCTS = ("float16", "bfloat16")
GRANULARITY = {"tensor": "tensor", "channel": "token"}


def inserted(network: Network, before: Node, scope: str, emit: Callable[[], Tensor]) -> Tensor:
    """What ``emit`` adds to the network, in front of ``before`` and with its location."""
    count = len(network.nodes)
    with network, network.scope(scope, absolute=True):
        result = emit()
    fresh = network.nodes[count:]
    del network.nodes[count:]
    at = network.nodes.index(before)
    network.nodes[at:at] = fresh
    for node in fresh:
        node.location = before.location
    return result


class Rewriter:
    """Replaces linear layers of one network; layers that read the same value share its codes."""

    def __init__(self, network: Network):
        self.network = network
        self._codes: dict[tuple[Tensor, str, float | None], tuple[Tensor, Tensor]] = {}

    def replace(self, linear: Linear, packed: PackedLinear) -> tuple[Node, str]:
        """Put the quantized product in the layer's place; returns its last node, and how it computes."""
        network, old = self.network, linear.node
        scope = old.name.rpartition(".")[0]
        dtype = old.outputs[0].dtype
        weight_name, x, result = linear.weight.name, linear.x, old.outputs[0]
        network.release(weight_name)
        codes = self._parameter(weight_name if packed.scheme.activations else _name(packed, "packed"), packed.codes)
        scale = self._parameter(_name(packed, "scale"), packed.weight_scale)
        if packed.scheme.activations is None:
            new = inserted(network, old, scope, lambda: F.matmul(x, _weight(packed, codes, scale, dtype), False, True))
            how = "dequantize + matmul"
        else:
            x_codes, x_scale = self._quantized(x, packed, old)
            if dtype in PRODUCTS:
                new = inserted(
                    network,
                    old,
                    scope,
                    lambda: F.call("trtforge::scaled_gemm", x_codes, codes, _flat(x_scale), scale, to=dtype),
                )
                how = "scaled_gemm"
            else:
                granularity = packed.scheme.activations.strategy
                new = inserted(
                    network,
                    old,
                    scope,
                    lambda: F.matmul(
                        F.dequantize(x_codes, x_scale, granularity=granularity, to=dtype),
                        _weight(packed, codes, scale, dtype),
                        False,
                        True,
                    ),
                )
                how = "dequantize + matmul"
        network.redirect(result, new)
        network.prune()
        assert new.producer is not None
        return new.producer, how

    def _parameter(self, name: str, array: np.ndarray) -> Tensor:
        tensor = self.network.parameter(name, array.shape, name_of(array.dtype))
        self.network.weights[name] = array
        return tensor

    def _quantized(self, x: Tensor, packed: PackedLinear, before: Node) -> tuple[Tensor, Tensor]:
        """Codes and scales of ``x``, made once for all layers that read it with the same scale."""
        activations = packed.scheme.activations
        assert activations is not None
        static = None if packed.input_scale is None else float(packed.input_scale[0])
        key = (x, activations.codes, static)
        if key not in self._codes:
            scope = x.producer.name.rpartition(".")[0] if x.producer is not None else ""
            if static is None:
                made: list[Tensor] = []

                def dynamic() -> Tensor:
                    made.extend(F.quantize(x, granularity=activations.strategy, to=activations.codes))
                    return made[0]

                inserted(self.network, before, scope, dynamic)
                self._codes[key] = made[0], made[1]
            else:
                assert packed.input_scale is not None
                scale = self._parameter(f"{packed.name}.input_scale", packed.input_scale)
                codes = inserted(self.network, before, scope, lambda: F.quantize(x, scale, to=activations.codes))
                self._codes[key] = codes, scale
        return self._codes[key]


def caches(network: Network) -> list[Node]:
    """The nodes that write rows into a state, with a float dtype: the keys and values of attention."""
    return [
        node
        for node in network.walk(lambda n: n.op == "kv_cache_update")
        if node.tensors[0].kind == "state" and node.tensors[0].dtype in FLOATS
    ]


def quantize_cache(network: Network, node: Node, scale: np.ndarray, to: str) -> str:
    """Keep the state that ``node`` writes in codes ``to`` with one ``scale``, float32 [1]; returns the scale's name."""
    state, new, positions = node.tensors
    result, dtype = node.outputs[0], node.outputs[0].dtype
    scope = node.name.rpartition(".")[0]
    del network.states[state.name]
    codes_state = Tensor(network, state.name, state.shape, to, kind="state")
    network.states[state.name] = codes_state
    kind = next((k for k in ("key", "value") if state.name.startswith(k)), state.name + "_")
    name = f"{scope}.{kind[0]}_scale" if kind in ("key", "value") else f"{kind}scale"
    factor = network.parameter(name, (1,), "float32")
    network.weights[name] = scale

    def written() -> Tensor:
        codes = F.quantize(_unrounded(new), factor, to=to)
        return F.dequantize(F.kv_cache_update(codes_state, codes, positions), factor, to=dtype)

    network.redirect(result, inserted(network, node, scope, written))
    network.remove(node)
    network.prune()
    return name


def _unrounded(new: Tensor) -> Tensor:
    """Turned keys as the rotary embedding computes them, in float32: codes are then rounded once, fused or not."""
    if new.producer is None or new.producer.op != "rope":
        return new
    x, cos, sin = new.producer.tensors
    return F.rope(F.cast(x, "float32"), cos, sin)


def _name(packed: PackedLinear, what: str) -> str:
    return f"{packed.name}.weight_{what}"


def _flat(scale: Tensor) -> Tensor:
    return scale if scale.rank == 1 else F.reshape(scale, (shapes.volume(scale.shape),))


def _weight(packed: PackedLinear, codes: Tensor, scale: Tensor, dtype: str) -> Tensor:
    weights = packed.scheme.weights
    if weights.codes == "int4":
        return F.dequantize_int4(codes, scale, to=dtype)
    return F.dequantize(codes, scale, granularity=GRANULARITY[weights.strategy], to=dtype)
