"""The linear layers of a network: products of a value with a weight [N, K] that is a parameter."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from trtforge.graph_api.network import Network
from trtforge.graph_api.tensor import Node, Tensor


@dataclass(frozen=True)
class Linear:
    """``node`` computes x [..., K] times ``weight`` [N, K] transposed. ``name``: the weight's, without ``.weight``."""

    node: Node

    @property
    def x(self) -> Tensor:
        return self.node.tensors[0]

    @property
    def weight(self) -> Tensor:
        return self.node.tensors[1]

    @property
    def name(self) -> str:
        return self.weight.name.removesuffix(".weight")

    @property
    def shape(self) -> tuple[int, int]:
        n, k = (int(d) for d in self.weight.shape)
        return n, k


@dataclass(frozen=True)
class Skipped:
    """A linear layer that stays in float, and why."""

    name: str
    reason: str


def is_linear(node: Node) -> bool:
    """Whether the node multiplies by a matrix [N, K] of weights."""
    return (
        node.op == "matmul"
        and not node.attributes["transpose_a"]
        and bool(node.attributes["transpose_b"])
        and node.tensors[1].kind == "parameter"
        and node.tensors[1].rank == 2
    )


def find(network: Network, skip: Sequence[str], num_bits: int) -> tuple[list[Linear], list[Skipped]]:
    """The linear layers to quantize, in execution order, and those left alone."""
    chosen: list[Linear] = []
    left: list[Skipped] = []
    for node in network.walk(is_linear):
        linear = Linear(node)
        reason = _reason(linear, skip, num_bits)
        if reason is None:
            chosen.append(linear)
        else:
            left.append(Skipped(linear.name, reason))
    return chosen, left


def _reason(linear: Linear, skip: Sequence[str], num_bits: int) -> str | None:
    names = (linear.name, linear.weight.name, linear.node.name)
    pattern = next((p for p in skip if any(fnmatchcase(name, p) for name in names)), None)
    if pattern is not None:
        return f"left in float by skip={pattern!r}"
    others = [n.name for n in linear.weight.consumers if n is not linear.node]
    if others:
        return f"its weight is also read by {', '.join(others)}"
    if num_bits == 4 and linear.shape[1] % 2:
        return f"its K is {linear.shape[1]}, and two 4-bit codes share a byte: K must be even"
    return None


def by_input(linears: Iterable[Linear]) -> dict[Tensor, list[Linear]]:
    """The layers that multiply the same value, together."""
    groups: dict[Tensor, list[Linear]] = {}
    for linear in linears:
        groups.setdefault(linear.x, []).append(linear)
    return groups
