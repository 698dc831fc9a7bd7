"""Peers that go through torch.compile: each must trace in one graph, and compute what its op computes."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from trtforge.bindings.dtypes import dtype
from trtforge.harness import peer_compile
from trtforge.harness.oracle import EVERYTHING, Answer, judge
from trtforge.harness.peer_compile import plain
from trtforge.kernels import registry
from trtforge.kernels.contract import Case, call_by_name
from trtforge.kernels.op import Op
from trtforge.kernels.peer import Peer

#: Dimensions of benchmark cases are cut down to this; whole blocks of 128 stay whole.
LARGEST = 512
#: "inductor" compiles for the CPU, where a C++ compiler is installed; "eager" traces only.
BACKEND = os.environ.get("TRTFORGE_TEST_COMPILE", "eager")


def _small(op: Op, peer: Peer) -> Iterator[tuple[Case, dict[str, str]]]:
    """The cases that are benchmarked of a peer, cut down, one for each set of attributes, options and dtypes; of a peer
    that serves none of them the first case that it does serve."""
    seen: set[object] = set()
    for marked in (True, False):
        for case in (c for c in op.cases if ("bench" in c.tags) is marked):
            small = case if case.leading else replace(case, dims={k: min(v, LARGEST) for k, v in case.dims.items()})
            for dtypes in op.dtype_combinations(small)[: 1 if marked else None]:
                context = op.bind_case(small, dtypes).context(dev=None)
                kind = (str(case.attributes), case.optional, str(dtypes))
                if kind in seen or not all(call_by_name(serves, **context) for serves, _ in peer.requires):
                    continue
                seen.add(kind)
                yield small, dict(dtypes)
                if not marked:
                    return
        if seen:
            return


def _compiled() -> Iterator[Any]:
    registry.load_builtin()
    for op in registry.ops():
        for peer in op.peers if op.name.startswith("trtforge::") else ():
            for number, (case, dtypes) in enumerate(_small(op, peer) if peer.compile else ()):
                name = f"{op.name.split('::')[1]}-{case.label}-{number}"
                yield pytest.param(op, peer, case, dtypes, id=name)


def _tensor(array: np.ndarray) -> Any:
    import torch

    kind = getattr(torch, array.dtype.name)
    storage = {1: np.uint8, 2: np.int16}.get(array.dtype.itemsize)
    plain_type = array.dtype.kind in "iu" or storage is None
    return torch.from_numpy(array.copy() if plain_type else array.view(storage).copy()).view(kind)


@pytest.mark.parametrize(("op", "peer", "case", "dtypes"), list(_compiled()))
def test_compiled_peers_trace_in_one_graph_and_are_right(
    op: Op, peer: Peer, case: Case, dtypes: dict[str, str]
) -> None:
    torch = pytest.importorskip("torch")
    binding = op.bind_case(case, dtypes)
    inputs = op.sample_inputs(case, dtypes, 0)
    for array in inputs.values():  # PyTorch users' formulations agree on finite numbers
        if dtype(dtypes.get("x", "float32")).floating and array.dtype.kind not in "iu":
            array[~np.isfinite(array.astype(np.float32))] = 1
    if "positions" in inputs:  # rows that an op drops are not expected of its peers
        inputs["positions"].clip(0, case.dims["page_size"] - case.dims["T"], out=inputs["positions"])
    torch.compiler.reset()
    fn = torch.compile(peer.fn, fullgraph=True, dynamic=False, backend=BACKEND)
    with torch.no_grad(), torch._dynamo.config.patch(error_on_recompile=True):
        for _ in range(2):  # the second call finds the graph of the first
            made = fn(*(_tensor(inputs[n]) if n in inputs else None for n in op.inputs), **plain(binding.attributes))
    outputs = dict(zip(binding.outputs, made if isinstance(made, tuple) else (made,)))
    exact = op.run_reference(inputs, binding.attributes, rounded=False)
    right = [Answer(n, EVERYTHING, v, v.astype(dtype(binding.dtypes[n]).numpy)) for n, v in exact.items()]

    def values(name: str, index: Any) -> np.ndarray:
        tensor = outputs[name]
        assert str(tensor.dtype) == f"torch.{binding.dtypes[name]}"
        found: np.ndarray = (tensor.float() if tensor.element_size() < 4 else tensor).numpy()
        return found.reshape(tuple(int(size) for size in binding.outputs[name]))

    error, wrong = judge(binding, right, values)
    assert not wrong, (error, wrong)


def test_every_compiled_peer_is_looked_at() -> None:
    looked_at = {(param.values[0].name, param.values[1].name) for param in _compiled()}
    own = [op for op in registry.ops() if op.name.startswith("trtforge::")]
    assert looked_at == {(op.name, p.name) for op in own for p in op.peers if p.compile} and len(looked_at) >= 20


def test_peers_are_compiled_ahead_once_each_in_several_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[str] = []

    class Process:
        def __init__(self, command: list[str], **options: Any):
            self.stdin = io.StringIO()
            self.stdin.close = lambda: given.append(self.stdin.getvalue())  # type: ignore[method-assign]

        def wait(self, timeout: float | None = None) -> int:
            return 0

        def kill(self) -> None:
            pass

    monkeypatch.setattr(peer_compile, "_mark", lambda pair: None)
    monkeypatch.setattr(peer_compile, "_fitting", lambda pairs: 2)
    monkeypatch.setattr(peer_compile.subprocess, "Popen", Process)
    pairs = [
        peer_compile.Pair("trtforge::rms_norm", case, {"x": "bfloat16"}, "torch.compile") for case in (0, 1, 2, 3, 3)
    ]
    peer_compile.warm(pairs, [], workers=8)
    assert sorted(p["case"] for share in given for p in json.loads(share)["pairs"]) == [0, 1, 2, 3] and len(given) == 2
    given.clear()
    peer_compile.warm(pairs[:3], [], workers=8)  # as many are compiled sooner by the benchmark itself
    assert not given
