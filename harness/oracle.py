"""What a benchmark's contenders must compute: the op's own reference, on parts of a problem too large for all of it.

A part is a smaller problem whose answer is a piece of the whole answer: some rows of a matrix product, some queries of
an attention. Declarations give it with ``@op.part``; where rows are seen to be independent, rows are taken.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from trtforge.bindings.dtypes import dtype
from trtforge.bindings.errors import DeclarationError, UsageError
from trtforge.kernels.binding import Binding
from trtforge.kernels.contract import Cost, Tensor, call_by_name
from trtforge.kernels.dims import Expr, evaluate, free_symbols
from trtforge.kernels.op import Op

#: Rows that are compared at most, parts that a declaration is asked for, and what one part may cost the reference.
ROWS, PARTS = 64, 4
_PART_FLOPS, _PART_BYTES = 20e9, 512e6
#: Declared parts are added until they cost the reference this much together; the first always counts.
_PARTS_FLOPS = 1e10
#: Beyond this the reference is not run on the whole.
_WHOLE_FLOPS, _WHOLE_BYTES = 2e11, 4e9
#: The relative L2 error of a right answer in each dtype; formulations may round differently.
_BOUND = {"float64": 1e-6, "float32": 1e-3}
_OTHER_BOUND = 2e-2

Index = Any  # what indexes an array: slices, integer arrays, tuples of them
EVERYTHING: Index = ...


@dataclass(frozen=True)
class Part:
    """Indices by tensor name; the op on the indexed inputs gives the indexed outputs. Others are whole."""

    inputs: Mapping[str, Index]
    outputs: Mapping[str, Index]


@dataclass(frozen=True)
class Answer:
    """What one output must hold at ``index``: values before rounding, and rounded to the output's dtype."""

    output: str
    index: Index
    values: np.ndarray
    rounded: np.ndarray


def parts_of(op: Op, binding: Binding, seed: int = 0) -> list[Part]:
    """The parts of a call that the reference is run on. Raises UsageError where only a huge whole would do."""
    rng = np.random.default_rng(seed)
    if op._part is not None:
        parts: list[Part] = []
        spent = 0.0
        while len(parts) < PARTS and spent < _PARTS_FLOPS:
            parts.append(_declared(op, binding, rng))
            spent += _flops_of(op, binding, parts[-1])
        return parts
    rows = independent_rows(op, binding)
    if rows is not None:
        return [_some_rows(op, binding, rows, rng)]
    cost = op.cost_of(binding)
    if cost.flops > _WHOLE_FLOPS or (cost.bytes or 0) > _WHOLE_BYTES:
        raise UsageError(
            f"{op.name}: the reference would take {cost.flops:.1e} operations on {cost.bytes or 0:.1e} bytes; declare "
            "a smaller problem inside it with @op.part"
        )
    return [Part({}, {})]


def _declared(op: Op, binding: Binding, rng: np.random.Generator) -> Part:
    assert op._part is not None
    found = call_by_name(op._part, rng=rng, **binding.context())
    if not (isinstance(found, tuple) and len(found) == 2 and all(isinstance(one, Mapping) for one in found)):
        raise DeclarationError(f"{op.name}: @op.part returned {found!r}, not two mappings (of inputs, of outputs)")
    inputs, outputs = found
    for names, known, kind in ((inputs, binding.inputs, "input"), (outputs, binding.outputs, "output")):
        for name in names:
            if name not in known:
                raise DeclarationError(f"{op.name}: @op.part names {name!r}, which is no {kind} of this call")
    return Part(inputs, outputs)


def _flops_of(op: Op, binding: Binding, part: Part) -> float:
    """What the reference of a part computes: the op's cost at the shapes of the indexed inputs."""
    shapes = {
        name: np.broadcast_to(np.zeros((), bool), tuple(int(size) for size in shape))[
            part.inputs.get(name, EVERYTHING)
        ].shape
        for name, shape in binding.inputs.items()
    }
    return op.cost_of(op.bind(shapes, {n: binding.dtypes[n] for n in shapes}, binding.attributes)).flops


def independent_rows(op: Op, binding: Binding) -> str | None:
    """The dimension that every output begins with, if it occurs in no other place of any tensor; else None.

    Inputs that do not have it are shared by all rows. That an op does not mix rows all the same cannot be seen from
    its contract: such an op declares its own part, or its right kernels would be called wrong.
    """
    leads = {_lead(op.outputs[name]) for name in binding.outputs}
    name = next(iter(leads))
    if len(leads) != 1 or name is None:
        return None
    tensors = {n: spec for n, spec in (*op.inputs.items(), *op.outputs.items()) if n in binding.dtypes}
    having = [n for n, spec in tensors.items() if name in _symbols(spec)]
    alone = all(_lead(tensors[n]) == name and name not in _symbols(tensors[n], skip_first=True) for n in having)
    if not alone or not any(n in binding.inputs for n in having):
        return None
    flat = all(len(shape) == len(op.outputs[n].dims) for n, shape in binding.outputs.items())  # a run is one dimension
    return name if flat and all(len(binding.inputs[n]) == len(op.inputs[n].dims) for n in binding.inputs) else None


