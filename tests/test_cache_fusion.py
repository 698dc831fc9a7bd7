"""Rotary embedding, quantization and the writes into a KV cache become one node, in every backend: the text stays."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cupy_double
import llm_checkpoints as tiny
import numpy as np
import pytest
import trt_double

from trtforge.bindings.architectures import architecture
from trtforge.bindings.errors import DeclarationError, GraphError
from trtforge.graph_api import Dim, Network
from trtforge.graph_api import functional as F
from trtforge.graph_api.backends import default_fusion
from trtforge.graph_api.engines import build as engine_build
from trtforge.graph_api.engines import library, plan
from trtforge.graph_api.engines.builder import BuildOptions
from trtforge.graph_api.engines.network_json import network_from_json, network_to_json
from trtforge.graph_api.fusion import FusionReport
from trtforge.graph_api.llm import Session, open_checkpoint
from trtforge.graph_api.llm.model import bind_checkpoint, build_network
from trtforge.graph_api.matching import Matcher
from trtforge.graph_api.quantization import quantize_network, save_quantized
from trtforge.kernels import registry
from trtforge.kernels.op import Pattern
from trtforge.plugins import host, stand_ins

registry.load_builtin()
FUSED = "trtforge::rope_kv_cache_update"
OTHERS = sorted({op.name for op in registry.ops() if op.patterns} - {FUSED})
CACHES = ("float16", "float8_e4m3fn", "int8")
B, H, D, ROOM = 2, 3, 16, 12
Build = Callable[..., Any]


def half(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float16)


class Cached:
    """A network with the caches of one layer, and what its cases need to write into them in their own ways."""

    def __init__(self, kept: str, batch: int = B):
        step = Dim("S", max=4)
        self.kept = kept
        self.net = net = Network("cached")
        self.k, self.v = (net.input(name, "float16", (batch, H, step, D)) for name in "kv")
        self.positions = net.input("positions", "int32", (batch,))
        self.later = net.input("later", "int32", (batch,))
        self.scales: list[Any] = [np.array([s], np.float32) for s in (0.02, 0.01)]
        self.k_cache, self.v_cache = (net.state(name, kept, (batch, H, ROOM, D)) for name in ("keys", "values"))
        with net:
            self.rows = F.add(F.unsqueeze(self.positions, 1), F.arange(self.k.shape[2]))
            self.tables = F.rope_tables(self.rows, F.rope_frequencies(D))

    def codes(self, x: Any, which: int) -> Any:
        return x if self.kept == "float16" else F.quantize(x, self.scales[which], to=self.kept)

    def turned(self, x: Any = None, tables: Any = None) -> Any:
        """Turned keys as a quantized cache gets them: in float32, rounded once."""
        x = self.k if x is None else x
        return F.rope(x if self.kept == "float16" else x.cast("float32"), *(tables or self.tables))

    def write_k(self, **how: Any) -> Any:
        return F.kv_cache_update(self.k_cache, self.codes(self.turned(**how), 0), self.positions)

    def write_v(self, positions: Any = None) -> Any:
        return F.kv_cache_update(
            self.v_cache, self.codes(self.v, 1), self.positions if positions is None else positions
        )

    def read(self, cache: Any, which: int) -> Any:
        return cache if self.kept == "float16" else F.dequantize(cache, self.scales[which])

    def finish(self, k: Any, v: Any) -> Network:
        self.net.mark_output(F.add(self.read(k, 0), 1.0), "k_read")
        self.net.mark_output(F.add(self.read(v, 1), 1.0), "v_read")
        return self.net


def usual(c: Cached) -> Network:
    return c.finish(c.write_k(), c.write_v())


def values_first(c: Cached) -> Network:
    v = c.write_v()
    return c.finish(c.write_k(), v)


def other_angles(c: Cached) -> Network:
    """Keys turned by angles that are not those of the rows that they go to: the op takes the tables as they are."""
    tables = F.rope_tables(F.add(c.rows, 7), F.rope_frequencies(D, theta=500.0))
    return c.finish(c.write_k(tables=tables), c.write_v())


def in_order(c: Cached) -> Network:
    """The values are made of what keys are made of, between the two writes."""
    k = c.write_k()
    doubled = F.mul(c.v, 2.0)
    v = F.kv_cache_update(c.v_cache, c.codes(doubled, 1), c.positions)
    return c.finish(k, v)


def feeds(batch: int = B, steps: tuple[int, ...] = (3, 1, 1, 4)) -> Iterator[dict[str, np.ndarray]]:
    at = 0
    for i, rows in enumerate(steps):
        where = np.array([at, at + 2][:batch], np.int32)
        yield {
            "k": half(2 * i, batch, H, rows, D),
            "v": half(2 * i + 1, batch, H, rows, D),
            "positions": where,
            "later": where + 1,
        }
        at += rows


def ran(exe: Any, batch: int = B) -> list[dict[str, np.ndarray]]:
    return [exe(**feed) for feed in feeds(batch)]


def same(found: list[dict[str, np.ndarray]], wanted: list[dict[str, np.ndarray]]) -> None:
    for a, b in zip(found, wanted, strict=True):
        assert a.keys() == b.keys()
        for name, array in b.items():
            assert array.any() and np.array_equal(a[name].view(np.uint8), array.view(np.uint8)), name


def fused_and_not(build: Build, kept: str, batch: int = B) -> tuple[Network, FusionReport]:
    """Fuses a network of ``build``, and holds every value and state against the network that was not."""
    made = []
    for _ in range(2):
        cached = Cached(kept, batch)
        with cached.net:
            made.append(build(cached))
    plain, net = made
    report = net.fuse("rope_kv_cache_update")
    wanted, found = plain.build(), net.build()
    same(ran(found, batch), ran(wanted, batch))
    for name, state in wanted.states.items():
        assert np.array_equal(found.states[name].view(np.uint8), state.view(np.uint8)), name
    return net, report


@pytest.mark.parametrize("kept", CACHES)
@pytest.mark.parametrize("build", [usual, values_first, other_angles, in_order], ids=lambda f: f.__name__)
def test_the_writes_become_one_node(build: Build, kept: str) -> None:
    net, report = fused_and_not(build, kept)
    (node,) = [n for n in net.nodes if n.op == FUSED]
    (made,) = report.replacements
    assert made.pattern == ("rope_into_cache" if kept == "float16" else "rope_quantize_into_cache")
    assert not {"rope", "kv_cache_update", "trtforge::quantize_tensor_static"} & {n.op for n in net.nodes}
    assert {t.name: s.name for t, s in node.updated.items()} == {f"{node.name}:0": "keys", f"{node.name}:1": "values"}
    assert net.states["keys"].overwritten_by is net.states["values"].overwritten_by is node
    assert len([name for name in made.replaced if "kv_cache_update" in name]) == 2
    assert len(made.replaced) == (3 if kept == "float16" else 6), "with the conversion to float32 of keys for codes"
    assert f"{node.name}:1 {kept}[{B}, {H}, {ROOM}, {D}] in values = {FUSED}(keys, values, k, " in net.to_text()
    assert not net.fuse("rope_kv_cache_update").replacements


# --- what must stay as it is ------------------------------------------------------------------------------------------


def keys_read_elsewhere(c: Cached) -> Network:
    turned = c.turned()
    c.net.mark_output(F.mul(turned, 2.0), "turned")
    return c.finish(F.kv_cache_update(c.k_cache, c.codes(turned, 0), c.positions), c.write_v())


def keys_are_an_output(c: Cached) -> Network:
    turned = c.turned()
    c.net.mark_output(turned, "turned")
    return c.finish(F.kv_cache_update(c.k_cache, c.codes(turned, 0), c.positions), c.write_v())


def new_rows_read_elsewhere(c: Cached) -> Network:
    """What goes into the caches, codes in an 8-bit one, is read beside them."""
    for which, x in enumerate((c.turned(), c.v)):
        new = c.codes(x, which)
        cache = F.kv_cache_update((c.k_cache, c.v_cache)[which], new, c.positions)
        c.net.mark_output(F.add(c.read(new, which), 1.0), f"new_{which}")
        c.net.mark_output(F.add(c.read(cache, which), 1.0), f"read_{which}")
    return c.net


def other_positions(c: Cached) -> Network:
    return c.finish(c.write_k(), c.write_v(c.later))


def values_not_written(c: Cached) -> Network:
    return c.finish(c.write_k(), c.v_cache)


def keys_not_turned(c: Cached) -> Network:
    return c.finish(F.kv_cache_update(c.k_cache, c.codes(c.k, 0), c.positions), c.write_v())


def values_need_the_keys(c: Cached) -> Network:
    """The values are made of the updated keys, so that no node can write both."""
    k = c.write_k()
    v = F.add(c.v, F.slice(c.read(k, 0), 2, 0, c.v.shape[2]))
    return c.finish(k, F.kv_cache_update(c.v_cache, c.codes(v, 1), c.positions))


def one_table_for_all(c: Cached) -> Network:
    frequencies = F.rope_frequencies(D)
    return c.finish(c.write_k(tables=F.rope_tables(F.arange(c.k.shape[2]), frequencies)), c.write_v())


def two_kinds(c: Cached) -> Network:
    """Values in 16 bits beside keys in codes."""
    values = c.net.state("plain", "float16", (B, H, ROOM, D))
    del c.net.states["values"]
    v = F.kv_cache_update(values, c.v, c.positions)
    c.net.mark_output(F.add(c.read(c.write_k(), 0), 1.0), "k_read")
    c.net.mark_output(F.add(v, 1.0), "v_read")
    return c.net


STAY = {
    keys_read_elsewhere: "is also read by",
    keys_are_an_output: "is an output of the network",
    new_rows_read_elsewhere: "is also read by",
    other_positions: "",
    values_not_written: "",
    keys_not_turned: "",
    values_need_the_keys: "one of its results is read before all of its inputs are there",
    one_table_for_all: "rank 2, but rank 3 is needed",
}


@pytest.mark.parametrize("kept", CACHES)
@pytest.mark.parametrize("build", STAY, ids=lambda f: f.__name__)
def test_what_is_something_else_stays(build: Build, kept: str) -> None:
    if build is values_not_written:
        cached = Cached(kept)
        with cached.net:
            cached.net.mark_output(F.add(cached.read(cached.write_k(), 0), 1.0), "k_read")
        net, report = cached.net, cached.net.fuse()
    else:
        net, report = fused_and_not(build, kept)
    assert not report.replacements and FUSED not in {n.op for n in net.nodes}
    reasons = [r.reason for r in report.refusals if r.op == FUSED]
    assert len(reasons) == bool(STAY[build]) and all(STAY[build] in reason for reason in reasons), reasons


@pytest.mark.parametrize("kept", CACHES[1:])
def test_a_16_bit_cache_beside_codes_stays(kept: str) -> None:
    _, report = fused_and_not(two_kinds, kept)
    assert not report.replacements


def test_what_the_op_does_not_serve_is_told() -> None:
    with Network("e5m2") as net:
        k, v = (net.input(n, "float16", (1, 1, 1, 4)) for n in "kv")
        at = net.input("at", "int32", (1,))
        for name, x in (("keys", F.rope(k, positions=at.unsqueeze(1))), ("values", v)):
            codes = F.quantize(x, np.array([0.1], np.float32), to="float8_e5m2")
            F.kv_cache_update(net.state(name, "float8_e5m2", (1, 1, 4, 4)), codes, at)
        net.mark_output(at, "at_out")
    (refusal,) = net.fuse().refusals
    assert "'k_cache' is float8_e5m2, but must be" in refusal.reason
    with Network("wide") as net:
        k, v = (net.input(n, "float32", (1, 1, 1, 4)) for n in "kv")
        at = net.input("at", "int32", (1,))
        F.kv_cache_update(net.state("keys", "float32", (1, 1, 4, 4)), F.rope(k, positions=at.unsqueeze(1)), at)
        F.kv_cache_update(net.state("values", "float32", (1, 1, 4, 4)), v, at)
        net.mark_output(at, "at_out")
    assert "'k_cache' is float32, but must be float16" in net.fuse().refusals[0].reason


def test_keys_that_were_rounded_before_may_get_the_next_code() -> None:
    """A network of one's own that quantizes turned keys in float16: the op does not round to float16 in between."""
    made = []
    for patterns in ((), "all"):
        c = Cached("int8")
        with c.net:
            k = F.kv_cache_update(c.k_cache, c.codes(F.rope(c.k, *c.tables), 0), c.positions)
            net = c.finish(k, c.write_v())
        assert len(net.fuse(patterns).replacements) == (1 if patterns else 0)
        made.append(net.build())
    for feed in feeds():
        for exe in made:
            exe(**feed)
    plain, fused = (exe.states for exe in made)
    assert np.array_equal(plain["values"], fused["values"])
    gap = np.abs(plain["keys"].astype(int) - fused["keys"].astype(int))
    assert gap.max() <= 1 and gap.sum() < 0.02 * plain["keys"].size


