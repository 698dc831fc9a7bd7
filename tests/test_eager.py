"""The short way of repeated calls, with arrays and a launch that need no GPU: what is remembered, and for whom."""

from __future__ import annotations

from collections.abc import Iterator
from operator import attrgetter
from typing import Any

import numpy as np
import pytest

from trtforge.bindings import arrays, device
from trtforge.bindings.arrays import Framework, View
from trtforge.bindings.errors import ContractError
from trtforge.kernels import eager, registry
from trtforge.kernels.plan import Plan


class FakeArray:
    """A device array that lies at an address of our choice."""

    def __init__(self, shape: tuple[int, ...], dtype: str = "float16", pointer: int = 1 << 20, place: int = 0):
        self.shape, self.dtype, self.pointer, self.place, self.contiguous = shape, np.dtype(dtype), pointer, place, True


class Launches(list):  # type: ignore[type-arg]
    """Stands for a plan's launcher: remembers what it was launched on."""

    def __call__(self, pointers: list[int], stream: int) -> None:
        self.append((tuple(pointers), stream))


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """A framework "fake" with stream 77, and a planner that counts how often the long way was taken."""
    made: dict[str, Any] = {"plans": [], "launches": Launches(), "allocated": 0}

    def allocate(shape: tuple[int, ...], name: str, ordinal: int) -> FakeArray:
        made["allocated"] += 1
        return FakeArray(shape, name, pointer=(2 << 20) + 4096 * made["allocated"], place=ordinal)

    framework = Framework(
        "fake",
        attrgetter("pointer"),
        attrgetter("contiguous"),
        attrgetter("place"),
        allocate,
        lambda o: 77,
        {FakeArray},
    )

    def look(a: FakeArray) -> View:
        return View(a.pointer, a.shape, str(a.dtype), f"cuda:{a.place}", a.contiguous, "fake", a)

    def plan(op: Any, shapes: Any, dtypes: Any, attributes: Any, *, kernel: Any, tactic: Any, alignment: int) -> Plan:
        from trtforge.bindings.architectures import architecture

        binding = op.bind(shapes, dtypes, attributes)
        choice = op.choose(binding, architecture("sm_90a"), kernel=kernel, tactic=tactic, alignment=alignment)
        made["plans"].append(choice.kernel.name)
        return Plan(choice.kernel, choice.tactic, binding, None, made["launches"])  # type: ignore[arg-type]

    monkeypatch.setitem(arrays._FRAMEWORKS, FakeArray, framework)
    monkeypatch.setitem(arrays._BY_TYPE, FakeArray, look)
    monkeypatch.setattr(arrays, "framework_named", lambda name: framework)
    monkeypatch.setattr(eager, "plan", plan)
    monkeypatch.setattr(device, "current_ordinal", lambda: 0)
    monkeypatch.setattr(device, "is_current", lambda ordinal: ordinal == 0)
    op = registry.get("rms_norm")
    monkeypatch.setattr(op, "_ready", {})
    monkeypatch.setattr(op, "_plans", {})
    made["op"] = op
    yield made


def x_and_weight(rows: int = 4, columns: int = 64, **more: Any) -> tuple[FakeArray, FakeArray]:
    return FakeArray((rows, columns), **more), FakeArray((columns,), pointer=3 << 20)


def test_the_second_call_takes_the_short_way_with_its_own_pointers(world: dict[str, Any]) -> None:
    op = world["op"]
    first = op(*x_and_weight())
    second = op(*x_and_weight(pointer=5 << 20))
    assert world["plans"] == ["cuda"]
    assert world["launches"] == [
        ((1 << 20, 3 << 20, first.pointer), 77),
        ((5 << 20, 3 << 20, second.pointer), 77),
    ]
    assert second.shape == (4, 64) and second is not first


@pytest.mark.parametrize(
    "change, kernel",
    [
        ({"rows": 5}, "cuda"),
        ({"columns": 63}, "cuda_elementwise"),
        ({"pointer": (1 << 20) + 2}, "cuda_elementwise"),
        ({"options": {"eps": 1e-3}}, "cuda"),
        ({"options": {"kernel": "triton"}}, "triton"),
        ({"options": {"kernel": "cuda", "tactic": 2}}, "cuda"),
    ],
)
def test_whatever_changes_the_plan_is_planned_anew(world: dict[str, Any], change: dict[str, Any], kernel: str) -> None:
    op = world["op"]
    options = change.pop("options", {})
    op(*x_and_weight())
    op(*x_and_weight(**change), **options)
    op(*x_and_weight(**change), **options)
    assert world["plans"] == ["cuda", kernel]


def test_inputs_by_keyword_and_positional_share_a_plan(world: dict[str, Any]) -> None:
    op = world["op"]
    x, weight = x_and_weight()
    op(x, weight)
    op(x, weight=weight)
    op(weight=weight, x=x)
    assert world["plans"] == ["cuda"] and len(world["launches"]) == 3
    assert len(op._ready) == 1 and len({pointers[:2] for pointers, _ in world["launches"]}) == 1


def test_a_tactic_by_its_parameters_works_every_time(world: dict[str, Any]) -> None:
    op = world["op"]
    for _ in range(3):
        op(*x_and_weight(), kernel="cuda", tactic={"THREADS": 256})
    assert world["plans"] == ["cuda"] and len(world["launches"]) == 3


def test_out_and_stream_are_the_callers(world: dict[str, Any]) -> None:
    op = world["op"]
    out = FakeArray((4, 64), pointer=9 << 20)
    for _ in range(2):
        assert op(*x_and_weight(), out=out, stream=5) is out
    assert world["plans"] == ["cuda"] and world["allocated"] == 0
    assert world["launches"] == [((1 << 20, 3 << 20, 9 << 20), 5)] * 2
    with pytest.raises(ContractError, match=r"output 'y' must be a contiguous float16 array \[4, 64\]"):
        op(*x_and_weight(), out=FakeArray((4, 63)))
    with pytest.raises(ContractError, match="aligned to 16 bytes"):
        op(*x_and_weight(), out=FakeArray((4, 64), pointer=(9 << 20) + 2))


def test_what_was_refused_once_is_refused_again(world: dict[str, Any]) -> None:
    op = world["op"]
    op(*x_and_weight())
    x, weight = x_and_weight()
    x.contiguous = False
    for _ in range(2):
        with pytest.raises(ContractError, match="not contiguous"):
            op(x, weight)
    with pytest.raises(ContractError, match="one device"):
        op(FakeArray((4, 64)), FakeArray((64,), place=1))
    with pytest.raises(ContractError, match="not aligned to its float16 elements"):
        op(FakeArray((4, 64), pointer=(1 << 20) + 1), weight)
    with pytest.raises(ContractError, match="was given twice"):
        op(*x_and_weight(), weight=weight)
    with pytest.raises(ContractError, match="no input was given"):
        op()
    with pytest.raises(ContractError, match="no argument 'epsilon'; accepted: x, weight, eps, kernel"):
        op(x, weight, epsilon=1e-3)
    with pytest.raises(ContractError, match="takes 2 inputs"):
        op(x, weight, x)


def test_a_numpy_scalar_is_told_its_rank() -> None:
    with pytest.raises(ContractError, match=r"has shape \[\] of rank 0, but at least rank 1 is needed"):
        registry.get("rms_norm")(np.float16(3), np.ones(1, np.float16))
