"""The expression tree: one geometry, evaluated and lowered to the same numbers."""

from __future__ import annotations

import operator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trtforge.bindings.errors import DeclarationError, UnknownNameError
from trtforge.kernels.dims import (
    INTEGER_OPERATIONS,
    cdiv,
    constant_value,
    evaluate,
    free_symbols,
    lower,
    maximum,
    minimum,
    next_power_of_2,
    substitute,
    sym,
)

NAMES = ("M", "N", "K")


def _python_cdiv(a: int, b: int) -> int:
    return -(-a // b)


#: (how an expression is built, how Python computes it)
BINARY = [
    (operator.add, operator.add),
    (operator.mul, operator.mul),
    (operator.sub, operator.sub),
    (cdiv, _python_cdiv),
    (operator.floordiv, operator.floordiv),
    (operator.mod, operator.mod),
    (minimum, min),
    (maximum, max),
]
DIVIDES = (cdiv, operator.floordiv, operator.mod)

trees = st.recursive(
    st.one_of(st.sampled_from(NAMES), st.integers(1, 64)),
    lambda children: st.tuples(st.sampled_from(range(len(BINARY))), children, children),
    max_leaves=8,
)
values = st.fixed_dictionaries({name: st.integers(1, 4096) for name in NAMES})


def build(tree: Any) -> Any:
    if isinstance(tree, str):
        return sym(tree)
    if isinstance(tree, int):
        return tree
    index, left, right = tree
    a, b = build(left), build(right)
    make = BINARY[index][0]
    return make(a, maximum(b, 1)) if make in DIVIDES else make(a, b)


def compute(tree: Any, symbols: dict[str, int]) -> int:
    if isinstance(tree, str):
        return symbols[tree]
    if isinstance(tree, int):
        return tree
    index, left, right = tree
    a, b = compute(left, symbols), compute(right, symbols)
    make, python = BINARY[index]
    return int(python(a, max(b, 1))) if make in DIVIDES else int(python(a, b))


class Traced:
    """Another integer algebra: it records that every number went through the given operations."""

    def __init__(self, value: int):
        self.value = value


@given(trees, values)
def test_an_expression_evaluates_to_what_python_computes(tree: Any, symbols: dict[str, int]) -> None:
    assert evaluate(build(tree), symbols) == compute(tree, symbols)


@given(trees, values)
def test_lowering_to_another_algebra_gives_the_same_numbers(tree: Any, symbols: dict[str, int]) -> None:
    operations = {
        name: lambda *args, f=function: Traced(f(*(a.value for a in args)))
        for name, function in INTEGER_OPERATIONS.items()
    }
    lowered = lower(build(tree), {k: Traced(v) for k, v in symbols.items()}, Traced, operations)
    assert isinstance(lowered, Traced) and lowered.value == compute(tree, symbols)


@given(trees, values)
def test_substituting_numbers_and_evaluating_agree(tree: Any, symbols: dict[str, int]) -> None:
    half = {"M": symbols["M"]}
    assert evaluate(substitute(build(tree), half), symbols) == compute(tree, symbols)
    assert constant_value(substitute(build(tree), symbols)) == compute(tree, symbols)


def test_equal_shapes_written_differently_are_equal() -> None:
    b, s = sym("B"), sym("S")
    assert s * 4 == 4 * s and hash(s * 4) == hash(4 * s)
    assert (s + s) // 2 == s
    assert (b * s) // s == b and cdiv(b * s, b) == s and (8 * s) % 4 == 0
    assert b * (s + 1) - b == b * s
    assert s != b and s + 1 != s
    assert minimum(s, b) == minimum(b, s)


@pytest.mark.parametrize("n, expected", [(1, 1), (2, 2), (3, 4), (1000, 1024), (1024, 1024), (1025, 2048)])
def test_next_power_of_2(n: int, expected: int) -> None:
    assert next_power_of_2(n) == expected
    assert evaluate(next_power_of_2(sym("N")), {"N": n}) == expected


def test_branching_on_a_symbol_is_refused_with_the_way_out() -> None:
    with pytest.raises(DeclarationError, match="cdiv, minimum, maximum"):
        bool(sym("M"))
    with pytest.raises(DeclarationError, match="no order"):
        _ = sym("M") < 3
    with pytest.raises(DeclarationError, match="no integer value"):
        range(sym("M"))  # type: ignore[call-overload]


def test_missing_symbols_and_operations_are_named() -> None:
    with pytest.raises(UnknownNameError, match=r"'K'.*known: M"):
        evaluate(sym("M") * sym("K"), {"M": 3})
    operations = {k: v for k, v in INTEGER_OPERATIONS.items() if k != "next_power_of_2"}
    with pytest.raises(DeclarationError, match="next_power_of_2"):
        lower(next_power_of_2(sym("N")), {"N": 3}, int, operations)


def test_division_by_zero_is_refused() -> None:
    with pytest.raises(DeclarationError, match="by zero"):
        _ = sym("M") // 0


def test_free_symbols() -> None:
    assert free_symbols(cdiv(sym("M"), 128) * minimum(sym("N"), 5)) == {"M", "N"}
    assert free_symbols(7) == set()
