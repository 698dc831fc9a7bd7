"""Cutting networks into engines: convex, acyclic, as few as can be; and memory that is shared without overlap."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trtforge.bindings.errors import GraphError
from trtforge.graph_api import Dim, Network, Node, Tensor
from trtforge.graph_api import functional as F
from trtforge.graph_api.engines.memory import ALIGNMENT, Block, plan_arena
from trtforge.graph_api.engines.partition import Partition, Piece, Single, check_order, partition


def random_network(seed: int, size: int) -> tuple[Network, set[str]]:
    """A DAG of elementwise nodes and reshapes, and the names of those that no engine hosts."""
    rng = random.Random(seed)
    with Network("random") as net:
        rows = Dim("S", max=8)
        values = [net.input("a", "float32", (rows, 4)), net.input("b", "float32", (rows, 4))]
        for _ in range(size):
            x, y = rng.choice(values[-6:]), rng.choice(values)
            kind = rng.random()
            if kind < 0.2:
                values.append(x.reshape(rows.expr * 4).reshape(rows, 4))
            elif kind < 0.3:
                values.append(x + F.arange(rows).cast("float32").unsqueeze(-1))
            else:
                values.append(F.exp(x) if x is y else x + y)
        for i, tensor in enumerate(rng.sample(values[2:], k=min(3, len(values) - 2))):
            net.mark_output(tensor, f"o{i}")
        net.prune()
    outside = {n.name for n in net.nodes if rng.random() < 0.35 and n.op != "reshape"}
    return net, outside


def fewest_engines(net: Network, cuts: Partition) -> int:
    """The largest number of runs of hosted nodes on any path, which no cut can be below."""
    hosted = {n for p in cuts.pieces for n in p.nodes}
    runs: dict[Node, int] = {}
    for node in net.nodes:
        before = max((runs[p] + (node in hosted and p not in hosted) for p in node.predecessors), default=0)
        runs[node] = max(before, int(node in hosted))
    return max(runs.values(), default=0)


@pytest.mark.parametrize("seed", range(120))
def test_random_graphs_are_cut_into_the_fewest_convex_pieces(seed: int) -> None:
    net, outside = random_network(seed, 3 + seed % 40)
    cuts = partition(net, lambda n: "not hosted" if n.name in outside else None)
    check_order(net, cuts.steps)  # topological: hence the graph of pieces has no cycle
    assert len(cuts.pieces) == fewest_engines(net, cuts)
    hosted = {n for p in cuts.pieces for n in p.nodes}
    assert {n.name for n in net.nodes if n not in hosted} >= outside
    for piece in cuts.pieces:
        inside = set(piece.nodes)
        below: set[Node] = set()  # nodes outside of the piece that depend on it
        for node in net.nodes:
            if node not in inside and any(p in inside or p in below for p in node.predecessors):
                below.add(node)
            assert node not in inside or not below & set(node.predecessors), "a path leaves the piece and comes back"
        assert all(t.producer not in inside for t in piece.inputs)
    assert len(cuts.placed) == len(net.nodes) and all(p.why for p in cuts.placed)
    assert str(cuts) and cuts.to_dict()["pieces"] is not None


def test_reshapes_between_kernels_cost_nothing() -> None:
    with Network("views") as net:
        x = net.input("x", "float16", (4, 8))
        q = F.quantize(x, granularity="token", to="int8")[0].reshape(2, 2, 8)
        net.mark_output(q.reshape(32), "y")
        net.mark_output(F.exp(x).reshape(8, 4), "z")
    cuts = partition(net, lambda n: "a registered op" if "::" in n.op else None)
    assert [s.kind if isinstance(s, Single) else "engine" for s in cuts.steps] == ["kernel", "view", "view", "engine"]
    assert [n.op for n in cuts.pieces[0].nodes] == ["exp", "reshape"]


def test_nodes_sink_to_the_engine_that_reads_them() -> None:
    """The mask, [S, S] made of nothing, is not carried past the first engine."""
    rows = Dim("S", min=1, opt=32, max=64)
    with Network("mask") as net:
        x = net.input("x", "float32", (rows, 4))
        y = F.quantize(F.exp(x).cast("float16"), granularity="token", to="int8")[0]
        scores = y.cast("float32") @ x.transpose(0, 1)
        net.mark_output(F.where(F.causal_mask(x, x), scores, 0.0), "z")
    cuts = partition(net, lambda n: "a registered op" if "::" in n.op else None)
    first, second = cuts.pieces
    assert [n.op for n in first.nodes] == ["exp", "cast"]
    assert "arange" in {n.op for n in second.nodes}
    assert [t.name for t in second.inputs] == ["quantize_token:0", "x"] and not second.carriers


def test_a_piece_without_the_dimension_gets_a_carrier() -> None:
    rows = Dim("S", max=64)
    with Network("carrier") as net:
        x = net.input("x", "float32", (rows, 4))
        total = F.exp(x).sum((0, 1))  # a scalar: the dimension is gone
        net.mark_output(F.arange(rows).cast("float32") * 2.0, "y")
        net.mark_output(total, "z")
    cuts = partition(net, lambda n: "not hosted" if n.op in ("exp", "sum") else None)
    (piece,) = cuts.pieces
    assert not piece.inputs and [t.name for t in piece.carriers] == ["x"]


def test_caches_are_updated_in_place_across_pieces() -> None:
    with Network("cache") as net:
        new, at = net.input("new", "float16", (1, 2, Dim("S", max=4), 8)), net.input("at", "int32", (1,))
        updated = F.kv_cache_update(net.state("k", "float16", (1, 2, 16, 8)), F.exp(new), at)
        net.mark_output(updated.sum(-1), "y")
    whole = partition(net, lambda n: None)
    assert whole.pieces[0].aliases == {"kv_cache_update": "k"}
    assert [t.name for t in whole.pieces[0].outputs] == ["kv_cache_update", "sum"]
    cut = partition(net, lambda n: "no layer" if n.op == "kv_cache_update" else None)
    assert [type(s) for s in cut.steps] == [Piece, Single, Piece] and not cut.pieces[0].aliases


def test_wrong_orders_are_refused() -> None:
    net, _ = random_network(3, 8)
    cuts = partition(net, lambda n: "x" if n.op == "exp" else None)
    singles = [Single(n, "primitive") for n in net.nodes]
    check_order(net, singles)
    for wrong in (singles[:-1], [*singles, singles[0]], singles[::-1]):
        with pytest.raises(GraphError, match="runs"):
            check_order(net, wrong)
    assert cuts.network == "random"


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 100_000), st.integers(0, 20), st.integers(0, 6)),
        min_size=1,
        max_size=30,
    )
)
def test_blocks_that_live_together_do_not_overlap(rows: list[tuple[int, int, int]]) -> None:
    blocks = [Block(str(i), size, first, first + length) for i, (size, first, length) in enumerate(rows)]
    arena = plan_arena(blocks)
    for a, b in itertools.combinations(blocks, 2):
        start, other = arena.offsets[a.name], arena.offsets[b.name]
        assert not a.meets(b) or start + a.size <= other or other + b.size <= start
    assert all(at % ALIGNMENT == 0 for at in arena.offsets.values())
    assert arena.size >= max(arena.offsets[b.name] + b.size for b in blocks)
    peak = max(sum(-(-max(b.size, 1) // 256) * 256 for b in blocks if b.first <= s <= b.last) for s in range(27))
    assert peak <= arena.size <= sum(-(-max(b.size, 1) // 256) * 256 for b in blocks)


def test_memory_of_a_chain_is_reused() -> None:
    chain = [Block(f"v{i}", 1000, i, i + 1) for i in range(10)]
    assert plan_arena(chain).size == 2 * 1024


def test_an_empty_network_part() -> None:
    with Network("direct") as net:
        x: Tensor = net.input("x", "float32", (2,))
        net.mark_output(x, "y")
    assert partition(net, lambda n: None).steps == ()
    assert np.array_equal(net.build()(x=np.ones(2, np.float32))["y"], np.ones(2))
