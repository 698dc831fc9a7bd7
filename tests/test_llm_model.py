"""The model in the graph API against a plain NumPy Llama: prefill, decode, batches, variants and dtypes."""

from __future__ import annotations

import dataclasses
import json

import llm_checkpoints as tiny
import numpy as np
import pytest

from trtforge.bindings.errors import CheckpointError, UsageError
from trtforge.graph_api.llm import Session, open_checkpoint
from trtforge.graph_api.llm import session as session_module
from trtforge.graph_api.llm.model import bind_checkpoint, build_network

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
VARIANTS = {
    "grouped": {},
    "all heads their own": {"num_key_value_heads": 4},
    "one key head": {"num_key_value_heads": 1},
    "narrow heads": {"head_dim": 16},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "tied": {"tie_word_embeddings": True},
    "linear rope": {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    "llama3 rope": {"rope_scaling": LLAMA3 | {"original_max_position_embeddings": 32}},
    "large theta": {"rope_theta": 5e5},
    "large eps": {"rms_norm_eps": 0.1},
}


def tokens_of(count: int, seed: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 260, count).astype(np.int32)


def at(*positions: int) -> np.ndarray:
    return np.array(positions, np.int32)


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_prefill_and_decode_equal_the_plain_model(tmp_path, changes):
    config = tiny.tiny_config(**changes)
    weights = tiny.random_weights(config)
    session = Session(open_checkpoint(tiny.write(tmp_path, config, weights)), backend="reference")
    tokens = tokens_of(24)
    expected = tiny.plain_llama(config, weights, tokens)
    np.testing.assert_allclose(session.prefill(tokens[None, :16])[0], expected[15], atol=2e-5)
    for i in range(16, 24):
        np.testing.assert_allclose(session.step(tokens[None, i : i + 1], at(i))[0], expected[i], atol=2e-5)


@pytest.mark.parametrize(("dtype", "error"), [("float32", 1e-6), ("float16", 4e-3), ("bfloat16", 3e-2)])
@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
def test_every_compute_dtype(tmp_path, dtype, error, stored):
    config = tiny.tiny_config(torch_dtype=stored)
    weights = tiny.random_weights(config)
    checkpoint = open_checkpoint(tiny.write(tmp_path, config, weights))
    network = build_network(checkpoint.config, dtype, every=True)
    bind_checkpoint(network, checkpoint)
    tokens = tokens_of(20)
    logits = network.build("reference")(tokens=tokens[None], positions=at(0))["logits"][0]
    expected = tiny.plain_llama(config, weights, tokens)
    assert logits.dtype == np.float32
    assert np.linalg.norm(logits - expected) <= error * np.linalg.norm(expected)


def test_a_batch_at_different_positions(tmp_path):
    config = tiny.tiny_config()
    weights = tiny.random_weights(config)
    session = Session(open_checkpoint(tiny.write(tmp_path, config, weights)), backend="reference", batch=2)
    first, second = tokens_of(12, 1), tokens_of(12, 2)
    expected = [tiny.plain_llama(config, weights, tokens) for tokens in (first, second)]
    logits = session.prefill(np.stack([first[:8], second[:8]]))
    np.testing.assert_allclose(logits, [expected[0][7], expected[1][7]], atol=2e-5)
    logits = session.step(np.array([[first[8]], [second[5]]], np.int32), at(8, 5))  # the second rewinds by three
    np.testing.assert_allclose(logits, [expected[0][8], expected[1][5]], atol=2e-5)
    logits = session.step(np.stack([first[9:11], second[6:8]]), at(9, 6))
    np.testing.assert_allclose(logits, [expected[0][10], expected[1][7]], atol=2e-5)


@pytest.mark.parametrize(("dtype", "error"), [("float16", 4e-3), ("bfloat16", 3e-2)])
def test_fused_networks_equal_the_plain_model(tmp_path, dtype, error):
    """Flash attention and the gated GEMM in place of the written-out ops, a batch at different positions."""
    config = tiny.tiny_config(attention_bias=True)
    weights = tiny.random_weights(config)
    checkpoint = open_checkpoint(tiny.write(tmp_path, config, weights))
    first, second = tokens_of(12, 1), tokens_of(12, 2)
    expected = [tiny.plain_llama(config, weights, tokens) for tokens in (first, second)]
    for fuse in (True, False):
        session = Session(checkpoint, backend="reference", dtype=dtype, batch=2, fuse=fuse)
        replaced = {replacement.op for replacement in session.fusion_report.replacements}
        assert ("trtforge::flash_attention" in replaced and "trtforge::gated_gemm" in replaced) == fuse
        found = [session.prefill(np.stack([first[:8], second[:8]]))]
        found += [session.step(np.array([[first[8]], [second[5]]], np.int32), at(8, 5))]
        found += [session.step(np.stack([first[9:11], second[6:8]]), at(9, 6))]
        for logits, rows in zip(found, ((7, 7), (8, 5), (10, 7))):
            wanted = np.stack([expected[0][rows[0]], expected[1][rows[1]]])
            assert np.linalg.norm(logits - wanted) <= error * np.linalg.norm(wanted)


def test_an_explanation_tells_fusion_and_placement(tmp_path):
    config = tiny.tiny_config(torch_dtype="float16")
    session = Session(open_checkpoint(tiny.write(tmp_path, config)), backend="reference")
    explanation = session.explain()
    text = str(explanation)
    assert "2 × model.layers.*.self_attn.flash_attention = trtforge::flash_attention" in text
    assert "in place of gate_proj.matmul, silu, up_proj.matmul, mul" in text
    assert "placement (reference backend, float16)" in text
    data = json.loads(json.dumps(explanation.to_dict()))
    assert len(data["nodes"]) == len(session.network.nodes) == data["fusion"]["nodes_after"]
    assert all(node["runs_on"] for node in data["nodes"])


def test_a_long_prompt_goes_through_in_steps(tmp_path, monkeypatch):
    config = tiny.tiny_config()
    weights = tiny.random_weights(config)
    session = Session(open_checkpoint(tiny.write(tmp_path, config, weights)), backend="reference")
    monkeypatch.setattr(session_module, "LONGEST_STEP", 7)
    tokens = tokens_of(40)
    np.testing.assert_allclose(
        session.prefill(tokens[None])[0], tiny.plain_llama(config, weights, tokens)[-1], atol=2e-5
    )


def test_a_reused_cache_does_not_remember(tmp_path):
    session = Session(open_checkpoint(tiny.write(tmp_path)), backend="reference")
    tokens = tokens_of(10)[None]
    first = session.prefill(tokens)
    session.prefill(tokens_of(40, 9)[None])
    np.testing.assert_array_equal(session.prefill(tokens), first)


def test_parameters_carry_the_names_of_the_checkpoint(tmp_path):
    config = tiny.tiny_config(attention_bias=True, mlp_bias=True)
    checkpoint = open_checkpoint(tiny.write(tmp_path, config))
    network = build_network(checkpoint.config, "float16")
    assert set(network.parameters) == set(checkpoint.weights)
    tied = build_network(dataclasses.replace(checkpoint.config, tie_word_embeddings=True), "float16")
    assert set(tied.parameters) == set(checkpoint.weights) - {"lm_head.weight"}


def test_weights_beyond_float16_are_refused_with_the_way_out(tmp_path):
    config = tiny.tiny_config()
    weights = tiny.random_weights(config)
    weights["model.norm.weight"][3] = 1e6
    checkpoint = open_checkpoint(tiny.write(tmp_path, config, weights))
    with pytest.raises(CheckpointError, match=r"model.norm.weight reaches 1000000.*float16.*bfloat16"):
        Session(checkpoint, backend="reference", dtype="float16")
    Session(checkpoint, backend="reference", dtype="bfloat16")


def test_cache_lengths_are_rounded_and_bounded(tmp_path):
    checkpoint = open_checkpoint(tiny.write(tmp_path, tiny.tiny_config(max_position_embeddings=200)))
    lengths = {None: 200, 1: 64, 64: 64, 65: 128, 199: 200, 5000: 200}
    found = {n: Session(checkpoint, backend="reference", max_length=n).max_length for n in lengths}
    assert found == lengths


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backend": "quantum"}, "backend is 'quantum'.*auto, reference, cuda"),
        ({"dtype": "int8"}, "dtype is 'int8'.*float16, bfloat16, float32"),
        ({"batch": 0}, "batch is 0"),
        ({"max_length": -1}, "max_length is -1"),
    ],
)
def test_bad_session_arguments(tmp_path, arguments, message):
    checkpoint = open_checkpoint(tiny.write(tmp_path))
    with pytest.raises(UsageError, match=message):
        Session(checkpoint, **({"backend": "reference"} | arguments))
