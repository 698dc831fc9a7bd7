"""Outputs that are inputs updated in place: declaration, reference, eager calls, plugins, the KV cache's write."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from test_eager import FakeArray, world  # noqa: F401  (a fixture)

from trtforge.bindings.architectures import architecture
from trtforge.bindings.errors import ContractError, DeclarationError, GraphError
from trtforge.graph_api import Network
from trtforge.graph_api import functional as F
from trtforge.kernels import Case, Op, Tensor, registry
from trtforge.plugins import stand_ins
from trtforge.plugins.eligibility import aot_eligibility

SM90 = architecture("sm_90a")
CASE = Case({"B": 3, "H": 2, "S": 8, "T": 2, "D": 8}, dtypes={"cache": "float16"})
needs_bindings = pytest.mark.skipif(
    importlib.util.find_spec(stand_ins.BINDINGS) is None, reason=f"needs pip install {stand_ins.WHEEL}"
)


@pytest.fixture
def scratch() -> Iterator[None]:
    before = dict(registry._ops)
    yield
    registry._ops.clear()
    registry._ops.update(before)


def problem() -> tuple[Op, dict[str, np.ndarray], np.ndarray]:
    op = registry.get("kv_cache_update")
    given = op.sample_inputs(CASE, op.dtype_combinations(CASE)[0], 0)
    expected = given["cache"].copy()
    for b, at in enumerate(given["positions"]):
        expected[b, :, at : at + 2] = given["new"][b]
    return op, given, expected


def test_an_alias_takes_shape_and_dtype_of_its_input(scratch: None) -> None:
    x = Tensor("*M", "N", dtype=("float16", "int8"))
    op = Op(
        "test::add_to", {"x": x, "y": Tensor("N", dtype="x")}, {"sum": Tensor(alias="x"), "n": Tensor(dtype="int32")}
    )
    binding = op.bind({"x": (2, 3, 4), "y": (4,)}, {"x": "int8", "y": "int8"})
    assert binding.outputs == {"sum": (2, 3, 4), "n": ()} and binding.dtypes["sum"] == "int8"
    assert binding.aliases == op.aliases == {"sum": "x"}


def test_wrong_declarations(scratch: None) -> None:
    x, free = Tensor("N", dtype="float16"), Tensor("N", dtype="float16", optional=True)
    for wrong, reason in (
        (lambda: Tensor("N", alias="x"), "dims"),
        (lambda: Tensor(alias="x", dtype="float16"), "alias"),
        (lambda: Tensor("N"), "a tensor has a dtype"),
        (lambda: Op("test::a", {"x": x}, {"y": Tensor(alias="z")}), "which is no input"),
        (lambda: Op("test::b", {"x": x, "f": free}, {"y": Tensor(alias="f")}), "which is optional"),
        (lambda: Op("test::c", {"x": x}, {"y": Tensor(alias="x"), "z": Tensor(alias="x")}), "two outputs update"),
    ):
        with pytest.raises(DeclarationError, match=reason):
            wrong()


def test_the_reference_leaves_its_inputs_alone() -> None:
    op, given, expected = problem()
    before = given["cache"].copy()
    assert np.array_equal(op.run_reference(given)["updated"], expected)
    assert np.array_equal(given["cache"], before)
    given["positions"][:] = 7, -1, 8  # one row inside, one row inside, none
    found = op.run_reference(given)["updated"]
    before[0, :, 7], before[1, :, 0] = given["new"][0, :, 0], given["new"][1, :, 1]
    assert np.array_equal(found, before)


def test_numpy_arrays_are_updated_and_returned() -> None:
    op, given, expected = problem()
    assert op(**given, device="cpu") is given["cache"] and np.array_equal(given["cache"], expected)
    with pytest.raises(ContractError, match="'cache' is missing"):
        op(new=given["new"], positions=given["positions"], device="cpu")
    given["cache"].flags.writeable = False
    with pytest.raises(ContractError, match="writable"):
        op(**given, device="cpu")


def test_device_arrays_are_given_back(world: dict[str, Any]) -> None:  # noqa: F811
    op = registry.get("kv_cache_update")
    op._ready.clear()
    op._plans.clear()
    cache, new = FakeArray((3, 2, 8, 8), pointer=1 << 21), FakeArray((3, 2, 2, 8))
    at = FakeArray((3,), "int32", 1 << 22)
    for _ in range(3):  # the long way, then the short one
        assert op(cache, new, at) is cache
    assert world["launches"] == [((1 << 21, 1 << 20, 1 << 22, 1 << 21), 77)] * 3 and world["allocated"] == 0
    assert world["plans"] == ["cuda"] and op(cache, new, at, out=cache) is cache
    with pytest.raises(ContractError, match="'updated' is 'cache' updated in place"):
        op(cache, new, at, out=FakeArray((3, 2, 8, 8), pointer=1 << 23))
    op._ready.clear()
    op._plans.clear()


def test_kernels_by_width() -> None:
    op = registry.get("kv_cache_update")

    def chosen(width: int, dtype: str) -> str:
        dims = {"B": 1, "H": 1, "S": 4, "T": 1, "D": width}
        (types,) = op.dtype_combinations(Case(dims, dtypes={"cache": dtype}))
        return op.choose(op.bind_case(Case(dims), types), SM90).kernel.name

    assert [chosen(w, t) for w, t in ((8, "float16"), (4, "float16"), (16, "int8"), (5, "int8"))] == [
        "cuda",
        "cuda_bytes",
        "cuda",
        "cuda_bytes",
    ]
    with pytest.raises(ContractError, match="T must be at most S"):
        op.bind({"cache": (1, 1, 2, 4), "new": (1, 1, 3, 4), "positions": (1,)}, {
            "cache": "int8", "new": "int8", "positions": "int32"
        })  # fmt: skip


@needs_bindings
@pytest.mark.parametrize("aot", [True, False])
def test_plugins_tell_tensorrt(aot: bool) -> None:
    from trtforge.plugins import host

    op = registry.get("kv_cache_update")
    ends = [{"cache": (b, 2, 64, 32), "new": (b, 2, t, 32), "positions": (b,)} for b, t in ((1, 1), (2, 4), (8, 64))]
    dtypes = {"cache": "bfloat16", "new": "bfloat16", "positions": "int32"}
    hosted = host.build(op, host.Profile(*ends), dtypes, {}, SM90, aot=aot)
    assert hosted.plugin.get_aliased_input(0) == 0 and hosted.output_shapes(ends[1]) == [(2, 2, 64, 32)]
    assert all("ALIASED_PLUGIN_IO" in aot_eligibility(k).reason and aot_eligibility(k).aot for k in op.kernels)
    if aot:
        kernel = hosted.engine_kernel(hosted.tactics[0])
        assert kernel.geometry(ends[1])["scalars"] == (4, 64, 4)


def test_networks_update_states() -> None:
    """A registered op that updates a state is held to the rules of the graph's own cache write, and does the same."""
    with Network("n") as net:
        new, at = net.input("new", "float16", (1, 1, 1, 8)), net.input("at", "int32", (1,))
        caches = [net.state(name, "float16", (1, 1, 4, 8)) for name in ("a", "b")]
        updated = F.call("trtforge::kv_cache_update", caches[0], new, at)
        assert updated.producer.updated == {updated: caches[0]} and caches[0].overwritten_by is updated.producer
        net.mark_output(updated, "called")
        net.mark_output(F.kv_cache_update(caches[1], new, at), "primitive")
        assert "kv_cache_update float16[1, 1, 4, 8] in a = trtforge::kv_cache_update(a, new, at)" in net.to_text()
    exe = net.build()
    for row in range(4):
        found = exe(new=np.full((1, 1, 1, 8), row + 1, np.float16), at=np.array([row], np.int32))
    assert found["called"][0, 0, :, 0].tolist() == [1, 2, 3, 4]
    assert np.array_equal(found["called"], found["primitive"])
    found["called"][:] = 0  # a copy: the state stays
    assert exe(new=np.zeros((1, 1, 1, 8), np.float16), at=np.array([3], np.int32))["called"][0, 0, 2, 0] == 3
    assert len(net.prune()) == 0 and len(net.nodes) == 2


