"""A network as text: a listing for people, and a Mermaid flowchart."""

from __future__ import annotations

from typing import Any

from trtforge.graph_api import shapes
from trtforge.graph_api.network import Network
from trtforge.graph_api.tensor import Tensor


def to_text(network: Network) -> str:
    """One line per input, state, parameter, node and output."""
    lines = [f"network {network.name}"]
    for dim in network.dims.values():
        lines.append(f"  dim {dim.name} {dim.min}..{dim.max}, tuned for {dim.tuned}")
    for kind, tensors in (("input", network.inputs), ("state", network.states), ("parameter", network.parameters)):
        lines += [f"  {kind} {t}" for t in tensors.values()]
    for node in network.nodes:
        updated = node.updated
        outputs = ", ".join(
            f"{t.name} {t.dtype}{shapes.text(t.shape)}" + (f" in {updated[t].name}" if t in updated else "")
            for t in node.outputs
        )
        arguments = [_operand(t) for t in node.inputs] + [f"{k}={_short(v)}" for k, v in node.attributes.items()]
        lines.append(f"  {outputs} = {node.op}({', '.join(arguments)})")
    lines += [f"  output {name} = {_operand(t)}" for name, t in network.outputs.items()]
    return "\n".join(lines)


def to_mermaid(network: Network) -> str:
    """The nodes and what flows between them as a Mermaid flowchart (parameters and constants left out)."""
    ids: dict[str, str] = {}

    def box(name: str, label: str, left: str = "[", right: str = "]") -> str:
        ids[name] = f"n{len(ids)}"
        return f'  {ids[name]}{left}"{label}"{right}'

    lines = ["flowchart TD"]
    lines += [box(t.name, f"{t}", "([", "])") for t in (*network.inputs.values(), *network.states.values())]
    for node in network.nodes:
        lines.append(box(node.name, f"{node.name}<br/>{node.op}"))
        for tensor in node.tensors:
            source = tensor.producer.name if tensor.producer is not None else tensor.name
            if source in ids:
                lines.append(f"  {ids[source]} --> {ids[node.name]}")
    for name, tensor in network.outputs.items():
        lines.append(box(f"output {name}", name, "([", "])"))
        source = tensor.producer.name if tensor.producer is not None else tensor.name
        if source in ids:
            lines.append(f"  {ids[source]} --> {ids[f'output {name}']}")
    return "\n".join(lines)


def _operand(tensor: Tensor | None) -> str:
    if tensor is None:
        return "-"
    return tensor.name if tensor.scalar is None else str(tensor.scalar)


def _short(value: Any) -> str:
    return shapes.text(value) if isinstance(value, tuple) else str(value)
