"""Fusion: what is replaced, what is left alone and why, and that the numbers stay."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from trtforge.bindings.errors import DeclarationError, UnknownNameError
from trtforge.graph_api import MLP, Attention, Dim, GatedMLP, Module, Network, RMSNorm, Tensor
from trtforge.graph_api import functional as F
from trtforge.graph_api.fusion import FusionReport, fuse
from trtforge.kernels import registry

TOLERANCE = 4e-3  # float16 outputs of order one, rounded at different places


def normal(shape: tuple[int, ...], seed: int = 0, dtype: Any = np.float16) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def fused_equals_unfused(net: Network, **inputs: np.ndarray) -> FusionReport:
    """Fuse, and compare every output before and after; returns the report."""
    before = net.build()(**inputs)
    report = net.fuse()
    after = net.build()(**inputs)
    for name, expected in before.items():
        assert after[name].dtype == expected.dtype
        size = max(1.0, float(np.abs(expected.astype(np.float32)).max()))
        np.testing.assert_allclose(
            after[name].astype(np.float32), expected.astype(np.float32), rtol=TOLERANCE, atol=TOLERANCE * size
        )
    return report


def weights_of(net: Network, scale: float = 0.3) -> dict[str, np.ndarray]:
    return {
        name: (normal(t.shape, i, np.float32) * scale).astype(np.float16)
        for i, (name, t) in enumerate(net.parameters.items())
    }


def build(module: Module, shape: tuple[Any, ...], *, dtype: str = "float16") -> Network:
    with Network("net") as net:
        net.mark_output(module(net.input("x", dtype, shape)), "y")
    net.bind_weights(weights_of(net))
    return net


def ops_of(report: FusionReport) -> list[str]:
    return [r.op.split("::")[1] for r in report.replacements]


@pytest.mark.parametrize("activation", ["relu", "gelu", "gelu_tanh", "silu"])
def test_mlp(activation: str) -> None:
    net = build(MLP(16, 24, activation), (2, Dim("S", max=8), 16))
    report = fused_equals_unfused(net, x=normal((2, 3, 16)))
    assert [n.op for n in net.nodes] == ["trtforge::fused_gemm"] * 2
    first = next(r for r in report.replacements if r.node == "fused_gemm")
    assert first.replaced == ("up_proj.matmul", "up_proj.add", activation.removesuffix("_tanh"))
    assert first.inputs == ("x", "up_proj.weight", "up_proj.bias")
    second = next(r for r in report.replacements if r.node == "down_proj.fused_gemm")
    assert second.replaced == ("down_proj.matmul", "down_proj.add")
    assert "test_graph_fusion.py" in second.location


@pytest.mark.parametrize("activation", ["silu", "gelu"])
def test_gated_mlp(activation: str) -> None:
    net = build(GatedMLP(16, 24, activation), (5, 16))
    report = fused_equals_unfused(net, x=normal((5, 16)))
    gated = next(r for r in report.replacements if r.op == "trtforge::gated_gemm")
    assert set(gated.replaced) == {"gate_proj.matmul", activation, "up_proj.matmul", "mul"}
    assert "gate_proj.matmul" not in [n.name for n in net.nodes]


@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize(
    "options", [{}, {"causal": True}, {"causal": True, "window": 3}, {"soft_cap": 4.0}, {"scale": 0.7}], ids=str
)
def test_attention(kv_heads: int, options: dict[str, Any]) -> None:
    options = {"causal": False, **options}
    net = build(Attention(32, 4, kv_heads, written_out=True, **options), (2, Dim("S", max=16), 32))
    report = fused_equals_unfused(net, x=normal((2, 6, 32)))
    (found,) = [r for r in report.replacements if r.op == "trtforge::flash_attention"]
    assert found.attributes["causal"] == options["causal"]
    assert found.attributes["window"] == options.get("window", -1)
    assert found.attributes["soft_cap"] == pytest.approx(options.get("soft_cap", 0.0))
    assert found.attributes["scale"] == pytest.approx(options.get("scale", 8**-0.5), rel=1e-3)
    assert not [n for n in net.nodes if n.op in ("softmax", "where", "arange", "expand")]


def test_attention_over_a_cache() -> None:
    attn = Attention(32, 4, 2, written_out=True)
    with Network("cached") as net:
        x, at = net.input("x", "float16", (2, Dim("S", max=8), 32)), net.input("at", "int32", (2,))
        cache = net.state("k", "float16", (2, 2, 8, 8)), net.state("v", "float16", (2, 2, 8, 8))
        net.mark_output(attn(x, None, cache, at), "y")
    net.bind_weights(weights_of(net))
    report = fused_equals_unfused(net, x=normal((2, 5, 32)), at=np.array([0, 2], np.int32))
    (found,) = [r for r in report.replacements if r.op == "trtforge::flash_attention"]
    assert found.pattern == "attention_causal_lengths"
    assert len(found.inputs) == 4


def attention_form(build_scores: Callable[..., Tensor], dtype: str = "float16", **dims: Any) -> FusionReport:
    rows, keys = dims.get("rows", 4), dims.get("keys", 6)
    with Network("form") as net:
        q = net.input("q", dtype, (1, 2, rows, 8))
        k, v = net.input("k", dtype, (1, 2, keys, 8)), net.input("v", dtype, (1, 2, keys, 8))
        net.mark_output(build_scores(q, k, v), "y")
    return fused_equals_unfused(net, q=normal((1, 2, 4, 8)), k=normal((1, 2, 6, 8), 1), v=normal((1, 2, 6, 8), 2))


def additive_mask(q: Tensor, k: Tensor, value: float) -> Tensor:
    return F.where(F.causal_mask(q, k), F.constant(np.array(0, np.float16)), F.constant(np.array(value, np.float16)))


ATTENTION_FORMS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "divided scores": lambda q, k, v: F.softmax(F.matmul(q, k, transpose_b=True) / 8**0.5) @ v,
    "transposed keys": lambda q, k, v: F.softmax(q @ k.transpose(-1, -2) * 0.25) @ v,
    "scaled queries": lambda q, k, v: F.softmax((q * 0.25) @ k.transpose(-1, -2)) @ v,
    "unscaled": lambda q, k, v: F.softmax(q @ k.transpose(-1, -2)) @ v,
    "additive mask": lambda q, k, v: F.softmax(q @ k.transpose(2, 3) * 0.25 + additive_mask(q, k, -math.inf)) @ v,
    "finite mask": lambda q, k, v: F.softmax(q @ k.transpose(2, 3) * 0.25 + additive_mask(q, k, -60000)) @ v,
    "opposite mask": lambda q, k, v: (
        F.softmax(F.where(F.arange(6) > F.arange(4).unsqueeze(-1) + 2, -math.inf, q @ k.transpose(2, 3))) @ v
    ),
    "mirrored mask": lambda q, k, v: (
        F.softmax(
            F.where(
                F.arange(4).unsqueeze(-1) + (F.dim_value(6) - F.dim_value(4)) >= F.arange(6),
                q @ k.transpose(2, 3),
                -math.inf,
            )
        )
        @ v
    ),
    "float32 softmax": lambda q, k, v: (
        F.softmax((F.matmul(q, k, transpose_b=True) * 0.25).cast("float32")).cast("float16") @ v
    ),
    "float32 throughout": lambda q, k, v: (
        F.softmax(F.matmul(q.cast("float32"), k.cast("float32"), transpose_b=True) * 0.25) @ v.cast("float32")
    ).cast("float16"),
}


@pytest.mark.parametrize("form", ATTENTION_FORMS)
def test_attention_forms(form: str) -> None:
    report = attention_form(ATTENTION_FORMS[form])
    assert "flash_attention" in ops_of(report), str(report)


def test_finite_mask_where_a_query_may_see_no_key_is_refused() -> None:
    rows, keys = Dim("Q", max=16), Dim("K", max=8)
    report = attention_form(ATTENTION_FORMS["finite mask"], rows=rows, keys=keys)
    assert not report.replacements
    assert any("a query may see no key" in r.reason for r in report.refusals)


def test_a_mask_may_serve_several_attentions() -> None:
    with Network("shared") as net:
        q, k, v = (net.input(n, "float16", (1, 2, 6, 8)) for n in "qkv")
        mask = F.causal_mask(q, k)
        for _ in range(2):
            q = F.softmax(F.where(mask, q @ k.transpose(2, 3) * 0.3, -math.inf)) @ v
        net.mark_output(q, "y")
    report = fused_equals_unfused(net, **{n: normal((1, 2, 6, 8), i) for i, n in enumerate("qkv")})
    assert ops_of(report) == ["flash_attention"] * 2
    assert [n.op for n in net.nodes] == ["trtforge::flash_attention"] * 2
    assert sum("le" in r.replaced for r in report.replacements) >= 1


def test_square_causal_mask_without_an_offset() -> None:
    rows = Dim("S", max=8)
    with Network("square") as net:
        q, k, v = (net.input(n, "float16", (1, 2, rows, 8)) for n in "qkv")
        mask = F.arange(rows) <= F.arange(rows).unsqueeze(-1)
        net.mark_output(F.softmax(F.where(mask, q @ k.transpose(2, 3) * 0.3, -65504.0)) @ v, "y")
    report = fused_equals_unfused(net, **{n: normal((1, 2, 5, 8), i) for i, n in enumerate("qkv")})
    assert report.replacements[0].attributes["causal"] is True


def test_another_mask_is_not_taken_for_a_causal_one() -> None:
    def shifted(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        mask = F.arange(6) <= F.arange(4).unsqueeze(-1) + (F.dim_value(6) - F.dim_value(3))
        return F.softmax(F.where(mask, q @ k.transpose(2, 3) * 0.25, -math.inf)) @ v

    assert "flash_attention" not in ops_of(attention_form(shifted))


NORMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "module": lambda x, w: F.rms_norm(x, w, 1e-3),
    "divided": lambda x, w: x / F.sqrt((x * x).mean(keepdims=True) + 1e-3) * w,
    "reciprocal": lambda x, w: w * (x * F.rsqrt(1e-3 + (x**2).mean(keepdims=True))),
    "float32 inside": lambda x, w: (
        (x.cast("float32") * F.rsqrt((x.cast("float32") ** 2).mean(keepdims=True) + 1e-3)).cast("float16") * w
    ),
}


@pytest.mark.parametrize("form", NORMS)
def test_rms_norm(form: str) -> None:
    with Network("norm") as net:
        x, w = net.input("x", "float16", (3, 32)), net.input("w", "float16", (32,))
        net.mark_output(NORMS[form](x, w), "y")
    report = fused_equals_unfused(net, x=normal((3, 32)), w=normal((32,), 1))
    assert ops_of(report) == ["rms_norm"]
    assert report.replacements[0].attributes["eps"] == pytest.approx(1e-3, rel=1e-3)


GELUS: dict[str, Callable[[Tensor], Tensor]] = {
    "erf": lambda x: 0.5 * x * (1 + F.erf(x / math.sqrt(2))),
    "erf, other order": lambda x: x * (0.5 * (F.erf(x * math.sqrt(0.5)) + 1)),
    "tanh": lambda x: 0.5 * x * (1 + F.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "tanh, products": lambda x: x * (1 + F.tanh((x + x * x * x * 0.044715) * math.sqrt(2 / math.pi))) * 0.5,
    "silu": lambda x: x * F.sigmoid(x),
    "relu": lambda x: F.maximum(x, 0.0),
    "silu, exponential": lambda x: x / (1 + F.exp(-x)),
}


@pytest.mark.parametrize("form", GELUS)
def test_activations_written_out(form: str) -> None:
    with Network("linear") as net:
        x, w = net.input("x", "float16", (3, 16)), net.input("w", "float16", (8, 16))
        b = net.input("b", "float16", (8,))
        net.mark_output(GELUS[form](F.linear(x, w, b)), "y")
    report = fused_equals_unfused(net, x=normal((3, 16)), w=normal((8, 16), 1) / 4, b=normal((8,), 2))
    assert ops_of(report) == ["fused_gemm"]
    expected = "silu" if "silu" in form else "relu" if form == "relu" else f"gelu_{form.split(',')[0]}"
    assert report.replacements[0].attributes["activation"] == expected


def linear_twice(x: Tensor, net: Network) -> tuple[Tensor, Tensor]:
    w, b = net.input("w", "float16", (8, 16)), net.input("b", "float16", (8,))
    z = F.linear(x, w, b)
    return z, F.relu(z)


@pytest.mark.parametrize("how", ["read elsewhere", "an output"])
def test_interior_values_that_are_needed_keep_their_node(how: str) -> None:
    with Network("shared") as net:
        x = net.input("x", "float16", (3, 16))
        z, y = linear_twice(x, net)
        net.mark_output(y, "y")
        net.mark_output(z if how == "an output" else z * 2.0, "z")
    report = fused_equals_unfused(net, x=normal((3, 16)), w=normal((8, 16), 1) / 4, b=normal((8,), 2))
    assert [(r.pattern, r.replaced) for r in report.replacements] == [("linear_bias", ("matmul", "add"))]
    (refusal,) = [r for r in report.refusals if r.node == "relu"]
    reason = "is an output of the network" if how == "an output" else "is also read by mul"
    assert refusal.reason == f"add inside it {reason}"


def test_contract_refusals_are_reported() -> None:
    with Network("wide") as net:
        x, w = net.input("x", "float32", (3, 16)), net.input("w", "float32", (8, 16))
        net.mark_output(F.relu(F.matmul(x, w, transpose_b=True)), "y")
    report = fuse(net)
    assert not report.replacements
    (refusal,) = report.refusals
    assert refusal.node == "relu" and "'x' is float32, but must be float16 or bfloat16" in refusal.reason
    assert "not replaced by trtforge::fused_gemm" in str(report)


def test_selection_of_patterns_and_determinism() -> None:
    def reports(patterns: Any) -> FusionReport:
        return fuse(build(GatedMLP(16, 24), (5, 16)), patterns)

    assert reports("all") == reports("all")
    assert ops_of(reports("flash_attention")) == []
    assert set(ops_of(reports(["trtforge::gated_gemm"]))) == {"gated_gemm"}
    assert {r.pattern for r in reports("linear_silu").replacements} == {"linear_silu"}
    with pytest.raises(UnknownNameError, match=r"no op or pattern is named 'nothing'; ops with patterns: trtforge::"):
        reports("nothing")


def test_report_prints_and_serializes() -> None:
    net = build(GatedMLP(16, 24), (5, 16))
    report = net.fuse()
    assert net.build().fusion_report is report
    data = json.loads(json.dumps(report.to_dict()))
    assert data["nodes_after"] == len(net.nodes) < data["nodes_before"]
    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(report)
    assert "gated_gemm" in console.export_text()
    assert "gated_gemm = trtforge::gated_gemm [gated_silu] replaces" in str(report)


def test_fused_networks_can_be_fused_and_extended_again() -> None:
    class Tower(Module):
        def __init__(self) -> None:
            self.norm, self.mlp, self.gated = RMSNorm(16), MLP(16, 16, "gelu"), GatedMLP(16, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.gated(self.mlp(self.norm(x))) + x

    net = build(Tower(), (4, 16))
    fused_equals_unfused(net, x=normal((4, 16)))
    again = net.fuse()
    assert not again.replacements
    with net:
        net.mark_output(net.outputs["y"] * 2.0, "twice")
    found = net.build()(x=normal((4, 16)))
    np.testing.assert_array_equal(found["twice"], found["y"] * np.float16(2))


USER_OP = """
import numpy as np
from trtforge.kernels import HALF, Attr, Op, Tensor

