"""The graph container: inputs, states, parameters, constants, nodes in execution order, and outputs."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trtforge.bindings.dtypes import DTYPES, name_of
from trtforge.bindings.errors import ContractError, GraphError, UnknownNameError
from trtforge.graph_api import shapes, weights
from trtforge.graph_api.primitive import PRIMITIVES, Call, Primitive, Value
from trtforge.graph_api.shapes import Dim, DimLike
from trtforge.graph_api.tensor import Location, Node, Tensor
from trtforge.kernels import registry
from trtforge.kernels.dims import free_symbols, is_symbolic

if TYPE_CHECKING:
    from trtforge.graph_api.executable import Executable
    from trtforge.graph_api.fusion import FusionReport

_current: ContextVar[tuple[Network, ...]] = ContextVar("trtforge_networks", default=())
_PACKAGE = os.path.dirname(__file__)
#: Our own sources, which a node's location skips; model code beside them (llm/) is a user like any other.
_OWN = {_PACKAGE, *(os.path.join(_PACKAGE, part) for part in ("functional", "primitives", "backends"))}


def current_network() -> Network:
    """The network of the innermost ``with Network(...)`` block."""
    stack = _current.get()
    if not stack:
        raise GraphError("no network is being built here; write `with Network('name') as net:` around the calls")
    return stack[-1]


class Network:
    """A graph of ops over symbolic tensors.

    >>> with Network("scale") as net:
    ...     x = net.input("x", "float32", (Dim("S", max=8), 4))
    ...     _ = net.mark_output(x * 2.0, "y")
    >>> net.build()(x=np.ones((2, 4), np.float32))["y"].shape
    (2, 4)
    """

    def __init__(self, name: str = "network"):
        self.name = name
        self.inputs: dict[str, Tensor] = {}
        self.states: dict[str, Tensor] = {}
        self.parameters: dict[str, Tensor] = {}
        self.constants: dict[str, Tensor] = {}
        self.outputs: dict[str, Tensor] = {}
        self.nodes: list[Node] = []
        self.dims: dict[str, Dim] = {}
        #: Arrays by parameter name, held by reference.
        self.weights: dict[str, np.ndarray] = {}
        #: Counts the changes; an executable refuses to run a network that changed after it was built.
        self.revision = 0
        #: What the last fusion pass did, None before one.
        self.fusion_report: FusionReport | None = None
        self._parameter_owners: dict[str, object] = {}
        self._names: set[str] = set()
        self._scopes: list[str] = [""]
        self._tokens: list[Any] = []

    def __enter__(self) -> Network:
        self._tokens.append(_current.set((*_current.get(), self)))
        return self

    def __exit__(self, *exc: object) -> None:
        _current.reset(self._tokens.pop())

    def __repr__(self) -> str:
        return f"<Network {self.name}: {len(self.nodes)} nodes, {len(self.parameters)} parameters>"

    # --- values from outside -------------------------------------------------------------------------------------

    def input(self, name: str, dtype: str, shape: Sequence[DimLike]) -> Tensor:
        """A value that every call brings. Dimensions are ints or :class:`Dim`."""
        tensor = self._outside("input", name, dtype, shape)
        self.inputs[name] = tensor
        return tensor

    def state(self, name: str, dtype: str, shape: Sequence[int]) -> Tensor:
        """A buffer of fixed shape that stays in the executable between calls, zero at first (a KV cache).

        It is updated by ops that work in place: ``functional.kv_cache_update``, or by ``functional.call`` a registered
        op with aliased outputs.
        """
        tensor = self._outside("state", name, dtype, shape)
        if any(is_symbolic(d) for d in tensor.shape):
            raise GraphError(f"state {name!r} has shape {shapes.text(tensor.shape)}; a state needs ints")
        self.states[name] = tensor
        return tensor

    def parameter(self, name: str, shape: Sequence[int], dtype: str, owner: object = None) -> Tensor:
        """The weight of that name; asking again with the same ``owner`` gives the same tensor."""
        known = self.parameters.get(name)
        if known is not None:
            if owner is not None and self._parameter_owners.get(name) is owner:
                return known
            raise GraphError(
                f"the parameter name {name!r} is taken in network {self.name!r}; make the modules children of one "
                "module, or name the second one"
            )
        tensor = self._outside("parameter", name, dtype, shape)
        if any(is_symbolic(d) for d in tensor.shape):
            raise GraphError(f"parameter {name!r} has shape {shapes.text(tensor.shape)}; weights need ints")
        self.parameters[name] = tensor
        self._parameter_owners[name] = owner
        return tensor

    def release(self, name: str) -> Tensor:
        """Take a parameter and its array out, which frees the name; the caller replaces what reads the tensor."""
        tensor = self.parameters.pop(name, None)
        if tensor is None:
            raise UnknownNameError(f"network {self.name!r} has no parameter {name!r}")
        self.weights.pop(name, None)
        self._parameter_owners.pop(name, None)
        self._names.discard(name)
        self.revision += 1
        return tensor

    def constant(self, array: Any, name: str = "") -> Tensor:
        """A value known now; ``array`` is anything that NumPy converts to one of the kit's dtypes."""
        value = np.asarray(array)
        if value.dtype == np.float64:
            value = value.astype(np.float32)
        try:
            dtype = name_of(value.dtype)
        except ContractError as error:
            raise GraphError(f"constant {name or 'without a name'}: {error}") from None
        unique = self._unique(self._scoped(name or "constant"))
        tensor = Tensor(self, unique, tuple(value.shape), dtype, kind="constant", value=value)
        self.constants[unique] = tensor
        self.revision += 1
        return tensor

    def mark_output(self, tensor: Tensor, name: str = "") -> Tensor:
        """Make a value an output of the network, named ``name`` (default: the tensor's own name)."""
        self._own(tensor)
        name = name or tensor.name
        if name in self.outputs:
            raise GraphError(f"network {self.name!r} has an output {name!r} already; give another name")
        if tensor.overwritten_by is not None:
            raise GraphError(_overwritten(tensor))
        self.outputs[name] = tensor
        self.revision += 1
        return tensor

    # --- nodes ---------------------------------------------------------------------------------------------------

    def emit(
        self, op: str, inputs: Sequence[Tensor | None], attributes: Mapping[str, Any] | None = None, name: str = ""
    ) -> tuple[Tensor, ...]:
        """Add a node: check the call, infer its outputs, record where the user wrote it.

        ``op`` is a primitive or a registered op (``namespace::name``). Raises GraphError.
        """
        location = user_location()
        inputs = tuple(inputs)
        for tensor in inputs:
            if tensor is not None:
                self._own(tensor)
                if tensor.overwritten_by is not None:
                    raise GraphError(f"{op}: {_overwritten(tensor)}" + (f"\n  at {location}" if location else ""))
        names, complete, values = infer(op, inputs, attributes or {}, str(location or ""))
        unique = self._unique(self._scoped(name or op.rpartition("::")[2]))
        node = Node(self, op, unique, names, inputs, complete, location, updates_of(op))
        node.outputs = tuple(
            Tensor(self, unique if len(values) == 1 else f"{unique}:{i}", shape, dtype, producer=node)
            for i, (shape, dtype) in enumerate(values)
        )
        self.nodes.append(node)
        self.revision += 1
        for i, tensor in enumerate(inputs):
            if tensor is not None:
                tensor._users.append((node, i))
        for overwritten in node.updated.values():
            overwritten.overwritten_by = node
        return node.outputs

    def redirect(self, old: Tensor, new: Tensor) -> None:
        """Make every reader of ``old``, and the outputs, take ``new`` instead."""
        self.revision += 1
        for node, i in old.users:
            node.inputs = (*node.inputs[:i], new, *node.inputs[i + 1 :])
            new._users.append((node, i))
        old._users.clear()
        for name, tensor in self.outputs.items():
            if tensor is old:
                self.outputs[name] = new

    def remove(self, node: Node) -> None:
        """Take one node out, an update in place too; the caller replaces what reads its results."""
        self.nodes.remove(node)
        self.revision += 1
        _let_go(node)
        for tensor in node.updated.values():
            tensor.overwritten_by = None

    def prune(self) -> list[Node]:
        """Remove the nodes whose results nothing reads (updates in place stay); returns them."""
        kept = {id(t) for t in self.outputs.values()}
        gone: list[Node] = []
        for node in reversed(self.nodes):
            if node.updates or any(t._users or id(t) in kept for t in node.outputs):
                continue
            gone.append(node)
            _let_go(node)
        self.revision += bool(gone)
        dead = set(gone)
        self.nodes = [node for node in self.nodes if node not in dead]
        self.constants = {n: t for n, t in self.constants.items() if t._users or id(t) in kept}
        return gone[::-1]

    def fuse(self, patterns: str | Iterable[str] = "all") -> FusionReport:
        """Put registered ops in place of subgraphs; see :func:`trtforge.graph_api.fusion.fuse`."""
        from trtforge.graph_api.fusion import fuse

        self.fusion_report = fuse(self, patterns)
        return self.fusion_report

    def node(self, name: str) -> Node:
        """The node of that name."""
        for node in self.nodes:
            if node.name == name:
                return node
        raise UnknownNameError(f"network {self.name!r} has no node {name!r}; see .to_text() for all {len(self.nodes)}")

    def walk(self, select: Callable[[Node], bool] | None = None) -> Iterator[Node]:
        """The nodes in execution order, those that ``select`` accepts."""
        return (node for node in list(self.nodes) if select is None or select(node))

    @contextmanager
    def scope(self, path: str, absolute: bool = False) -> Iterator[None]:
        """Names made inside start with ``path.``, below the scope around it unless ``absolute``."""
        self._scopes.append(path if absolute else self._scoped(path))
        try:
            yield
        finally:
            self._scopes.pop()

    # --- weights, building, printing -----------------------------------------------------------------------------

    def bind_weights(self, source: Mapping[str, Any] | str | Path, ignore: Sequence[str] = ()) -> None:
        """Give every parameter its array by name, without copying.

        ``source``: a mapping of arrays, or the path of a .safetensors file (memory-mapped). ``ignore``: patterns
        (fnmatch) of names that may be left over. Missing, extra, misshapen and wrongly typed arrays are listed
        together in one GraphError.
        """
        self.weights.update(weights.matched(self.parameters, self.weights, source, ignore, self.name))

    def build(self, backend: str = "reference", **options: Any) -> Executable:
        """An executable of this network; see ``trtforge.graph_api.backends.BACKENDS``."""
        from trtforge.graph_api.backends import build

        return build(self, backend, **options)

    def to_text(self) -> str:
        """One line per input, parameter and node."""
        from trtforge.graph_api.listing import to_text

        return to_text(self)

    def to_mermaid(self) -> str:
        """The graph as a Mermaid flowchart."""
        from trtforge.graph_api.listing import to_mermaid

        return to_mermaid(self)

    # --- helpers -------------------------------------------------------------------------------------------------

    def _outside(self, kind: str, name: str, dtype: str, shape: Sequence[DimLike]) -> Tensor:
        if not name or (kind != "parameter" and not name.isidentifier()):
            raise GraphError(f"{kind} name {name!r} must be an identifier, because calls pass it as a keyword")
        if dtype not in DTYPES or dtype == "float64":
            known = ", ".join(d for d in DTYPES if d != "float64")
            raise GraphError(f"{kind} {name!r}: unknown dtype {dtype!r}; accepted: {known}")
        if name in self._names:
            raise GraphError(f"the name {name!r} is taken in network {self.name!r}")
        if isinstance(shape, (str, int)) or not isinstance(shape, Sequence):
            raise GraphError(f"{kind} {name!r}: the shape must be a sequence of dimensions, got {shape!r}")
        for d in shape:
            if isinstance(d, Dim) and self.dims.setdefault(d.name, d) != d:
                raise GraphError(f"{kind} {name!r}: Dim {d.name!r} has another range already: {self.dims[d.name]!r}")
        sizes = tuple(shapes.dim(d) for d in shape)
        for size in sizes:
            unknown = free_symbols(size) - set(self.dims)
            if unknown:
                names = ", ".join(sorted(unknown))
                raise GraphError(f"{kind} {name!r}: no Dim is declared for {names}; use a Dim in a shape first")
            if not is_symbolic(size) and int(size) < 0:
                raise GraphError(f"{kind} {name!r}: the dimension {size} is negative")
        self._names.add(name)
        self.revision += 1
        return Tensor(self, name, sizes, dtype, kind=kind)

    def _own(self, tensor: Tensor) -> None:
        if not isinstance(tensor, Tensor):
            raise GraphError(f"a graph Tensor is needed, got {type(tensor).__name__}: {tensor!r}")
        if tensor.network is not self:
            raise GraphError(f"{tensor} belongs to network {tensor.network.name!r}, not to {self.name!r}")

    def _scoped(self, name: str) -> str:
        scope = self._scopes[-1]
        return f"{scope}.{name}" if scope else name

    def _unique(self, name: str) -> str:
        unique, count = name, 0
        while unique in self._names:
            count += 1
            unique = f"{name}_{count}"
        self._names.add(unique)
        return unique


