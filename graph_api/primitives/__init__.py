"""The primitive ops of the graph, one declaration each; importing this package fills ``PRIMITIVES``."""

from trtforge.graph_api.primitives import create, elementwise, indexing, layout, matmul, reduction

__all__ = ["create", "elementwise", "indexing", "layout", "matmul", "reduction"]