leaky = Op(
    "mine::leaky_bias",
    inputs={"x": Tensor("*M", "N", dtype=HALF), "bias": Tensor("N", dtype="x", optional=True)},
    outputs={"y": Tensor("*M", "N", dtype="x")},
    attributes={"slope": Attr(0.01, minimum=0.0)},
)


@leaky.reference
def _(x, bias, *, slope):
    x = x.astype(np.float32) + (0 if bias is None else bias.astype(np.float32))
    return np.where(x > 0, x, slope * x)


@leaky.pattern(inputs=("x", "bias"))
def _(f, x, bias):
    z = f.add(x, bias)
    return f.maximum(z, f.mul(z, f.capture("slope")))


@leaky.pattern(inputs=("x",))
def _(f, x):
    return f.maximum(x, f.mul(x, f.capture("slope")))
"""


@pytest.fixture
def user_op(tmp_path: Path) -> Any:
    path = tmp_path / "mine.py"
    path.write_text(USER_OP)
    (op,) = registry.load(path)
    yield op
    registry._ops.pop(op.name)


def test_a_users_op_is_a_graph_op_and_fuses(user_op: Any) -> None:
    with Network("user") as net:
        x, b = net.input("x", "float16", (3, Dim("N", max=8))), net.input("b", "float16", (8,))
        direct = F.call("mine::leaky_bias", x, slope=0.25)
        written = F.maximum(x * 0.25, x)
        net.mark_output(direct, "direct")
        net.mark_output(written, "written")
        z = net.input("z", "float16", (2, 8)) + b
        net.mark_output(F.maximum(0.25 * z, z), "biased")
    report = fused_equals_unfused(net, x=normal((3, 5)), z=normal((2, 8), 1), b=normal((8,), 2))
    assert {r.pattern: r.replaced for r in report.replacements} == {
        "leaky_bias_0": ("add", "mul_1", "maximum_1"),
        "leaky_bias_1": ("mul", "maximum"),
    }
    found = net.build()(x=normal((3, 5)), z=normal((2, 8), 1), b=normal((8,), 2))
    np.testing.assert_array_equal(found["direct"], found["written"])


def test_a_pattern_with_an_unknown_name_is_refused(user_op: Any) -> None:
    user_op.pattern(inputs=("x",))(lambda f, x: f.swish(x))
    with Network("user") as net, pytest.raises(DeclarationError, match=r"a pattern cannot use f\.swish; primitives:"):
        net.fuse("mine::leaky_bias")
