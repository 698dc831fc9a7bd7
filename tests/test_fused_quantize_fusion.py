"""Networks in which a norm or a gated product is followed by quantization: one op takes the place of both."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from trtforge.graph_api import Dim, Network
from trtforge.graph_api import functional as F
from trtforge.graph_api.fusion import FusionReport
from trtforge.harness.compare import Tolerance, compare
from trtforge.kernels import registry

WIDTH = 256
Build = Callable[[Any, Any], dict[str, Any]]


def vector(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(WIDTH).astype(np.float16)


def rms(x: Any, r: Any) -> dict[str, Any]:
    y, scale = F.quantize(F.rms_norm(x, vector(1), eps=1e-5), granularity="token", to="int8")
    return {"y": y, "scale": scale}


def rms_written_out(x: Any, r: Any) -> dict[str, Any]:
    normalized = F.mul(F.mul(x, F.rsqrt(F.add(F.mean(F.mul(x, x), axis=-1, keepdims=True), 1e-5))), vector(1))
    y, scale = F.quantize(normalized, granularity="token")
    return {"y": y, "scale": scale}


def added(x: Any, r: Any) -> dict[str, Any]:
    total = F.add(x, r)
    y, scale = F.quantize(F.rms_norm(total, vector(1)), granularity="token")
    return {"y": y, "scale": scale, "total": total, "read": F.mul(total, 2.0)}


def layer(x: Any, r: Any) -> dict[str, Any]:
    y, scale = F.quantize(F.layer_norm(x, vector(1), vector(2)), granularity="token", to="float8_e5m2")
    return {"y": y, "scale": scale}


def gated(x: Any, r: Any) -> dict[str, Any]:
    y, scale = F.quantize(F.mul(r, F.silu(x)), granularity="token")
    return {"y": y, "scale": scale}


def given(x: Any, r: Any) -> dict[str, Any]:
    return {"y": F.quantize(F.rms_norm(x, vector(1)), np.array([0.02], np.float32), granularity="tensor")}


def network_of(build: Build) -> Network:
    with Network("quantized") as network:
        tokens = Dim("tokens", min=1, max=64)
        x, r = (network.input(name, "float16", (tokens, WIDTH)) for name in "xr")
        for name, tensor in build(x, r).items():
            network.mark_output(tensor, name)
    return network


def fused_and_not(build: Build) -> tuple[FusionReport, dict[str, np.ndarray], dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    feed = {name: rng.standard_normal((5, WIDTH)).astype(np.float16) for name in "xr"}
    plain, network = network_of(build), network_of(build)
    report = network.fuse()
    return report, plain.build(backend="reference")(**feed), network.build(backend="reference")(**feed)


@pytest.mark.parametrize(
    ("build", "op"),
    [
        (rms, "rms_norm_quantize_token"),
        (rms_written_out, "rms_norm_quantize_token"),
        (added, "add_rms_norm_quantize_token"),
        (layer, "layer_norm_quantize_token"),
        (gated, "silu_mul_quantize_token"),
        (given, "rms_norm_quantize_token"),
    ],
)
def test_a_norm_or_a_gate_is_fused_with_its_quantization(build: Build, op: str) -> None:
    report, plain, fused = fused_and_not(build)
    assert [r.op for r in report.replacements] == [f"trtforge::{op}"]
    for name, expected in plain.items():
        # the unfused network rounds to 16 bits before it quantizes
        near = Tolerance(l2=2e-3, steps=1, fraction=0.05)
        held = compare(fused[name], expected, near)
        assert held.passed, f"{name}: {held.reason}"


def test_a_norm_that_is_read_elsewhere_stays() -> None:
    def build(x: Any, r: Any) -> dict[str, Any]:
        normalized = F.rms_norm(x, vector(1))
        y, scale = F.quantize(normalized, granularity="token")
        return {"y": y, "scale": scale, "normalized": normalized}

    report, _, _ = fused_and_not(build)
    assert [r.op for r in report.replacements] == ["trtforge::rms_norm"]
    assert "output of the network" in str(report)


def test_a_sum_that_is_needed_for_the_gain_is_not_taken_into_the_op() -> None:
    def build(x: Any, r: Any) -> dict[str, Any]:
        total = F.add(x, r)
        y, scale = F.quantize(F.rms_norm(total, F.mean(total, axis=0)), granularity="token")
        return {"y": y, "scale": scale, "total": total}

    report, plain, fused = fused_and_not(build)
    assert [r.op for r in report.replacements] == ["trtforge::rms_norm_quantize_token"]
    np.testing.assert_array_equal(plain["total"], fused["total"])


def test_every_pattern_of_the_registry_gives_all_outputs_of_its_op() -> None:
    from trtforge.graph_api.matching import Matcher

    registry.load_builtin()
    for op in registry.ops():
        for pattern in op.patterns:
            assert len(Matcher(pattern).results) == len(op.outputs)
