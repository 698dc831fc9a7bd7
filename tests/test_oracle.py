"""The oracle of benchmarks: parts of a problem have the whole problem's answer, and wrong outputs are called wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from trtforge.bindings.errors import DeclarationError, UsageError
from trtforge.harness import oracle
from trtforge.harness.bench import plan
from trtforge.harness.oracle import Answer, answers, independent_rows, judge, parts_of
from trtforge.kernels import Case, Cost, Op, Tensor, cdiv, registry, sym


@pytest.fixture
def scratch() -> Iterator[list[str]]:
    """Names of ops that a test declares; they are forgotten afterwards."""
    names: list[str] = []
    yield names
    for name in names:
        registry._ops.pop(name, None)


def declare(scratch: list[str], outputs: dict[str, Tensor], **inputs: Tensor) -> Op:
    name = f"oracle::op{len(scratch)}"
    scratch.append(name)
    return Op(name, inputs=inputs, outputs=outputs)


def smaller(op: Op, case: Case) -> Case:
    """The case with dimensions that a reference takes in no time; parts are smaller still."""
    least = {"B": 2, "Hq": 4, "Hkv": 2, "Sq": 200, "Sk": 200, "M": 256, "N": 384, "K": 256, "H": 128}
    dims = {name: min(size, least.get(name, size)) for name, size in case.dims.items()}
    for scale, of in (("SX", "M"), ("SW", "N")):
        if scale in dims:
            dims[scale] = min(dims[scale], dims[of])
    return replace(case, dims=dims, name="")


def reader(arrays: Mapping[str, np.ndarray]) -> Callable[[str, Any], np.ndarray]:
    return lambda name, index: arrays[name][index]


NAMES = ["flash_attention", "quantize_tile", "quantize_tensor", "dequantize_tile", "quantize_tile_static", "fused_gemm"]


@pytest.mark.parametrize("name", [*NAMES, "quantize_block", "pack_int4", "rms_norm", "scaled_gemm"])
def test_parts_have_the_answers_of_the_whole(name: str) -> None:
    op = registry.get(name)
    cases = [smaller(op, p.case) for p in plan([op])]
    small = [c for c in op.cases if not c.tags] if name == "flash_attention" else []
    for case in (*{c.label: c for c in cases}.values(), *small):
        dtypes = op.dtype_combinations(case)[0]
        binding = op.bind_case(case, dtypes)
        inputs = op.sample_inputs(case, dtypes, seed=0)
        whole = op.run_reference(inputs, case.attributes)
        for seed in range(3):
            right = answers(op, binding, reader(inputs), seed)
            error, wrong = judge(binding, right, reader(whole))
            assert not wrong, f"{case.label}, seed {seed}: {wrong}"
            assert error < 4e-3 and {a.output for a in right} == set(whole)


def test_benchmark_cases_have_parts_that_the_reference_can_take() -> None:
    registry.load_builtin()
    for op in registry.ops():
        if not op.name.startswith("trtforge::") or not any("bench" in c.tags for c in op.cases):
            continue
        for planned in plan([op]):
            for part in parts_of(op, planned.binding):
                assert part.outputs or (op.cost_of(planned.binding).bytes or 0) < 2e9, planned.name


def test_a_wrong_head_or_row_is_found() -> None:
    op = registry.get("flash_attention")
    case = Case({"B": 1, "Hq": 2, "Hkv": 1, "Sq": 100, "Sk": 100, "D": 64}, {"causal": True})
    dtypes = op.dtype_combinations(case)[0]
    binding, inputs = op.bind_case(case, dtypes), op.sample_inputs(case, dtypes, 0)
    right = answers(op, binding, reader(inputs))
    shifted = op.run_reference({**inputs, "v": np.roll(inputs["v"], 1, axis=2)}, case.attributes)
    error, wrong = judge(binding, right, reader(shifted))
    assert error > 0.5 and "relative L2 error" in wrong


def test_rows_are_taken_only_where_nothing_else_has_their_dimension(scratch: list[str]) -> None:
    def found(outputs: dict[str, Tensor], leading: tuple[int, ...] | None = None, **inputs: Tensor) -> str | None:
        op = declare(scratch, outputs, **inputs)
        case = Case({"M": 6, "N": 4}, leading=leading)
        return independent_rows(op, op.bind_case(case, op.dtype_combinations(case)[0]))

    x, y = Tensor("*M", "N", dtype="float32"), Tensor("*M", "N", dtype="float32")
    assert found({"y": y}, x=x) == "M"
    assert found({"y": y, "s": Tensor("*M", dtype="float32")}, x=x, w=Tensor("N", dtype="float32")) == "M"
    assert found({"y": y}, leading=(2, 3), x=x) is None
    assert found({"y": y, "total": Tensor(1, dtype="float32")}, x=x) is None
    square = Tensor("M", "N", dtype="float32")
    assert found({"y": square}, x=square, w=Tensor("N", "M", dtype="float32")) is None
    assert found({"y": square}, x=square, w=Tensor(cdiv(sym("M"), 4), dtype="float32")) is None
    assert found({"y": Tensor("M", "M", dtype="float32")}, x=square) is None


def test_rows_are_the_first_the_last_and_some_between() -> None:
    op = registry.get("rms_norm")
    (part,) = parts_of(op, plan([op], "M16384")[0].binding)
    rows = part.outputs["y"]
    assert rows[0] == 0 and rows[-1] == 16383 and 60 <= len(rows) <= oracle.ROWS and (np.diff(rows) > 0).all()
    assert set(part.inputs) == {"x"}
    other = parts_of(op, plan([op], "M16384")[0].binding, seed=1)[0].outputs["y"]
    assert not np.array_equal(rows, other)


def test_a_whole_that_is_too_large_asks_for_a_part(scratch: list[str]) -> None:
    y = Tensor(1, dtype="float32")
    op = declare(scratch, {"y": y}, x=Tensor("N", dtype="float32"))
    binding = op.bind({"x": (1 << 31,)}, {"x": "float32"})
    with pytest.raises(UsageError, match=r"declare a smaller problem inside it with @op\.part"):
        parts_of(op, binding)
    assert parts_of(op, op.bind({"x": (1 << 20,)}, {"x": "float32"}))[0].outputs == {}
    op.cost(lambda d: Cost(flops=10**12))
    with pytest.raises(UsageError, match=r"1.0e\+12 operations"):
        parts_of(op, op.bind({"x": (1 << 20,)}, {"x": "float32"}))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, "not two mappings"),
        (({"z": slice(1)}, {}), "'z', which is no input"),
        (({"x": slice(1)}, {"x": slice(1)}), "'x', which is no output"),
    ],
)
def test_wrong_parts_are_refused(scratch: list[str], given: Any, message: str) -> None:
    op = declare(scratch, {"y": Tensor("N", dtype="float32")}, x=Tensor("N", dtype="float32"))
    op.part(lambda: given)
    with pytest.raises(DeclarationError, match=message):
        parts_of(op, op.bind({"x": (4,)}, {"x": "float32"}))


def answer(values: list[float], kind: Any = np.float16) -> Answer:
    exact = np.array(values, np.float64)
    with np.errstate(all="ignore"):
        return Answer("y", ..., exact, exact.astype(kind))


def judged(values: list[float], found: list[float] | None, kind: str = "float16") -> tuple[float, str]:
    class Bound:
        dtypes = {"y": kind}

    given = None if found is None else np.array(found)
    return judge(Bound(), [answer(values)], lambda name, index: given)  # type: ignore[arg-type]


def test_judging() -> None:
    assert judged([3.0, 4.0], [3.0, 4.0]) == (0.0, "")
    error, wrong = judged([3.0, 4.0], [3.0, 4.5])
    assert error == pytest.approx(0.1) and "more than 0.02" in wrong
    assert (
        judged([3.0, 4.0], [3.0, 4.01])[1] == "" and "more than 0.001" in judged([3.0, 4.0], [3.0, 4.01], "float32")[1]
    )
    assert "2 values" not in judged([1.0], [1.0])[1] and "3 values" in judged([1.0, 2.0], [1.0, 2.0, 3.0])[1]
    assert judged([0.0, 0.0], [0.0, 0.0]) == (0.0, "") and judged([0.0], [0.5])[1]
    assert judged([1.0], None)[1] == "it computes none of the outputs"


def test_infinities_and_nan_must_agree() -> None:
    assert judged([1.0, np.inf, np.nan], [1.0, np.inf, np.nan]) == (0.0, "")
    assert judged([1.0, 1e6], [1.0, np.inf])[1] == ""  # what float16 rounds to infinity
    for found in ([1.0, -np.inf], [1.0, 5.0], [np.nan, np.inf]):
        assert "NaN or infinities" in judged([1.0, np.inf], found)[1]
