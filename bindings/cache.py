"""The kernel cache: one folder per compiled kernel, named by the content that made it.

A folder is written under a temporary name and published by one rename, so any number of processes may compile the
same kernel at once: the first rename wins, the others find it done. A folder that does not match its own digest
(truncated disk, edited by hand) is moved aside and compiled anew. ``TRTFORGE_CACHE_DIR`` overrides the place.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trtforge.bindings.binary import Binary, Parameter, Resources
from trtforge.bindings.errors import ForgeError

FORMAT = 3  # of what is kept: 3 since parameters tell floats from integers


def directory() -> Path:
    """Where compiled kernels are kept."""
    chosen = os.environ.get("TRTFORGE_CACHE_DIR")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trtforge"


def key_of(parts: Mapping[str, Any]) -> str:
    """A digest of everything that determines the machine code."""
    text = json.dumps({"format": FORMAT, **parts}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _digest(binary_parts: tuple[bytes, ...]) -> str:
    digest = hashlib.sha256()
    for part in binary_parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()


def _folder(key: str) -> Path:
    return directory() / key[:2] / key


def load(key: str) -> Binary | None:
    """The cached kernel of that key, or None."""
    folder = _folder(key)
    try:
        description = (folder / "kernel.json").read_bytes()
        cubin = (folder / "kernel.cubin").read_bytes()
        ptx = (folder / "kernel.ptx").read_bytes()
        digest = (folder / "digest").read_text().strip()
    except OSError:  # not there, or not readable: then store() says why
        if folder.exists():
            _discard(folder)
        return None
    if digest != _digest((description, cubin, ptx)):
        _discard(folder)
        return None
    data = json.loads(description)
    data["parameters"] = tuple(Parameter(**p) for p in data["parameters"])
    warnings = tuple(data["resources"].pop("warnings"))
    data["resources"] = Resources(**data["resources"], warnings=warnings)
    return Binary(cubin=cubin, ptx=ptx.decode(), **data)


def store(binary: Binary) -> None:
    """Publish a compiled kernel. Another process's identical result is kept if it came first."""
    folder = _folder(binary.key)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=".new-", dir=folder.parent))
    except OSError as error:
        raise ForgeError(
            f"the kernel cache {directory()} cannot be written ({error}); set TRTFORGE_CACHE_DIR to a writable folder"
        ) from error
    try:
        description = json.dumps(binary.describe(), indent=1).encode()
        parts = (description, binary.cubin, binary.ptx.encode())
        (staging / "kernel.json").write_bytes(description)
        (staging / "kernel.cubin").write_bytes(parts[1])
        (staging / "kernel.ptx").write_bytes(parts[2])
        (staging / "digest").write_text(_digest(parts))
        try:
            staging.rename(folder)
        except OSError:
            if not folder.exists():
                raise
    except OSError as error:
        raise ForgeError(f"the kernel cache {directory()} cannot be written: {error}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _discard(folder: Path) -> None:
    aside = Path(tempfile.mkdtemp(prefix=".bad-", dir=folder.parent))
    try:
        folder.rename(aside / "kernel")
    except FileNotFoundError:  # another process moved it first
        pass
    finally:
        shutil.rmtree(aside, ignore_errors=True)
