"""Networks of ops: built in Python, checked at every call, fused, and run by a backend."""

from trtforge.bindings.errors import GraphError
from trtforge.graph_api import functional
from trtforge.graph_api.executable import Executable
from trtforge.graph_api.modules import (
    MLP,
    Attention,
    Embedding,
    GatedMLP,
    LayerNorm,
    Linear,
    Module,
    ModuleList,
    Parameter,
    RMSNorm,
)
from trtforge.graph_api.network import Network
from trtforge.graph_api.shapes import Dim
from trtforge.graph_api.tensor import Node, Tensor
from trtforge.graph_api.weights import read_safetensors

__all__ = [
    "MLP",
    "Attention",
    "Dim",
    "Embedding",
    "Executable",
    "GatedMLP",
    "GraphError",
    "LayerNorm",
    "Linear",
    "Module",
    "ModuleList",
    "Network",
    "Node",
    "Parameter",
    "RMSNorm",
    "Tensor",
    "functional",
    "read_safetensors",
]
