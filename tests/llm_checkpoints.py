"""Small random checkpoints for the language-model tests, and a plain NumPy Llama to compare with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from ml_dtypes import bfloat16
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

SHIPPED = Path(__file__).parent.parent / "examples" / "pydoc_llama" / "model"
NUMPY = {"float32": np.float32, "float16": np.float16, "bfloat16": bfloat16}


def tiny_config(**changes: Any) -> dict[str, Any]:
    """Two layers, four query heads on two key heads, everything small; a value of None removes the key."""
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 260,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "eos_token_id": 1,
    } | changes
    return {key: value for key, value in config.items() if value is not None}


def random_weights(config: dict[str, Any], seed: int = 0) -> dict[str, np.ndarray]:
    """Every tensor of the architecture, under Hugging Face's names, N(0, 1/fan-in), norms around one."""
    rng = np.random.default_rng(seed)
    hidden, inner, size = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    head = config["head_dim"]
    q, kv = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    weights: dict[str, np.ndarray] = {}

    def linear(name: str, out: int, into: int, bias: bool = False) -> None:
        weights[f"{name}.weight"] = rng.standard_normal((out, into)) * into**-0.5
        if bias:
            weights[f"{name}.bias"] = rng.standard_normal(out) * 0.1

    def norm(name: str) -> None:
        weights[f"{name}.weight"] = 1 + 0.1 * rng.standard_normal(hidden)

    linear("model.embed_tokens", size, hidden)
    for i in range(config["num_hidden_layers"]):
        layer, bias = f"model.layers.{i}", config.get("attention_bias", False)
        norm(f"{layer}.input_layernorm")
        for name, out in (("q_proj", q), ("k_proj", kv), ("v_proj", kv)):
            linear(f"{layer}.self_attn.{name}", out, hidden, bias)
        linear(f"{layer}.self_attn.o_proj", hidden, q, bias)
        norm(f"{layer}.post_attention_layernorm")
        for name, out, into in (("gate", inner, hidden), ("up", inner, hidden), ("down", hidden, inner)):
            linear(f"{layer}.mlp.{name}_proj", out, into, config.get("mlp_bias", False))
    norm("model.norm")
    if not config["tie_word_embeddings"]:
        linear("lm_head", size, hidden)
    return {name: value.astype(NUMPY[config["torch_dtype"]]) for name, value in weights.items()}


def byte_tokenizer() -> Tokenizer:
    """A byte-level tokenizer of 258 tokens: two special ones and the bytes, each its own token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<s>", "</s>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return tokenizer


def write(
    folder: Path,
    config: dict[str, Any] | None = None,
    weights: dict[str, np.ndarray] | None = None,
    shards: int = 0,
) -> Path:
    """Write a checkpoint directory, in one file or in ``shards`` of them with an index; return the folder."""
    config = tiny_config() if config is None else config
    weights = random_weights(config) if weights is None else weights
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    byte_tokenizer().save(str(folder / "tokenizer.json"))
    if not shards:
        save_file(weights, folder / "model.safetensors")
        return folder
    table: dict[str, str] = {}
    for i, names in enumerate(np.array_split(sorted(weights), shards)):
        file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        save_file({name: weights[name] for name in names}, folder / file)
        table |= {str(name): file for name in names}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": table}))
    return folder


def plain_llama(config: dict[str, Any], weights: dict[str, np.ndarray], tokens: np.ndarray) -> np.ndarray:
    """Logits ``[S, V]`` of the whole sequence ``tokens [S]``, in float64, without any cache.

    Written apart from the kit: rotary embedding as a product of complex numbers, one head at a time.
    """
    w = {name: value.astype(np.float64, copy=False) for name, value in weights.items()}
    head, heads, kv_heads = config["head_dim"], config["num_attention_heads"], config["num_key_value_heads"]
    eps = config["rms_norm_eps"]
    frequencies = config["rope_theta"] ** (-np.arange(0, head, 2) / head)
    scaling = config.get("rope_scaling") or {}
    if scaling.get("rope_type") == "linear":
        frequencies = frequencies / scaling["factor"]
    elif scaling.get("rope_type") == "llama3":
        low = scaling["original_max_position_embeddings"] / scaling["low_freq_factor"]
        high = scaling["original_max_position_embeddings"] / scaling["high_freq_factor"]
        for i, wavelength in enumerate(2 * np.pi / frequencies):
            smooth = (low / wavelength - 1) / (low / high - 1)
            if wavelength > low:
                frequencies[i] /= scaling["factor"]
            elif wavelength >= high:
                frequencies[i] *= smooth + (1 - smooth) / scaling["factor"]
    turn = np.exp(1j * np.outer(np.arange(len(tokens)), frequencies))

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * w[f"{name}.weight"]

    def linear(x: np.ndarray, name: str) -> np.ndarray:
        return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0.0)

    def rotate(x: np.ndarray) -> np.ndarray:
        turned = (x[:, : head // 2] + 1j * x[:, head // 2 :]) * turn
        return np.concatenate([turned.real, turned.imag], axis=1)

    hidden = np.triu(np.full((len(tokens), len(tokens)), -np.inf), 1)
    x = w["model.embed_tokens.weight"][tokens]
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        y = norm(x, f"{layer}.input_layernorm")
        q, k, v = (linear(y, f"{layer}.self_attn.{name}_proj") for name in "qkv")
        outputs = []
        for h in range(heads):
            own, shared = np.s_[:, h * head : (h + 1) * head], h * kv_heads // heads
            group = np.s_[:, shared * head : (shared + 1) * head]
            scores = rotate(q[own]) @ rotate(k[group]).T / np.sqrt(head) + hidden
            scores = np.exp(scores - scores.max(-1, keepdims=True))
            outputs.append(scores / scores.sum(-1, keepdims=True) @ v[group])
        x = x + linear(np.concatenate(outputs, axis=1), f"{layer}.self_attn.o_proj")
        y = norm(x, f"{layer}.post_attention_layernorm")
        gate = linear(y, f"{layer}.mlp.gate_proj")
        x = x + linear(gate / (1 + np.exp(-gate)) * linear(y, f"{layer}.mlp.up_proj"), f"{layer}.mlp.down_proj")
    head_name = "model.embed_tokens" if config["tie_word_embeddings"] else "lm_head"
    return norm(x, "model.norm") @ w[f"{head_name}.weight"].T
