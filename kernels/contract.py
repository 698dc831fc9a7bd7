"""The vocabulary of an op declaration, and the binding of a call to it.

A contract speaks of *named dimensions*: ``Tensor("*M", "K")`` is any number of leading dimensions whose product is
M, followed by K. Binding a call gives every name its value, checks every dtype, attribute and rule, and infers the
outputs; the dimensions may be ints or the symbolic expressions of :mod:`trtforge.kernels.dims`.
"""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np

from trtforge.bindings.dtypes import DTYPES, dtype
from trtforge.bindings.errors import ContractError, DeclarationError, UnknownNameError
from trtforge.kernels.dims import Expr, IntLike, constant_value, product, substitute, sym

HALF = ("float16", "bfloat16")
FLOATS = ("float16", "bfloat16", "float32")

Shape = tuple[IntLike, ...]


@dataclass(frozen=True)
class AttributeRef:
    """A dtype that an attribute chooses: ``Tensor("M", dtype=attr("to"))``."""

    name: str


def attr(name: str) -> AttributeRef:
    return AttributeRef(name)


@dataclass(frozen=True, init=False)
class Tensor:
    """One input or output of an op.

    ``dims``: names, ints, expressions over names, and at most one leading ``"*NAME"``, a run of zero or more
    dimensions whose product is NAME. ``dtype``: one name, several, the name of another tensor, or ``attr(...)``.
    ``sample(rng, shape, d, a)``: any subset of these parameters; makes test data where N(0, 1) is not right.
    """

    dims: tuple[Any, ...]
    dtype: Any
    optional: bool
    sample: Callable[..., np.ndarray] | None
    doc: str

    def __init__(
        self,
        *dims: str | int | Expr,
        dtype: str | Sequence[str] | AttributeRef,
        optional: bool = False,
        sample: Callable[..., np.ndarray] | None = None,
        doc: str = "",
    ):
        for i, d in enumerate(dims):
            if isinstance(d, str) and d.startswith("*") and i:
                raise DeclarationError(f"{d!r} must be the first dimension, got position {i} of {dims}")
        object.__setattr__(self, "dims", dims)
        object.__setattr__(self, "dtype", tuple(dtype) if isinstance(dtype, (list, tuple)) else dtype)
        object.__setattr__(self, "optional", optional)
        object.__setattr__(self, "sample", sample)
        object.__setattr__(self, "doc", doc)

    @property
    def run(self) -> str | None:
        """The name of the leading run of dimensions, if there is one."""
        first = self.dims[0] if self.dims else None
        return first[1:] if isinstance(first, str) and first.startswith("*") else None

    @property
    def fixed_dims(self) -> tuple[Any, ...]:
        return self.dims[1:] if self.run else self.dims

    def __str__(self) -> str:
        return "[" + ", ".join(map(str, self.dims)) + "]"


@dataclass(frozen=True)
class Attr:
    """A compile-time constant of an op: bool, int, float, or a string out of ``choices``.

    ``default`` may be a function of ``d``, the bound dimensions.
    """

    default: Any
    choices: tuple[Any, ...] | None = None
    minimum: float | None = None
    maximum: float | None = None
    doc: str = ""

    @property
    def kind(self) -> type:
        return float if callable(self.default) else type(self.default)

    def check(self, op: str, name: str, given: Any) -> Any:
        """``given`` as this attribute's type; raises ContractError."""
        where = f"{op}: attribute {name!r}"
        value: Any = given.item() if isinstance(given, np.generic) else given
        if self.kind is float and type(value) is int:
            value = float(value)
        if type(value) is not self.kind:  # bool is an int to isinstance
            raise ContractError(f"{where} is {value!r}, but must be of type {self.kind.__name__}")
        self._check_range(where, value)
        return value

    def _check_range(self, where: str, value: Any) -> None:
        if self.choices is not None and value not in self.choices:
            raise ContractError(f"{where} is {value!r}; accepted: {', '.join(map(repr, self.choices))}")
        if self.kind is float and math.isnan(value):
            raise ContractError(f"{where} is NaN")
        if self.minimum is not None and value < self.minimum:
            raise ContractError(f"{where} is {value!r}, but must be at least {self.minimum}")
        if self.maximum is not None and value > self.maximum:
            raise ContractError(f"{where} is {value!r}, but must be at most {self.maximum}")


