"""Checkpoint directories: what is read, and every fault as one CheckpointError that names file and fix."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import llm_checkpoints as tiny
import numpy as np
import pytest
from ml_dtypes import bfloat16
from safetensors.numpy import load_file, save_file

from trtforge.bindings.errors import CheckpointError, UsageError
from trtforge.graph_api.llm.checkpoint import open_checkpoint
from trtforge.graph_api.llm.config import read_config

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def edit_json(path: Path, **changes: object) -> None:
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps(values))


def edit_weights(folder: Path, **changes: np.ndarray | None) -> None:
    """Replace, add or (None) remove tensors; ``__`` in a name stands for a dot."""
    weights = load_file(folder / WEIGHTS)
    for name, value in changes.items():
        name = name.replace("__", ".")
        if value is None:
            del weights[name]
        else:
            weights[name] = value
    save_file(weights, folder / WEIGHTS)


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(folder)
    return str(caught.value)


@pytest.mark.parametrize("shards", [0, 1, 3])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_reads_one_file_and_shards_in_every_dtype(tmp_path, shards, dtype):
    config = tiny.tiny_config(torch_dtype=dtype)
    weights = tiny.random_weights(config)
    checkpoint = open_checkpoint(tiny.write(tmp_path, config, weights, shards))
    assert checkpoint.config.dtype == dtype
    assert set(checkpoint.weights) == set(weights)
    for name, value in checkpoint.weights.items():
        assert value.dtype == weights[name].dtype
        np.testing.assert_array_equal(value.astype(np.float32), weights[name].astype(np.float32))


def test_values_are_read_only_when_asked_for(tmp_path):
    checkpoint = open_checkpoint(tiny.write(tmp_path, shards=2))
    assert checkpoint.weights._files == {}
    assert checkpoint.weights["model.norm.weight"].shape == (64,)
    assert len(checkpoint.weights._files) == 1


def test_the_shipped_checkpoint_opens():
    checkpoint = open_checkpoint(tiny.SHIPPED)
    assert checkpoint.config.num_key_value_heads < checkpoint.config.num_attention_heads
    assert checkpoint.config.eos_token_ids
    size = sum(path.stat().st_size for path in tiny.SHIPPED.iterdir())
    assert size <= 3 * 1024 * 1024
    ids = checkpoint.tokenizer.encode("naïve 漢字 🙂\n\tdef f(x): ...")
    assert checkpoint.tokenizer.decode(ids) == "naïve 漢字 🙂\n\tdef f(x): ..."


def test_configuration_defaults_are_those_of_hugging_face(tmp_path):
    absent = {"head_dim": None, "num_key_value_heads": None, "rms_norm_eps": None, "rope_theta": None}
    absent |= {"hidden_act": None, "max_position_embeddings": None, "torch_dtype": None, "eos_token_id": None}
    (tmp_path / "config.json").write_text(json.dumps(tiny.tiny_config(**absent)))
    config = read_config(tmp_path)
    assert (config.head_dim, config.num_key_value_heads) == (16, 4)
    assert (config.rms_norm_eps, config.rope_theta, config.max_position_embeddings) == (1e-6, 1e4, 2048)
    assert (config.dtype, config.eos_token_ids) == ("float32", ())


def test_generation_config_overrides_the_end_token(tmp_path):
    tiny.write(tmp_path)
    assert read_config(tmp_path).eos_token_ids == (1,)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [1, 7]}')
    assert read_config(tmp_path).eos_token_ids == (1, 7)
    (tmp_path / "generation_config.json").write_text("{}")
    assert read_config(tmp_path).eos_token_ids == (1,)


def test_newer_configuration_keys(tmp_path):
    rope = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0}
    rope |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 32}
    changes = {"torch_dtype": None, "dtype": "bfloat16", "rope_theta": None, "rope_parameters": rope}
    (tmp_path / "config.json").write_text(json.dumps(tiny.tiny_config(**changes)))
    config = read_config(tmp_path)
    assert (config.dtype, config.rope_theta) == ("bfloat16", 5e5)
    assert config.rope_scaling == {key: value for key, value in rope.items() if key != "rope_theta"}


@pytest.mark.parametrize("keys", [{"sliding_window": None}, {"sliding_window": 4096}, {}])
def test_mistral_without_an_effective_window_is_a_llama(tmp_path, keys):
    config = tiny.tiny_config(architectures=["MistralForCausalLM"], model_type="mistral") | keys
    assert open_checkpoint(tiny.write(tmp_path, config)).config.hidden_size == 64


def test_old_rotary_tables_and_a_repeated_tied_head_are_passed_over(tmp_path):
    config = tiny.tiny_config(tie_word_embeddings=True)
    weights = tiny.random_weights(config)
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(16, np.float32)
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].copy()
    open_checkpoint(tiny.write(tmp_path, config, weights))
    edit_weights(tmp_path, lm_head__weight=weights["lm_head.weight"] + 1)
    assert "lm_head.weight differs from model.embed_tokens.weight" in refusal(tmp_path)


CONFIG_FAULTS = [
    ({"architectures": ["GPT2LMHeadModel"]}, "GPT2LMHeadModel.*LlamaForCausalLM"),
    ({"architectures": "LlamaForCausalLM"}, "architectures is.*LlamaForCausalLM or"),
    ({"architectures": []}, "architectures is"),
    ({"architectures": None, "model_type": "gpt2"}, 'model_type is "gpt2".*llama'),
    ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config.*gptq.*float16"),
    ({"hidden_size": None}, "hidden_size is missing"),
    ({"hidden_size": "64"}, 'hidden_size is "64".*integer'),
    ({"hidden_size": True}, "hidden_size is true"),
    ({"hidden_size": -64}, "hidden_size is -64"),
    ({"hidden_size": 64.5}, "hidden_size is 64.5"),
    ({"vocab_size": 0}, "vocab_size is 0.*from 1"),
    ({"vocab_size": 10**12}, "vocab_size is 1000000000000"),
    ({"num_hidden_layers": 10**9}, "num_hidden_layers.*1024"),
    ({"num_key_value_heads": 3}, "num_key_value_heads is 3.*divisor of num_attention_heads, which is 4"),
    ({"num_attention_heads": 3, "num_key_value_heads": 3, "head_dim": None}, "divisor of hidden_size"),
    ({"num_attention_heads": 128, "num_key_value_heads": 64, "head_dim": None}, "divisor of hidden_size"),
    ({"head_dim": 31}, "head_dim is 31.*even"),
    ({"hidden_act": "relu2"}, 'hidden_act is "relu2".*silu'),
    ({"rms_norm_eps": 0}, "rms_norm_eps is 0.*positive"),
    ({"rope_theta": "big"}, "rope_theta"),
    (
        {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
        'rope_scaling.rope_type is "yarn".*linear.*llama3',
    ),
    ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, 'rope_scaling.type is "dynamic"'),
    ({"rope_scaling": {"rope_type": "linear"}}, "rope_scaling.factor is missing"),
    ({"rope_scaling": {"rope_type": ["linear"]}}, "rope_scaling.rope_type"),
    ({"rope_scaling": "linear"}, "rope_scaling is"),
    ({"tie_word_embeddings": "yes"}, "tie_word_embeddings.*true or false"),
    ({"torch_dtype": "int8"}, 'torch_dtype is "int8".*float16'),
    ({"eos_token_id": 260}, "eos_token_id is 260.*0 to 259"),
    ({"eos_token_id": [1, "x"]}, "eos_token_id"),
    ({"sliding_window": 16}, "sliding_window is 16.*null"),
    ({"architectures": ["MistralForCausalLM"], "max_position_embeddings": 32768}, "sliding_window is 4096"),
]


@pytest.mark.parametrize(("changes", "message"), CONFIG_FAULTS, ids=[str(changes)[:60] for changes, _ in CONFIG_FAULTS])
def test_faulty_configurations(tmp_path, changes, message):
    (tmp_path / "config.json").write_text(json.dumps(tiny.tiny_config(**changes)))
    with pytest.raises(CheckpointError, match=rf"^{tmp_path}/config.json: .*{message}"):
        read_config(tmp_path)


def test_not_a_directory(tmp_path):
    assert "does not exist" in refusal(tmp_path / "nowhere")
    (tmp_path / "file").write_text("x")
    assert "is a file" in refusal(tmp_path / "file")
    assert "has no config.json (found: file)" in refusal(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", INDEX])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"vocab_size": 260,', "not valid JSON at line 1, column"),
        (b"", "not valid JSON at line 1"),
        (b"\xff\xfe{", "byte 0 is not UTF-8"),
        (b"[1, 2]", "holds a JSON list"),
        (b'{"rope_theta": NaN}', "NaN is not a JSON number"),
        (b"[" * 100000, "not valid JSON"),
    ],
    ids=["cut", "empty", "utf16", "list", "nan", "deep"],
)
def test_broken_json(tmp_path, name, content, message):
    tiny.write(tmp_path, shards=2)
    (tmp_path / name).write_bytes(content)
    text = refusal(tmp_path)
    assert text.startswith(f"{tmp_path}/{name}: ") and message in text


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _cut_header(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:20])


def _alter_header(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[8:12] = b"\0\0\0\0"
    path.write_bytes(bytes(content))


def _huge_header(path: Path) -> None:
    path.write_bytes((2**62).to_bytes(8, "little") + path.read_bytes()[8:])


def _append(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"more")


@pytest.mark.parametrize("damage", [_truncate, _cut_header, _alter_header, _huge_header, _append, Path.touch])
@pytest.mark.parametrize("shards", [0, 2])
def test_damaged_safetensors(tmp_path, damage: Callable[[Path], None], shards):
    tiny.write(tmp_path, shards=shards)
    path = sorted(tmp_path.glob("*.safetensors"))[-1]
    if damage is Path.touch:
        path.unlink()
        path.touch()
    else:
        damage(path)
    text = refusal(tmp_path)
    assert text.startswith(f"{path}: not a readable safetensors file") and f"{path.stat().st_size} bytes" in text


def test_a_pickle_is_refused_and_never_opened(tmp_path):
    tiny.write(tmp_path)
    (tmp_path / WEIGHTS).unlink()
    assert "neither model.safetensors nor" in refusal(tmp_path)

    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "executed",))

    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Trap()))
    text = refusal(tmp_path)
    assert "pytorch_model.bin: is a pickle" in text and "save_pretrained" in text
    assert not (tmp_path / "executed").exists()


def test_missing_extra_and_misshapen_tensors_come_in_one_list(tmp_path):
    tiny.write(tmp_path)
    edit_weights(
        tmp_path,
        model__norm__weight=None,
        model__layers__0__self_attn__o_proj__weight=np.zeros((3, 5), np.float32),
        model__layers__1__mlp__up_proj__weight=np.zeros((96, 64), np.int8),
        model__surprise=np.zeros(2, np.float32),
    )
    text = refusal(tmp_path)
    assert "missing: model.norm.weight [64]" in text
    assert "misshapen: model.layers.0.self_attn.o_proj.weight is [3, 5], config.json asks for [64, 128]" in text
    assert "wrong type: model.layers.1.mlp.up_proj.weight is I8; accepted are F16, BF16, F32" in text
    assert "extra: model.surprise [2]" in text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"vocab_size": 300},
            r"embed_tokens.weight is \[260, 64\], config.json asks for \[300, 64\] \(vocab_size",
        ),
        ({"hidden_size": 32}, r"\(hidden_size\)"),
        ({"num_attention_heads": 2}, r"q_proj.weight is \[128, 64\].*\[64, 64\] \(num_attention_heads"),
        ({"num_key_value_heads": 4}, r"k_proj.weight is \[64, 64\].*\[128, 64\] \(num_key_value_heads"),
        ({"intermediate_size": 64}, "intermediate_size"),
        ({"num_hidden_layers": 1}, "extra: model.layers.1"),
        ({"num_hidden_layers": 3}, "missing: model.layers.2"),
        ({"num_hidden_layers": 30}, r"and \d+ more"),
        ({"attention_bias": True}, "missing: model.layers.0.self_attn.q_proj.bias"),
        ({"mlp_bias": True}, "missing: model.layers.0.mlp.gate_proj.bias"),
        ({"tie_word_embeddings": True}, "lm_head.weight differs"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_configuration_that_contradicts_the_weights(tmp_path, changes, message):
    tiny.write(tmp_path)
    edit_json(tmp_path / "config.json", **changes)
    with pytest.raises(CheckpointError, match=rf"(?s)the weights do not fit config.json:.*{message}"):
        open_checkpoint(tmp_path)


def test_an_index_that_does_not_fit_its_shards(tmp_path):
    tiny.write(tmp_path, shards=3)
    table = json.loads((tmp_path / INDEX).read_text())["weight_map"]
    names = {shard: [name for name in table if table[name] == shard] for shard in table.values()}
    first, second, third = sorted(names)
    edit_json(tmp_path / INDEX, weight_map=table | {names[first][0]: second})
    assert f"{first}: holds the tensor {names[first][0]}" in refusal(tmp_path)
    edit_json(tmp_path / INDEX, weight_map={k: v for k, v in table.items() if k != names[first][0]})
    assert "does not name it" in refusal(tmp_path)
    edit_json(tmp_path / INDEX, weight_map=table | {"model.ghost": second})
    assert f"do not hold: model.ghost (in {second})" in refusal(tmp_path)
    edit_json(tmp_path / INDEX, weight_map=table | {"model.ghost": "../" + second})
    assert "beside the index" in refusal(tmp_path)
    edit_json(tmp_path / INDEX, weight_map=[])
    assert "has no weight_map" in refusal(tmp_path)
    edit_json(tmp_path / INDEX, weight_map=table)
    (tmp_path / third).unlink()
    assert refusal(tmp_path).startswith(f"{tmp_path / INDEX}: names {third}")


def test_weights_that_are_not_finite_are_refused_when_read(tmp_path):
    tiny.write(tmp_path)
    edit_weights(tmp_path, model__norm__weight=np.full(64, np.nan, np.float32))
    checkpoint = open_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match=r"model.safetensors: the tensor model.norm.weight holds NaN"):
        dict(checkpoint.weights)


def test_a_bfloat16_tensor_comes_as_ml_dtypes(tmp_path):
    tiny.write(tmp_path)
    edit_weights(tmp_path, model__norm__weight=np.full(64, 1.5, bfloat16))
    assert open_checkpoint(tmp_path).weights["model.norm.weight"].dtype == bfloat16


def test_tokenizer_faults(tmp_path):
    path = tiny.write(tmp_path) / "tokenizer.json"
    good = path.read_text()
    path.unlink()
    assert refusal(tmp_path).startswith(f"{path}: is missing (no tokenizer at all)")
    (tmp_path / "tokenizer.model").write_bytes(b"spm")
    assert "only tokenizer.model" in refusal(tmp_path) and "save_pretrained" in refusal(tmp_path)
    for content in ("", "{}", good[:-50], "[1]"):
        path.write_text(content)
        assert refusal(tmp_path).startswith(f"{path}: not a tokenizer")
    path.write_bytes(b"\xff\xff")
    assert refusal(tmp_path).startswith(f"{path}: not a tokenizer")
    large = json.loads(good)
    large["model"]["vocab"]["zz"] = 260
    path.write_text(json.dumps(large))
    assert "token ids up to 260, but config.json says vocab_size 260" in refusal(tmp_path)


def test_a_token_beyond_the_vocabulary_is_refused_when_a_prompt_uses_it(tmp_path):
    path = tiny.write(tmp_path) / "tokenizer.json"
    tokenizer = tiny.byte_tokenizer()
    tokenizer.add_tokens([f"<extra{i}>" for i in range(3)])
    tokenizer.save(str(path))
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.tokenizer.encode("a<extra0>")[-1] == 258
    with pytest.raises(CheckpointError, match=r"token ids \[260\].*vocab_size 260"):
        checkpoint.tokenizer.encode("a<extra2>")


@pytest.mark.parametrize(
    ("prompt", "message"), [("", "prompt is empty"), ("a\udcff", "not valid Unicode at character 1")]
)
def test_prompts_that_cannot_be_encoded(tmp_path, prompt, message):
    checkpoint = open_checkpoint(tiny.write(tmp_path))
    with pytest.raises(UsageError, match=message):
        checkpoint.tokenizer.encode(prompt)
