"""The configuration of a checkpoint, read from ``config.json`` and ``generation_config.json``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trtforge.bindings.errors import CheckpointError
from trtforge.graph_api.llm.jsonfile import Fields, read_object
from trtforge.graph_api.quantization.config import QuantizationConfig, parse

ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM")
COMPUTE_DTYPES = ("float16", "bfloat16", "float32")
ROPE_TYPES = ("default", "linear", "llama3")
MAXIMUM_LAYERS = 1024
MISTRAL_WINDOW = 4096  # what Hugging Face takes for a Mistral whose configuration has no key sliding_window


@dataclass(frozen=True)
class LlamaConfig:
    """The architecture, under the names of Hugging Face's ``config.json``.

    ``rope_scaling`` is None or complete and checked: ``rope_type`` ``linear`` with ``factor``, or
    ``llama3`` with ``factor``, ``low_freq_factor``, ``high_freq_factor`` and
    ``original_max_position_embeddings``. ``quantization`` says which linear layers are stored in codes; None: none.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    rope_scaling: Mapping[str, Any] | None = None
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    dtype: str = "float16"
    eos_token_ids: tuple[int, ...] = ()
    quantization: QuantizationConfig | None = None

    def parameters(self) -> Iterator[tuple[str, tuple[int, ...], str]]:
        """Yield name, shape and the configuration keys behind the shape, for every tensor of the model."""
        hidden, inner = self.hidden_size, self.intermediate_size
        q, kv = self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim
        q_keys, kv_keys = "num_attention_heads·head_dim", "num_key_value_heads·head_dim"
        yield "model.embed_tokens.weight", (self.vocab_size, hidden), "vocab_size × hidden_size"
        for index in range(self.num_hidden_layers):
            layer = f"model.layers.{index}."
            attention, mlp = layer + "self_attn.", layer + "mlp."
            yield layer + "input_layernorm.weight", (hidden,), "hidden_size"
            yield attention + "q_proj.weight", (q, hidden), f"{q_keys} × hidden_size"
            yield attention + "k_proj.weight", (kv, hidden), f"{kv_keys} × hidden_size"
            yield attention + "v_proj.weight", (kv, hidden), f"{kv_keys} × hidden_size"
            yield attention + "o_proj.weight", (hidden, q), f"hidden_size × {q_keys}"
            if self.attention_bias:
                yield attention + "q_proj.bias", (q,), q_keys
                yield attention + "k_proj.bias", (kv,), kv_keys
                yield attention + "v_proj.bias", (kv,), kv_keys
                yield attention + "o_proj.bias", (hidden,), "hidden_size"
            yield layer + "post_attention_layernorm.weight", (hidden,), "hidden_size"
            yield mlp + "gate_proj.weight", (inner, hidden), "intermediate_size × hidden_size"
            yield mlp + "up_proj.weight", (inner, hidden), "intermediate_size × hidden_size"
            yield mlp + "down_proj.weight", (hidden, inner), "hidden_size × intermediate_size"
            if self.mlp_bias:
                yield mlp + "gate_proj.bias", (inner,), "intermediate_size"
                yield mlp + "up_proj.bias", (inner,), "intermediate_size"
                yield mlp + "down_proj.bias", (hidden,), "hidden_size"
        yield "model.norm.weight", (hidden,), "hidden_size"
        if not self.tie_word_embeddings:
            yield "lm_head.weight", (self.vocab_size, hidden), "vocab_size × hidden_size"


