"""The cuda backend: its kernels compile, its bookkeeping holds on a stand-in for CuPy, and on a GPU it computes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cupy_double
import numpy as np
import pytest

from trtforge.bindings.dtypes import DTYPES
from trtforge.bindings.errors import GraphError
from trtforge.bindings.optional import available
from trtforge.graph_api import MLP, Attention, Dim, GatedMLP, Module, ModuleList, Network, RMSNorm, Tensor
from trtforge.graph_api import functional as F
from trtforge.graph_api.backends import cuda_primitives
from trtforge.graph_api.network import infer
from trtforge.graph_api.primitive import FLOATS, INTS, PRIMITIVES

CPP = {
    "float32": "float",
    "float16": "float16",
    "uint16": "unsigned short",
    "int64": "long long",
    "int32": "int",
    "int8": "signed char",
    "uint8": "unsigned char",
    "bool": "bool",
}
# What CuPy puts around a kernel's body: its half type, and the loop index i.
FRAME = """
#include <cuda_fp16.h>
struct float16 {
    __half value;
    __device__ float16(float v) : value(v) {}
    __device__ operator float() const { return __half2float(value); }
};
"""


def accepted_calls() -> list[tuple[str, dict[str, str], str, str]]:
    """(expression, dtypes by input, output dtype, name) for every dtype that an elementwise primitive takes."""
    calls = []
    for primitive in PRIMITIVES.values():
        if primitive.expression is None:
            continue
        names = primitive.input_names(len(primitive.inputs))
        choices: Mapping[str, str] = (
            primitive.expression if isinstance(primitive.expression, Mapping) else {"": primitive.expression}
        )
        for dtype in (*FLOATS, *INTS, "bool"):
            for choice, expression in choices.items():
                targets = (*FLOATS, *INTS, "bool") if primitive.name == "cast" else (choice,)
                for target in targets:
                    attributes = dict.fromkeys(primitive.attributes, target)
                    with Network("n") as net:
                        types = ["bool" if n == "condition" else dtype for n in names]
                        inputs = [net.input(f"i{i}", t, (2,)) for i, t in enumerate(types)]
                        try:
                            _, _, [(_, output)] = infer(primitive.name, inputs, attributes)
                        except GraphError:
                            continue
                    calls.append((expression, dict(zip(names, types)), output, primitive.name))
    return calls


def function_of(index: int, source: tuple[str, str, str]) -> str:
    """A device function with a CuPy kernel's parameters and body."""
    inputs, output, body = source
    parameters = []
    for parameter in f"{inputs}, {output}".split(", "):
        *raw, kind, name = parameter.split()
        parameters.append(f"{CPP[kind]}{'*' if raw else '&'} {name}")
    return f"__device__ void f{index}(long long i, {', '.join(parameters)}) {{\n{body}\n}}\n"


@pytest.mark.skipif(not available("cuda.bindings.nvrtc"), reason="needs NVRTC: pip install 'trtforge[cuda12]'")
def test_every_kernel_source_compiles(tmp_path: Path) -> None:
    from trtforge.bindings.nvrtc import compile_cuda

    calls = accepted_calls()
    assert len(calls) > 150
    sources = [cuda_primitives.elementwise_source(e, types, out) for e, types, out, _ in calls]
    sources += [cuda_primitives.rope_source(d) for d in FLOATS]
    functions = [function_of(i, s) for i, s in enumerate(sources)]
    path = tmp_path / "elementwise.cu"
    entry = 'extern "C" __global__ void elementwise(int* out) { out[0] = 1; }\n'
    path.write_text(FRAME + cuda_primitives.PREAMBLE + "".join(functions) + entry)
    assert compile_cuda(path, "elementwise", "sm_90a").cubin


@pytest.fixture
def double(monkeypatch: pytest.MonkeyPatch) -> Any:
    yield cupy_double.install(monkeypatch)
    cupy_double.ARRAYS.clear()


class Layer(Module):
    def __init__(self, dtype: str):
        self.norm = RMSNorm(16, dtype=dtype)
        self.attn = Attention(16, 4, 2, written_out=True, dtype=dtype)
        self.gated = GatedMLP(16, 12, dtype=dtype)
        self.mlp = MLP(16, 12, "gelu_tanh", dtype=dtype)

    def forward(self, x: Tensor, tables: Any, cache: Any, at: Tensor) -> Tensor:
        x = x + self.attn(self.norm(x), tables, cache, at)
        return x + self.mlp(self.gated(F.layer_norm(x)))