# --- several layers ---------------------------------------------------------------------------------------------------


def layers(count: int, kept: str, values_late: bool = False) -> Network:
    """Layers that read their caches before the next one writes, all from the same positions."""
    with Network("layers") as net:
        x, at = net.input("x", "float16", (1, H, 1, D)), net.input("at", "int32", (1,))
        tables = F.rope_tables(at.unsqueeze(1), F.rope_frequencies(D))
        for i in range(count):
            scale = np.array([0.02 + i], np.float32)

            def codes(value: Any, scale: Any = scale) -> Any:
                return value if kept == "float16" else F.quantize(value, scale, to=kept)

            states = [net.state(f"{name}_{i}", kept, (1, H, ROOM, D)) for name in ("keys", "values")]
            turned = F.rope(x if kept == "float16" else x.cast("float32"), *tables)
            k = F.kv_cache_update(states[0], codes(turned), at)
            padding = [F.add(x, float(j)) for j in range(3 if values_late else 0)]
            v = F.kv_cache_update(states[1], codes(F.mul(x, 0.5)), at)
            read = [c if kept == "float16" else F.dequantize(c, scale) for c in (k, v)]
            x = F.add(F.mean(F.add(*read), 2, keepdims=True), x)
            for extra in padding:
                x = F.add(x, F.mul(extra, 0.1))
        net.mark_output(x, "y")
    return net


