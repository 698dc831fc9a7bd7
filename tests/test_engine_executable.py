"""Running engines: bookkeeping on stand-ins for CuPy and TensorRT, and on a GPU the real thing."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cupy_double
import numpy as np
import pytest
import trt_double
from test_graph_cuda import compare, decoder, mixture, mixture_inputs

from trtforge.bindings.device import has_gpu
from trtforge.bindings.errors import GraphError, MissingDependencyError
from trtforge.graph_api import Dim, Network
from trtforge.graph_api import functional as F
from trtforge.graph_api.engines import build as engine_build
from trtforge.graph_api.engines import library
from trtforge.graph_api.engines.builder import BuildOptions
from trtforge.graph_api.engines.executable import lifetimes

ABSENT = library.why_absent("tensorrt-rtx")


@pytest.fixture
def doubles(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    yield trt_double.install(monkeypatch)
    trt_double.remove()


def same_generation(net: Network, fused: bool, tolerance: float) -> Any:
    """Prefill, decode, prefill again; refit and reset in the middle. Returns the executable."""
    reference, tested = net.build(), net.build(backend="tensorrt-rtx")
    rng = np.random.default_rng(1)
    for round_ in range(2):
        for rows, start in [(5, 0), (1, 5), (1, 6), (1, 7), (3, 8), (1, 11), (5, 0), (8, 1), (1, 9)]:
            inputs = {"ids": rng.integers(0, 9, (2, rows)).astype(np.int32), "at": np.full(2, start, np.int32)}
            expected, found = reference(**inputs), tested(**inputs)
            assert {n: (a.shape, a.dtype) for n, a in found.items()} == {
                n: (a.shape, a.dtype) for n, a in expected.items()
            }
            scale = float(np.abs(expected["logits"]).max())
            np.testing.assert_allclose(found["logits"], expected["logits"], atol=tolerance * scale, rtol=0)
        if round_ == 0:
            for exe in (reference, tested):
                exe.reset()
                exe.refit({"table": net.weights["table"] * np.asarray(0.5, net.weights["table"].dtype)})
    assert set(tested.placement) == {n.name for n in net.nodes}
    return tested


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float16", 1e-2), ("bfloat16", 8e-2)])
def test_generation_on_stand_ins(doubles: Any, dtype: str, tolerance: float, fused: bool) -> None:
    net = decoder(dtype)
    if fused:
        net.fuse()
    tested = same_generation(net, fused, tolerance)
    assert len(tested.partition.pieces) == 1 if not fused else len(tested.partition.pieces) > 1 or dtype == "float32"
    # Lengths 1 and 5 come twice before the refit; captured again after it, with 3 and 8 seen before. Where no engine
    # reads a cache, 8 rows need more memory than 5, and what was captured goes: length 1 is captured once more.
    cache_in_engine = any(piece.aliases for piece in tested.partition.pieces)
    assert cache_in_engine == (not fused or dtype == "float32")
    assert cupy_double.Stream.captures == (6 if cache_in_engine else 7)
    assert set(tested._own) == set(tested._captured)
    if fused and dtype != "float32":
        assert any(w.startswith("trtforge::flash_attention") for w in tested.placement.values())


@pytest.mark.parametrize("graphs", [False, True])
def test_what_an_engine_cannot_host_runs_between(doubles: Any, graphs: bool) -> None:
    net, inputs = mixture(), mixture_inputs()
    expected, tested = net.build()(**inputs), net.build(backend="tensorrt-rtx", graphs=graphs)
    for _ in range(3):
        compare(expected, tested(**inputs), 2e-2)
    assert "engine_0 (TensorRT for RTX)" in tested.placement.values()


def test_primitives_and_in_place_updates_outside_of_engines(doubles: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A library without a cache layer: the update runs between two engines, on the same buffer."""
    host = engine_build.host_refusal
    monkeypatch.setattr(
        engine_build,
        "host_refusal",
        lambda b, o, n: "no layer" if n.op in ("kv_cache_update", "permute", "matmul") else host(b, o, n),
    )
    tested = same_generation(decoder("float32"), False, 1e-5)
    placed = set(tested.placement.values())
    assert "cuBLAS" in placed and any(p.startswith("trtforge::kv_cache_update") for p in placed)


