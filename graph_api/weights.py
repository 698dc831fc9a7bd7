"""Weights by name: read from safetensors without copying, held against what a network asks for."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trtforge.bindings.dtypes import DTYPES, dtype, name_of
from trtforge.bindings.errors import CheckpointError, ContractError, GraphError

if TYPE_CHECKING:
    from trtforge.graph_api.tensor import Tensor

#: The dtype codes of the safetensors format that the kit knows.
SAFETENSORS_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "I64": "int64",
    "I32": "int32",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}
_MAX_HEADER = 100 * 1024 * 1024


def read_safetensors(path: str | Path) -> dict[str, np.ndarray]:
    """Every array of a .safetensors file by name, memory-mapped and read-only.

    Raises CheckpointError for a file that is missing, truncated, or not in the format.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            prefix = file.read(8)
            length = int.from_bytes(prefix, "little")
            if len(prefix) < 8 or not 2 <= length <= min(_MAX_HEADER, size - 8):
                raise CheckpointError(f"{path} is not a safetensors file, or is cut off in its header ({size} bytes)")
            header = json.loads(file.read(length).decode("utf-8"))
    except OSError as error:
        raise CheckpointError(f"cannot read the weights {path}: {error.strerror or error}") from error
    except ValueError as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path} is not a safetensors file: its header is not JSON ({error})") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{path} is not a safetensors file: its header is no table of tensors")
    data = np.memmap(path, np.uint8, mode="r", offset=8 + length) if size > 8 + length else np.empty(0, np.uint8)
    return {name: _view(path, name, entry, data) for name, entry in header.items() if name != "__metadata__"}


def _view(path: Path, name: str, entry: Any, data: np.ndarray) -> np.ndarray:
    try:
        code, sizes, (start, stop) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        numpy_type = dtype(SAFETENSORS_DTYPES[code]).numpy
        count = int(np.prod(sizes, dtype=np.int64))
        fits = all(isinstance(n, int) and n >= 0 for n in (*sizes, start, stop))
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path}: the entry of {name!r} is damaged or of an unknown dtype ({error}); known dtypes: "
            f"{', '.join(SAFETENSORS_DTYPES)}"
        ) from error
    if not fits or stop - start != count * numpy_type.itemsize:
        raise CheckpointError(f"{path}: {name!r} {code}{list(sizes)} does not fit its {start}..{stop} bytes")
    if stop > data.size:
        raise CheckpointError(f"{path} is truncated: {name!r} ends at byte {stop} of the data, which has {data.size}")
    return data[start:stop].view(numpy_type).reshape(sizes)


def matched(
    parameters: Mapping[str, Tensor],
    bound: Mapping[str, np.ndarray],
    source: Mapping[str, Any] | str | Path,
    ignore: Sequence[str],
    network: str,
) -> dict[str, np.ndarray]:
    """The arrays of ``source`` for each parameter; parameters in ``bound`` may be left out.

    Raises one GraphError that lists everything missing, extra, misshapen or wrongly typed.
    """
    arrays: Mapping[str, Any] = read_safetensors(source) if isinstance(source, (str, Path)) else source
    names = set(arrays)  # asking a lazy mapping for membership would read the array
    missing = [f"{n} {t.dtype}{list(t.shape)}" for n, t in parameters.items() if n not in names and n not in bound]
    extra = [n for n in arrays if n not in parameters and not any(fnmatchcase(n, p) for p in ignore)]
    misshapen, mistyped, found = [], [], {}
    for name, tensor in parameters.items():
        if name not in names:
            continue
        array = arrays[name]
        if not isinstance(array, np.ndarray):
            mistyped.append(f"{name}: a NumPy array is needed, got {type(array).__name__}")
            continue
        if tuple(array.shape) != tuple(tensor.shape):
            misshapen.append(f"{name}: {list(array.shape)} was given, {list(tensor.shape)} is needed")
        if array.dtype != DTYPES[tensor.dtype].numpy:
            mistyped.append(f"{name}: {_dtype_name(array)} was given, {tensor.dtype} is needed; use .astype")
        found[name] = array
    problems = [
        f"{label} ({len(lines)}): " + "; ".join(lines)
        for label, lines in (
            ("missing", missing),
            ("extra", extra),
            ("wrong shape", misshapen),
            ("wrong dtype", mistyped),
        )
        if lines
    ]
    if problems:
        raise GraphError(f"the weights do not fit network {network!r}:\n  " + "\n  ".join(problems))
    return found


def _dtype_name(array: np.ndarray) -> str:
    try:
        return name_of(array.dtype)
    except ContractError:
        return str(array.dtype)