@pytest.mark.parametrize("values_late", [False, True])
@pytest.mark.parametrize("kept", CACHES)
def test_each_layer_gets_the_values_that_are_written_beside_its_keys(kept: str, values_late: bool) -> None:
    plain, net = layers(3, kept, values_late), layers(3, kept, values_late)
    report = net.fuse("rope_kv_cache_update")
    nodes = [n for n in net.nodes if n.op == FUSED]
    assert len(report.replacements) == 3 and not report.refusals
    assert [[t.name for t in n.updated.values()] for n in nodes] == [[f"keys_{i}", f"values_{i}"] for i in range(3)]
    exes = plain.build(), net.build()
    for at in (0, 1, 5):
        wanted, found = (exe(x=half(at, 1, H, 1, D), at=np.array([at], np.int32))["y"] for exe in exes)
        assert np.array_equal(wanted, found)


def test_where_any_values_would_do_the_nearest_are_taken() -> None:
    with Network("all at once") as net:
        at = net.input("at", "int32", (1,))
        tables = F.rope_tables(at.unsqueeze(1), F.rope_frequencies(D))
        written = []
        for i in range(3):
            k, v = (net.input(f"{name}_{i}", "float16", (1, H, 1, D)) for name in "kv")
            states = [net.state(f"{name}_{i}", "float16", (1, H, ROOM, D)) for name in ("keys", "values")]
            written.append(F.kv_cache_update(states[0], F.rope(k, *tables), at))
            written.append(F.kv_cache_update(states[1], v, at))
        for tensor in written:
            net.mark_output(F.mul(tensor, 2.0))
    net.fuse()
    found = [[t.name for t in n.updated.values()] for n in net.nodes if n.op == FUSED]
    assert sorted(found) == [[f"keys_{i}", f"values_{i}"] for i in range(3)]


