"""Quantized checkpoints: safetensors and config.json with the names of compressed-tensors, written and read."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from trtforge.bindings.dtypes import name_of
from trtforge.bindings.errors import CheckpointError, GraphError, UsageError
from trtforge.bindings.files import replace_file
from trtforge.graph_api.network import Network
from trtforge.graph_api.quantization.config import QuantizationConfig
from trtforge.graph_api.quantization.linears import find
from trtforge.graph_api.quantization.packing import restored, stored
from trtforge.graph_api.quantization.report import QuantizationReport
from trtforge.graph_api.quantization.rewriting import Rewriter, caches, quantize_cache
from trtforge.graph_api.weights import SAFETENSORS_DTYPES

CODE = {name: code for code, name in SAFETENSORS_DTYPES.items()}
#: Files beside the weights that a quantized checkpoint takes over from the float one.
COMPANIONS = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)


def save_quantized(
    directory: str | Path, network: Network, report: QuantizationReport, like: str | Path
) -> dict[str, int]:
    """Write ``network``, quantized with ``report``, to ``directory``; returns the size in bytes of each file.

    ``like``: the checkpoint that the network was made from; its configuration and tokenizer are taken over. config.json
    says ``quantization_config`` as compressed-tensors does, and the dtype of the network. Raises UsageError where the
    directories are the same, or a layer cannot be stored in that format, CheckpointError for a wrong ``like``, and
    FileError where a file cannot be written.
    """
    target, source = Path(directory), Path(like)
    if target.resolve() == source.resolve():
        raise UsageError(f"{target}: is the checkpoint that is quantized; accepted is another directory")
    if not report.packed:
        raise GraphError(
            "the report has no codes of layers: no recipe was given, or it was made from plain data; pass what "
            "quantize_network returned with a recipe"
        )
    config = _config(source)
    first = next(iter(report.packed.values()))
    group = first.scheme.weights.group_size
    short = [p.name for p in report.packed.values() if group and p.shape[1] % group]
    if short:
        raise UsageError(
            f"the K of {', '.join(short[:4])} is no multiple of the group size {group}: the last group is short, which "
            "compressed-tensors cannot store; name these layers in skip="
        )
    cache_scales = set(report.caches)
    tensors = {
        name: array
        for name, array in network.weights.items()
        if name in network.parameters and not _of_codes(name, report)
    }
    missing = cache_scales - set(tensors)
    if missing:
        raise GraphError(f"network {network.name!r} has no cache scale {', '.join(sorted(missing))}")
    for packed in report.packed.values():
        tensors |= stored(packed)
    ignore = tuple(skipped.name for skipped in report.skipped)
    if config.get("tie_word_embeddings"):  # the layer has the embedding's weight, and other readers know it as lm_head
        ignore = tuple("lm_head" if name.endswith("embed_tokens") else name for name in ignore)
    halves = {t.dtype for t in network.parameters.values()} & {"float16", "bfloat16"}
    config["torch_dtype"] = halves.pop() if len(halves) == 1 else "float32"
    config.pop("dtype", None)
    config["quantization_config"] = QuantizationConfig(first.scheme, ignore, report.kv_cache).to_dict()
    sizes = {"model.safetensors": replace_file(target / "model.safetensors", safetensors(tensors))}
    for name in COMPANIONS:
        if (source / name).is_file():
            sizes[name] = replace_file(target / name, (source / name).read_bytes())
    sizes["config.json"] = replace_file(target / "config.json", json.dumps(config, indent=2) + "\n")
    return sizes


def _config(source: Path) -> dict[str, Any]:
    path = source / "config.json"
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read as JSON ({error}); like= is a checkpoint's directory") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: holds a JSON {type(value).__name__}; an object is expected")
    return value


def _of_codes(name: str, report: QuantizationReport) -> bool:
    layer, _, part = name.rpartition(".")
    return layer in report.packed and part in ("weight", "weight_packed", "weight_scale", "input_scale")


def safetensors(tensors: Mapping[str, np.ndarray]) -> Iterator[bytes]:
    """A .safetensors file in pieces: the header's length, the header, then every array, widest elements first.

    The safetensors library writes through NumPy, which has no fp8.
    """
    order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in order:
        array = tensors[name]
        start, end = end, end + array.nbytes
        header[name] = {"dtype": CODE[name_of(array.dtype)], "shape": list(array.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little")
    yield text
    for name in order:
        yield np.ascontiguousarray(tensors[name]).tobytes()


def restore(network: Network, config: QuantizationConfig, tensors: Mapping[str, np.ndarray]) -> None:
    """Put the quantized layers of a checkpoint, and its cache, in place of the float ones of a fresh ``network``.

    ``tensors``: by their names in the checkpoint. The layers' arrays are bound; other parameters are left unbound.
    """
    linears, _ = find(network, (), config.scheme.weights.num_bits)
    rewriter = Rewriter(network)
    for linear in linears:
        if not config.covers(linear.weight.name, linear.shape):
            continue
        names = config.expected(linear.weight.name, linear.shape)
        arrays = {name.rpartition(".")[2]: np.asarray(tensors[name]) for name in names}
        shape = arrays.get("weight_shape")
        if shape is not None and tuple(shape.tolist()) != linear.shape:
            raise CheckpointError(
                f"{linear.name}.weight_shape is {shape.tolist()}, config.json asks for {list(linear.shape)}"
            )
        rewriter.replace(linear, restored(linear.name, config.scheme, linear.shape, arrays))
    if config.kv_cache is not None:
        for node in caches(network):
            scope, kind = node.name.rpartition(".")[0], node.tensors[0].name[0]
            scale = np.asarray(tensors[f"{scope}.{kind}_scale"]).astype(np.float32).reshape(1)
            quantize_cache(network, node, scale, config.kv_cache)