@dataclass(frozen=True)
class Tolerance:
    """What a kernel may differ by from the float64 reference ``r`` (rounded to the output's dtype).

    ``l2``: bound of ||o - r|| / ||r||. Elementwise: |o - r| <= atol * rms(r) + rtol * |r|. For integer and 8-bit
    outputs: at most ``fraction`` of the elements differ, none by more than ``steps`` representable values.
    """

    l2: float = 0.0
    rtol: float | None = None
    atol: float | None = None
    steps: int = 0
    fraction: float = 0.0


DEFAULT_TOLERANCE = {
    "float64": Tolerance(l2=1e-12, rtol=1e-10, atol=1e-10),
    "float32": Tolerance(l2=1e-5, rtol=1e-4, atol=1e-4),
    "float16": Tolerance(l2=2e-3, rtol=1e-2, atol=1e-2),
    "bfloat16": Tolerance(l2=1e-2, rtol=4e-2, atol=4e-2),
}


@dataclass(frozen=True)
class Cost:
    """Work that the op cannot avoid: floating-point operations, and bytes of device memory read and written.

    ``bytes=None`` means each input read once and each output written once.
    """

    flops: int
    bytes: int | None = None


@dataclass(frozen=True)
class Case:
    """One problem that check, inspect and bench run.

    ``dims`` values of the named dimensions; ``optional`` the optional inputs that are present; ``leading`` the shape
    of the leading run where it should not be one dimension; ``dtypes`` restricts dtypes by tensor. Tags: ``bench``
    for benchmark shapes, ``gpu`` for shapes too large for an interpreter; cases without a tag run everywhere.
    """

    dims: Mapping[str, int]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    optional: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    leading: tuple[int, ...] | None = None
    dtypes: Mapping[str, str | tuple[str, ...]] = field(default_factory=dict)
    name: str = ""

    @property
    def label(self) -> str:
        if self.name:
            return self.name
        parts = [f"{k}{v}" for k, v in self.dims.items()]
        if self.leading is not None:
            parts.append("lead" + "x".join(map(str, self.leading)))
        parts += [
            k if v is True else f"{k}={v:g}" if isinstance(v, float) else f"{k}={v}"
            for k, v in self.attributes.items()
            if v is not False
        ]
        return " ".join([*parts, *(f"+{o}" for o in self.optional)])


@dataclass(frozen=True)
class TensorMap:
    """A TMA descriptor that the host builds (CUDA driver API, cuTensorMapEncodeTiled).

    ``tensor`` names the input or output; ``shape`` and ``box`` in elements, innermost dimension first; ``strides``
    in elements for dimensions 1.. (contiguous when None); ``swizzle`` in bytes: 0, 32, 64 or 128. Elements out of
    bounds read as zero and are not written.
    """

    tensor: str
    shape: tuple[IntLike, ...]
    box: tuple[IntLike, ...]
    strides: tuple[IntLike, ...] | None = None
    swizzle: int = 128
    dtype: str | None = None


@dataclass(frozen=True)
class Launch:
    """How one kernel is started, as expressions over the named dimensions."""

    grid: Any
    block: Any = 1
    shared: IntLike = 0
    cluster: tuple[int, ...] | None = None
    scalars: tuple[IntLike, ...] = ()
    constants: Mapping[str, Any] = field(default_factory=dict)
    tensor_maps: tuple[TensorMap, ...] = ()

    @staticmethod
    def triple(value: Any) -> tuple[IntLike, IntLike, IntLike]:
        parts = tuple(value) if isinstance(value, (tuple, list)) else (value,)
        if not 1 <= len(parts) <= 3:
            raise DeclarationError(f"a grid, block or cluster has one to three dimensions, got {value!r}")
        x, y, z = (*parts, 1, 1)[:3]
        return x, y, z