def test_values_that_cannot_be_written_yet_are_passed_over() -> None:
    """The nearest write reads what the keys' readers make; the one behind it fits."""
    with Network("two") as net:
        k, v = (net.input(n, "float16", (1, H, 1, D)) for n in "kv")
        at = net.input("at", "int32", (1,))
        tables = F.rope_tables(at.unsqueeze(1), F.rope_frequencies(D))
        states = [net.state(n, "float16", (1, H, ROOM, D)) for n in ("keys", "after", "values")]
        keys = F.kv_cache_update(states[0], F.rope(k, *tables), at)
        after = F.kv_cache_update(states[1], F.mean(keys, 2, keepdims=True), at)
        values = F.kv_cache_update(states[2], v, at)
        net.mark_output(F.add(F.add(after, values), keys), "y")
    assert len(net.fuse().replacements) == 1
    (node,) = [n for n in net.nodes if n.op == FUSED]
    assert [t.name for t in node.updated.values()] == ["keys", "values"]


# --- calls by name ----------------------------------------------------------------------------------------------------


def called(c: Cached, **changed: Any) -> tuple[Any, Any]:
    inputs = {
        "k_cache": c.k_cache,
        "v_cache": c.v_cache,
        "k": c.k,
        "v": c.v,
        "cos": c.tables[0],
        "sin": c.tables[1],
        "positions": c.positions,
    }
    if c.kept != "float16":
        inputs |= {"k_scale": np.full(H, 0.02, np.float32), "v_scale": np.full(H, 0.01, np.float32)}
    return F.call(FUSED, **{**inputs, **changed})