def test_one_arena_serves_all_shapes(doubles: Any) -> None:
    rows = Dim("S", min=1, opt=4, max=64)
    with Network("growing") as net:
        x = net.input("x", "float16", (rows, 8))
        y = F.rms_norm(F.exp(x), net.parameter("w", (8,), "float16"))
        net.mark_output(F.call("trtforge::rms_norm", y, net.parameters["w"]) + x, "y")
    net.bind_weights({"w": np.ones(8, np.float16)})
    reference, exe = net.build(), net.build(backend="tensorrt-rtx")

    def call(count: int) -> None:
        inputs = {"x": np.random.default_rng(count).standard_normal((count, 8)).astype(np.float16)}
        compare(reference(**inputs), exe(**inputs), 5e-3)

    for count in (4, 4, 4):
        call(count)
    small = exe.memory_size
    assert len(exe._captured) == 1
    call(64)  # a larger arena: what was captured with the old one goes
    assert exe.memory_size > small and not exe._captured and not exe._own
    large, contexts = exe.memory_size, 0
    for i in range(60):
        call((4, 64, 7)[i % 3])
        if i == 20:
            contexts = trt_double.Engine.contexts
    assert exe.memory_size == large and trt_double.Engine.contexts == contexts
    assert len(exe._captured) == 3 and len(exe._arenas) <= 8


def test_least_used_graphs_go_with_their_contexts(doubles: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with Network("many") as net:
        x = net.input("x", "float32", (Dim("S", max=64), 8))
        net.mark_output(F.exp(x), "y")
    exe = net.build(backend="tensorrt-rtx")
    monkeypatch.setattr(exe, "graphs_kept", 3)
    exe(x=np.zeros((64, 8), np.float32))  # the arena has its final size
    for count in range(1, 9):
        for _ in range(3):
            exe(x=np.zeros((count, 8), np.float32))
    assert len(exe._captured) == 3 and set(exe._own) == set(exe._captured)


def test_engines_that_cannot_be_captured_run_step_by_step(
    doubles: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(trt_double.Context, "is_stream_capturable", lambda self, stream: False, raising=False)
    with Network("stuck") as net:
        net.mark_output(F.exp(net.input("x", "float32", (Dim("S", max=64), 8))), "y")
    exe = net.build(backend="tensorrt-rtx")
    for _ in range(4):
        assert np.array_equal(exe(x=np.zeros((3, 8), np.float32))["y"], np.ones((3, 8)))
    assert not exe._captured and not exe._own and caplog.text.count("cannot be captured") == 1


def test_compiled_kernels_are_kept_in_a_file(doubles: Any, tmp_path: Path) -> None:
    with Network("kept") as net:
        net.mark_output(F.exp(net.input("x", "float32", (2,))), "y")
    exe = net.build(backend="tensorrt-rtx", runtime_cache=str(tmp_path / "cache"))
    exe.save_runtime_cache()
    assert (tmp_path / "cache").read_bytes() == b"cache"
    net.build(backend="tensorrt-rtx", runtime_cache=str(tmp_path / "cache"))


def test_refit_rebuilds_only_what_is_touched(doubles: Any) -> None:
    net = decoder("float16")
    net.fuse()
    exe = net.build(backend="tensorrt-rtx")
    pieces = exe.partition.pieces
    built = len(trt_double.ENGINES)
    assert built == len(pieces) > 1
    inside = next(n for p in pieces for n in p.parameters)
    touched = sum(inside in p.parameters for p in pieces)
    exe.refit({inside: net.weights[inside] * np.float16(2)})
    assert len(trt_double.ENGINES) == built + touched
    fresh = decoder("float16")
    fresh.fuse()
    fresh.bind_weights({**net.weights, inside: net.weights[inside] * np.float16(2)})
    inputs = {"ids": np.ones((2, 3), np.int32), "at": np.zeros(2, np.int32)}
    compare(fresh.build(backend="tensorrt-rtx")(**inputs), exe(**inputs), 0)
    with pytest.raises(GraphError, match="extra"):
        exe.refit({"nothing": np.zeros(3, np.float16)})


@pytest.mark.skipif(
    find_spec("tensorrt_bindings") is None, reason="needs NVIDIA's plugin layer: pip install tensorrt-cu12-bindings"
)
@pytest.mark.parametrize("plugins", ["aot", "jit"])
def test_registered_ops_are_plugins_of_one_tensorrt_engine(monkeypatch: pytest.MonkeyPatch, plugins: str) -> None:
    trt_double.install(monkeypatch, "tensorrt")
    net = decoder("float16")
    net.fuse()
    options = BuildOptions(plugins=plugins)
    exe, reference = net.build(backend="tensorrt", options=options), net.build()
    assert len(exe.partition.pieces) == 1 and not exe.partition.singles
    (definition,) = trt_double.ENGINES
    wanted = sorted(n.op for n in net.nodes if "::" in n.op)
    assert [name for name, aot in definition.plugins if aot == (plugins == "aot")] and len(wanted) == len(
        definition.plugins
    )
    inputs = {"ids": np.ones((2, 3), np.int32), "at": np.zeros(2, np.int32)}
    compare(reference(**inputs), exe(**inputs), 2e-2)
    changed = {"table": net.weights["table"] * np.float16(2)}
    for one in (exe, reference):
        one.refit(changed)
        one.reset()
    compare(reference(**inputs), exe(**inputs), 2e-2)
    assert len(trt_double.ENGINES) == 1 and trt_double.Refitter.refits == 1, "refit in place, not built again"
    trt_double.remove()


def test_caches_given_as_inputs_are_copies(doubles: Any) -> None:
    with Network("given") as net:
        cache = net.input("cache", "float16", (1, 1, 6, 2))
        new = net.input("new", "float16", (1, 1, Dim("S", max=4), 2))
        updated = F.kv_cache_update(cache, new, net.input("at", "int32", (1,)))
        net.mark_output(updated, "all")
        net.mark_output(updated[:, 0].reshape(12), "flat")
    exe, reference = net.build(backend="tensorrt-rtx"), net.build()
    mine = np.arange(12, dtype=np.float16).reshape(1, 1, 6, 2)
    for step in range(4):
        inputs = {"cache": mine, "new": np.full((1, 1, 2, 2), -step, np.float16), "at": np.array([step], np.int32)}
        compare(reference(**inputs), exe(**inputs), 0)
    assert mine.sum() == 66


def test_lifetimes_follow_aliases() -> None:
    net = decoder("float16")
    cuts = engine_build.partition(net, lambda n: "x" if n.op in ("softmax", "reshape", "permute") else None)
    lives = lifetimes(net, cuts)
    for node in net.nodes:
        if node.op == "kv_cache_update":
            assert lives.roots[node.outputs[0]].kind == "state"
    outputs = {lives.roots.get(t, t) for t in net.outputs.values()}
    assert all(lives.last[t] == len(cuts.steps) for t in outputs)
    assert all(lives.first[t] <= lives.last[t] for t in lives.first)


def test_without_a_library_the_way_to_get_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    library.open_library.cache_clear()
    monkeypatch.setitem(library.FLAVORS, "tensorrt", SimpleNamespace(**{
        **vars(library.FLAVORS["tensorrt"]), "module": "tensorrt_of_nobody"
    }))  # fmt: skip
    with Network("n") as net:
        net.mark_output(net.input("x", "float32", (1,)) * 2.0, "y")
    with pytest.raises(MissingDependencyError, match="pip install"):
        net.build(backend="tensorrt")
    library.open_library.cache_clear()


def test_a_version_that_is_not_known_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    library.open_library.cache_clear()
    old = trt_double.module()
    old.__version__ = "1.2.0"
    monkeypatch.setattr(library.importlib, "import_module", lambda name: old)
    with pytest.raises(MissingDependencyError, match=r"from 1.5 to below 1.8; 1.2.0 is installed"):
        library.open_library("tensorrt-rtx")
    library.open_library.cache_clear()


def test_wrong_options() -> None:
    for wrong in ({"workspace_mib": -1}, {"optimization_level": 9}, {"plugins": "both"}):
        with pytest.raises(ValueError, match="accepted"):
            BuildOptions(**wrong)


@pytest.mark.skipif(has_gpu() or bool(ABSENT), reason=ABSENT or "there is a GPU")
def test_running_needs_a_gpu() -> None:
    with pytest.raises(RuntimeError, match="needs an NVIDIA GPU"):
        decoder("float16").build(backend="tensorrt-rtx")


@pytest.mark.gpu
@pytest.mark.skipif(bool(ABSENT), reason=ABSENT)
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 5e-3), ("float16", 2e-2), ("bfloat16", 1e-1)])
def test_generation_on_a_gpu(dtype: str, tolerance: float, fused: bool) -> None:
    net = decoder(dtype)
    if fused:
        net.fuse()
    same_generation(net, fused, tolerance)


