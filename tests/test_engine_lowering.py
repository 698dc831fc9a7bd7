"""The lowering to TensorRT: every primitive computes the reference's values, and the real library accepts it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import trt_double

from trtforge.bindings.dtypes import DTYPES
from trtforge.bindings.errors import GraphError
from trtforge.graph_api import Dim, Network, Tensor
from trtforge.graph_api import functional as F
from trtforge.graph_api.engines import library
from trtforge.graph_api.engines.builder import RULES, BuildOptions, build_piece, profile_of, target_of
from trtforge.graph_api.engines.lowering import refusal
from trtforge.graph_api.engines.partition import make_piece, partition
from trtforge.graph_api.primitive import FLOATS, PRIMITIVES
from trtforge.kernels.dims import cdiv, maximum, minimum, sym

needs_rtx = pytest.mark.skipif(
    bool(library.why_absent("tensorrt-rtx")), reason=library.why_absent("tensorrt-rtx") or "-"
)
PORTABLE = BuildOptions(compute_capability="8.9")

S, B = Dim("S", min=1, opt=3, max=6), Dim("B", min=1, opt=2, max=4)
SIZES = {"S": 3, "B": 2}


def unary(name: str, low: float = -2.0) -> Callable[..., Any]:
    return lambda t: F.__dict__[name](F.maximum(t("x", B, S, 4), low))


def binary(name: str) -> Callable[..., Any]:
    return lambda t: [
        F.__dict__[name](t("x", B, S, 4), t("y", 4)),
        F.__dict__[name](t("x", B, S, 4), t("z", B, 1, 4) if name != "pow" else t("i", 4)),
    ]


def positive(name: str) -> Callable[..., Any]:
    return lambda t: F.__dict__[name](F.abs(t("x", B, S, 4)) + 0.5)


def cached(t: Any) -> list[Tensor]:
    cache = t("cache", 2, 2, 12, 4)
    updated = F.kv_cache_update(cache, t("new", 2, 2, S, 4), t("at", 2, dtype="int32"))
    return [updated, updated.max(-1)]


#: Outputs per primitive, of inputs that ``t(name, *shape, dtype=)`` makes in the dtype under test.
CASES: dict[str, Callable[..., Any]] = {
    **{n: unary(n) for n in ("exp", "abs", "neg", "erf", "sin", "cos", "tanh", "sigmoid", "relu", "silu")},
    **{n: positive(n) for n in ("log", "sqrt", "rsqrt")},
    **{n: binary(n) for n in ("add", "sub", "mul", "div", "maximum", "minimum", "eq", "ne", "lt", "le", "gt", "ge")},
    "pow": lambda t: F.abs(t("x", B, S, 4)) ** 2.0,
    "gelu": lambda t: [F.gelu(t("x", B, S, 4)), F.gelu(t("x", B, S, 4), "tanh")],
    "floor_div": lambda t: t("i", B, S, dtype="int32") // t("j", S, dtype="int32"),
    "mod": lambda t: [t("i", B, S, dtype="int32") % 3, t("l", B, S, dtype="int64") % 3],
    "logical_and": lambda t: (t("x", B, S, 4) > 0) & (t("y", 4) > 0),
    "logical_or": lambda t: (t("x", B, S, 4) > 0) | t("m", 4, dtype="bool"),
    "logical_not": lambda t: ~(t("x", B, S, 4) > 0),
    "where": lambda t: [
        F.where(t("x", B, S, 4) > 0, t("y", 4), -1.0),
        F.where(t("m", 4, dtype="bool"), t("x", B, S, 4), t("y", 4)),
    ],
    "cast": lambda t: (
        [t("x", B, S, 4).cast(d) for d in ("float32", "float16", "bfloat16", "int32", "int64", "bool")]
        + [t("i", B, S, dtype="int32").cast(d) for d in ("float32", "bool", "int64")]
    ),
    "arange": lambda t: [F.arange(t("x", B, S, 4).shape[1] + 2), F.arange(5, "int64"), F.arange(S.expr * B.expr)],
    "dim_value": lambda t: [
        F.dim_value(t("x", B, S, 4).shape[1] * 2),
        F.dim_value(7, "int64"),
        *(
            F.dim_value(e)
            for e in (cdiv(sym("S"), 2), sym("S") // 2, sym("S") % 2, minimum(sym("S"), sym("B")), maximum(sym("S"), 5))
        ),
    ],
    "reshape": lambda t: [
        t("x", B, S, 4).reshape(B, S * 4),
        t("x", B, S, 4).reshape(B.expr * S.expr, 2, 2),
        t("x", B, S, 4).reshape(-1),
        t("x", B, S, 4).reshape(S, B, 4),
        t("w", 2, 6).reshape(3, 4),
        t("s").reshape(1, 1),
    ],
    "permute": lambda t: t("x", B, S, 4).permute(2, 0, 1),
    "expand": lambda t: [
        t("y", 4).expand(3, 4),
        t("x", B, S, 4).unsqueeze(1).expand(B, 5, S, 4),
        t("z", B, 1, 4).expand(B, S, 4),
        t("y", 4).expand(4),
    ],
    "slice": lambda t: [
        t("x", B, S, 4)[:, -1],
        t("x", B, S, 4)[..., 1:3],
        t("x", B, S, 4)[:, ::2],
        t("x", B, S, 4)[:, : S.expr, :],
    ],
    "concat": lambda t: [F.concat([t("x", B, S, 4), t("x", B, S, 4) * 2.0], 1), F.concat([t("y", 4), t("y", 4)])],
    "gather": lambda t: [
        F.gather(t("x", B, S, 4), t("i", 2, dtype="int32") % 4, 2),
        F.embedding(F.abs(t("i", B, S, dtype="int32")) % 2, t("w", 2, 6)),
    ],
    "kv_cache_update": cached,
    "matmul": lambda t: [
        t("x", B, S, 4) @ t("k", 4, 5),
        F.matmul(t("x", B, S, 4), t("x", B, S, 4), transpose_b=True),
        F.matmul(t("x", B, S, 4), t("x", B, S, 4), transpose_a=True),
        F.matmul(t("h", B, 2, S, 4), t("k", 4, 5)),
    ],
    "sum": lambda t: [t("x", B, S, 4).sum((0, 2)), t("i", B, S, dtype="int32").sum(-1, keepdims=True)],
    "mean": lambda t: [t("x", B, S, 4).mean(-1, keepdims=True), t("x", B, S, 4).mean((1,))],
    "max": lambda t: [t("x", B, S, 4).max(1), t("l", B, S, dtype="int64").max(-1)],
    "argmax": lambda t: [F.argmax(t("x", B, S, 4)), F.argmax(t("x", B, S, 4), 1, True), F.argmax(t("y", 4))],
    "softmax": lambda t: [F.softmax(t("x", B, S, 4)), F.softmax(t("x", B, S, 4), 1)],
    "rms_norm": lambda t: [F.rms_norm(t("x", B, S, 4), t("y", 4)), F.rms_norm(t("y", 4))],
    "layer_norm": lambda t: [
        F.layer_norm(t("x", B, S, 4), t("y", 4), t("y", 4)),
        F.layer_norm(t("x", B, S, 4)),
        F.layer_norm(t("y", 4), t("y", 4)),
    ],
    "rope": lambda t: [
        F.rope(t("h", B, 2, S, 4), positions=F.arange(S.expr)),
        F.rope(t("h", B, 2, S, 4), positions=t("p", B, S, dtype="int32")),
        F.rope(t("h", B, 2, S, 4), t("c", B, 1, S, 2, dtype="float32"), t("d", B, 1, S, 2, dtype="float32")),
    ],
}


def network_of(primitive: str, dtype: str) -> tuple[Network, dict[str, np.ndarray]]:
    """A network around one primitive, and arrays for its inputs at SIZES."""
    rng = np.random.default_rng(len(primitive))
    arrays: dict[str, np.ndarray] = {}
    with Network(f"{primitive}_case") as net:

        def t(name: str, *shape: Any, dtype: str = dtype) -> Tensor:
            if name not in net.inputs:
                net.input(name, dtype, shape)
                sizes = [SIZES[d.name] if isinstance(d, Dim) else d for d in shape]
                value = rng.standard_normal(sizes) if dtype in FLOATS else rng.integers(-5, 6, sizes)
                value = np.where(value == 0, 1, value) if dtype != "bool" else value > 0
                arrays[name] = np.asarray(value).astype(DTYPES[dtype].numpy)
            return net.inputs[name]

        t("x", B, S, 4)  # so that every case knows its dimensions
        if primitive == "kv_cache_update":
            net.input("at", "int32", (2,))
            arrays["at"] = np.array([0, 7], np.int32)
        made = CASES[primitive](t)
        for i, tensor in enumerate(made if isinstance(made, list) else [made]):
            net.mark_output(tensor, f"o{i}")
    return net, arrays


def test_every_primitive_has_a_rule_and_a_case() -> None:
    assert set(RULES) == set(PRIMITIVES) == set(CASES)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("primitive", CASES)
def test_values_of_every_rule(primitive: str, dtype: str) -> None:
    """On the NumPy stand-in: strong typing, ranks, names, and values as the reference computes them."""
    net, arrays = network_of(primitive, dtype)
    trt = trt_double.module()
    assert [n.op for n in net.nodes if refusal(n, trt)] == []
    piece = make_piece(net, "all", tuple(net.nodes))
    built = build_piece(trt, net, piece, {}, PORTABLE)
    definition = trt_double.ENGINES[-1]
    assert built.layers and {n.name for n in net.nodes} <= set(built.layers)
    given = {t.name: arrays[t.name].copy() for t in (*piece.inputs, *piece.carriers)}
    found = trt_double.evaluate(definition, given)
    for name, expected in net.build()(**arrays).items():
        tensor = net.outputs[name]
        value = found[tensor.name] if tensor.kind == "value" else arrays[tensor.name]
        assert (value.shape, value.dtype) == (expected.shape, expected.dtype), name
        wide = expected.astype(np.float64)
        # A rule of several layers rounds once for each of them.
        tolerance = {"float32": 2e-6, "float16": 2e-3, "bfloat16": 2e-2}.get(tensor.dtype, 0)
        np.testing.assert_allclose(value.astype(np.float64), wide, rtol=tolerance, atol=tolerance * 4, err_msg=name)


@needs_rtx
@pytest.mark.parametrize("primitive", CASES)
def test_the_library_builds_every_rule(primitive: str) -> None:
    """Real engines by TensorRT for RTX, with dynamic dimensions, in half precision."""
    trt = library.open_library("tensorrt-rtx")
    for dtype in ("float16", "bfloat16"):
        net, _ = network_of(primitive, dtype)
        built = build_piece(trt, net, make_piece(net, "all", tuple(net.nodes)), {}, PORTABLE)
        assert len(built.engine) > 1000


@needs_rtx
def test_names_and_types_reach_the_library() -> None:
    trt = library.open_library("tensorrt-rtx")
    from trtforge.graph_api.engines.lowering import Lowering

    with Network("named") as net:
        x = net.input("x", "bfloat16", (B, 4))
        weight = net.parameter("layer.weight", (4, 4), "bfloat16")
        y = net.emit("matmul", (x, weight), {}, name="product")[0]
        net.mark_output(F.relu(y), "y")
    builder = trt.Builder(library.log_of(trt))
    definition = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    lowering = Lowering(trt, definition)
    lowering.input(net.inputs["x"])
    array = np.ones((4, 4), DTYPES["bfloat16"].numpy)
    lowering.weight(weight, array)
    for node in net.nodes:
        lowering.node(node, [lowering.values[t] for t in node.tensors])
    names = [definition.get_layer(i).name for i in range(definition.num_layers)]
    assert names == ["layer.weight/constant", "product", "relu"]
    assert definition.get_input(0).get_dimension_name(0) == "B"
    assert any(held is array for held in lowering.kept), "weights are held by reference, not copied"
    assert lowering.values[y].tensor.dtype == trt.DataType.BF16


def test_what_an_engine_cannot_compute() -> None:
    with Network("bytes") as net:
        x = net.input("x", "uint8", (4,))
        net.mark_output(x + x, "y")
        net.mark_output(F.quantize(net.input("h", "float16", (2, 4)), granularity="token", to="int8")[0], "q")
    trt = trt_double.module()
    add, quantize = net.nodes
    assert "computes nothing with uint8" in str(refusal(add, trt))
    assert "registered op" in str(refusal(quantize, trt))
    cuts = partition(net, lambda n: refusal(n, trt))
    assert not cuts.pieces and [s.kind for s in cuts.singles] == ["primitive", "kernel"]


def test_an_older_library_has_no_cache_layer() -> None:
    trt = trt_double.module()
    trt.INetworkDefinition = object
    trt.__name__, trt.__version__ = "tensorrt", "10.13.0"
    net, _ = network_of("kv_cache_update", "float16")
    update = next(n for n in net.nodes if n.op == "kv_cache_update")
    assert "no KV-cache layer" in str(refusal(update, trt))


def test_profiles_cover_expressions() -> None:
    dims = {"S": Dim("S", min=2, opt=5, max=9), "B": Dim("B", max=4)}
    s, b = sym("S"), sym("B")
    assert profile_of((b, s * b + 1, 12 - s, 7), dims) == ((1, 3, 3, 7), (4, 21, 7, 7), (4, 37, 10, 7))


@needs_rtx
def test_compute_capabilities() -> None:
    trt = library.open_library("tensorrt-rtx")
    assert target_of(trt, "8.9") == (trt.ComputeCapability.SM89, "8.9")
    assert target_of(trt, "12.0")[1] == "12.0"
    for wrong in ("ten", "3.5"):
        with pytest.raises(ValueError, match="compute_capability"):
            target_of(trt, wrong)


def test_a_dimension_that_no_input_tells() -> None:
    with Network("loose") as net:
        x = net.input("x", "float32", (S, 4))
        net.mark_output(x + F.arange(x.shape[0]).cast("float32").unsqueeze(-1), "y")
    net.inputs.clear()
    with pytest.raises(GraphError, match="follows from no input"):
        make_piece(net, "part", (net.nodes[0],))
