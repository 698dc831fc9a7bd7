"""Single nodes on CuPy arrays: what the cuda backend is made of, and what runs between engines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from trtforge.bindings import ranges
from trtforge.graph_api.backends import cuda_primitives as on_cuda
from trtforge.graph_api.backends.cublas import WORKSPACE_BYTES, Gemm
from trtforge.graph_api.primitive import PRIMITIVES
from trtforge.graph_api.shapes import resolve
from trtforge.graph_api.tensor import Node
from trtforge.kernels import registry
from trtforge.kernels.plan import Plan, plan

BEST_ALIGNMENT = 256
_CACHE_UPDATE = "trtforge::kv_cache_update"


class NodeRunner:
    """Runs nodes on one stream: cuBLAS, CuPy, or a registered kernel. ``placement`` tells which, by node name."""

    def __init__(self, cp: Any, stream: Any, placement: dict[str, str]):
        self._cp = cp
        self._stream = stream
        self.placement = placement
        self._plans: dict[Any, Plan] = {}

    @cached_property
    def gemm(self) -> Gemm:
        """cuBLAS with a workspace of its own; make it before a capture begins."""
        self._workspace = self._cp.empty(WORKSPACE_BYTES, "uint8")
        return Gemm(self._stream.ptr, self._workspace.data.ptr)

    def run(self, node: Node, arrays: Sequence[Any], dims: Mapping[str, int], outputs: Sequence[Any] = ()) -> list[Any]:
        """The node's results: new arrays, or for a registered op ``outputs`` where they are given; what it updates in
        place is the array itself."""
        with ranges.node(node.name, node.op):
            return self._run(node, arrays, dims, outputs)

    def _run(self, node: Node, arrays: Sequence[Any], dims: Mapping[str, int], outputs: Sequence[Any]) -> list[Any]:
        attributes = {k: resolve(v, dims) for k, v in node.attributes.items()}
        sizes = [resolve(t.shape, dims) for t in node.outputs]
        if node.op in PRIMITIVES:
            return [self._primitive(node, list(arrays), attributes, sizes[0])]
        made = list(outputs) or [
            arrays[node.updates[i]] if i in node.updates else self._cp.empty(size, on_cuda.storage_name(t.dtype))
            for i, (size, t) in enumerate(zip(sizes, node.outputs))
        ]
        self._registered(node, arrays, attributes, made)
        return made

    def _primitive(self, node: Node, arrays: list[Any], attributes: dict[str, Any], shape: tuple[int, ...]) -> Any:
        cp, primitive, output = self._cp, PRIMITIVES[node.op], node.outputs[0].dtype
        dtypes = [None if t is None else t.dtype for t in node.inputs]
        if node.op == "matmul":
            self.placement[node.name] = "cuBLAS"
            a, b = arrays
            return on_cuda.run_matmul(cp, self.gemm, a, b, output, shape, **attributes)
        if node.op == "kv_cache_update":
            return self._cache_update(node, arrays)
        if node.op == "rope":
            self.placement[node.name] = "CuPy kernel"
            x, cos, sin = arrays
            return on_cuda.run_rope(cp, x, cos, sin, output)
        if primitive.expression is not None:
            self.placement[node.name] = "CuPy kernel"
            present = [d for d in dtypes if d is not None]
            return on_cuda.run_elementwise(cp, primitive, arrays, present, attributes, shape, output)
        self.placement[node.name] = "CuPy, copies or views" if primitive.compute == "bits" else "CuPy, in float32"
        return on_cuda.run_generic(cp, primitive, arrays, dtypes, attributes, output)

    def _registered(
        self, node: Node, arrays: Sequence[Any], attributes: dict[str, Any], outputs: Sequence[Any]
    ) -> None:
        contiguous = self._cp.ascontiguousarray
        present = {n: contiguous(a) for n, a in zip(node.input_names, arrays) if a is not None}
        dtypes = {name: t.dtype for name, t in node.named_inputs().items()}
        self._launch(node, node.op, present, {n: a.shape for n, a in present.items()}, dtypes, attributes, outputs)

    def _cache_update(self, node: Node, arrays: Sequence[Any]) -> Any:
        """The cache itself, written to by the registered op; whatever its dtype is, bytes are moved."""
        cache, new, positions = arrays
        present = {"cache": cache, "new": self._cp.ascontiguousarray(new), "positions": positions}
        width = cache.dtype.itemsize
        shapes = {n: (*a.shape[:-1], a.shape[-1] * width) for n, a in present.items() if n != "positions"}
        shapes["positions"] = positions.shape
        dtypes = {"cache": "int8", "new": "int8", "positions": "int32"}
        self._launch(node, _CACHE_UPDATE, present, shapes, dtypes, {}, [cache])
        return cache

    def _launch(
        self,
        node: Node,
        op: str,
        present: Mapping[str, Any],
        shapes: Mapping[str, tuple[int, ...]],
        dtypes: Mapping[str, str],
        attributes: Mapping[str, Any],
        outputs: Sequence[Any],
    ) -> None:
        pointers = [a.data.ptr for a in (*present.values(), *outputs)]
        low_bits = 0
        for pointer in pointers:
            low_bits |= pointer
        alignment = min(BEST_ALIGNMENT, low_bits & -low_bits) if low_bits else BEST_ALIGNMENT
        key = (node.name, tuple(shapes.values()), alignment)
        if key not in self._plans:
            self._plans[key] = plan(registry.get(op), shapes, dtypes, attributes, alignment=alignment)
        self.placement[node.name] = self._plans[key].label
        self._plans[key].launch(pointers, self._stream.ptr)
