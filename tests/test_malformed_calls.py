"""Malformed calls of every op that quantizes, dequantizes or takes scales: thousands, each refused with a typed error.

From the declarations: of every small case a right call is made, and then one thing about it is made wrong (or two).
Nothing may come back, and no other exception.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from trtforge.bindings.dtypes import DTYPES
from trtforge.bindings.errors import ForgeError
from trtforge.kernels import Case, registry
from trtforge.kernels.contract import AttributeRef, Tensor
from trtforge.kernels.dims import Expr, free_symbols
from trtforge.kernels.op import Op

FAMILIES = ("quantize", "fused_quantize", "scaled_gemm", "weight_only_gemm", "kv_cache", "paged_attention")
#: At least so many, and no longer than that.
LEAST, SECONDS = 5000, 20.0
#: Elements of all inputs of a case, at most: what is refused need not be large.
LARGEST = 1 << 15
CASES_PER_OP = 6

registry.load_builtin()
OPS = [op for op in registry.ops() if op.file.parent.name in FAMILIES]


@dataclass(frozen=True)
class Call:
    """A call: inputs by name (None: absent), more positional arguments, and keywords."""

    inputs: Mapping[str, Any]
    options: Mapping[str, Any]
    more: tuple[Any, ...] = ()

    def changed(self, name: str, value: Any) -> Call:
        return Call({**self.inputs, name: value}, self.options, self.more)

    def with_option(self, name: str, value: Any) -> Call:
        return Call(self.inputs, {**self.options, name: value}, self.more)

    def run(self, op: Op) -> Any:
        return op(*self.inputs.values(), *self.more, device="cpu", **self.options)


Change = tuple[str, Callable[[Call], Call]]


def right_call(op: Op, case: Case) -> Call:
    dtypes = op.dtype_combinations(case)[0]
    made = op.sample_inputs(case, dtypes, 0)
    return Call({name: made.get(name) for name in op.inputs}, dict(case.attributes))


def zeros(shape: tuple[int, ...], kind: str) -> np.ndarray:
    return np.zeros(shape, DTYPES[kind].numpy)


def refused_dtypes(op: Op, spec: Tensor, found: str) -> list[str]:
    """Dtypes that the input never has, or not beside the others of the call."""
    accepted = spec.dtype if isinstance(spec.dtype, tuple) else (found,)
    return [kind for kind in DTYPES if kind not in accepted and kind != "int4"]


def shared_axes(op: Op, call: Call, name: str) -> Iterator[int]:
    """Axes whose length another input or a formula decides, counted from the last, which is -1."""
    fixed = op.inputs[name].fixed_dims
    others = [op.inputs[n].fixed_dims for n, value in call.inputs.items() if n != name and value is not None]
    for at, dim in enumerate(fixed):
        if not isinstance(dim, str) or any(dim in dims for dims in others):
            yield at - len(fixed)


def putting(name: str, value: Any) -> Callable[[Call], Call]:
    return lambda call: call.changed(name, value)


def setting(name: str, value: Any) -> Callable[[Call], Call]:
    return lambda call: call.with_option(name, value)


def changes(op: Op, call: Call) -> Iterator[Change]:
    """Single changes that make the call wrong."""
    for name, array in call.inputs.items():
        if array is not None:
            yield from changed_input(op, call, name, array)
    yield from changed_attributes(op)
    yield from changed_options(op, call)


def changed_input(op: Op, call: Call, name: str, array: np.ndarray) -> Iterator[Change]:
    spec, kind = op.inputs[name], array.dtype
    if not spec.optional:
        yield f"{name} missing", putting(name, None)
    for what, value in (("text", "x"), ("number", 1.0), ("list", [1.0]), ("object", object()), ("dict", {})):
        yield f"{name} is a {what}", putting(name, value)
    for other in refused_dtypes(op, spec, kind.name):
        yield f"{name} is {other}", putting(name, zeros(array.shape, other))
    yield f"{name} is complex", putting(name, np.zeros(array.shape, np.complex64))
    for axis in range(array.ndim):
        none = np.zeros((*array.shape[:axis], 0, *array.shape[axis + 1 :]), kind)
        yield f"{name} axis {axis} is 0", putting(name, none)
    for axis in shared_axes(op, call, name):
        for step in (1, -1, 7):
            shape = list(array.shape)
            shape[axis] += step
            if shape[axis] > 0:
                yield f"{name} axis {axis} by {step}", putting(name, np.zeros(shape, kind))
    for rank in range(len(spec.fixed_dims)):
        yield f"{name} of rank {rank}", putting(name, np.ones((1,) * rank, kind))
    if spec.run is None:
        yield f"{name} of rank + 1", putting(name, array[None])


def changed_attributes(op: Op) -> Iterator[Change]:
    for name, spec in op.attributes.items():
        wrong: list[Any] = [[1], {}, object(), b"x"]
        wrong += ["none such", 3] if spec.choices else ["1"]
        wrong += {float: [float("nan"), True], bool: [1, 0.0], int: [True, 1.5]}.get(spec.kind, [])
        wrong += [spec.minimum - 1] if spec.minimum is not None else []
        wrong += [spec.maximum + 1] if spec.maximum is not None else []
        for value in wrong:
            yield f"{name} = {value!r}", setting(name, value)
    yield "an unknown attribute", setting("no_such_attribute", 1)


def changed_options(op: Op, call: Call) -> Iterator[Change]:
    first = next(iter(call.inputs))
    yield "an input too many", lambda c: Call(c.inputs, c.options, (*c.more, np.zeros(1)))
    yield "an input given twice", lambda c: c.with_option(first, c.inputs[first])
    yield "an unknown kernel", lambda c: c.with_option("kernel", "none such")
    yield "outputs that are none", lambda c: c.with_option("out", "x")
    yield "too many outputs", lambda c: c.with_option("out", [np.zeros(1, np.float32)] * (len(op.outputs) + 1))


def calls(op: Op) -> Iterator[tuple[str, Call]]:
    """Every single change of the first small cases, and as many pairs of changes, drawn with a fixed seed."""
    rng = np.random.default_rng(0)
    small = [c for c in op.cases if not c.tags]
    sizes = [sum(a.size for a in right_call(op, c).inputs.values() if a is not None) for c in small]
    fitting = [c for c, size in zip(small, sizes) if size <= LARGEST]
    assert fitting, f"{op.name} has no small case"
    for case in fitting[:CASES_PER_OP]:
        right = right_call(op, case)
        found = list(changes(op, right))
        for label, change in found:
            yield f"{case.label}: {label}", change(right)
        for _ in range(len(found) // 2):
            (one, first), (two, second) = (found[i] for i in rng.integers(0, len(found), 2))
            if " by " in one and " by " in two:  # two lengths changed alike may fit each other
                continue
            yield f"{case.label}: {one}, {two}", second(first(right))


def outcome(op: Op, call: Call) -> str:
    """What came of it, if anything but a typed refusal."""
    try:
        call.run(op)
    except ForgeError as error:
        return "" if str(error) else "a message of nothing"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "an answer"


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_the_calls_that_are_made_wrong_were_right(op: Op) -> None:
    case = min((c for c in op.cases if not c.tags), key=lambda c: int(np.prod([*c.dims.values()], dtype=float)))
    right_call(op, case).run(op)


def test_thousands_of_malformed_calls_are_refused_with_a_typed_error() -> None:
    begin, count, wrong = time.perf_counter(), 0, []
    for op in OPS:
        for label, call in calls(op):
            count += 1
            found = outcome(op, call)
            if found:
                wrong.append(f"{op.name} [{label}]: {found}")
    assert not wrong, f"{len(wrong)} of {count}, the first: " + "\n".join(wrong[:20])
    assert count >= LEAST
    assert time.perf_counter() - begin < SECONDS


def test_what_is_refused_does_not_depend_on_an_earlier_call() -> None:
    op = registry.get("quantize_token_static")
    x, scale = np.ones((4, 8), np.float16), np.ones(4, np.float32)
    op(x, scale, device="cpu")
    for bad in (scale[:3], scale.astype(np.float64), scale[None], scale.astype(np.float16)):
        with pytest.raises(ForgeError):
            op(x, bad, device="cpu")
    op(x, scale, device="cpu")


def test_every_formula_of_a_dimension_is_among_the_changes() -> None:
    """Scales per block and per tile: their lengths follow from K, and a length off by one is refused."""
    seen = {
        op.name
        for op in OPS
        for spec in op.inputs.values()
        for dim in spec.dims
        if isinstance(dim, Expr) and free_symbols(dim)
    }
    assert {"trtforge::quantize_block_static", "trtforge::dequantize_tile", "trtforge::rope_kv_cache_update"} <= seen
    assert any(isinstance(spec.dtype, AttributeRef) for op in OPS for spec in op.outputs.values())