def decoder(dtype: str) -> Network:
    step, capacity = Dim("S", max=8), 12
    layers = ModuleList([Layer(dtype) for _ in range(2)])
    with Network("decoder") as net:
        ids, at = net.input("ids", "int32", (2, step)), net.input("at", "int32", (2,))
        table = net.parameter("table", (9, 16), dtype)
        x = F.embedding(ids, table)
        tables = F.rope_tables(at.unsqueeze(-1) + F.arange(step), F.rope_frequencies(4))
        for i, layer in enumerate(layers):
            cache = tuple(net.state(f"{kind}{i}", dtype, (2, 2, capacity, 4)) for kind in "kv")
            x = layer(x, tables, cache, at)
        last = x[:, -1]
        logits = F.matmul(last, table, transpose_b=True).cast("float32")
        net.mark_output(logits, "logits")
        net.mark_output(F.argmax(logits), "best")
    rng = np.random.default_rng(0)
    net.bind_weights(
        {n: (rng.standard_normal(t.shape) * 0.4).astype(DTYPES[dtype].numpy) for n, t in net.parameters.items()}
    )
    return net


def same_generation(dtype: str, fuse: bool, tolerance: float) -> Any:
    """Prefill, decode and prefill again on both backends; returns the cuda executable."""
    net = decoder(dtype)
    if fuse:
        assert net.fuse().replacements or dtype == "float32"
    reference, tested = net.build(), net.build(backend="cuda")
    rng = np.random.default_rng(1)
    calls = [(5, 0), (1, 5), (1, 6), (1, 7), (3, 8), (1, 11)]
    for round_ in range(2):
        for rows, start in calls:
            inputs = {
                "ids": rng.integers(0, 9, (2, rows)).astype(np.int32),
                "at": np.full(2, start, np.int32),
            }
            expected, found = reference(**inputs), tested(**inputs)
            assert {n: (a.shape, a.dtype) for n, a in found.items()} == {
                n: (a.shape, a.dtype) for n, a in expected.items()
            }
            scale = float(np.abs(expected["logits"]).max())
            np.testing.assert_allclose(found["logits"], expected["logits"], atol=tolerance * scale, rtol=0)
        if round_ == 0:
            reference.reset()
            tested.reset()
            changed = {"table": net.weights["table"] * np.asarray(0.5, net.weights["table"].dtype)}
            reference.refit(changed)
            tested.refit(changed)
    assert set(tested.placement) == {n.name for n in net.nodes}
    return tested


@pytest.mark.parametrize("fuse", [False, True])
@pytest.mark.parametrize("dtype", FLOATS)
def test_bookkeeping_on_a_stand_in(double: Any, dtype: str, fuse: bool) -> None:
    tested = same_generation(dtype, fuse, 1e-6)
    assert cupy_double.Stream.captures == 3  # each length at its second occurrence
    if fuse and dtype != "float32":
        assert any(label.startswith("trtforge::flash_attention") for label in tested.placement.values())


def test_other_primitives_on_a_stand_in(double: Any) -> None:
    net = mixture()
    inputs = mixture_inputs()
    compare(net.build()(**inputs), net.build(backend="cuda", graphs=False)(**inputs), 1e-6)


