"""The binding of a call to a contract: every name gets its value, every dtype, attribute and rule is checked.

The dimensions may be ints or the symbolic expressions of :mod:`trtforge.kernels.dims`; rules over symbols are checked
again with numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from trtforge.bindings.dtypes import DTYPES, dtype
from trtforge.bindings.errors import ContractError, DeclarationError
from trtforge.kernels.contract import Attr, AttributeRef, Names, Shape, Tensor, call_by_name
from trtforge.kernels.dims import Expr, IntLike, constant_value, product, substitute, sym


@dataclass(frozen=True)
class Binding:
    """A call that fits the contract.

    ``dims``: every named dimension; ``attributes``: complete; ``dtypes``: of every present tensor; ``inputs`` and
    ``outputs``: shape by name, in declared order, present ones only. ``aliases``: the input that an output updates in
    place, by output.
    """

    op: str
    dims: Mapping[str, IntLike]
    attributes: Mapping[str, Any]
    dtypes: Mapping[str, str]
    has: Mapping[str, bool]
    inputs: Mapping[str, Shape]
    outputs: Mapping[str, Shape]
    aliases: Mapping[str, str] = field(default_factory=dict)

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
            {name: spec.alias for name, spec in self.outputs.items() if spec.alias},
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
        updated = [spec.alias for spec in self.outputs.values() if spec.alias]
        if len(set(updated)) < len(updated):
            raise DeclarationError(f"{self.op}: two outputs update one input in place: {', '.join(updated)}")
        for name, spec in self.outputs.items():
            if spec.optional:
                raise DeclarationError(f"{self.op}: output {name!r} cannot be optional")
            for d in spec.dims:
                if isinstance(d, str) and d.lstrip("*") not in known:
                    raise DeclarationError(f"{self.op}: dimension {d!r} of output {name!r} is bound by no input")