@pytest.mark.parametrize("kept", CACHES)
def test_a_call_by_name_is_what_fusion_puts_in(kept: str) -> None:
    """With a scale for each head; fusion puts in one for all."""
    made = []
    for build in (usual, lambda c: c.finish(*called(c))):
        c = Cached(kept)
        with c.net:
            net = build(c)
        net.fuse()
        made.append(ran(net.build()))
    same(made[1], made[0])


def test_malformed_calls_are_refused() -> None:
    c = Cached("int8")
    with c.net:
        made = F.add(c.net.input("other", "int8", (B, H, ROOM, D)), 1)
        for changed, reason in (
            ({"k_cache": made}, "the k_cache is a value; accepted: a network state"),
            ({"v_cache": c.k_cache}, "the k_cache is another input too"),
            ({"k_scale": np.ones(2, np.float32), "v_scale": np.ones(2, np.float32)}, "one for each of the H heads"),
            ({"v_scale": np.ones(1, np.float32)}, "must be 3 as in 'k_scale'"),
            ({"k_scale": None}, "needs k_scale and v_scale"),
            ({"positions": c.rows}, "rank 2, but rank 1 is needed"),
            ({"cos": F.unsqueeze(c.tables[0], 1)}, "rank 4, but rank 3 is needed"),
            ({"v": None}, "input 'v' is missing"),
            ({"eps": 1.0}, "no attribute 'eps'"),
        ):
            with pytest.raises(GraphError, match=reason):
                called(c, **changed)
        k, _ = called(c)
        with pytest.raises(GraphError, match="overwritten in place by 'rope_kv_cache_update'"):
            F.kv_cache_update(c.k_cache, F.quantize(c.k, c.scales[0], to="int8"), c.positions)
        with pytest.raises(GraphError, match="the k_cache is a value"):
            called(c, k_cache=k, v_cache=c.net.state("third", "int8", (B, H, ROOM, D)))


def test_caches_that_are_inputs_are_not_modified() -> None:
    with Network("given") as net:
        caches = [net.input(n, "float16", (1, 1, 4, 4)) for n in ("kc", "vc")]
        k, v = (net.input(n, "float16", (1, 1, 1, 4)) for n in "kv")
        at = net.input("at", "int32", (1,))
        tables = F.rope_tables(at.unsqueeze(1), F.rope_frequencies(4))
        for name, cache in zip(("k_out", "v_out"), F.call(FUSED, *caches, k, v, *tables, at)):
            net.mark_output(cache, name)
    given = {n: half(i, 1, 1, 4, 4) for i, n in enumerate(("kc", "vc"))}
    before = {n: a.copy() for n, a in given.items()}
    found = net.build()(**given, k=half(2, 1, 1, 1, 4), v=half(3, 1, 1, 1, 4), at=np.array([2], np.int32))
    assert all(np.array_equal(given[n], before[n]) for n in given)
    assert np.array_equal(found["v_out"][0, 0, 2], half(3, 1, 1, 1, 4)[0, 0, 0])
    assert np.array_equal(found["v_out"][0, 0, :2], before["vc"][0, 0, :2])


