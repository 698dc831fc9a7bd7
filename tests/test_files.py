"""Files are replaced whole or left as they were."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from trtforge.bindings.errors import FileError, ForgeError
from trtforge.bindings.files import replace_file


def test_text_bytes_and_chunks(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "file"
    assert replace_file(path, "a é") == 4 and path.read_text(encoding="utf-8") == "a é"
    assert replace_file(path, b"abc") == 3 and path.read_bytes() == b"abc"
    assert replace_file(path, [b"ab", memoryview(b"c"), b""]) == 3 and path.read_bytes() == b"abc"
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:3]))
    replace_file(tmp_path / "file", b"0123456789")
    assert (tmp_path / "file").read_bytes() == b"0123456789"


def test_a_full_disk_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    replace_file(path, "old")
    written = []

    def full(descriptor: int, data: bytes) -> int:
        if written:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(data)
        return 1

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(FileError, match=r"cannot write .*file: No space left on device") as caught:
        replace_file(path, "new contents")
    assert isinstance(caught.value, ForgeError)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_an_interrupt_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    replace_file(path, "old")

    def chunks() -> Iterator[bytes]:
        yield b"half of"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        replace_file(path, chunks())
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(FileError, match="cannot write"):
        replace_file(tmp_path / "file" / "below", "x")
