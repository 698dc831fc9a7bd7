"""A Llama-architecture checkpoint directory in the Hugging Face layout, opened and verified."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from trtforge.bindings.errors import CheckpointError
from trtforge.graph_api.llm.config import LlamaConfig, read_config
from trtforge.graph_api.llm.tokenizer import Tokenizer
from trtforge.graph_api.llm.weights import Weights, open_weights, verify


@dataclass(frozen=True)
class Checkpoint:
    """Configuration, tokenizer and lazily read weights that fit one another."""

    directory: Path
    config: LlamaConfig
    tokenizer: Tokenizer
    weights: Weights


def open_checkpoint(directory: str | Path) -> Checkpoint:
    """Open ``directory``: config.json, tokenizer.json, and model.safetensors or its shards with their index.

    Everything that can be known from the headers is checked here, before any weight is read. Raises
    :class:`CheckpointError` with the file, what was found in it and what is accepted.
    """
    path = Path(directory)
    if not path.is_dir():
        found = "is a file" if path.exists() else "does not exist"
        raise CheckpointError(f"{path}: {found}; accepted is a checkpoint directory with config.json and *.safetensors")
    config = read_config(path)
    weights = open_weights(path)
    verify(weights, config, path)
    return Checkpoint(path, config, _tokenizer(path, config), weights)


def text_parts(directory: Path) -> tuple[LlamaConfig, Tokenizer]:
    """The configuration and tokenizer in ``directory``, without weights. Raises :class:`CheckpointError`."""
    config = read_config(directory)
    return config, _tokenizer(directory, config)


def _tokenizer(directory: Path, config: LlamaConfig) -> Tokenizer:
    return Tokenizer(directory / "tokenizer.json", config.vocab_size)
