"""Writing a file whole or not at all: the one place where the kit replaces files."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from trtforge.bindings.errors import FileError

Chunk = bytes | memoryview


def replace_file(path: str | Path, data: bytes | str | Iterable[Chunk]) -> int:
    """Write ``data`` (text as UTF-8) under a temporary name beside ``path`` and rename it; returns its size in bytes.

    Missing folders are made. At no time is there half a file under the name: where anything fails, an old file stays
    as it was. Raises FileError where the file cannot be written (disk full, no permission).
    """
    path = Path(path)
    chunks: Iterable[Chunk] = [data.encode()] if isinstance(data, str) else [data] if isinstance(data, bytes) else data
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            size = sum(_write(descriptor, chunk) for chunk in chunks)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp makes it private; this one has the rights of any new file
        os.replace(temporary, path)
        temporary = None
    except OSError as error:
        raise FileError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)
    return size


def _write(descriptor: int, chunk: Chunk) -> int:
    left = memoryview(chunk).cast("B")
    total = len(left)
    while left:
        left = left[os.write(descriptor, left) :]
    return total