@pytest.mark.gpu
@pytest.mark.skipif(bool(ABSENT), reason=ABSENT)
def test_float32_products_on_a_gpu(record_property: Any) -> None:
    """TensorRT for RTX 1.5 multiplies float32 with 10-bit mantissas (TF32) whether or not the builder allows it."""
    rng = np.random.default_rng(8)
    with Network("product") as net:
        net.mark_output(net.input("x", "float32", (64, 256)) @ net.parameter("w", (256, 64), "float32"), "y")
    x, w = (rng.standard_normal(shape).astype(np.float32) for shape in ((64, 256), (256, 64)))
    net.bind_weights({"w": w})
    exact = x.astype(np.float64) @ w.astype(np.float64)
    found = net.build(backend="tensorrt-rtx")(x=x)["y"]
    error = float(np.linalg.norm(found - exact) / np.linalg.norm(exact))
    record_property("relative error", error)
    print(f"relative error {error:.1e}")
    assert error < 1e-3


@pytest.mark.gpu
@pytest.mark.skipif(bool(ABSENT), reason=ABSENT)
@pytest.mark.parametrize("graphs", [False, True])
def test_mixture_on_a_gpu(graphs: bool) -> None:
    net, inputs = mixture(), mixture_inputs()
    expected, tested = net.build()(**inputs), net.build(backend="tensorrt-rtx", graphs=graphs)
    for _ in range(4):
        compare(expected, tested(**inputs), 2e-2)