def _lead(spec: Tensor) -> str | None:
    first = spec.dims[0] if spec.dims else None
    return first.removeprefix("*") if isinstance(first, str) else None


def _symbols(spec: Tensor, skip_first: bool = False) -> set[str]:
    found: set[str] = set()
    for d in spec.dims[1:] if skip_first else spec.dims:
        found |= {d.removeprefix("*")} if isinstance(d, str) else free_symbols(d) if isinstance(d, Expr) else set()
    return found


def _some_rows(op: Op, binding: Binding, dim: str, rng: np.random.Generator) -> Part:
    """The first row, the last and random ones between them, as many as the reference can take."""
    total = evaluate(binding.dims[dim], {})
    count = min(ROWS, total)
    while count > 2 and _too_much(_cost_of_rows(op, binding, dim, count)):
        count //= 2
    middle = rng.choice(total, size=count, replace=False)
    rows = np.unique(np.concatenate([[0, total - 1], middle[: max(count - 2, 0)]]))
    inputs = {n: rows for n in binding.inputs if _lead(op.inputs[n]) == dim}
    return Part(inputs, dict.fromkeys(binding.outputs, rows))


def _cost_of_rows(op: Op, binding: Binding, dim: str, count: int) -> Cost:
    shapes = {n: (count, *s[1:]) if _lead(op.inputs[n]) == dim else s for n, s in binding.inputs.items()}
    return op.cost_of(op.bind(shapes, {n: binding.dtypes[n] for n in shapes}, binding.attributes))


def _too_much(cost: Cost) -> bool:
    return cost.flops > _PART_FLOPS or (cost.bytes or 0) > _PART_BYTES


def answers(op: Op, binding: Binding, fetch: Callable[[str, Index], np.ndarray], seed: int = 0) -> list[Answer]:
    """The right values of some of the outputs; ``fetch(input, index)`` gives a piece of an input on the host."""
    found = []
    for part in parts_of(op, binding, seed):
        inputs = {name: fetch(name, part.inputs.get(name, EVERYTHING)) for name in binding.inputs}
        exact = op.run_reference(inputs, binding.attributes, rounded=False)
        for name, values in exact.items():
            index = part.outputs.get(name, EVERYTHING)
            if not part.outputs or name in part.outputs:
                with np.errstate(all="ignore"):
                    rounded = values.astype(dtype(binding.dtypes[name]).numpy, copy=False)
                found.append(Answer(name, index, values, rounded))
    return found


def judge(binding: Binding, right: list[Answer], fetch: Callable[[str, Index], np.ndarray | None]) -> tuple[float, str]:
    """The worst relative L2 error of a contender's outputs, and why it is wrong ("" when it is right).

    ``fetch(output, index)`` gives values on the host, None for an output that the contender does not compute. All
    pieces of an output are taken together. Values that are not finite must agree in place and kind.
    """
    worst, computed = 0.0, False
    for name in dict.fromkeys(a.output for a in right):
        wrong_sum = right_sum = 0.0
        for answer in (a for a in right if a.output == name):
            found = fetch(name, answer.index)
            if found is None:
                continue
            computed = True
            if found.size != answer.values.size:
                return float("inf"), f"{name} has {found.size} values where {answer.values.size} are right"
            o = found.astype(np.float64).reshape(-1)
            r = answer.values.astype(np.float64).reshape(-1)
            rounded = answer.rounded.astype(np.float64).reshape(-1)
            odd = ~np.isfinite(rounded)
            if not np.array_equal(o[odd], rounded[odd], equal_nan=True) or not np.isfinite(o[~odd]).all():
                return float("inf"), f"{name} has NaN or infinities where the reference has none, or the other way"
            wrong_sum += float(np.square(o[~odd] - r[~odd]).sum())
            right_sum += float(np.square(r[~odd]).sum())
        error = (wrong_sum / right_sum) ** 0.5 if right_sum else wrong_sum**0.5
        worst = max(worst, error)
        bound = _BOUND.get(binding.dtypes[name], _OTHER_BOUND)
        if not error <= bound:
            return error, f"{name} has a relative L2 error of {error:.2g}, more than {bound:g}"
    return worst, "" if computed else "it computes none of the outputs"