def test_results_of_a_pattern_must_have_something_in_common() -> None:
    op = registry.get(FUSED)

    def apart(f: Any, k_cache: Any, v_cache: Any, k: Any, v: Any, positions: Any, block_table: Any) -> Any:
        return f.kv_cache_update(k_cache, k, positions), f.kv_cache_update(v_cache, v, block_table)

    names = ("k_cache", "v_cache", "k", "v", "positions", "block_table")
    with pytest.raises(DeclarationError, match="nothing to do with each other"):
        Matcher(Pattern(op, names, {}, apart, "apart"))


# --- backends ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    cupy_double.install(monkeypatch)
    yield
    cupy_double.ARRAYS.clear()


def network(kept: str, patterns: Any = "all", batch: int = B) -> Network:
    c = Cached(kept, batch)
    with c.net:
        net = usual(c)
    net.fuse(patterns)
    return net


@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("kept", CACHES)
def test_the_cuda_backend_launches_the_kernel_on_the_states(cupy: None, kept: str, graphs: bool) -> None:
    net = network(kept)
    exe, reference = net.build("cuda", graphs=graphs), network(kept, ()).build()
    for _ in range(3):
        same(ran(exe), ran(reference))
    (node,) = [n for n in net.nodes if n.op == FUSED]
    assert exe.placement[node.name].startswith(FUSED)
    assert not [n for n in exe.placement if "kv_cache_update" in n and n != node.name]
    exe.reset()
    reference.reset()
    same(ran(exe), ran(reference))


@pytest.mark.parametrize("kept", CACHES)
def test_tensorrt_for_rtx_runs_the_kernel_between_engines(monkeypatch: pytest.MonkeyPatch, kept: str) -> None:
    trt_double.install(monkeypatch)
    net = network(kept)
    exe, reference = net.build("tensorrt-rtx"), network(kept, ()).build()
    for _ in range(2):
        same(ran(exe), ran(reference))
    (node,) = [n for n in net.nodes if n.op == FUSED]
    (placed,) = [p for p in exe.partition.placed if p.node == node.name]
    assert placed.where == "kernel" and "takes no plugins from Python" in placed.why
    assert not any(piece.aliases for piece in exe.partition.pieces)
    trt_double.remove()


@pytest.mark.skipif(find_spec("tensorrt_bindings") is None, reason="needs pip install tensorrt-cu12-bindings")
@pytest.mark.parametrize("kept", CACHES)
def test_tensorrt_hosts_a_plugin_with_aliased_outputs(monkeypatch: pytest.MonkeyPatch, kept: str) -> None:
    trt_double.install(monkeypatch, "tensorrt")
    net = network(kept)
    exe, reference = net.build("tensorrt"), network(kept, ()).build()
    for _ in range(2):
        same(ran(exe), ran(reference))
    (piece,) = exe.partition.pieces
    (node,) = [n for n in net.nodes if n.op == FUSED]
    assert not exe.partition.singles and dict(piece.aliases) == {f"{node.name}:0": "keys", f"{node.name}:1": "values"}
    suffix = "" if kept == "float16" else "_k_scale_v_scale"
    assert (f"{FUSED}{suffix}", True) in trt_double.ENGINES[-1].plugins
    trt_double.remove()


