"""An op, declared once: contract, reference, cost, cases, kernels, heuristic, fusion patterns.

Everything else in the kit (eager call, plugins, functional op, check, inspect, bench, documentation) is derived from
the object that this module defines. See docs/first_cuda_kernel.md for a walk through a declaration.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from trtforge.bindings.architectures import Architecture
from trtforge.bindings.dtypes import dtype
from trtforge.bindings.errors import ContractError, DeclarationError, UnknownNameError
from trtforge.kernels import registry
from trtforge.kernels.binding import Binding, Contract
from trtforge.kernels.contract import (
    Attr,
    Case,
    Cost,
    Launch,
    Predicate,
    Tensor,
    Tolerance,
    blame,
    call_by_name,
    grid,
    plain_sample,
)
from trtforge.kernels.dims import Expr, evaluate, free_symbols, product
from trtforge.kernels.kernel import Kernel, Source, cuda, declaring_file, triton
from trtforge.kernels.peer import Peer

if TYPE_CHECKING:
    from trtforge.kernels.eager import Ready
    from trtforge.kernels.plan import Plan


@dataclass(frozen=True, eq=False)
class Pattern:
    """A subgraph that the op replaces: ``fn(f, *inputs)`` builds it with the functional namespace ``f``."""

    op: Op
    inputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    fn: Callable[..., Any]
    name: str


@dataclass(frozen=True)
class Choice:
    """A kernel and a tactic index, chosen for a call."""

    kernel: Kernel
    tactic: int


@dataclass(eq=False)
class Op:
    """An op. Creating one registers it under its name."""

    name: str
    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    rules: Sequence[Predicate] = ()
    tolerance: Mapping[str, Tolerance] = field(default_factory=dict)
    cases: Sequence[Case] = ()
    doc: str = ""

    def __post_init__(self) -> None:
        namespace, _, short = self.name.partition("::")
        if not (namespace.isidentifier() and short.isidentifier()):
            raise DeclarationError(f"op name {self.name!r} must have the form 'namespace::name'")
        self.attributes = {k: v if isinstance(v, Attr) else Attr(v) for k, v in self.attributes.items()}
        self.outputs = {name: spec.updating(self.inputs, self.name) for name, spec in self.outputs.items()}
        self.aliases = {name: spec.alias for name, spec in self.outputs.items() if spec.alias}
        self.contract = Contract(self.name, self.inputs, self.outputs, self.attributes, self.rules)
        self.contract.declared()
        _pairs(f"{self.name}: rules", self.rules)
        sizes = {str(d).lstrip("*") for spec in self.inputs.values() for d in spec.dims if isinstance(d, str)}
        sizes |= {s for spec in self.inputs.values() for d in spec.dims if isinstance(d, Expr) for s in free_symbols(d)}
        for case in self.cases:
            if extra := set(case.dims) - sizes:
                raise DeclarationError(
                    f"{self.name}: the case {case.label!r} sizes {', '.join(sorted(extra))}, which no input has; "
                    f"dimensions: {', '.join(sorted(sizes))}"
                )
        self.kernels: list[Kernel] = []
        self.patterns: list[Pattern] = []
        self.peers: list[Peer] = []
        self._reference: Callable[..., Any] | None = None
        self._cost: Callable[..., Cost] | None = None
        self._heuristic: Callable[..., Any] | None = None
        self._part: Callable[..., Any] | None = None
        self._ready: dict[Any, Ready] = {}
        self._plans: dict[Any, Plan] = {}
        self._input_names = tuple(self.inputs)
        self.file = declaring_file(2)  # past the dataclass's __init__
        registry.add(self)

    # ---- the declaration's decorators -------------------------------------------------------------------------

    def reference(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """Declare the NumPy reference: inputs by position (None where absent), attributes by keyword."""
        self._reference = fn
        return fn

    def cost(self, fn: Callable[..., Cost]) -> Callable[..., Cost]:
        """Declare the work that cannot be avoided; may name d, a, dt, has."""
        self._cost = fn
        return fn

    def heuristic(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """Declare an order of preference: a list of kernel names or (name, tactic parameters)."""
        self._heuristic = fn
        return fn

    def kernel(
        self,
        source: Source,
        *,
        name: str | None = None,
        arch: str | tuple[str, ...] = "sm_80+",
        tactics: Sequence[Mapping[str, Any]] = ({},),
        dtypes: Mapping[str, str | tuple[str, ...]] | None = None,
        requires: Sequence[Predicate] = (),
        align: int = 16,
    ) -> Callable[[Callable[..., Launch]], Callable[..., Launch]]:
        """Declare a kernel; the decorated function gives its :class:`Launch` from d, t, a, dt, has, dev."""
        label = name or source.language
        if any(k.name == label for k in self.kernels):
            raise DeclarationError(f"{self.name} already has a kernel named {label!r}")
        if not tactics:
            raise DeclarationError(f"{self.name}/{label} has an empty table of tactics")
        if not source.path.is_file():
            raise DeclarationError(f"{self.name}/{label}: the source file {source.path} does not exist")
        _pairs(f"{self.name}/{label}: requires", requires)
        restricted = {k: (v,) if isinstance(v, str) else tuple(v) for k, v in (dtypes or {}).items()}

        def declare(fn: Callable[..., Launch]) -> Callable[..., Launch]:
            table = tuple(dict(t) for t in tactics)
            self.kernels.append(Kernel(self, label, source, arch, table, restricted, tuple(requires), align, fn))
            return fn

        return declare

    def pattern(
        self, inputs: Sequence[str], attributes: Mapping[str, Any] | None = None, name: str = ""
    ) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Declare a subgraph that this op replaces; its arguments are ``f`` and the named inputs."""
        for one in inputs:
            if one not in self.inputs:
                raise DeclarationError(f"{self.name}: a pattern names {one!r}, which is no input")

        def declare(fn: Callable[..., Any]) -> Callable[..., Any]:
            label = name or f"{self.name.split('::')[1]}_{len(self.patterns)}"
            self.patterns.append(Pattern(self, tuple(inputs), dict(attributes or {}), fn, label))
            return fn

        return declare

    def peer(
        self,
        name: str,
        *,
        compile: bool = False,
        setup: bool = False,
        requires: Sequence[Predicate] = (),
        modules: Sequence[str] = (),
        instead: str = "",
    ) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Declare what `bench` times beside the kernels; see :class:`trtforge.kernels.peer.Peer` for the arguments."""
        if any(p.name == name for p in self.peers):
            raise DeclarationError(f"{self.name} already has a peer named {name!r}")

        def declare(fn: Callable[..., Any]) -> Callable[..., Any]:
            self.peers.append(Peer(name, fn, compile, setup, tuple(requires), tuple(modules), instead))
            return fn

        return declare

    def part(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """Declare a small problem inside a large one, for a reference that would take too long on the whole.

        ``fn`` names any of rng, d, a, dt, has and returns ``(inputs, outputs)``: index expressions by tensor name. The
        op on the indexed inputs (others whole) gives the indexed outputs. Default: see harness/oracle.py.
        """
        self._part = fn
        return fn

    # ---- what is derived ----------------------------------------------------------------------------------------

    def bind(
        self, shapes: Mapping[str, Any], dtypes: Mapping[str, str], attributes: Mapping[str, Any] | None = None
    ) -> Binding:
        """Hold shapes, dtypes and attributes against the contract. Raises ContractError."""
        return self.contract.bind(shapes, dtypes, attributes)

    def run_reference(
        self,
        inputs: Mapping[str, np.ndarray],
        attributes: Mapping[str, Any] | None = None,
        *,
        rounded: bool = True,
    ) -> dict[str, np.ndarray]:
        """The reference's outputs, checked for shape and cast to the declared dtypes unless ``rounded=False``."""
        from trtforge.bindings.dtypes import name_of

        if self._reference is None:
            raise DeclarationError(f"{self.name} declares no reference")
        given = {k: _read_only(v) for k, v in inputs.items() if v is not None}
        given.update((name, given[name].copy()) for name in self.aliases.values() if name in given)
        binding = self.bind(
            {k: v.shape for k, v in given.items()}, {k: name_of(v.dtype) for k, v in given.items()}, attributes
        )
        with np.errstate(all="ignore"):
            try:
                raw = self._reference(*(given.get(name) for name in self.inputs), **binding.attributes)
            except Exception as error:
                blame(error, self._reference, f"{self.name}: the reference")
            results = raw if isinstance(raw, tuple) else (raw,)
            if len(results) != len(self.outputs):
                raise DeclarationError(
                    f"{self.name}: the reference returned {len(results)} arrays for {len(self.outputs)} outputs"
                )
            out = {}
            for (name, shape), value in zip(binding.outputs.items(), results):
                if value is None:
                    raise DeclarationError(
                        f"{self.name}: the reference returned None for {name!r}: is a return missing?"
                    )
                array = np.asarray(value)
                if array.shape != tuple(shape):
                    raise DeclarationError(
                        f"{self.name}: the reference's {name!r} has shape {array.shape}, declared {tuple(shape)}"
                    )
                out[name] = array.astype(dtype(binding.dtypes[name]).numpy, copy=False) if rounded else array
        return out

    def cost_of(self, binding: Binding) -> Cost:
        """Operations and bytes of a call, both complete."""
        moved = sum(
            evaluate(product(shape), {}) * dtype(binding.dtypes[name]).itemsize
            for name, shape in (*binding.inputs.items(), *binding.outputs.items())
        )
        cost = call_by_name(self._cost, **binding.context()) if self._cost else Cost(0)
        return cost if cost.bytes is not None else Cost(cost.flops, moved)

    def choose(
        self,
        binding: Binding,
        device: Architecture,
        *,
        kernel: str | None = None,
        tactic: int | Mapping[str, Any] | None = None,
        alignment: int = 1 << 30,
        tuned: bool = True,
    ) -> Choice:
        """The kernel and tactic for a call: the pinned one, or the first preference that can serve it.

        Where ``device`` is a GPU with a tuning table, what was measured comes before the heuristic; not for
        ``tuned=False``. See :mod:`trtforge.kernels.tuning`.
        """
        refusals = []
        for choice in self._preferences(binding, device, kernel, tactic, tuned):
            reason = choice.kernel.refusal(binding, choice.tactic, device, alignment)
            if reason is None:
                return choice
            line = f"{choice.kernel.name} {reason}"
            if line not in refusals:
                refusals.append(line)
        shapes = ", ".join(f"{n} {list(s)} {binding.dtypes[n]}" for n, s in binding.inputs.items())
        raise ContractError(f"{self.name}: no kernel can serve {shapes}: {'; '.join(refusals) or 'none is declared'}")

    def _preferences(
        self,
        binding: Binding,
        device: Architecture,
        kernel: str | None,
        tactic: int | Mapping[str, Any] | None,
        tuned: bool,
    ) -> list[Choice]:
        if kernel is not None:
            chosen = self.kernel_named(kernel)
            if tactic is None:
                preferred = [c for c in self._preferences(binding, device, None, None, tuned) if c.kernel is chosen]
                return preferred or [Choice(chosen, i) for i in range(len(chosen.tactics))]
            return [Choice(chosen, self.tactic_index(chosen, tactic))]
        if tactic is not None:
            raise ContractError(f"{self.name}: a tactic was given without the kernel it belongs to; pass kernel=")
        order: list[Choice] = []
        if tuned and device.gpu:
            from trtforge.kernels.tuning import preferred as measured

            order += measured(self, binding, device)
        if self._heuristic is not None:
            for item in call_by_name(self._heuristic, **binding.context(dev=device)):
                name, parameters = (item, None) if isinstance(item, str) else item
                one = self.kernel_named(name)
                indices = range(len(one.tactics)) if parameters is None else [self.tactic_index(one, parameters)]
                order += [Choice(one, i) for i in indices]
        order += [Choice(k, i) for k in self.kernels for i in range(len(k.tactics))]
        return order

    def tactic_index(self, kernel: Kernel, tactic: int | Mapping[str, Any]) -> int:
        """The index of a tactic given by index or by some of its parameters. Raises UnknownNameError."""
        if isinstance(tactic, int):
            if not 0 <= tactic < len(kernel.tactics):
                raise UnknownNameError(f"{kernel} has tactics 0 to {len(kernel.tactics) - 1}, not {tactic}")
            return tactic
        matches = [i for i, t in enumerate(kernel.tactics) if all(k in t and t[k] == v for k, v in tactic.items())]
        if not matches:
            table = "; ".join(kernel.tactic_label(i) for i in range(len(kernel.tactics)))
            raise UnknownNameError(f"{kernel} has no tactic {dict(tactic)}; it has: {table}")
        return matches[0]

    def kernel_named(self, name: str) -> Kernel:
        for kernel in self.kernels:
            if kernel.name == name:
                return kernel
        known = ", ".join(k.name for k in self.kernels) or "none"
        raise UnknownNameError(f"{self.name} has no kernel {name!r}; it has: {known}")

    # ---- cases ------------------------------------------------------------------------------------------------------

    def bind_case(self, case: Case, dtypes: Mapping[str, str]) -> Binding:
        """The binding of a case with the given dtypes of its inputs."""
        present = [n for n, spec in self.inputs.items() if not spec.optional or n in case.optional]
        try:
            shapes = {n: self.contract.shape_of(self.inputs[n], case.dims, case.leading) for n in present}
        except KeyError as error:
            raise DeclarationError(f"{self.name}: the case {case.label!r} has no size for {error}") from error
        try:
            return self.bind(shapes, {n: dtypes[n] for n in present}, case.attributes)
        except ContractError as error:
            message = str(error).removeprefix(f"{self.name}: ")
            raise ContractError(f"{self.name}: the case {case.label!r} is refused: {message}") from error

    def dtype_combinations(self, case: Case) -> list[dict[str, str]]:
        """Every assignment of dtypes to the inputs that the contract and the case allow."""
        free: dict[str, tuple[str, ...]] = {}
        for name, spec in self.inputs.items():
            if isinstance(spec.dtype, tuple):
                wanted = case.dtypes.get(name, spec.dtype)
                free[name] = (wanted,) if isinstance(wanted, str) else tuple(wanted)
        combinations = []
        for values in itertools.product(*free.values()):
            types = dict(zip(free, values))
            for name, spec in self.inputs.items():
                if isinstance(spec.dtype, str):
                    types[name] = types.get(spec.dtype, spec.dtype)
                elif not isinstance(spec.dtype, tuple):
                    types[name] = case.attributes.get(spec.dtype.name, self.attributes[spec.dtype.name].default)
            combinations.append(types)
        return combinations

    def sample_inputs(self, case: Case, dtypes: Mapping[str, str], seed: int) -> dict[str, np.ndarray]:
        """Fresh test inputs of a case: N(0, 1), or as the tensor's ``sample`` says."""
        binding = self.bind_case(case, dtypes)
        rng = np.random.default_rng(seed)
        arrays = {}
        for name, shape in binding.inputs.items():
            sizes = tuple(int(s) for s in shape)
            kind = dtype(binding.dtypes[name])
            make = self.inputs[name].sample
            if make is not None:
                array = call_by_name(make, rng=rng, shape=sizes, **binding.context())
            else:
                array = plain_sample(rng, sizes, kind)
            made = np.asarray(array)
            if made.size != int(np.prod(sizes)):
                raise DeclarationError(f"{self.name}: the sample of {name!r} has shape {made.shape}, not {sizes}")
            arrays[name] = np.ascontiguousarray(made.astype(kind.numpy, copy=False)).reshape(sizes)
        return arrays

    # ---- calling ----------------------------------------------------------------------------------------------------

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        """Run the op on arrays. See :func:`trtforge.kernels.eager.call` for options and errors."""
        return _eager_call()(self, inputs, options)

    def __repr__(self) -> str:
        return f"<Op {self.name}({self.contract.signature()})>"


def _read_only(array: np.ndarray) -> np.ndarray:
    """A view that a reference cannot change: the kernel is given the same array."""
    view = array.view()
    view.flags.writeable = False
    return view


def _pairs(what: str, declared: Sequence[Predicate]) -> None:
    """Hold rules against their form. Raises DeclarationError."""
    for one in declared:
        if not (isinstance(one, tuple) and len(one) == 2 and callable(one[0]) and isinstance(one[1], str)):
            raise DeclarationError(
                f"{what} are pairs (predicate, message), such as (lambda d: d.N > 1, ...), not {one!r}"
            )


@cache
def _eager_call() -> Callable[..., Any]:
    from trtforge.kernels.eager import call  # it needs Op itself, and an import statement costs half a microsecond

    return call


__all__ = ["Choice", "Kernel", "Op", "Pattern", "Source", "cuda", "grid", "triton"]
