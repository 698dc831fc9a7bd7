"""The Llama architecture (Touvron et al. 2023, arXiv:2302.13971) as a module tree over a static KV cache.

Parameter names are those of Hugging Face, so that a checkpoint binds by name. Everything is written out in
primitive ops: the fusion passes put the fused GEMMs, the write into the cache and flash attention in their place, and
report it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trtforge.bindings.dtypes import dtype as dtype_row
from trtforge.bindings.errors import CheckpointError
from trtforge.graph_api import functional as F
from trtforge.graph_api.llm.checkpoint import Checkpoint
from trtforge.graph_api.llm.config import LlamaConfig
from trtforge.graph_api.modules import Attention, Embedding, GatedMLP, Linear, Module, ModuleList, RMSNorm
from trtforge.graph_api.network import Network
from trtforge.graph_api.quantization.checkpoint import restore
from trtforge.graph_api.shapes import Dim
from trtforge.graph_api.tensor import Tensor

Pair = tuple[Tensor, Tensor]
LONGEST_STEP = 512  # tokens of one sequence that go through the network at once


class LlamaLayer(Module):
    """x + attention(norm(x)), then x + mlp(norm(x)), for x ``[B, S, hidden]``.

    ``rope`` holds the rotary tables of the step, ``cache`` the layer's keys and values ``[B, Hkv, Smax,
    D]``, written from row ``positions[b]`` on; each token attends to the cache up to itself.
    """

    def __init__(self, config: LlamaConfig, dtype: str) -> None:
        hidden, eps = config.hidden_size, config.rms_norm_eps
        self.input_layernorm = RMSNorm(hidden, eps, dtype)
        self.self_attn = Attention(
            hidden,
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
            bias=config.attention_bias,
            written_out=True,
            dtype=dtype,
        )
        self.post_attention_layernorm = RMSNorm(hidden, eps, dtype)
        self.mlp = GatedMLP(hidden, config.intermediate_size, "silu", config.mlp_bias, dtype)

    def forward(self, x: Tensor, rope: Pair, cache: Pair, positions: Tensor) -> Tensor:
        x = F.add(x, self.self_attn(self.input_layernorm(x), rope=rope, cache=cache, positions=positions))
        return F.add(x, self.mlp(self.post_attention_layernorm(x)))


class LlamaModel(Module):
    """Embedding, layers and the last norm: hidden states ``[B, S, hidden]`` of ``tokens [B, S]``."""

    def __init__(self, config: LlamaConfig, dtype: str) -> None:
        self.frequencies = F.rope_frequencies(config.head_dim, config.rope_theta, config.rope_scaling)
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size, dtype)
        self.layers = ModuleList([LlamaLayer(config, dtype) for _ in range(config.num_hidden_layers)])
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, dtype)

    def forward(self, tokens: Tensor, positions: Tensor, caches: Sequence[Pair]) -> Tensor:
        rope = F.rope_tables(F.add(F.unsqueeze(positions, 1), F.arange(tokens.shape[1])), self.frequencies)
        x = self.embed_tokens(tokens)
        for layer, cache in zip(self.layers, caches, strict=True):
            x = layer(x, rope, cache, positions)
        return self.norm(x)


class LlamaForCausalLM(Module):
    """Logits, float32 ``[B, vocab_size]``, after the last of ``tokens int32 [B, S]``.

    ``positions int32 [B]`` is the position of each sequence's first token in this step, ``caches`` one pair
    of states (keys, values) per layer. With ``every`` the logits of all S tokens are returned, ``[B, S,
    vocab_size]``.
    """

    def __init__(self, config: LlamaConfig, dtype: str) -> None:
        self.model = LlamaModel(config, dtype)
        tied = config.tie_word_embeddings
        self.lm_head = None if tied else Linear(config.hidden_size, config.vocab_size, False, dtype)

    def forward(self, tokens: Tensor, positions: Tensor, caches: Sequence[Pair], every: bool = False) -> Tensor:
        x = self.model(tokens, positions, caches)
        with x.network.scope("lm_head"):
            return self._logits(x, every)

    def _logits(self, x: Tensor, every: bool) -> Tensor:
        steps, hidden = x.shape[1:]
        if not every:
            x = F.reshape(F.slice(x, 1, steps - 1, steps), (x.shape[0], hidden))
        logits = F.linear(x, self.model.embed_tokens.weight) if self.lm_head is None else self.lm_head(x)
        return F.cast(logits, "float32")


def build_network(
    config: LlamaConfig, dtype: str, batch: int = 1, max_length: int | None = None, every: bool = False
) -> Network:
    """Return the network for prefill and decode alike: the tokens in a step are its dynamic dimension S.

    Inputs: ``tokens`` int32 ``[B, S]`` and ``positions`` int32 ``[B]``; output: ``logits``, see
    :class:`LlamaForCausalLM`; states: ``keys_i`` and ``values_i``, ``dtype`` ``[B, Hkv, max_length, D]``.
    """
    length = config.max_position_embeddings if max_length is None else max_length
    shape = (batch, config.num_key_value_heads, length, config.head_dim)
    with Network("llama") as network:
        tokens = network.input("tokens", "int32", (batch, Dim("S", opt=1, max=min(LONGEST_STEP, length))))
        positions = network.input("positions", "int32", (batch,))
        caches = [
            (network.state(f"keys_{i}", dtype, shape), network.state(f"values_{i}", dtype, shape))
            for i in range(config.num_hidden_layers)
        ]
        logits = LlamaForCausalLM(config, dtype)(tokens, positions, caches, every)
        network.mark_output(logits, "logits")
    return network


def bind_checkpoint(network: Network, checkpoint: Checkpoint) -> None:
    """Give the network the checkpoint's weights, rounded to the dtypes of its parameters.

    The linear layers of a quantized checkpoint are put in the place of float ones. Raises :class:`CheckpointError`
    where a value lies beyond what float16 can hold.
    """
    if checkpoint.config.quantization is not None:
        restore(network, checkpoint.config.quantization, checkpoint.weights)
    arrays: dict[str, np.ndarray] = {}
    for name, parameter in network.parameters.items():
        if name in network.weights:
            continue
        array = checkpoint.weights[name]
        wanted = dtype_row(parameter.dtype).numpy
        if array.dtype != wanted:
            with np.errstate(over="ignore"):
                rounded = array.astype(wanted)
            if not np.isfinite(rounded).all():
                raise CheckpointError(
                    f"{checkpoint.weights.entries[name].path}: {name} reaches {np.abs(array).max()}, which "
                    f'{parameter.dtype} cannot hold; use dtype="bfloat16" or dtype="float32"'
                )
            array = rounded
        arrays[name] = array
    network.bind_weights(arrays)
