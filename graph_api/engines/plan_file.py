"""The container of a plan file: a verified header and blobs of bytes, nothing that could be executed by reading it.

    offset   bytes
    0        8      magic  "TRTFORGE"
    8        4      format version, little endian
    12       8      length of the header
    20       32     SHA-256 of the header
    52       n      header: JSON, UTF-8; its key "blobs" lists size and SHA-256 of each blob
    52 + n   ...    the blobs, one after the other, to the end of the file

Every byte of the file is either compared or covered by a digest, and all of that is done before a blob is used.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trtforge.bindings.errors import PlanError
from trtforge.bindings.files import replace_file

MAGIC = b"TRTFORGE"
FORMAT = 1
_PREFIX = struct.Struct("<8sIQ32s")
_MAX_HEADER = 1 << 28
_CHUNK = 1 << 24


@dataclass(frozen=True)
class PlanFile:
    """A plan file that was verified: its header, and its blobs as views of the mapped file."""

    path: Path
    header: dict[str, Any]
    blobs: tuple[memoryview, ...]

    @property
    def size(self) -> int:
        return self.path.stat().st_size


def canonical(value: Any) -> bytes:
    """JSON in one form only, so that equal contents have equal digests."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def digest(data: bytes | memoryview) -> str:
    """SHA-256 in hexadecimal."""
    found = hashlib.sha256()
    view = memoryview(data)
    for at in range(0, len(view), _CHUNK):
        found.update(view[at : at + _CHUNK])
    return found.hexdigest()


def write_plan(path: str | Path, header: dict[str, Any], blobs: Sequence[bytes]) -> int:
    """Write a plan file atomically; returns its size in bytes. Raises FileError."""
    table = [{"size": len(b), "sha256": digest(b)} for b in blobs]
    text = canonical({**header, "blobs": table})
    prefix = _PREFIX.pack(MAGIC, FORMAT, len(text), hashlib.sha256(text).digest())
    return replace_file(Path(path), [prefix, text, *blobs])


def read_plan_file(path: str | Path) -> PlanFile:
    """Map and verify a plan file. Raises PlanError with the reason; nothing of its contents is interpreted."""
    path = Path(path)
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
    except OSError as error:
        raise PlanError(f"cannot read the plan {path}: {error.strerror or error}") from error
    view = memoryview(data)
    header, start = _header(path, view)
    return PlanFile(path, header, _blobs(path, header, view, start))


def _header(path: Path, view: memoryview) -> tuple[dict[str, Any], int]:
    if len(view) < _PREFIX.size:
        raise PlanError(f"{path} is not a plan file, or is cut off: it has {len(view)} bytes")
    magic, version, length, expected = _PREFIX.unpack(view[: _PREFIX.size])
    if magic != MAGIC:
        raise PlanError(f"{path} is not a plan file: it begins with {bytes(magic)!r}, not with {MAGIC!r}")
    if version != FORMAT:
        raise PlanError(f"{path} has plan format {version}; this kit reads format {FORMAT}; build the plan again")
    start = _PREFIX.size + length
    if not 2 <= length <= min(_MAX_HEADER, len(view) - _PREFIX.size):
        raise PlanError(f"{path} is cut off or altered: its header should have {length} bytes")
    text = bytes(view[_PREFIX.size : start])
    if hashlib.sha256(text).digest() != expected:
        raise PlanError(f"{path} was altered: the digest of its header does not fit")
    try:
        header = json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise PlanError(f"{path} was altered: its header is not JSON ({error})") from error
    if not isinstance(header, dict):
        raise PlanError(f"{path} was altered: its header is no table")
    return header, start


def _blobs(path: Path, header: dict[str, Any], view: memoryview, start: int) -> tuple[memoryview, ...]:
    table = header.get("blobs")
    well_formed = isinstance(table, list) and all(
        isinstance(e, dict) and type(e.get("size")) is int and e["size"] >= 0 and isinstance(e.get("sha256"), str)
        for e in table
    )
    if not well_formed:
        raise PlanError(f"{path} was altered: its table of blobs is damaged")
    assert isinstance(table, list)
    total = start + sum(e["size"] for e in table)
    if total != len(view):
        what = "cut off" if total > len(view) else "followed by something else"
        raise PlanError(f"{path} is {what}: it has {len(view)} bytes, and should have {total}")
    blobs = []
    for index, entry in enumerate(table):
        blob = view[start : start + entry["size"]]
        start += entry["size"]
        if digest(blob) != entry["sha256"]:
            raise PlanError(f"{path} was altered: the digest of blob {index} ({entry['size']} bytes) does not fit")
        blobs.append(blob)
    return tuple(blobs)