def _let_go(node: Node) -> None:
    """The node reads its inputs no longer."""
    for tensor in set(node.tensors):
        tensor._users = [use for use in tensor._users if use[0] is not node]


def _overwritten(tensor: Tensor) -> str:
    writer = tensor.overwritten_by
    assert writer is not None
    return f"{tensor} was overwritten in place by {writer.name!r}; use that node's output instead"


def infer(
    op: str, inputs: Sequence[Tensor | None], attributes: Mapping[str, Any], where: str = ""
) -> tuple[tuple[str, ...], dict[str, Any], list[Value]]:
    """Check a call without adding it: (input names, complete attributes, outputs as (shape, dtype)).

    Raises GraphError that names the op, its inputs, the rule and what is accepted.
    """
    primitive = PRIMITIVES.get(op)
    if primitive is not None:
        names, complete, values = _infer_primitive(primitive, inputs, attributes, where)
    else:
        names, complete, values = _infer_registered(op, inputs, attributes, where)
    problem = update_problem(op, names, inputs)
    if problem is not None:
        Call(op, names, tuple(inputs), complete, where).fail(*problem)
    return names, complete, values


def updates_of(op: str) -> dict[int, int]:
    """The outputs of an op that are inputs updated in place: positions among the outputs, and among the inputs."""
    primitive = PRIMITIVES.get(op)
    if primitive is not None:
        return {} if primitive.in_place is None else {0: primitive.in_place}
    registered = registry.get(op)
    outputs, names = list(registered.outputs), list(registered.inputs)
    return {outputs.index(output): names.index(name) for output, name in registered.aliases.items()}