@pytest.mark.skipif(
    find_spec(stand_ins.BINDINGS) is None, reason=f"needs NVIDIA's plugin layer: pip install {stand_ins.WHEEL}"
)
@pytest.mark.parametrize("aot", [True, False])
@pytest.mark.parametrize("kept", CACHES)
def test_nvidias_plugin_layer_takes_the_op(kept: str, aot: bool) -> None:
    """Its rules say which caches have scales, so each plugin of the op has dtype combinations of its own."""
    cache, new = (1, 4, 64, 32), [(1, 4, t, 32) for t in (1, 1, 64)]
    fixed: dict[str, tuple[int, ...]] = {"k_cache": cache, "v_cache": cache, "positions": (1,)}
    if kept != "float16":
        fixed |= {"k_scale": (1,), "v_scale": (1,)}
    shapes = [{**fixed, "k": n, "v": n, "cos": (1, n[2], 16), "sin": (1, n[2], 16)} for n in new]
    order = [name for name in registry.get(FUSED).inputs if name in shapes[0]]
    ends = [{name: one[name] for name in order} for one in shapes]
    dtypes = dict.fromkeys(order, "float32") | {"k": "float16", "v": "float16", "positions": "int32"}
    dtypes |= dict.fromkeys(("k_cache", "v_cache"), kept)
    hosted = host.build(registry.get(FUSED), host.Profile(*ends), dtypes, {}, architecture("sm_90a"), aot=aot)
    assert [hosted.plugin.get_aliased_input(i) for i in (0, 1)] == [0, 1] and hosted.tactics
    assert hosted.output_shapes(ends[2]) == [cache, cache]
    if aot:
        launched = hosted.engine_kernel(hosted.tactics[0]).geometry(ends[2])
        assert launched["scalars"] == (1, 4, 64, 1, 64, 1) and launched["grid"] == (4 * 64 * 2 // 128, 1, 1)


def test_without_the_preview_feature_the_kernel_runs_between_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    trt = trt_double.install(monkeypatch, "tensorrt")
    del trt.PreviewFeature
    net = network("float16")
    exe, reference = net.build("tensorrt"), network("float16", ()).build()
    same(ran(exe), ran(reference))
    (single,) = exe.partition.singles
    (placed,) = [p for p in exe.partition.placed if p.node == single.node.name]
    assert single.node.op == FUSED and "no preview feature ALIASED_PLUGIN_IO_10_03" in placed.why
    assert "updates keys, values in place" in str(exe.partition)
    trt_double.remove()


def test_a_plan_keeps_the_updates(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    trt_double.install(monkeypatch)
    made = plan.save_plan(network("int8"), tmp_path / "c.plan", options=BuildOptions(compute_capability="8.9"))
    loaded = plan.load_plan(made.file.path)
    (node,) = [n for n in loaded.network.nodes if n.op == FUSED]
    assert [t.name for t in node.updated.values()] == ["keys", "values"]
    same(ran(loaded), ran(network("int8", ()).build()))
    trt_double.remove()


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["cuda", "tensorrt-rtx"])
@pytest.mark.parametrize("kept", CACHES)
def test_the_states_on_a_gpu(kept: str, backend: str) -> None:
    if backend == "tensorrt-rtx" and library.why_absent(backend):
        pytest.skip(library.why_absent(backend))
    exe, reference = network(kept).build(backend), network(kept, ()).build()
    for _ in range(3):
        for found, wanted in zip(ran(exe), ran(reference)):
            for name, array in wanted.items():
                # The tables are the library's sines and cosines: keys at the edge of a code get the next one.
                wide = [a.astype(np.float32) for a in (found[name], array)]
                assert np.abs(wide[0] - wide[1]).max() <= {"float16": 0.01}.get(kept, 0.6), name
                assert (np.abs(wide[0] - wide[1]) > 1e-2).mean() < 1e-2, name


# --- the shipped language model ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shipped() -> Any:
    return open_checkpoint(tiny.SHIPPED)


def model(shipped: Any, dtype: str) -> Network:
    net = build_network(shipped.config, dtype, max_length=64)
    bind_checkpoint(net, shipped)
    return net


def again(net: Network) -> Network:
    """The same network once more, with the same arrays."""
    constants = {name: np.asarray(tensor.value) for name, tensor in net.constants.items()}
    made = network_from_json(network_to_json(net), constants)
    made.weights.update(net.weights)
    return made


def quantized(shipped: Any, dtype: str, recipe: str, kept: str) -> tuple[Network, Any]:
    net = model(shipped, dtype)
    rng = np.random.default_rng(2)
    data = [{"tokens": rng.integers(2, 2048, (1, 48), dtype=np.int32), "positions": np.zeros(1, np.int32)}]
    return net, quantize_network(net, recipe, data, kv_cache=kept)


def greedy(net: Network, patterns: Any, prompt: list[int], count: int = 25) -> tuple[list[int], Any]:
    net.fuse(patterns)
    exe = net.build()
    logits = exe(tokens=np.array([prompt], np.int32), positions=np.zeros(1, np.int32))["logits"]
    written: list[int] = []
    for at in range(len(prompt), len(prompt) + count):
        written.append(int(logits[0].argmax()))
        logits = exe(tokens=np.array([written[-1:]], np.int32), positions=np.array([at], np.int32))["logits"]
    return written, exe


@pytest.mark.parametrize(
    ("dtype", "recipe", "kept"),
    [
        ("bfloat16", "", ""),
        ("float16", "", ""),
        ("float16", "fp8_token", "float8_e4m3fn"),
        ("bfloat16", "fp8_token", "int8"),
        ("float16", "w8a16", "int8"),
        ("bfloat16", "w8a16", "float8_e4m3fn"),
    ],
)
def test_a_language_model_writes_the_same_text(shipped: Any, dtype: str, recipe: str, kept: str) -> None:
    """The same tokens and the same bytes in every cache, with the fusion and without, alone and among the others."""
    whole = quantized(shipped, dtype, recipe, kept)[0] if recipe else model(shipped, dtype)
    prompt = shipped.tokenizer.encode("The following")
    for others in ([], OTHERS):
        made = []
        for patterns in (others, [*others, "rope_kv_cache_update"]):
            net = again(whole)
            made.append(greedy(net, patterns, prompt))
            assert sum(n.op == FUSED for n in net.nodes) == (5 if len(patterns) > len(others) else 0)
        (wanted, plain), (found, fused) = made
        assert found == wanted
        for name, state in plain.states.items():
            assert state.any() and np.array_equal(state.view(np.uint8), fused.states[name].view(np.uint8)), name


def test_generate_explains_it(shipped: Any, tmp_path: Path) -> None:
    net, report = quantized(shipped, "float16", "w8a16", "float8_e4m3fn")
    save_quantized(tmp_path, net, report, tiny.SHIPPED)
    session = Session(open_checkpoint(tmp_path), backend="reference", max_length=64)
    told = str(session.explain())
    assert f"5 × model.layers.*.self_attn.rope_kv_cache_update = {FUSED}" in told
    assert f"NumPy reference of {FUSED}" in told and " kv_cache_update " not in told
    assert session.network.to_text().count(" in keys_") == session.network.to_text().count(" in values_") == 5
    assert session.explain().to_dict()["fusion"]["replacements"]
    plain = Session(open_checkpoint(tmp_path), backend="reference", max_length=64, fuse=False)
    assert FUSED not in str(plain.explain())
    assert len(session.generate("The following", max_tokens=5).token_ids) == 5


@pytest.mark.skipif(bool(library.why_absent("tensorrt-rtx")), reason=library.why_absent("tensorrt-rtx"))
@pytest.mark.parametrize("kept", ["", "int8", "float8_e4m3fn"])
def test_tensorrt_for_rtx_builds_the_model(shipped: Any, kept: str) -> None:
    """By default with the library's own layer for a 16-bit cache, and with the kernel for codes: as many engines."""
    whole = quantized(shipped, "float16", "w8a16", kept)[0] if kept else model(shipped, "float16")
    counts = []
    for patterns in ("flash_attention", default_fusion("tensorrt-rtx")):
        net = again(whole)
        net.fuse(patterns)
        cuts = engine_build.cut(net, "tensorrt-rtx")
        counts.append((len(cuts.pieces), len(cuts.singles)))
    fused = [s for s in cuts.singles if s.node.op == FUSED]
    assert len(fused) == (5 if kept else 0) and counts[0][0] == counts[1][0]
    # Quantization and write of keys and of values were four nodes between engines.
    assert counts[0][1] - counts[1][1] == (15 if kept else 0)
    options = BuildOptions(compute_capability="8.9", optimization_level=0)
    if kept == "int8":
        built = engine_build.build_engines(net, "tensorrt-rtx", options)
        assert all(len(b.engine) > 1000 for b in built.pieces)