class Names:
    """Read-only attribute access to a dict of names; an unknown name lists the known ones."""

    def __init__(self, kind: str, values: Mapping[str, Any], seen: set[str] | None = None):
        self.__dict__["_kind"], self.__dict__["_values"], self.__dict__["_seen"] = kind, values, seen

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name not in self._values:
            known = ", ".join(map(str, self._values)) or "none"
            raise UnknownNameError(f"there is no {self._kind} {name!r}; known: {known}")
        if self._seen is not None:
            self._seen.add(name)
        return self._values[name]

    __getitem__ = __getattr__

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def get(self, name: str, default: Any = None) -> Any:
        return self._values.get(name, default)


@lru_cache(maxsize=4096)
def _parameter_names(fn: Callable[..., Any]) -> tuple[str, ...]:
    return tuple(inspect.signature(fn).parameters)


def call_by_name(fn: Callable[..., Any], **available: Any) -> Any:
    """Call a function of a declaration with those of the available values that it names."""
    wanted = _parameter_names(fn)
    unknown = [name for name in wanted if name not in available]
    if unknown:
        raise DeclarationError(
            f"{fn.__qualname__} asks for {', '.join(unknown)}; a function in a declaration may take: "
            f"{', '.join(available)}"
        )
    return fn(**{name: available[name] for name in wanted})


def grid(where: Callable[..., bool] | None = None, **parameters: Sequence[Any]) -> tuple[dict[str, Any], ...]:
    """The product table of tactics; ``where(t)`` keeps some of it."""
    table = [dict(zip(parameters, values)) for values in itertools.product(*parameters.values())]
    return tuple(t for t in table if where is None or where(Names("tactic parameter", t)))


@dataclass(frozen=True)
class Binding:
    """A call that fits the contract.

    ``dims``: every named dimension; ``attributes``: complete; ``dtypes``: of every present tensor; ``inputs`` and
    ``outputs``: shape by name, in declared order, present ones only.
    """

    op: str
    dims: Mapping[str, IntLike]
    attributes: Mapping[str, Any]
    dtypes: Mapping[str, str]
    has: Mapping[str, bool]
    inputs: Mapping[str, Shape]
    outputs: Mapping[str, Shape]

    def context(self, **more: Any) -> dict[str, Any]:
        """The values that functions of a declaration may name."""
        return {
            "d": Names("dimension", self.dims),
            "a": Names("attribute", self.attributes),
            "dt": Names("tensor", self.dtypes),
            "has": Names("optional input", self.has),
            **more,
        }

    def symbolic(self) -> Binding:
        """The same call with every dimension a symbol: geometry over it comes out as expressions."""
        return replace(self, dims={name: sym(name) for name in self.dims})


def _shape_text(shape: Sequence[Any]) -> str:
    return "[" + ", ".join(map(str, shape)) + "]"