def read_config(directory: Path) -> LlamaConfig:
    """Return the configuration of the checkpoint in ``directory``.

    Raises :class:`CheckpointError` for a missing or malformed file, an architecture other than those in
    ``ARCHITECTURES``, and every setting that this model would not compute exactly as it was trained.
    """
    path = directory / "config.json"
    if not path.is_file():
        found = ", ".join(sorted(entry.name for entry in directory.iterdir())[:8]) or "nothing"
        raise CheckpointError(
            f"{directory}: has no config.json (found: {found}); expected is a checkpoint in the Hugging Face "
            "layout: config.json, *.safetensors, tokenizer.json"
        )
    fields = Fields(path, read_object(path))
    _check_architecture(fields)
    hidden = fields.integer("hidden_size")
    heads = fields.integer("num_attention_heads")
    kv_heads = fields.integer("num_key_value_heads", heads)
    if heads % kv_heads:
        raise fields.error("num_key_value_heads", kv_heads, f"a divisor of num_attention_heads, which is {heads}")
    if not fields.present("head_dim") and hidden % heads:
        raise fields.error(
            "num_attention_heads", heads, f"a divisor of hidden_size, which is {hidden}, or a key head_dim"
        )
    head_dim = fields.integer("head_dim", hidden // heads or None)
    if head_dim % 2:
        raise fields.error("head_dim", head_dim, "an even number: rotary embedding turns pairs")
    fields.choice("hidden_act", ("silu", "swish"), "silu")
    positions = fields.integer("max_position_embeddings", 2048)
    _check_window(fields, positions)
    vocabulary = fields.integer("vocab_size")
    theta, scaling = _rope(fields)
    quantization = None
    if fields.present("quantization_config"):
        quantization = parse(fields.values["quantization_config"], str(path))
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=fields.integer("intermediate_size"),
        num_hidden_layers=fields.integer("num_hidden_layers", maximum=MAXIMUM_LAYERS),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        max_position_embeddings=positions,
        rms_norm_eps=fields.number("rms_norm_eps", 1e-6),
        rope_theta=theta,
        rope_scaling=scaling,
        tie_word_embeddings=fields.boolean("tie_word_embeddings", False),
        attention_bias=fields.boolean("attention_bias", False),
        mlp_bias=fields.boolean("mlp_bias", False),
        dtype=fields.choice("dtype" if fields.present("dtype") else "torch_dtype", COMPUTE_DTYPES, "float32"),
        eos_token_ids=_eos(directory, fields, vocabulary),
        quantization=quantization,
    )


def _check_architecture(fields: Fields) -> None:
    names, kind = fields.values.get("architectures"), fields.values.get("model_type")
    if names is None:
        if kind not in ("llama", "mistral"):
            raise fields.error("model_type", kind, '"llama" or "mistral", or the key architectures')
    elif not (isinstance(names, list) and len(names) == 1 and names[0] in ARCHITECTURES):
        raise fields.error("architectures", names, "a Llama architecture: " + " or ".join(ARCHITECTURES))


def _check_window(fields: Fields, positions: int) -> None:
    mistral = fields.values.get("architectures") == ["MistralForCausalLM"]
    mistral = mistral or fields.values.get("model_type") == "mistral"
    values = {"sliding_window": MISTRAL_WINDOW if mistral else None, **fields.values}
    window = Fields(fields.path, values)
    if window.present("sliding_window") and window.integer("sliding_window") < positions:
        accepted = f"null or at least max_position_embeddings ({positions})"
        raise window.error("sliding_window", values["sliding_window"], accepted)


def _rope(fields: Fields) -> tuple[float, Mapping[str, Any] | None]:
    """Read ``rope_theta`` with ``rope_scaling``, or the newer ``rope_parameters`` that holds both."""
    key = "rope_parameters" if fields.present("rope_parameters") else "rope_scaling"
    values: Any = fields.values.get(key)
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise fields.error(key, values, "null or an object with the key rope_type")
    inner = Fields(fields.path, values, inside=f"{key}.")
    source = inner if inner.present("rope_theta") else fields
    theta = source.number("rope_theta", 10000.0)
    kind = inner.choice("rope_type" if inner.present("rope_type") else "type", ROPE_TYPES, "default")
    if kind == "default":
        return theta, None
    scaling: dict[str, Any] = {"rope_type": kind, "factor": inner.number("factor")}
    if kind == "llama3":
        low, high = inner.number("low_freq_factor"), inner.number("high_freq_factor")
        if low >= high:
            raise inner.error("high_freq_factor", high, f"more than low_freq_factor, which is {low}")
        original = inner.integer("original_max_position_embeddings")
        scaling |= {"low_freq_factor": low, "high_freq_factor": high}
        scaling["original_max_position_embeddings"] = original
    return theta, scaling


def _eos(directory: Path, fields: Fields, vocabulary: int) -> tuple[int, ...]:
    generation = directory / "generation_config.json"
    if generation.is_file():
        override = Fields(generation, read_object(generation))
        if override.present("eos_token_id"):
            fields = override
    value = fields.values.get("eos_token_id")
    ids = value if isinstance(value, list) else [] if value is None else [value]
    for token in ids:
        if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < vocabulary:
            raise fields.error("eos_token_id", value, f"token ids from 0 to {vocabulary - 1} (vocab_size - 1)")
    return tuple(ids)
