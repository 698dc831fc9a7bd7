"""A BERT-type encoder (Devlin et al. 2019, arXiv:1810.04805) with the modules of the graph API.

Layer norm after each block, erf-GELU, full attention under a padding mask, dynamic batch and sequence. The weights
are random and reproducible: the example is about building, fusing and running such a network, not about language.

    python examples/encoder/encoder.py                                        # runs on the default backend
    trtforge build examples/encoder/encoder.py --backend tensorrt-rtx -o encoder.plan
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from trtforge.bindings.dtypes import DTYPES
from trtforge.graph_api import Dim, Embedding, LayerNorm, Linear, Module, ModuleList, Network, Tensor
from trtforge.graph_api import functional as F


@dataclass(frozen=True)
class EncoderConfig:
    """The sizes of an encoder; the default is a small one."""

    vocabulary: int = 1000
    width: int = 128
    heads: int = 4
    hidden: int = 512
    layers: int = 2
    longest: int = 128
    largest_batch: int = 8
    types: int = 2
    dtype: str = "float16"
    eps: float = 1e-12


class SelfAttention(Module):
    """Full attention of x [B, S, width]; ``lengths`` int32 [B]: later keys of a sequence are padding."""

    def __init__(self, config: EncoderConfig):
        self.heads, self.head_dim = config.heads, config.width // config.heads
        self.query = Linear(config.width, config.width, dtype=config.dtype)
        self.key = Linear(config.width, config.width, dtype=config.dtype)
        self.value = Linear(config.width, config.width, dtype=config.dtype)
        self.dense = Linear(config.width, config.width, dtype=config.dtype)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        batch, rows, width = x.shape
        q, k, v = (self._split(part(x)) for part in (self.query, self.key, self.value))
        y = F.attention_written_out(q, k, v, k_lengths=lengths)
        return self.dense(y.transpose(1, 2).reshape(batch, rows, width))

    def _split(self, x: Tensor) -> Tensor:
        batch, rows, _ = x.shape
        return x.reshape(batch, rows, self.heads, self.head_dim).transpose(1, 2)


class Layer(Module):
    """norm(x + attention(x)), then norm(x + mlp(x)), with erf-GELU in the middle."""

    def __init__(self, config: EncoderConfig):
        self.attention = SelfAttention(config)
        self.attention_norm = LayerNorm(config.width, config.eps, dtype=config.dtype)
        self.intermediate = Linear(config.width, config.hidden, dtype=config.dtype)
        self.output = Linear(config.hidden, config.width, dtype=config.dtype)
        self.output_norm = LayerNorm(config.width, config.eps, dtype=config.dtype)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        x = self.attention_norm(x + self.attention(x, lengths))
        return self.output_norm(x + self.output(F.gelu(self.intermediate(x))))


class Encoder(Module):
    """(hidden [B, S, width], pooled [B, width]) of tokens and token types, int32 [B, S]."""

    def __init__(self, config: EncoderConfig):
        self.words = Embedding(config.vocabulary, config.width, config.dtype)
        self.positions = Embedding(config.longest, config.width, config.dtype)
        self.types = Embedding(config.types, config.width, config.dtype)
        self.norm = LayerNorm(config.width, config.eps, dtype=config.dtype)
        self.layers = ModuleList([Layer(config) for _ in range(config.layers)])
        self.pooler = Linear(config.width, config.width, dtype=config.dtype)

    def forward(self, tokens: Tensor, types: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        x = self.words(tokens) + self.positions(F.arange(tokens.shape[1])) + self.types(types)
        x = self.norm(x)
        for layer in self.layers:
            x = layer(x, lengths)
        return x, F.tanh(self.pooler(x[:, 0]))


def network(config: EncoderConfig | None = None, seed: int = 0) -> Network:
    """The encoder with random weights of that seed.

    Inputs: ``tokens`` and ``types`` int32 [B, S], ``lengths`` int32 [B]; outputs: ``hidden`` and ``pooled``.
    """
    config = config or EncoderConfig()
    batch = Dim("B", min=1, opt=min(4, config.largest_batch), max=config.largest_batch)
    rows = Dim("S", min=1, opt=min(64, config.longest), max=config.longest)
    with Network("encoder") as net:
        tokens, types = net.input("tokens", "int32", (batch, rows)), net.input("types", "int32", (batch, rows))
        lengths = net.input("lengths", "int32", (batch,))
        hidden, pooled = Encoder(config)(tokens, types, lengths)
        net.mark_output(hidden, "hidden")
        net.mark_output(pooled, "pooled")
    rng = np.random.default_rng(seed)
    weights = {}
    for name, tensor in net.parameters.items():
        values = rng.standard_normal(tensor.shape) * (0.5 / np.sqrt(config.width))
        if name.endswith("norm.weight"):
            values = 1.0 + values
        weights[name] = values.astype(DTYPES[config.dtype].numpy)
    net.bind_weights(weights)
    return net


def example_inputs(net: Network, batch: int, rows: int, seed: int = 1) -> dict[str, np.ndarray]:
    """Random sequences, padded to ``rows``."""
    rng = np.random.default_rng(seed)
    words = net.parameters["words.weight"].shape[0]
    return {
        "tokens": rng.integers(0, int(words), (batch, rows)).astype(np.int32),
        "types": rng.integers(0, 2, (batch, rows)).astype(np.int32),
        "lengths": rng.integers(1, rows + 1, batch).astype(np.int32),
    }


if __name__ == "__main__":
    encoder = network()
    print(encoder.fuse())
    outputs = encoder.build()(**example_inputs(encoder, 2, 16))
    print({name: (value.shape, str(value.dtype)) for name, value in outputs.items()})