def mixture() -> Network:
    """Ops that the decoder does not use, broadcast products among them."""
    with Network("mixture") as net:
        x = net.input("x", "bfloat16", (2, 3, Dim("S", max=8), 4))
        y = net.input("y", "bfloat16", (1, 3, 4, 5))
        i = net.input("i", "int32", (4,))
        outputs = [
            x @ y,
            F.matmul(x, x, transpose_a=True),
            F.matmul(x, y[0, 0]),
            F.softmax(x, 1),
            x.sum((0, 2)),
            x.max(-1, keepdims=True),
            F.concat([x, x * 2.0], 2),
            F.where(x > 0, x, -x)[:, ::2, -1],
            F.gather(x, i % 3, 1),
            (i // 3).cast("float16"),
            F.repeat_interleave(x, 2, 1).transpose(1, 2),
            F.dim_value(x.shape[2]) + i,
            F.minimum(F.maximum(x, -0.5), 0.5) ** 2,
            F.rope(x, positions=F.arange(x.shape[2])),
            F.quantize(x, granularity="token", to="int8")[0],
        ]
        for n, t in enumerate(outputs):
            net.mark_output(t, f"o{n}")
    return net


def mixture_inputs() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(2)
    bf16 = DTYPES["bfloat16"].numpy
    return {
        "x": rng.standard_normal((2, 3, 6, 4)).astype(bf16),
        "y": rng.standard_normal((1, 3, 4, 5)).astype(bf16),
        "i": np.array([-4, 0, 2, 7], np.int32),
    }


def compare(expected: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray], tolerance: float) -> None:
    for name, value in expected.items():
        assert (found[name].shape, found[name].dtype) == (value.shape, value.dtype), name
        wide = value.astype(np.float64)
        np.testing.assert_allclose(
            found[name].astype(np.float64), wide, atol=tolerance * max(1.0, float(np.abs(wide).max())), rtol=0,
            err_msg=name,
        )  # fmt: skip


@pytest.mark.gpu
@pytest.mark.parametrize("fuse", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("float16", 2e-2), ("bfloat16", 1e-1)])
def test_generation_on_a_gpu(dtype: str, tolerance: float, fuse: bool) -> None:
    same_generation(dtype, fuse, tolerance)


@pytest.mark.gpu
@pytest.mark.parametrize("graphs", [False, True])
def test_other_primitives_on_a_gpu(graphs: bool) -> None:
    net, inputs = mixture(), mixture_inputs()
    expected, tested = net.build()(**inputs), net.build(backend="cuda", graphs=graphs)
    for _ in range(4):  # node by node, captured, replayed
        compare(expected, tested(**inputs), 2e-2)


@pytest.mark.gpu
def test_garbage_collected_during_a_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    """An executable that goes while another is captured, by reference count or in a cycle, disturbs nothing."""
    net, inputs = mixture(), mixture_inputs()
    expected, tested = net.build()(**inputs), net.build(backend="cuda")
    doomed = [net.build(backend="cuda") for _ in range(3)]
    for other in doomed:
        for _ in range(3):
            other(**inputs)
    run = type(tested)._run

    def run_and_drop(self: Any, *arguments: Any) -> Any:
        if doomed:
            cycle = [doomed.pop()]
            cycle.append(cycle)  # type: ignore[arg-type]
            del cycle
            _ = [[] for _ in range(2000)]  # enough allocations for a collection, where it is not held back
        if doomed:
            doomed.pop()
        return run(self, *arguments)

    tested(**inputs)
    monkeypatch.setattr(type(tested), "_run", run_and_drop)
    for _ in range(3):
        compare(expected, tested(**inputs), 2e-2)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", FLOATS)
def test_elementwise_on_a_gpu(dtype: str) -> None:
    """Every elementwise expression, special values included."""
    special = np.array([0.0, -0.0, 0.5, -0.5, 1.0, -2.0, 3.0, 60.0, -60.0, np.inf, -np.inf, np.nan], np.float32)
    with Network("elementwise") as net:
        x = net.input("x", dtype, (12,))
        for name, p in PRIMITIVES.items():
            if p.expression is not None and p.inputs == ("x",) and name not in ("cast", "logical_not", "gelu"):
                net.mark_output(getattr(F, name)(x), name)
        net.mark_output(F.gelu(x), "gelu_none")
        net.mark_output(F.gelu(x, "tanh"), "gelu_tanh")
        for name in ("maximum", "minimum", "add", "div"):
            net.mark_output(getattr(F, name)(x, F.constant(0.75, dtype)), f"{name}_number")
    inputs = {"x": special.astype(DTYPES[dtype].numpy)}
    expected, found = net.build()(**inputs), net.build(backend="cuda")(**inputs)
    for name, value in expected.items():
        np.testing.assert_allclose(
            found[name].astype(np.float32), value.astype(np.float32), rtol=1e-2, atol=1e-6, err_msg=name
        )
