"""The safetensors files of a checkpoint, opened lazily and verified against the configuration."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from trtforge.bindings.errors import CheckpointError
from trtforge.graph_api.llm.config import LlamaConfig
from trtforge.graph_api.llm.jsonfile import read_object
from trtforge.graph_api.quantization.config import SCALE_CODES
from trtforge.graph_api.weights import read_safetensors

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
DTYPES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32"}
UNKNOWN_TO_NUMPY = ("F8_E4M3", "F8_E5M2")  # which the safetensors library therefore does not read
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "consolidated.00.pth")
OBSOLETE = ".rotary_emb.inv_freq"  # a table that old exporters stored; it follows from the configuration
SHOWN = 12  # problems listed in one message before the rest is counted


@dataclass(frozen=True)
class Entry:
    """One tensor: the file that holds it, its shape, and its safetensors type code."""

    path: Path
    shape: tuple[int, ...]
    code: str


class Weights(Mapping[str, np.ndarray]):
    """Name to array: float16, bfloat16 or float32, and the codes of quantized layers.

    Headers are read when opened, values when asked for.
    """

    def __init__(self, entries: dict[str, Entry]) -> None:
        self.entries = entries
        self._files: dict[Path, Any] = {}

    def __getitem__(self, name: str) -> np.ndarray:
        entry = self.entries[name]
        if entry.path not in self._files:
            self._files[entry.path] = _open(entry.path)
        try:
            if entry.code in UNKNOWN_TO_NUMPY:
                value = read_safetensors(entry.path)[name]
            else:
                value = self._files[entry.path].get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{entry.path}: the tensor {name} cannot be read: {error}") from error
        if not np.isfinite(value).all():
            raise CheckpointError(
                f"{entry.path}: the tensor {name} holds NaN or infinite values; weights must be finite: "
                "the file was damaged, or written from a training that diverged"
            )
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)


def open_weights(directory: Path) -> Weights:
    """Open ``model.safetensors``, or the shards that ``model.safetensors.index.json`` names."""
    if (directory / SINGLE).is_file():
        return Weights(_entries(directory / SINGLE))
    if (directory / INDEX).is_file():
        return Weights(_sharded(directory / INDEX))
    pickles = [name for name in PICKLES if (directory / name).exists()]
    if pickles:
        raise CheckpointError(
            f"{directory / pickles[0]}: is a pickle, which can run code when read, and is never opened; "
            f"accepted is {SINGLE}, which transformers' save_pretrained(folder) writes"
        )
    found = ", ".join(sorted(path.name for path in directory.glob("*.safetensors"))[:8]) or "none"
    raise CheckpointError(f"{directory}: has neither {SINGLE} nor {INDEX} (other safetensors files: {found})")


def verify(weights: Weights, config: LlamaConfig, directory: Path) -> None:
    """Raise one :class:`CheckpointError` listing every missing, extra, misshapen or wrongly typed tensor."""
    problems = []
    expected = set()
    quantization = config.quantization
    for name in quantization.cache_scales(config.num_hidden_layers) if quantization is not None else ():
        expected.add(name)
        problems += _unlike(weights, name, ((1,), ()), "scale")
    for name, shape, keys in config.parameters():
        if quantization is not None and quantization.covers(name, shape):
            for part, (shapes, code) in quantization.expected(name, shape).items():
                expected.add(part)
                problems += _unlike(weights, part, shapes, code)
            continue
        expected.add(name)
        entry = weights.entries.get(name)
        if entry is None:
            problems.append(f"missing: {name} {_show(shape)}")
        elif entry.shape != shape:
            problems.append(f"misshapen: {name} is {_show(entry.shape)}, config.json asks for {_show(shape)} ({keys})")
        elif entry.code not in DTYPES:
            problems.append(f"wrong type: {name} is {entry.code}; accepted are {', '.join(DTYPES)}")
    tied = config.tie_word_embeddings and "lm_head.weight" in weights.entries
    for name in weights.entries:
        if name not in expected and not name.endswith(OBSOLETE) and not (tied and name == "lm_head.weight"):
            problems.append(
                f"extra: {name} {_show(weights.entries[name].shape)}, which this configuration does not use"
            )
    if not problems and tied and not _equal(weights, "lm_head.weight", "model.embed_tokens.weight"):
        problems.append("extra: lm_head.weight differs from model.embed_tokens.weight, but tie_word_embeddings is true")
    if problems:
        more = [f"... and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
        lines = "\n  ".join(problems[:SHOWN] + more)
        raise CheckpointError(f"{directory}: the weights do not fit config.json:\n  {lines}")


def _unlike(weights: Weights, name: str, shapes: tuple[tuple[int, ...], ...], code: str) -> list[str]:
    """What is wrong with a tensor of a quantized layer, at most one line."""
    entry = weights.entries.get(name)
    codes = SCALE_CODES if code == "scale" else (code,)
    accepted = " or ".join(map(_show, shapes))
    if entry is None:
        return [f"missing: {name} {accepted} (quantization_config)"]
    if entry.shape not in shapes:
        return [f"misshapen: {name} is {_show(entry.shape)}, quantization_config asks for {accepted}"]
    if entry.code not in codes:
        return [f"wrong type: {name} is {entry.code}; quantization_config asks for {', '.join(codes)}"]
    return []


def _equal(weights: Weights, first: str, second: str) -> bool:
    a, b = weights.entries[first], weights.entries[second]
    return a.shape == b.shape and a.code == b.code and bool((weights[first] == weights[second]).all())


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="np")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path}: not a readable safetensors file: {error} ({_size(path)}); it is truncated, altered or "
            "of another format: copy or download it again"
        ) from error


def _entries(path: Path) -> dict[str, Entry]:
    with _open(path) as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  (not a mapping)
        return {name: Entry(path, tuple(s.get_shape()), s.get_dtype()) for name, s in slices.items()}


def _sharded(index: Path) -> dict[str, Entry]:
    table = read_object(index).get("weight_map")
    if not isinstance(table, dict) or not table:
        raise CheckpointError(f"{index}: has no weight_map; expected is an object from tensor names to file names")
    for name, shard in table.items():
        if not isinstance(shard, str) or not shard.endswith(".safetensors") or Path(shard).name != shard:
            raise CheckpointError(
                f"{index}: {name} lies in {shard!r}; accepted is a *.safetensors file beside the index"
            )
    shards = sorted(set(table.values()))
    absent = [shard for shard in shards if not (index.parent / shard).is_file()]
    if absent:
        raise CheckpointError(f"{index}: names {_listed(absent)}, which {index.parent} does not hold; copy every shard")
    entries: dict[str, Entry] = {}
    for shard in shards:
        for name, entry in _entries(index.parent / shard).items():
            if table.get(name) != shard:
                where = f"puts it in {table[name]}" if name in table else "does not name it"
                raise CheckpointError(f"{index.parent / shard}: holds the tensor {name}, but {index.name} {where}")
            entries[name] = entry
    lost = [f"{name} (in {table[name]})" for name in table if name not in entries]
    if lost:
        raise CheckpointError(f"{index}: names tensors that their shards do not hold: {_listed(lost)}")
    return entries


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def _show(shape: tuple[int, ...]) -> str:
    return "[" + ", ".join(map(str, shape)) + "]"


def _size(path: Path) -> str:
    return f"{path.stat().st_size} bytes" if path.is_file() else "not a file"
