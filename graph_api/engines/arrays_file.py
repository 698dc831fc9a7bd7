"""Arrays in .npz files, those of types that NumPy cannot store included.

bfloat16 and 8-bit floats are stored as unsigned integers of their size; ``__dtypes__`` holds the kit's names of their
types as JSON text. Nothing is pickled.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from trtforge.bindings.dtypes import DTYPES, dtype, name_of
from trtforge.bindings.errors import ContractError, UsageError
from trtforge.bindings.files import replace_file

TABLE = "__dtypes__"


def save_arrays(path: str | Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays by name to a .npz file, atomically."""
    stored: dict[str, np.ndarray] = {}
    table: dict[str, str] = {}
    for name, array in arrays.items():
        row = DTYPES[name_of(array.dtype)]
        if row.storage != row.numpy:
            table[name] = row.name
        stored[name] = np.ascontiguousarray(array).reshape(array.shape).view(row.storage)
    stored[TABLE] = np.array(json.dumps(table))
    buffer = io.BytesIO()
    np.savez(buffer, **stored)  # type: ignore[arg-type]
    replace_file(Path(path), [buffer.getbuffer()])


def load_arrays(path: str | Path) -> dict[str, np.ndarray]:
    """Read a .npz file, one of NumPy's own or one of :func:`save_arrays`. Raises UsageError."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        table = json.loads(str(arrays.pop(TABLE, "{}")))
        return {name: a.view(dtype(table[name]).numpy) if name in table else a for name, a in arrays.items()}
    except (OSError, ValueError, TypeError, AttributeError, zipfile.BadZipFile, ContractError) as error:
        raise UsageError(f"cannot read arrays from {path}: {error}; accepted: a .npz file without pickles") from error
