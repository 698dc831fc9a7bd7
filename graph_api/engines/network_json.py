"""A network as JSON and back. Reading adds every node anew, with all checks: a file's shapes are never trusted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from trtforge.bindings.errors import PlanError
from trtforge.graph_api.network import Network
from trtforge.graph_api.shapes import Dim, Shape
from trtforge.graph_api.tensor import Tensor
from trtforge.kernels.dims import Atom, Expr, IntLike, cdiv, constant_value, maximum, minimum, next_power_of_2, sym

_OPERATIONS: dict[str, Any] = {
    "//": lambda a, b: a // b,
    "%": lambda a, b: a % b,
    "cdiv": cdiv,
    "min": minimum,
    "max": maximum,
    "next_power_of_2": next_power_of_2,
}


def encode(value: Any) -> Any:
    """An attribute value: None, bool, int and str as they are; floats exactly; tuples and dimension expressions."""
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, Expr):
        known = constant_value(value)
        if known is not None:
            return known
        return {"sum": [[c, [_encode_atom(a) for a in monomial]] for monomial, c in value.terms]}
    if isinstance(value, (int, np.integer)):
        return int(value)
    if isinstance(value, (float, np.floating)):
        return {"float": float(value).hex()}
    if isinstance(value, (tuple, list)):
        return {"tuple": [encode(v) for v in value]}
    raise PlanError(f"an attribute of type {type(value).__name__} cannot be written to a plan: {value!r}")


def _encode_atom(atom: Atom) -> Any:
    return atom.args[0] if atom.op == "sym" else {"op": atom.op, "args": [encode(a) for a in atom.args]}


def decode(value: Any) -> Any:
    """The inverse of :func:`encode`."""
    if not isinstance(value, dict):
        return value
    if "float" in value:
        return float.fromhex(value["float"])
    if "tuple" in value:
        return tuple(decode(v) for v in value["tuple"])
    total: IntLike = 0
    for coefficient, atoms in value["sum"]:
        term: IntLike = coefficient
        for atom in atoms:
            factor = sym(atom) if isinstance(atom, str) else _OPERATIONS[atom["op"]](*map(decode, atom["args"]))
            term = term * factor
        total = total + term
    return total


def _encode_tensor(tensor: Tensor) -> dict[str, Any]:
    return {"name": tensor.name, "dtype": tensor.dtype, "shape": encode(tensor.shape)}


def network_to_json(network: Network) -> dict[str, Any]:
    """The structure of a network; arrays are left out."""
    return {
        "name": network.name,
        "dims": [[d.name, d.min, d.tuned, d.max] for d in network.dims.values()],
        "inputs": [_encode_tensor(t) for t in network.inputs.values()],
        "states": [_encode_tensor(t) for t in network.states.values()],
        "parameters": [_encode_tensor(t) for t in network.parameters.values()],
        "constants": [_encode_tensor(t) for t in network.constants.values()],
        "nodes": [
            {
                "name": n.name,
                "op": n.op,
                "inputs": [None if t is None else t.name for t in n.inputs],
                "attributes": {k: encode(v) for k, v in n.attributes.items()},
                "outputs": [_encode_tensor(t) for t in n.outputs],
            }
            for n in network.nodes
        ],
        "outputs": [[name, t.name] for name, t in network.outputs.items()],
    }


def network_from_json(data: Mapping[str, Any], constants: Mapping[str, np.ndarray]) -> Network:
    """Build the network again. Raises PlanError, or the error of the check that a node fails."""
    with Network(data["name"]) as network:
        for name, low, tuned, high in data["dims"]:
            network.dims[name] = Dim(name, low, tuned, high)
        tensors: dict[str, Tensor] = {}

        def sizes(entry: Mapping[str, Any]) -> Shape:
            shape = decode(entry["shape"])
            return tuple(shape)

        for entry in data["inputs"]:
            tensors[entry["name"]] = network.input(entry["name"], entry["dtype"], sizes(entry))
        for entry in data["states"]:
            tensors[entry["name"]] = network.state(entry["name"], entry["dtype"], [int(d) for d in sizes(entry)])
        for entry in data["parameters"]:
            tensors[entry["name"]] = network.parameter(
                entry["name"], [int(d) for d in sizes(entry)], entry["dtype"], owner=entry["name"]
            )
        for entry in data["constants"]:
            tensor = network.constant(constants[entry["name"]], entry["name"])
            _same(tensor, entry)
            tensors[entry["name"]] = tensor
        for node in data["nodes"]:
            given = [None if name is None else tensors[name] for name in node["inputs"]]
            attributes = {k: decode(v) for k, v in node["attributes"].items()}
            made = network.emit(node["op"], given, attributes, name=node["name"])
            if len(made) != len(node["outputs"]):
                raise PlanError(f"{node['name']} has {len(made)} outputs, not {len(node['outputs'])}")
            for tensor, entry in zip(made, node["outputs"]):
                _same(tensor, entry)
                tensors[entry["name"]] = tensor
        for name, tensor_name in data["outputs"]:
            network.mark_output(tensors[tensor_name], name)
    return network


def _same(tensor: Tensor, entry: Mapping[str, Any]) -> None:
    if (tensor.name, tensor.dtype, encode(tensor.shape)) != (entry["name"], entry["dtype"], entry["shape"]):
        raise PlanError(f"{entry['name']} {entry['dtype']} is recorded, but the graph gives {tensor}")