@dataclass(frozen=True)
class Contract:
    """Inputs, outputs, attributes and rules of one op; :meth:`bind` holds a call against them."""

    op: str
    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]
    attributes: Mapping[str, Attr]
    rules: Sequence[tuple[Callable[..., Any], str]] = ()

    def bind(
        self, shapes: Mapping[str, Shape], dtypes: Mapping[str, str], attributes: Mapping[str, Any] | None = None
    ) -> Binding:
        """Check a call and name its dimensions. Raises :class:`ContractError`."""
        present = self._present(shapes)
        dims = self._dimensions({name: tuple(shapes[name]) for name in present})
        resolved = self._attributes(attributes or {}, dims)
        types = self._dtypes({name: dtypes[name] for name in present}, resolved)
        has = {name: name in present for name, spec in self.inputs.items() if spec.optional}
        runs = self._runs({name: tuple(shapes[name]) for name in present})
        binding = Binding(
            self.op,
            dims,
            resolved,
            types,
            has,
            {name: tuple(shapes[name]) for name in present},
            {name: self._output_shape(spec, dims, runs) for name, spec in self.outputs.items()},
        )
        self._check_rules(binding)
        return binding

    def shape_of(self, spec: Tensor, dims: Mapping[str, int], leading: tuple[int, ...] | None = None) -> Shape:
        """The shape of a declared tensor, given its dimensions (``leading`` for the run, else one dimension)."""
        runs = {spec.run: leading if leading is not None else (dims[spec.run],)} if spec.run else {}
        return self._output_shape(spec, dims, runs)

    def _present(self, given: Mapping[str, Any]) -> list[str]:
        unknown = [name for name in given if name not in self.inputs]
        if unknown:
            raise ContractError(f"{self.op}: no input {', '.join(map(repr, unknown))}; inputs: {self.signature()}")
        missing = [name for name, spec in self.inputs.items() if not spec.optional and given.get(name) is None]
        if missing:
            raise ContractError(
                f"{self.op}: input {', '.join(map(repr, missing))} is missing; inputs: {self.signature()}"
            )
        return [name for name in self.inputs if given.get(name) is not None]

    def signature(self) -> str:
        return ", ".join(f"{n} {spec}{' (optional)' if spec.optional else ''}" for n, spec in self.inputs.items())

    def _runs(self, shapes: Mapping[str, Shape]) -> dict[str, Shape]:
        runs: dict[str, Shape] = {}
        for name, shape in shapes.items():
            spec = self.inputs[name]
            if spec.run and spec.run not in runs:
                runs[spec.run] = shape[: len(shape) - len(spec.fixed_dims)]
        return runs

    def _dimensions(self, shapes: Mapping[str, Shape]) -> dict[str, IntLike]:
        dims: dict[str, IntLike] = {}
        source: dict[str, str] = {}
        run_shapes: dict[str, tuple[str, Shape]] = {}
        later: list[tuple[str, int, Expr, IntLike]] = []
        for name, shape in shapes.items():
            spec = self.inputs[name]
            fixed = spec.fixed_dims
            if len(shape) < len(fixed) or (spec.run is None and len(shape) != len(fixed)):
                raise ContractError(
                    f"{self.op}: input {name!r} has shape {_shape_text(shape)} of rank {len(shape)}, "
                    f"but {'at least ' if spec.run else ''}rank {len(fixed)} is needed: {spec}"
                )
            for axis, size in enumerate(shape):
                value = constant_value(size)
                if value is not None and value < 1:
                    raise ContractError(
                        f"{self.op}: input {name!r} has shape {_shape_text(shape)}; every dimension must be at "
                        f"least 1, but axis {axis} is {value}: skip the call when there is nothing to do"
                    )
            split = len(shape) - len(fixed)
            if spec.run:
                lead = shape[:split]
                if spec.run in run_shapes and run_shapes[spec.run][1] != lead:
                    other, expected = run_shapes[spec.run]
                    raise ContractError(
                        f"{self.op}: input {name!r} has leading dimensions {_shape_text(lead)}, but {other!r} "
                        f"has {_shape_text(expected)}; they must be equal"
                    )
                run_shapes.setdefault(spec.run, (name, lead))
                dims[spec.run] = product(lead)
                source.setdefault(spec.run, name)
            for axis, (declared, size) in enumerate(zip(fixed, shape[split:]), start=split):
                if isinstance(declared, str):
                    if declared not in dims:
                        dims[declared], source[declared] = size, name
                    elif dims[declared] != size:
                        raise ContractError(
                            f"{self.op}: input {name!r} has shape {_shape_text(shape)}, but axis {axis} ({declared}) "
                            f"must be {dims[declared]} as in {source[declared]!r} {self.inputs[source[declared]]}"
                        )
                elif isinstance(declared, Expr):
                    later.append((name, axis, declared, size))
                elif declared != size:
                    raise ContractError(
                        f"{self.op}: input {name!r} has shape {_shape_text(shape)}, but axis {axis} must be {declared}"
                    )
        for name, axis, declared, size in later:
            wanted = substitute(declared, dims)
            if wanted != size:
                raise ContractError(
                    f"{self.op}: input {name!r} has shape {_shape_text(shapes[name])}, but axis {axis} must be "
                    f"{wanted} = {declared}"
                )
        return dims

    def _attributes(self, given: Mapping[str, Any], dims: Mapping[str, IntLike]) -> dict[str, Any]:
        unknown = [name for name in given if name not in self.attributes]
        if unknown:
            known = ", ".join(self.attributes) or "none"
            raise ContractError(f"{self.op}: no attribute {', '.join(map(repr, unknown))}; attributes: {known}")
        resolved = {}
        for name, spec in self.attributes.items():
            value = given.get(name)
            if value is None:
                value = spec.default
                if callable(value):
                    value = call_by_name(value, d=Names("dimension", dims))
            resolved[name] = spec.check(self.op, name, value)
        return resolved

    def _dtypes(self, given: Mapping[str, str], attributes: Mapping[str, Any]) -> dict[str, str]:
        types: dict[str, str] = {}

        def accepted(spec: Tensor) -> tuple[str, ...]:
            if isinstance(spec.dtype, AttributeRef):
                return (attributes[spec.dtype.name],)
            if isinstance(spec.dtype, str):
                if spec.dtype in DTYPES:
                    return (spec.dtype,)
                return (types[spec.dtype],)
            return spec.dtype

        for name, found in given.items():
            allowed = accepted(self.inputs[name])
            if found not in allowed:
                same = self.inputs[name].dtype
                like = f", the dtype of {same!r}" if isinstance(same, str) and same in self.inputs else ""
                raise ContractError(
                    f"{self.op}: input {name!r} is {found}, but must be {' or '.join(allowed)}{like}; cast it first"
                )
            types[name] = found
        for name, spec in self.outputs.items():
            types[name] = accepted(spec)[0]
        return types

    def _output_shape(self, spec: Tensor, dims: Mapping[str, IntLike], runs: Mapping[str, Shape]) -> Shape:
        lead = runs.get(spec.run, (dims[spec.run],)) if spec.run else ()
        fixed = [
            dims[d] if isinstance(d, str) else substitute(d, dims) if isinstance(d, Expr) else d
            for d in spec.fixed_dims
        ]
        return (*lead, *fixed)

    def _check_rules(self, binding: Binding) -> None:
        for predicate, message in self.rules:
            seen: set[str] = set()
            context = binding.context(d=Names("dimension", binding.dims, seen))
            try:
                holds = bool(call_by_name(predicate, **context))
            except DeclarationError:
                if any(constant_value(binding.dims[name]) is None for name in seen):
                    continue  # symbolic here: checked again at every call, with numbers
                raise
            if holds or any(constant_value(binding.dims[name]) is None for name in seen):
                continue
            values = ", ".join(f"{name} = {binding.dims[name]}" for name in sorted(seen))
            raise ContractError(f"{self.op}: {message}" + (f" (here {values})" if values else ""))

    def declared(self) -> None:
        """Check the declaration itself: names, references, dtypes."""
        known = {d.lstrip("*") for spec in self.inputs.values() for d in spec.dims if isinstance(d, str)}
        tensors = {**self.inputs, **self.outputs}
        if set(self.inputs) & set(self.outputs):
            raise DeclarationError(
                f"{self.op}: a name is both input and output: {set(self.inputs) & set(self.outputs)}"
            )
        for name, spec in tensors.items():
            if not name.isidentifier() or name in ("outputs", "stream", "tactic"):
                raise DeclarationError(
                    f"{self.op}: {name!r} cannot name a tensor (taken by TensorRT, or no identifier)"
                )
            if isinstance(spec.dtype, AttributeRef):
                ref = self.attributes.get(spec.dtype.name)
                if ref is None or not ref.choices or any(c not in DTYPES for c in ref.choices):
                    raise DeclarationError(f"{self.op}: dtype of {name!r} refers to no attribute with dtype choices")
            elif isinstance(spec.dtype, str):
                if spec.dtype not in DTYPES and spec.dtype not in self.inputs:
                    raise DeclarationError(
                        f"{self.op}: dtype {spec.dtype!r} of {name!r} is neither a dtype nor an input"
                    )
            else:
                for one in spec.dtype:
                    dtype(one)
        for name, spec in self.outputs.items():
            if spec.optional:
                raise DeclarationError(f"{self.op}: output {name!r} cannot be optional")
            for d in spec.dims:
                if isinstance(d, str) and d.lstrip("*") not in known:
                    raise DeclarationError(f"{self.op}: dimension {d!r} of output {name!r} is bound by no input")