def test_what_must_not_be_updated_in_a_network() -> None:
    op = "trtforge::kv_cache_update"
    with Network("n") as net:
        new, at = net.input("new", "float16", (1, 1, 4, 8)), net.input("at", "int32", (1,))
        cache, read, shown = (net.state(n, "float16", (1, 1, 4, 8)) for n in ("cache", "read", "shown"))
        F.add(read, 1.0)
        net.mark_output(shown, "output")
        for call, reason in (
            (lambda: F.call(op, new * 2.0, new, at), r"the cache is a value; accepted: a network state"),
            (lambda: F.call(op, net.parameter("w", (1, 1, 4, 8), "float16"), new, at), "the cache is a parameter"),
            (lambda: F.call(op, np.zeros((1, 1, 4, 8), np.float16), new, at), "the cache is a constant"),
            (lambda: F.call(op, cache, cache, at), "the cache is another input too"),
            (lambda: F.kv_cache_update(cache, cache, at), "the cache is another input too"),
            (lambda: F.call(op, read, new, at), "the cache is read elsewhere, before it is overwritten"),
            (lambda: F.call(op, shown, new, at), "the cache is read elsewhere, before it is overwritten"),
            (lambda: F.call(op, cache, new, new), "input 'positions' has shape"),
        ):
            with pytest.raises(GraphError, match=reason):
                call()
        F.call(op, cache, new, at)
        for again in (lambda: F.call(op, cache, new, at), lambda: F.add(cache, 1.0), lambda: net.mark_output(cache)):
            with pytest.raises(GraphError, match=r"cache .* was overwritten in place by 'kv_cache_update'"):
                again()


@pytest.mark.gpu
@pytest.mark.parametrize("kernel", [None, "cuda", "cuda_bytes", "triton"])
def test_on_device(kernel: str | None) -> None:
    import cupy

    op, given, expected = problem()
    held = {name: cupy.asarray(array) for name, array in given.items()}
    for _ in range(3):
        held["cache"].set(given["cache"])
        assert op(**held, kernel=kernel) is held["cache"]
        assert np.array_equal(held["cache"].get(), expected)
    torch = pytest.importorskip("torch")
    cache = torch.from_numpy(given["cache"].copy()).cuda()
    rest = [torch.from_numpy(given[name]).cuda() for name in ("new", "positions")]
    assert op(cache, *rest) is cache and np.array_equal(cache.cpu().numpy(), expected)
