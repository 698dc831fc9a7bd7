"""NVTX ranges: silent where nobody listens, and what a listener is told."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cupy_double
import numpy as np
import pytest

import trtforge
from trtforge.bindings import ranges
from trtforge.bindings.architectures import architecture
from trtforge.bindings.optional import available
from trtforge.graph_api import functional as F
from trtforge.graph_api.llm import Sampling, open_session
from trtforge.kernels import plan, registry

MODEL = Path(__file__).parent.parent / "examples" / "pydoc_llama" / "model"


class Listener:
    """The domain of a profiler: keeps every range that begins, indented by how many are open."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.payloads: dict[str, dict[str, int]] = {}
        self.depth = 0

    def get_event_attributes(self, message: str, category: str, color: int, payload: Any = None) -> str:
        text = f"{category} {message}"
        if payload is not None:
            self.payloads[text] = dict(zip(payload.dtype.names, payload.tolist()))
        return text

    def push_range(self, event: str) -> None:
        self.seen.append("  " * self.depth + event)
        self.depth += 1

    def pop_range(self) -> None:
        self.depth -= 1
        assert self.depth >= 0


@pytest.fixture
def listener(monkeypatch: pytest.MonkeyPatch) -> Iterator[Listener]:
    made = Listener()
    monkeypatch.setattr(ranges, "_domain", lambda: made)
    ranges._event.cache_clear()
    yield made
    ranges._event.cache_clear()
    assert made.depth == 0, "a range was left open"


def test_a_launch_is_itself_where_nobody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranges, "_domain", lambda: None)

    def launch(pointers: list[int], stream: int = 0) -> None:
        """Nothing."""

    def refuse() -> dict[str, int]:
        raise AssertionError("a payload was made for nobody")

    assert ranges.around(launch, "op/kernel", refuse) is launch
    assert ranges.phase("replay") is ranges.node("a", "relu") is ranges.phase("build")
    with ranges.phase("replay"):
        pass


def test_a_range_ends_when_its_launch_fails(listener: Listener) -> None:
    def launch(pointers: list[int], stream: int = 0) -> None:
        raise RuntimeError("no such luck")

    with pytest.raises(RuntimeError):
        ranges.around(launch, "op/kernel", dict)([1, 2])
    assert listener.seen == ["launch op/kernel"]


