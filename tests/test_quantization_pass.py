"""Quantized networks: each recipe against float outputs, what is refused, checkpoints, text from one, perplexity."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from llm_checkpoints import SHIPPED

import trtforge
from trtforge.bindings.errors import CheckpointError, GraphError, UsageError
from trtforge.graph_api import GatedMLP, LayerNorm, Linear, Module, RMSNorm
from trtforge.graph_api import functional as F
from trtforge.graph_api.llm import generate, open_checkpoint
from trtforge.graph_api.llm.model import bind_checkpoint, build_network
from trtforge.graph_api.network import Network
from trtforge.graph_api.quantization import (
    MSE,
    RECIPES,
    AbsMax,
    Percentile,
    QuantizationReport,
    quantize_network,
    save_quantized,
)
from trtforge.graph_api.quantization.accuracy import (
    BOUNDS,
    CACHE_BOUND,
    document,
    fresh_network,
    measure,
    outputs_of,
    perplexity,
)
from trtforge.graph_api.quantization.config import QuantizationConfig, parse
from trtforge.graph_api.quantization.packing import pack, restored, stored
from trtforge.graph_api.quantization.passes import relative
from trtforge.graph_api.quantization.recipes import CACHES
from trtforge.graph_api.quantization.text import Text, documentation, from_file, order, samples
from trtforge.graph_api.shapes import Dim
from trtforge.kernels.quantize import reference

WIDTH, HIDDEN, ROWS = 128, 256, 24
#: The largest relative error of the block's output, and the least: a pass that quantizes nothing fails too.
OUTPUT_BOUNDS = {
    "int8_smoothquant": (0.03, 2e-3),
    "fp8_tensor": (0.08, 1e-2),
    "fp8_token": (0.08, 1e-2),
    "w8a16": (0.02, 2e-3),
    "w4a16": (0.25, 4e-2),
    "w4a16_awq": (0.25, 3e-2),
}


class Block(Module):
    """A normalization, a gated MLP, the residual; and a head that stays in float."""

    def __init__(self, dtype: str, norm: str = "rms", bias: bool = False) -> None:
        self.norm = RMSNorm(WIDTH, 1e-5, dtype) if norm == "rms" else LayerNorm(WIDTH, 1e-5, True, dtype)
        self.mlp = GatedMLP(WIDTH, HIDDEN, "silu", bias, dtype)
        self.lm_head = Linear(WIDTH, 32, False, dtype)

    def forward(self, x: Any) -> Any:
        return self.lm_head(F.add(x, self.mlp(self.norm(x))))


def block(dtype: str = "float16", seed: int = 0, **options: Any) -> Network:
    module = Block(dtype, **options)
    with Network("block") as network:
        x = network.input("x", dtype, (2, Dim("S", max=64), WIDTH))
        network.mark_output(module(x), "y")
    rng = np.random.default_rng(seed)
    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
    weights = {}
    for name, parameter in network.parameters.items():
        if "norm" in name:
            array = 1 + 0.2 * rng.standard_normal(parameter.shape)
        else:
            array = rng.standard_normal(parameter.shape) * float(parameter.shape[-1]) ** -0.5
        weights[name] = array.astype(kind)
    network.bind_weights(weights)
    return network


def data(count: int = 3, dtype: str = "float16", seed: int = 5, outliers: float = 1.0) -> list[dict[str, np.ndarray]]:
    """Rows N(0, 1), two columns ``outliers`` times as large."""
    rng = np.random.default_rng(seed)
    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
    found = []
    for _ in range(count):
        x = rng.standard_normal((2, ROWS, WIDTH))
        x[..., [3, 77]] *= outliers
        found.append({"x": x.astype(kind)})
    return found


def run(network: Network, sample: dict[str, np.ndarray]) -> np.ndarray:
    return network.build()(**sample)["y"].astype(np.float32)


def branch(network: Network, sample: dict[str, np.ndarray], node: str) -> np.ndarray:
    return outputs_of(network, {"out": node}, sample)["out"].astype(np.float32)


@pytest.mark.parametrize("recipe", RECIPES)
def test_each_recipe_is_near_the_float_network_and_not_equal_to_it(recipe: str) -> None:
    exact = block()
    fresh = data(1, seed=99)[0]
    wanted = branch(exact, fresh, "mlp.down_proj.matmul")
    network = block()
    report = quantize_network(network, recipe, data())
    assert [layer.name for layer in report.layers] == ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
    last = report.layers[-1]
    error = relative(branch(network, fresh, last.node), wanted)
    most, least = OUTPUT_BOUNDS[recipe]
    assert least < error < most
    assert all(layer.output_error is not None and 0 < layer.output_error < most for layer in report.layers)
    assert relative(run(network, fresh), run(exact, fresh)) < most
    how = "scaled_gemm" if RECIPES[recipe].scheme.activations else "dequantize + matmul"
    assert {layer.computed for layer in report.layers} == {how}
    assert sum(layer.bytes_after for layer in report.layers) < 0.6 * sum(layer.bytes_before for layer in report.layers)
    assert [s.name for s in report.skipped] == ["lm_head"]


def test_codes_of_a_value_are_made_once_for_all_its_readers() -> None:
    for recipe, op in (("fp8_token", "trtforge::quantize_token"), ("fp8_tensor", "trtforge::quantize_tensor_static")):
        network = block()
        quantize_network(network, recipe, data())
        assert [n.op for n in network.nodes].count(op) == 2  # before gate and up together, and before down
        assert [n.op for n in network.nodes].count("trtforge::scaled_gemm") == 3


def test_a_quantized_network_is_fused_further() -> None:
    network = block()
    quantize_network(network, "fp8_token")
    sample = data(1)[0]
    before = run(network, sample)
    replaced = {r.op for r in network.fuse().replacements}
    assert "trtforge::rms_norm_quantize_token" in replaced
    assert "trtforge::silu_mul_quantize_token" in replaced
    assert relative(run(network, sample), before) < 2e-2


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("recipe", ["fp8_token", "fp8_tensor", "int8_smoothquant", "w4a16", "w8a16"])
def test_other_dtypes(dtype: str, recipe: str) -> None:
    network, exact = block(dtype), block(dtype)
    report = quantize_network(network, recipe, data(dtype=dtype))
    how = "scaled_gemm" if dtype == "bfloat16" and RECIPES[recipe].scheme.activations else "dequantize + matmul"
    assert {layer.computed for layer in report.layers} == {how}
    sample = data(1, dtype, seed=99)[0]
    assert 0 < relative(run(network, sample), run(exact, sample)) < OUTPUT_BOUNDS[recipe][0]


def test_a_bias_and_a_layer_norm_stay() -> None:
    for recipe in ("int8_smoothquant", "w4a16_awq"):
        network, exact = block(norm="layer", bias=True), block(norm="layer", bias=True)
        report = quantize_network(network, recipe, data(outliers=20.0))
        assert {"norm.weight", "norm.bias"} <= set(report.moved)
        sample = data(1, seed=99, outliers=20.0)[0]
        assert relative(run(network, sample), run(exact, sample)) < OUTPUT_BOUNDS[recipe][0]


def test_smoothing_helps_with_outliers() -> None:
    """Columns 60 times as large take the codes of all others; moved into the weights they do not."""
    calibration, fresh = data(outliers=60.0), data(1, seed=99, outliers=60.0)[0]
    wanted = branch(block(norm="rms"), fresh, "mlp.down_proj.matmul")
    errors = {}
    for smooth in (None, 0.5):
        network = block()
        recipe = dataclasses.replace(RECIPES["int8_smoothquant"], smooth=smooth)
        report = quantize_network(network, recipe, calibration)
        assert report.moved == (() if smooth is None else ("norm.weight",))
        errors[smooth] = relative(branch(network, fresh, report.layers[-1].node), wanted)
    assert errors[0.5] < 0.6 * errors[None]


def test_moving_scales_alone_changes_nothing() -> None:
    """With 8-bit codes left out of it: a weight format so fine that only the moving shows."""
    from trtforge.graph_api.quantization.calibration import calibrate
    from trtforge.graph_api.quantization.linears import by_input, find
    from trtforge.graph_api.quantization.smoothing import move_scales

    for exponent in (0.5, None):
        network, exact = block("float32"), block("float32")
        groups = by_input(find(network, ("*lm_head*",), 4)[0])
        known = calibrate(network, groups, data(dtype="float32"), AbsMax)
        moved = move_scales(network, groups, known, RECIPES["w4a16"].scheme, exponent)
        assert moved == (["norm.weight"] if exponent else ["norm.weight", "mlp.up_proj.weight"])
        sample = data(1, "float32")[0]
        assert not np.array_equal(network.weights["norm.weight"], exact.weights["norm.weight"])
        assert relative(run(network, sample), run(exact, sample)) < 1e-6


def test_search_beats_rounding_where_channels_differ() -> None:
    calibration, fresh = data(outliers=30.0), data(1, seed=99, outliers=30.0)[0]
    wanted = branch(block(), fresh, "mlp.down_proj.matmul")
    errors = {}
    for recipe in ("w4a16", "w4a16_awq"):
        network = block()
        report = quantize_network(network, recipe, calibration)
        errors[recipe] = relative(branch(network, fresh, report.layers[-1].node), wanted)
    assert errors["w4a16_awq"] < 0.9 * errors["w4a16"]


def test_a_short_last_group_is_computed_but_not_stored(tmp_path: Path) -> None:
    with Network("odd") as network:
        x = network.input("x", "float16", (8, 200))
        weight = network.parameter("a.weight", (16, 200), "float16")
        other = network.parameter("b.weight", (16, 33), "float16")
        network.mark_output(F.linear(x, weight), "y")
        network.mark_output(F.linear(network.input("z", "float16", (8, 33)), other), "w")
    rng = np.random.default_rng(1)
    network.bind_weights({n: rng.standard_normal(p.shape).astype(np.float16) for n, p in network.parameters.items()})
    report = quantize_network(network, "w4a16")
    assert [(s.name, "K must be even" in s.reason) for s in report.skipped] == [("b", True)]
    assert network.weights["a.weight_scale"].shape == (16, 2)
    with pytest.raises(UsageError, match="a is no multiple of the group size 128"):
        save_quantized(tmp_path / "out", network, report, SHIPPED)


# --- observers -------------------------------------------------------------------------------------------------------


def test_observers() -> None:
    x = np.random.default_rng(0).standard_normal(200_000).astype(np.float32)
    x[7] = 50.0
    found = {}
    for observer in (AbsMax(), Percentile(99.9), MSE()):
        for part in np.split(x, 4):
            observer.observe(part)
        observer.observe(np.array([np.nan, np.inf, -np.inf], np.float32))
        found[type(observer).__name__] = observer.largest("int8")
    assert found["AbsMax"] == 50.0
    assert found["Percentile"] == pytest.approx(np.quantile(np.abs(x), 0.999), rel=0.02)
    assert found["Percentile"] < found["MSE"] < 50.0

    def error(top: float) -> float:
        scale = reference.scale_of(np.float32(top), "int8")
        return relative(reference.encode(x / scale, "int8").astype(np.float32) * scale, x)

    assert error(found["MSE"]) <= min(error(found["AbsMax"]), error(found["Percentile"]))


@pytest.mark.parametrize("observer", ["percentile", "mse", Percentile(99.0)])
def test_static_scales_come_from_the_observer(observer: Any) -> None:
    largest, other = block(), block()
    quantize_network(largest, "fp8_tensor", data())
    quantize_network(other, "fp8_tensor", data(), observer=observer)
    name = "mlp.gate_proj.input_scale"
    assert 0 < other.weights[name][0] < largest.weights[name][0] * 1.001
    if isinstance(observer, Percentile):
        assert observer.histogram.limit == 0.0  # the one given is a pattern for new ones


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "options", "kind", "message"),
    [
        (("int3", data()), {}, UsageError, "recipe is 'int3'; accepted: int8_smoothquant"),
        (("int8_smoothquant",), {}, UsageError, "int8_smoothquant needs calibration_data"),
        (("fp8_tensor", None), {}, UsageError, "fp8_tensor needs calibration_data"),
        (("w4a16_awq",), {}, UsageError, "w4a16_awq needs calibration_data"),
        (("w8a16", []), {}, UsageError, "calibration_data is empty"),
        (("w8a16", 3), {}, UsageError, "calibration_data is int"),
        (("w8a16", "text"), {}, UsageError, "calibration_data is str"),
        (("w8a16", np.zeros(3)), {}, UsageError, "calibration_data is ndarray"),
        (("w8a16", [np.zeros(3)]), {}, UsageError, r"calibration_data\[0\] is ndarray"),
        (("w8a16", [*data(1), {}]), {}, GraphError, r"calibration_data\[1\].*missing input 'x'"),
        (("w8a16", [{"x": np.zeros((2, 4, 64), np.float16)}]), {}, GraphError, r"\[0\].*shape \[2, 4, 64\]"),
        (("w8a16", [{"x": np.zeros((2, 4, 128))}]), {}, GraphError, r"\[0\].*float64"),
        (("w8a16", [{"x": np.full((2, 4, 128), np.nan, np.float16)}]), {}, GraphError, "NaN or infinite rows only"),
        (("w8a16",), {"observer": "median"}, UsageError, "observer is 'median'; accepted: absmax"),
        (("w8a16",), {"observer": 3}, UsageError, "observer is int"),
        (("w8a16",), {"skip": "lm_head"}, UsageError, "skip is the string"),
        (("w8a16",), {"skip": ["*"]}, GraphError, "no linear layer"),
        (("w8a16",), {"kv_cache": "int4"}, UsageError, "kv_cache is 'int4'"),
        (("w8a16", data()), {"kv_cache": "int8"}, GraphError, "writes no float state"),
        ((None, data()), {}, UsageError, "recipe and kv_cache are None"),
        ((None, data()), {"kv_cache": "int8"}, GraphError, "writes no float state"),
    ],
)
def test_refusals_leave_the_network_as_it_was(arguments: Any, options: Any, kind: type, message: str) -> None:
    network = block()
    before, arrays = network.to_text(), dict(network.weights)
    with pytest.raises(kind, match=message):
        quantize_network(network, *arguments, **options)
    assert network.to_text() == before
    assert all(network.weights[name] is array for name, array in arrays.items())


def test_wrong_weights_and_fused_networks_are_refused() -> None:
    network = block()
    network.weights["mlp.up_proj.weight"] = np.full((HIDDEN, WIDTH), np.inf, np.float16)
    with pytest.raises(GraphError, match=r"mlp\.up_proj\.weight hold NaN or infinite"):
        quantize_network(network, "w8a16")
    del network.weights["mlp.up_proj.weight"]
    with pytest.raises(GraphError, match=r"without weights: mlp\.up_proj\.weight"):
        quantize_network(network, "w8a16")
    fused = block()
    fused.fuse()
    with pytest.raises(GraphError, match="was fused already"):
        quantize_network(fused, "w8a16")
    with pytest.raises(UsageError, match="percent is 0"):
        Percentile(0.0)


def test_a_weight_with_two_readers_stays_in_float() -> None:
    with Network("tied") as network:
        table = network.parameter("table.weight", (64, 128), "float16")
        rows = F.embedding(network.input("i", "int32", (4,)), table)
        network.mark_output(F.linear(rows, table), "y")
    network.bind_weights({"table.weight": np.ones((64, 128), np.float16)})
    with pytest.raises(GraphError, match="no linear layer"):
        quantize_network(network, "w8a16", skip=())


# --- checkpoints -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", RECIPES)
def test_packed_layers_come_back_equal(recipe: str) -> None:
    weight = np.random.default_rng(3).standard_normal((24, 256)).astype(np.float16)
    scheme = RECIPES[recipe].scheme
    static = np.array([0.02], np.float32) if scheme.static else None
    packed = pack("a.b", weight, scheme, static)
    tensors = stored(packed)
    config = QuantizationConfig(scheme)
    expected = config.expected("a.b.weight", weight.shape)
    assert set(tensors) == set(expected)
    assert all(tensors[name].shape in shapes for name, (shapes, _) in expected.items())
    back = restored("a.b", scheme, (24, 256), {n.removeprefix("a.b."): t for n, t in tensors.items()})
    assert np.array_equal(back.codes.view(np.uint8), packed.codes.view(np.uint8))
    assert np.array_equal(back.weight_scale, packed.weight_scale)
    assert back.codes.dtype == packed.codes.dtype
    assert parse(json.loads(json.dumps(config.to_dict())), "config.json") == config
    assert relative(packed.dequantized(), weight.astype(np.float32)) < (0.15 if "w4" in recipe else 0.04)


def test_packed_words_are_those_of_compressed_tensors() -> None:
    """Codes plus 8 (plus 128), the first in the lowest bits of the word."""
    four = np.zeros((1, 128), np.float32)
    four[0, :4] = [7, -7, 1, 0]
    packed = stored(pack("a", four, RECIPES["w4a16"].scheme))
    assert packed["a.weight_packed"].dtype == np.int32
    assert packed["a.weight_packed"].shape == (1, 16)
    assert packed["a.weight_packed"][0, 0] & 0xFFFF == 15 | 1 << 4 | 9 << 8 | 8 << 12
    assert packed["a.weight_shape"].tolist() == [1, 128]
    eight = np.array([[127, -127, 1, 0, 5]], np.float32)
    packed = stored(pack("a", eight, RECIPES["w8a16"].scheme))
    words = packed["a.weight_packed"].view(np.uint32)
    assert words[0, 0] == 255 | 1 << 8 | 129 << 16 | 128 << 24
    assert words[0, 1] == 133  # filled up with zero bits


TOKENS = np.arange(5, 45, dtype=np.int32)[None]
AT = np.zeros(1, np.int32)


def small_samples() -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(2)
    return [{"tokens": rng.integers(2, 2048, (1, 48), dtype=np.int32), "positions": AT} for _ in range(2)]


@pytest.fixture(scope="module")
def shipped() -> Any:
    return open_checkpoint(SHIPPED)


def saved(shipped: Any, folder: Path, recipe: str, **options: Any) -> tuple[Network, QuantizationReport]:
    network = fresh_network(shipped, 64)
    report = quantize_network(network, recipe, small_samples(), **options)
    save_quantized(folder, network, report, SHIPPED)
    return network, report


@pytest.mark.parametrize(("recipe", "cache"), [*((r, None) for r in RECIPES), ("fp8_tensor", "int8")])
def test_a_saved_checkpoint_computes_the_same_and_writes_text(
    shipped: Any, tmp_path: Path, recipe: str, cache: str | None
) -> None:
    network, report = saved(shipped, tmp_path, recipe, kv_cache=cache)
    assert len(report.layers) == 35
    assert [s.name for s in report.skipped] == ["model.embed_tokens"]
    assert len(report.caches) == (10 if cache else 0)
    opened = open_checkpoint(tmp_path)
    again = build_network(opened.config, "float16", every=True, max_length=64)
    bind_checkpoint(again, opened)
    wanted = network.build()(tokens=TOKENS, positions=AT)["logits"]
    assert np.array_equal(again.build()(tokens=TOKENS, positions=AT)["logits"], wanted)
    result = generate(tmp_path, "The following", max_tokens=3, backend="reference")
    assert len(result.token_ids) == 3
    assert (tmp_path / "model.safetensors").stat().st_size < 0.7 * (SHIPPED / "model.safetensors").stat().st_size


def test_a_cache_alone_in_codes_leaves_every_weight_and_is_not_stored(shipped: Any, tmp_path: Path) -> None:
    network = fresh_network(shipped, 64)
    before = dict(network.weights)
    with pytest.raises(UsageError, match="kv_cache='int8' needs calibration_data"):
        quantize_network(network, None, kv_cache="int8")
    report = quantize_network(network, None, small_samples(), kv_cache="int8")
    assert (report.recipe, report.kv_cache, len(report.caches), report.layers) == ("float", "int8", 10, ())
    assert all(network.weights[name] is array for name, array in before.items())
    assert sum(t.dtype == "int8" for t in network.states.values()) == 10
    exact = fresh_network(shipped, 64).build()(tokens=TOKENS, positions=AT)["logits"]
    assert 0 < relative(network.build()(tokens=TOKENS, positions=AT)["logits"], exact) < 0.05
    with pytest.raises(GraphError, match="no codes of layers"):
        save_quantized(tmp_path, network, report, SHIPPED)


def test_config_holds_the_names_of_compressed_tensors(shipped: Any, tmp_path: Path) -> None:
    saved(shipped, tmp_path, "w4a16")
    config = json.loads((tmp_path / "config.json").read_text())
    found = config["quantization_config"]
    assert (found["quant_method"], found["format"]) == ("compressed-tensors", "pack-quantized")
    group = found["config_groups"]["group_0"]
    assert group["targets"] == ["Linear"] and group["input_activations"] is None
    wanted = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 128}
    assert wanted.items() <= group["weights"].items()
    assert found["ignore"] == ["lm_head"]
    assert config["torch_dtype"] == "float16"
    names = set(trtforge.graph_api.read_safetensors(tmp_path / "model.safetensors"))
    layer = "model.layers.0.mlp.up_proj"
    assert {f"{layer}.weight_packed", f"{layer}.weight_scale", f"{layer}.weight_shape"} <= names
    assert f"{layer}.weight" not in names


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"quant_method": "gptq"}, 'quant_method is "gptq"'),
        ({"config_groups": {}}, "config_groups is"),
        ({"format": "dense"}, 'format is "dense"; accepted is "int-quantized"'),
        ({"ignore": "lm_head"}, "ignore is"),
        ({"ignore": ["re:("]}, "regular expression"),
        ({"kv_cache_scheme": {"num_bits": 4, "type": "int"}}, "kv_cache_scheme is"),
        ({"weights": {"num_bits": 3}}, "weights is"),
        ({"weights": {"symmetric": False}}, "weights.symmetric is false"),
        ({"input_activations": {"strategy": "group"}}, "input_activations is"),
        ({"input_activations": {"type": "float"}}, "input_activations is"),
        ({"targets": ["Conv2d"]}, "targets is"),
    ],
)
def test_configurations_that_nothing_computes_are_refused(change: dict[str, Any], message: str) -> None:
    value = QuantizationConfig(RECIPES["int8_smoothquant"].scheme).to_dict()
    group = value["config_groups"]["group_0"]
    for key, new in change.items():
        if key in ("weights", "input_activations"):
            group[key] |= new
        elif key == "targets":
            group[key] = new
        else:
            value[key] = new
    with pytest.raises(CheckpointError, match=message):
        parse(value, "config.json")


def test_damaged_quantized_checkpoints_are_refused(shipped: Any, tmp_path: Path) -> None:
    saved(shipped, tmp_path / "good", "fp8_tensor")
    path = tmp_path / "good" / "config.json"
    config = json.loads(path.read_text())
    group = config["quantization_config"]["config_groups"]["group_0"]
    group["weights"]["strategy"] = "channel"
    path.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"weight_scale is \[1\], quantization_config asks for"):
        open_checkpoint(tmp_path / "good")
    shutil.copy(SHIPPED / "model.safetensors", tmp_path / "good" / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"wrong type.*F16; quantization_config asks for F8_E4M3"):
        open_checkpoint(tmp_path / "good")
    with pytest.raises(UsageError, match="is the checkpoint that is quantized"):
        save_quantized(SHIPPED, block(), QuantizationReport("", "", (), ()), SHIPPED)
    with pytest.raises(GraphError, match="no codes"):
        save_quantized(tmp_path, block(), QuantizationReport("", "", (), ()), SHIPPED)


# --- the shipped model -----------------------------------------------------------------------------------------------


def test_the_order_of_documents_is_that_of_training() -> None:
    assert order(512)[:3] == [355, 375, 89]  # torch.randperm(512, generator=torch.Generator().manual_seed(20))
    assert sorted(order(512)) == list(range(512))


def test_perplexity_of_uniform_logits_is_the_vocabulary(shipped: Any) -> None:
    with Network("uniform") as network:
        tokens = network.input("tokens", "int32", (1, 8))
        network.input("positions", "int32", (1,))
        zeros = F.mul(F.cast(F.unsqueeze(tokens, 2), "float32"), np.zeros((1, 1, 50), np.float32))
        network.mark_output(zeros, "logits")
    assert perplexity(network, np.arange(30, dtype=np.int32), 8) == pytest.approx(50)
    with pytest.raises(UsageError, match="8 tokens to measure on; at least 9"):
        perplexity(network, np.arange(8, dtype=np.int32), 8)


def test_text_files(shipped: Any, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("The object is a class. " * 40)
    text = from_file(path, shipped.tokenizer)
    assert abs(len(text.calibration) - len(text.held_out)) <= 1
    with pytest.raises(UsageError, match="tokens to calibrate on"):
        samples(text.calibration[:10], 2, 64)
    with pytest.raises(UsageError, match="cannot be read"):
        from_file(tmp_path / "none.txt", shipped.tokenizer)


def test_perplexity_keeps_to_its_bounds_on_an_excerpt(shipped: Any) -> None:
    """The excerpt is short, so the bounds are twice those that the whole held-out text is held to (committed table)."""
    text = documentation(shipped.tokenizer, shipped.config)
    assert len(text.held_out) == pytest.approx(0.02 * (len(text.calibration) + len(text.held_out)), rel=0.01)
    short = Text(text.calibration, text.held_out[: 128 * 8 + 1], text.source)
    rows = measure(shipped, short, list(RECIPES), window=128, calibration_windows=6, caches=CACHES)
    assert [row.label for row in rows] == ["float", *RECIPES, *(f"float + {cache} cache" for cache in CACHES)]
    for row in rows[-2:]:
        assert 0 < abs(row.loss) < 2 * CACHE_BOUND and row.bound == CACHE_BOUND, row
        assert row.nbytes == pytest.approx(rows[0].nbytes, rel=1e-4)  # and the scales of the cache
        assert len(row.layers) == 35
        first = next(name for name in row.layers if name.endswith("layers.0.self_attn.q_proj"))
        assert row.layers[first] == 0 < row.worst[1] < 0.2  # nothing before it is in codes
    for row in rows[1:-2]:
        assert row.loss < 2 * BOUNDS[row.recipe], row
        assert len(row.layers) == 35
        assert 0 < row.worst[1] < 0.5
        assert row.nbytes < 0.65 * rows[0].nbytes
    made = document(shipped, short, rows, "0")
    assert made["about"]["model"] == "pydoc_llama"
    json.dumps(made, allow_nan=False)


def test_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from trtforge.cli import main

    text, out = tmp_path / "text.txt", tmp_path / "out"
    text.write_text("The value of the object is a string, and the name of the class is returned. " * 120)
    common = [str(SHIPPED), "--text", str(text), "--samples", "2"]
    command = ["quantize", *common, "--recipe", "fp8_tensor", "--kv-cache", "float8_e4m3fn", "-o", str(out), "--json"]
    assert main(command) == 0
    made = json.loads(capsys.readouterr().out)
    assert (made["recipe"], made["kv_cache"], len(made["layers"])) == ("fp8_tensor", "float8_e4m3fn", 35)
    prompt = [
        "generate",
        str(out),
        "--prompt",
        "The following",
        "--max-tokens",
        "2",
        "--backend",
        "reference",
        "--json",
    ]
    assert main(prompt) == 0
    assert json.loads(capsys.readouterr().out)["dtype"] == "float16"
    assert main(["accuracy", *common, "--recipes", "w8a16", "--tokens", "257", "--json", str(tmp_path / "a.json")]) == 0
    rows = json.loads((tmp_path / "a.json").read_text())["rows"]
    assert [row["recipe"] for row in rows] == ["float", "w8a16"]
    cached = ["--caches", "int8", "--tokens", "257", "--json", str(tmp_path / "a.json")]
    assert main(["accuracy", *common, *cached]) == 0
    rows = json.loads((tmp_path / "a.json").read_text())["rows"]
    assert [(row["recipe"], row["kv_cache"]) for row in rows] == [("float", None), ("float", "int8")]
    assert "w8a16" in capsys.readouterr().out
    assert main(["accuracy", str(out), "--text", str(text)]) == 2
    assert "is quantized already" in capsys.readouterr().err
    assert main(["quantize", str(out), "--recipe", "w8a16", "-o", str(tmp_path / "b"), "--text", str(text)]) == 2
    assert main(["quantize", *common[:3], "--samples", "0", "--recipe", "w8a16", "-o", str(out)]) == 2
