"""What can be built: a network, a checkpoint directory, or a Python file with a function that returns a network."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trtforge.bindings.errors import UsageError
from trtforge.graph_api.network import Network

DEFAULT_FUNCTION = "network"
#: Files of a checkpoint that a plan carries, so that it writes text without the checkpoint.
TEXT_FILES = ("config.json", "generation_config.json", "tokenizer.json")


@dataclass(frozen=True)
class Model:
    """A network with bound weights, and for a language model what generation needs beside it."""

    network: Network
    attachments: Mapping[str, bytes] = field(default_factory=dict)
    language_model: Mapping[str, Any] | None = None


def open_model(
    source: Network | str | Path, *, dtype: str = "auto", batch: int = 1, max_length: int | None = None
) -> Model:
    """Open ``source``.

    A directory is a Llama-architecture checkpoint: ``dtype``, ``batch`` and ``max_length`` (of the KV cache; default:
    the model's whole context) are those of :class:`trtforge.graph_api.llm.Session`. ``FILE.py`` or
    ``FILE.py:FUNCTION`` is called without arguments and must return a network with bound weights (default function:
    ``network``). Raises UsageError, CheckpointError.
    """
    if isinstance(source, Network):
        return Model(source)
    path, _, function = str(source).partition(".py:")
    if function or str(source).endswith(".py"):
        file = Path(path if path.endswith(".py") else f"{path}.py")
        return Model(_from_file(file, function or DEFAULT_FUNCTION))
    if not Path(source).is_dir():
        raise UsageError(
            f"{source} is no model; accepted: a checkpoint directory with config.json, or FILE.py[:FUNCTION] "
            "with a function that returns a trtforge Network"
        )
    return _language_model(Path(source), dtype, batch, max_length)


def _from_file(file: Path, function: str) -> Network:
    if not file.is_file():
        raise UsageError(f"{file} does not exist; accepted: FILE.py[:FUNCTION] that returns a trtforge Network")
    spec = importlib.util.spec_from_file_location(f"trtforge_model_{file.stem}", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    make = getattr(module, function, None)
    if not callable(make):
        raise UsageError(f"{file} has no function {function!r}; write {file}:NAME for another one")
    network = make()
    if not isinstance(network, Network):
        raise UsageError(f"{file}:{function} returned {type(network).__name__}; a trtforge Network is needed")
    return network


def _language_model(directory: Path, dtype: str, batch: int, max_length: int | None) -> Model:
    from trtforge.graph_api.llm import open_checkpoint
    from trtforge.graph_api.llm.model import bind_checkpoint, build_network
    from trtforge.graph_api.llm.session import session_shape

    checkpoint = open_checkpoint(directory)
    chosen, length = session_shape(checkpoint.config, dtype, batch, max_length)
    network = build_network(checkpoint.config, chosen, batch, length)
    bind_checkpoint(network, checkpoint)
    files = {name: (directory / name).read_bytes() for name in TEXT_FILES if (directory / name).is_file()}
    return Model(network, files, {"dtype": chosen, "batch": batch, "max_length": length})
