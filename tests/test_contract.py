"""Contracts: what a call binds to, and what each wrong call is told."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trtforge.bindings.architectures import architecture
from trtforge.bindings.errors import ContractError, DeclarationError, ForgeError, UnknownNameError, UsageError
from trtforge.kernels import Attr, Case, Launch, Op, Tensor, attr, cdiv, registry, sym
from trtforge.kernels.contract import Tolerance, call_by_name


@pytest.fixture
def scaled() -> Iterator[Op]:
    op = Op(
        "test::scaled",
        inputs={
            "x": Tensor("*M", "K", dtype=("float16", "float32")),
            "scale": Tensor("M", cdiv(sym("K"), 4), dtype="float32"),
            "bias": Tensor("K", dtype="x", optional=True),
        },
        outputs={"y": Tensor("*M", "K", dtype=attr("to")), "total": Tensor(1, dtype="float32")},
        attributes={
            "to": Attr("int8", choices=("int8", "float32")),
            "gain": Attr(lambda d: d.K**-0.5, minimum=0.0),
            "rounds": Attr(1, minimum=1, maximum=4),
            "exact": False,
        },
        rules=[(lambda d: d.K % 2 == 0, "K must be even")],
        cases=[Case({"M": 3, "K": 8})],
    )
    yield op
    registry._ops.pop("test::scaled")


def bind(op: Op, x: Any = (2, 3, 8), scale: Any = (6, 2), **more: Any) -> Any:
    dtypes = {"x": "float16", "scale": "float32", **more.pop("dtypes", {})}
    shapes = {"x": x, "scale": scale, **more.pop("shapes", {})}
    return op.bind(shapes, {k: v for k, v in dtypes.items() if k in shapes}, more)


def test_a_call_binds_dimensions_attributes_dtypes_and_outputs(scaled: Op) -> None:
    found = bind(scaled, to="float32")
    assert found.dims == {"M": 6, "K": 8}
    assert found.outputs == {"y": (2, 3, 8), "total": (1,)}
    assert found.dtypes == {"x": "float16", "scale": "float32", "y": "float32", "total": "float32"}
    assert found.attributes == {"to": "float32", "gain": 8**-0.5, "rounds": 1, "exact": False}
    assert found.has == {"bias": False}


def test_symbolic_dimensions_bind_and_defer_rules(scaled: Op) -> None:
    s, k = sym("S"), sym("H")
    found = scaled.bind({"x": (s, k), "scale": (s, cdiv(k, 4))}, {"x": "float16", "scale": "float32"}, {"gain": 1.0})
    assert found.dims == {"M": s, "K": k} and found.outputs["y"] == (s, k)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"x": (8,), "scale": (1, 2), "shapes": {"x": ()}}, "rank"),
        ({"scale": (6,)}, "'scale' has shape .* of rank 1"),
        ({"scale": (5, 2)}, r"axis 0 \(M\) must be 6 as in 'x'"),
        ({"scale": (6, 3)}, r"axis 1 must be 2 = cdiv\(K, 4\)"),
        ({"x": (2, 3, 7), "scale": (6, 2)}, r"K must be even \(here K = 7\)"),
        ({"x": (2, 0, 8), "scale": (1, 2)}, "every dimension must be at least 1"),
        ({"dtypes": {"x": "bfloat16"}}, "'x' is bfloat16, but must be float16 or float32; cast"),
        (
            {"dtypes": {"bias": "float32"}, "shapes": {"bias": (8,)}},
            "'bias' is float32, but must be float16, the dtype",
        ),
        ({"gane": 2.0}, "no attribute 'gane'; attributes: to, gain, rounds, exact"),
        ({"gain": "big"}, "'gain' is 'big', but must be of type float"),
        ({"gain": -1.0}, "at least 0"),
        ({"gain": float("nan")}, "NaN"),
        ({"gain": 1e39}, r"1e\+39, which is infinite in float32"),
        ({"gain": 10**400}, "infinite in float32"),
        ({"gain": 1e-46}, "1e-46, which is 0 in float32"),
        ({"rounds": 5}, "at most 4"),
        ({"rounds": True}, "must be of type int"),
        ({"exact": 1}, "must be of type bool"),
        ({"to": "int4"}, "accepted: 'int8', 'float32'"),
        ({"shapes": {"z": (1,)}, "dtypes": {"z": "int8"}}, "no input 'z'"),
    ],
)
def test_each_wrong_call_is_told_what_is_wrong(scaled: Op, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ContractError, match=message) as caught:
        bind(scaled, **change)
    assert "test::scaled" in str(caught.value)


def test_a_missing_input_is_named(scaled: Op) -> None:
    with pytest.raises(ContractError, match="input 'scale' is missing"):
        scaled.bind({"x": (2, 8)}, {"x": "float16"})


def test_numpy_scalars_are_taken_as_attributes(scaled: Op) -> None:
    assert bind(scaled, gain=np.float32(0.5), rounds=np.int64(2)).attributes["rounds"] == 2
    assert bind(scaled, gain=2).attributes["gain"] == 2.0


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"name": "no_namespace"}, "namespace::name"),
        ({"outputs": {"y": Tensor("Q", dtype="x")}}, "bound by no input"),
        ({"outputs": {"stream": Tensor("M", dtype="x")}}, "cannot name a tensor"),
        ({"outputs": {"y": Tensor("M", dtype="float12")}}, "neither a dtype nor an input"),
        ({"outputs": {"y": Tensor("M", dtype=attr("to"))}}, "no attribute with dtype choices"),
        ({"outputs": {"y": Tensor("M", dtype="x", optional=True)}}, "cannot be optional"),
        ({"inputs": {"x": Tensor("M", dtype=("float99",))}}, "unknown dtype"),
    ],
)
def test_a_contradictory_declaration_is_refused(fields: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = {
        "name": "test::bad",
        "inputs": {"x": Tensor("M", dtype="float16")},
        "outputs": {"y": Tensor("M", dtype="x")},
    }
    with pytest.raises(ForgeError, match=message):
        Op(**{**good, **fields})
    assert "test::bad" not in [op.name for op in registry.ops()]


def test_a_run_of_dimensions_must_come_first() -> None:
    with pytest.raises(DeclarationError, match="first dimension"):
        Tensor("K", "*M", dtype="float16")


def test_declared_functions_may_name_only_what_exists() -> None:
    with pytest.raises(DeclarationError, match="asks for zeal"):
        call_by_name(lambda d, zeal: 0, d=1, t=2)


def test_another_file_may_not_take_a_name(tmp_path: Path) -> None:
    file = tmp_path / "twice.py"
    file.write_text(
        "from trtforge.kernels import Op, Tensor\n"
        "Op('trtforge::rms_norm', inputs={'x': Tensor('M', dtype='float16')}, outputs={'y': Tensor('M', dtype='x')})\n"
    )
    with pytest.raises(DeclarationError, match="already declared"):
        registry.load(file)


def test_choosing_a_kernel_pinning_and_refusals() -> None:
    op = registry.get("rms_norm")
    target = architecture("sm_90a")
    odd = op.bind({"x": (4, 1001), "weight": (1001,)}, {"x": "float16", "weight": "float16"})
    even = op.bind({"x": (4, 1024), "weight": (1024,)}, {"x": "float16", "weight": "float16"})
    assert op.choose(even, target).kernel.name == "cuda"
    assert op.choose(even, target, alignment=2).kernel.name == "cuda_elementwise"
    assert op.choose(odd, target).kernel.name == "cuda_elementwise"
    pinned = op.choose(even, target, kernel="triton", tactic={"num_warps": 8})
    assert (pinned.kernel.name, pinned.tactic) == ("triton", 1)
    with pytest.raises(ContractError, match=r"no kernel can serve .* N must be a multiple of 8"):
        op.choose(odd, target, kernel="cuda")
    with pytest.raises(UnknownNameError, match="no kernel 'cublas'; it has: cuda, cuda_elementwise, triton"):
        op.choose(even, target, kernel="cublas")
    with pytest.raises(UnknownNameError, match="tactics 0 to 1, not 7"):
        op.choose(even, target, kernel="triton", tactic=7)
    with pytest.raises(UnknownNameError, match="no tactic"):
        op.choose(even, target, kernel="triton", tactic={"num_warps": 3})
    with pytest.raises(ContractError, match="without the kernel"):
        op.choose(even, target, tactic=1)


def test_unknown_ops_and_architectures_list_the_known_ones() -> None:
    with pytest.raises(UnknownNameError, match="trtforge::rms_norm"):
        registry.get("rms_nrom")
    with pytest.raises(UsageError, match="sm_90a"):
        architecture("sm_42")


def test_cost_counts_every_tensor_once() -> None:
    op = registry.get("rms_norm")
    binding = op.bind({"x": (16, 64), "weight": (64,)}, {"x": "bfloat16", "weight": "bfloat16"})
    cost = op.cost_of(binding)
    assert cost.bytes == 2 * (16 * 64 + 64 + 16 * 64) and cost.flops == 4 * 16 * 64


def test_reference_outputs_are_checked_and_cast() -> None:
    op = registry.get("rms_norm")
    data = op.sample_inputs(Case({"M": 5, "N": 9}), {"x": "bfloat16", "weight": "bfloat16"}, seed=1)
    y = op.run_reference(data, {"eps": 1e-3})["y"]
    x = data["x"].astype(np.float64)
    expected = np.stack([row / np.sqrt((row**2).mean() + 1e-3) for row in x]) * data["weight"].astype(np.float64)
    assert y.dtype == data["x"].dtype
    np.testing.assert_allclose(y.astype(np.float64), expected, rtol=2**-8)


def test_sampled_inputs_are_fresh_per_seed_and_repeatable() -> None:
    op = registry.get("rms_norm")
    types = {"x": "float16", "weight": "float16"}
    first, again, other = (op.sample_inputs(op.cases[1], types, seed)["x"] for seed in (0, 0, 1))
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_tolerance_is_a_value() -> None:
    assert Tolerance(l2=1e-3) == Tolerance(l2=1e-3)
    assert Launch.triple(5) == (5, 1, 1) and Launch.triple((2, 3)) == (2, 3, 1)
    with pytest.raises(DeclarationError, match="one to three"):
        Launch.triple((1, 2, 3, 4))