def update_problem(
    op: str, names: Sequence[str], inputs: Sequence[Tensor | None], replaced: Container[Node] = ()
) -> tuple[str, str] | None:
    """Why ``op`` must not update what it updates in place among these inputs, and what is accepted; None when it may.

    ``replaced``: nodes whose reading does not count, because the op takes their place.
    """
    for position in updates_of(op).values():
        tensor = inputs[position]
        assert tensor is not None
        if tensor.kind not in ("state", "input"):
            return f"the {names[position]} is a {tensor.kind}", "a network state (net.state) or an input"
        if sum(tensor is other for other in inputs) > 1:
            return f"the {names[position]} is another input too, and is overwritten", "a buffer of its own"
        if tensor.is_output or any(node not in replaced for node in tensor.consumers):
            what = f"the {names[position]} is read elsewhere, before it is overwritten"
            return what, "a buffer that only this node reads"
    return None


def _infer_registered(
    op: str, inputs: Sequence[Tensor | None], attributes: Mapping[str, Any], where: str
) -> tuple[tuple[str, ...], dict[str, Any], list[Value]]:
    registered = registry.get(op)
    names = tuple(registered.inputs)
    present = {name: t for name, t in zip(names, inputs) if t is not None}
    try:
        binding = registered.bind(
            {name: t.shape for name, t in present.items()}, {name: t.dtype for name, t in present.items()}, attributes
        )
    except ContractError as error:
        Call(op, names, tuple(inputs), dict(attributes), where).fail(str(error))
    values = [(shape, binding.dtypes[name]) for name, shape in binding.outputs.items()]
    return names, dict(binding.attributes), values


def _infer_primitive(
    primitive: Primitive, inputs: Sequence[Tensor | None], attributes: Mapping[str, Any], where: str
) -> tuple[tuple[str, ...], dict[str, Any], list[Value]]:
    complete = primitive.complete(attributes)
    names = primitive.input_names(len(inputs))
    call = Call(primitive.name, names, tuple(inputs), complete, where)
    if len(names) != len(inputs):
        call.fail(f"{len(inputs)} inputs were given", ", ".join(primitive.inputs))
    for declared, tensor in zip(primitive.inputs, inputs):
        if tensor is None and not declared.endswith("?"):
            call.fail(f"the input {declared!r} is missing")
    result = primitive.infer(call, *inputs, **complete)
    return names, complete, result if isinstance(result, list) else [result]


def user_location() -> Location | None:
    """The innermost line on the stack that is not the graph API's own."""
    frame = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if os.path.dirname(file) not in _OWN:
            return Location(file, frame.f_lineno, frame.f_code.co_name)
        frame = frame.f_back  # type: ignore[assignment]
    return None