@pytest.mark.skipif(not available("cuda.bindings.nvrtc"), reason="needs NVRTC")
def test_a_launch_tells_op_kernel_tactic_and_shapes(listener: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    launched: list[Any] = []
    monkeypatch.setattr(plan, "current_device", lambda: SimpleNamespace(architecture=architecture("sm_90a")))
    monkeypatch.setattr(plan, "Launcher", lambda binary, **_: lambda pointers, stream=0: launched.append(pointers))
    op = registry.get("rms_norm")
    shapes = {"x": (4, 8, 256), "weight": (256,)}
    ready = plan.plan(op, shapes, dict.fromkeys(shapes, "float16"), kernel="cuda", tactic=1)
    ready.launch([1, 2, 3], 0)
    assert launched == [[1, 2, 3]] and listener.seen == [f"launch {ready.label}"]
    assert ready.label.startswith("trtforge::rms_norm/cuda [")
    assert listener.payloads[f"launch {ready.label}"] == {
        "x[0]": 4, "x[1]": 8, "x[2]": 256, "weight[0]": 256, "tactic": 1,
    }  # fmt: skip


def test_phases_and_nodes_of_a_network(listener: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    cupy_double.install(monkeypatch)
    with trtforge.Network("small") as net:
        x = net.input("x", "float32", (trtforge.Dim("rows", max=8), 4))
        net.mark_output(F.relu(F.matmul(x, net.parameter("w", (4, 4), "float32"))), "y")
    net.bind_weights({"w": np.eye(4, dtype=np.float32)})
    net.fuse()
    run = net.build(backend="cuda")
    for _ in range(3):
        run(x=np.ones((3, 4), np.float32))
    cupy_double.ARRAYS.clear()
    nodes = [f"node {n.name}: {n.op}" for n in net.nodes]
    assert listener.seen[:3] == ["phase fuse", "phase build", "  phase upload"]
    assert listener.seen[3:5] == nodes
    assert listener.seen[5:8] == ["phase capture", *(f"  {n}" for n in nodes)]
    repeated = ["phase replay", *(f"  {n}" for n in nodes)]  # a graph of the stand-in repeats the run
    assert listener.seen[8:] == 2 * repeated
    assert listener.payloads["phase replay"] == {"rows": 3}


def test_prefill_and_decode_of_a_language_model(listener: Listener) -> None:
    session = open_session(MODEL, "The", max_tokens=3, backend="reference")
    session.generate("The", max_tokens=3, sampling=Sampling())
    phases = [line for line in listener.seen if line.startswith("phase")]
    assert phases == ["phase fuse", "phase build", "phase prefill", "phase decode", "phase decode"]
    assert listener.payloads["phase prefill"]["start"] == 0
    assert sum(line.startswith("  node") for line in listener.seen) == 3 * len(session.network.nodes)


# NVTX hands its tables of functions to the library that NVTX_INJECTION64_PATH names; this one writes what it is told.
TOOL = r"""
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
struct Event { uint16_t version, size; uint32_t category; int32_t color_type; uint32_t color; int32_t payload_type;
               int32_t reserved; uint64_t payload; int32_t message_type; const char* message; };
struct Export { size_t size; int (*functions)(uint32_t module, void**** table, uint32_t* count); };
static FILE* log_file;
static void say(const char* what, const char* text) { fprintf(log_file, "%s %s\n", what, text); fflush(log_file); }
static void* create(const char* name) { say("domain", name); return (void*)1; }
static void* keep(void*, const char* text) { return strdup(text); }
static void category(void*, uint32_t, const char* name) { say("category", name); }
static int push(void*, const Event* event) {
    say(event->payload_type ? "push with payload" : "push", event->message);
    return 0;
}
static int pop(void*) { say("pop", ""); return 0; }
extern "C" int InitializeInjectionNvtx2(const void* (*table)(uint32_t)) {
    log_file = fopen(getenv("LISTENER_LOG"), "w");
    void*** f;
    uint32_t count;
    const Export* found = (const Export*)table(1);
    if (!log_file || !found || !found->functions(5, (void****)&f, &count) || count < 13) return 0;
    *f[4] = (void*)push, *f[5] = (void*)pop, *f[8] = (void*)category, *f[10] = (void*)keep, *f[12] = (void*)create;
    return 1;
}
"""
SPOKEN = """
from trtforge.bindings import ranges
assert ranges.listening()
with ranges.phase("capture", (("rows", 3),)):
    ranges.around(lambda pointers, stream=0: None, "op/kernel [A=1]", lambda: {"x[0]": 4, "tactic": 1})([1])
"""


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
@pytest.mark.skipif(not available("nvtx"), reason="needs the nvtx package")
def test_a_tool_that_listens_through_nvtx_itself(tmp_path: Path) -> None:
    (tmp_path / "tool.cpp").write_text(TOOL)
    library, log = tmp_path / "tool.so", tmp_path / "log"
    command = ["g++", "-shared", "-fPIC", "-O1", "-o", str(library), str(tmp_path / "tool.cpp")]
    subprocess.run(command, check=True, capture_output=True)
    environment = {**os.environ, "NVTX_INJECTION64_PATH": str(library), "LISTENER_LOG": str(log)}
    subprocess.run([sys.executable, "-c", SPOKEN], check=True, env=environment)
    assert log.read_text().splitlines() == [
        "domain trtforge",
        "category phase",
        "push with payload capture",
        "category launch",
        "push with payload op/kernel [A=1]",
        "pop ",
        "pop ",
    ]
