"""The files that a kernel is made of, and a digest of them."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
import re
from collections.abc import Iterator
from pathlib import Path

from trtforge.bindings.nvrtc import included_files
from trtforge.kernels.op import Kernel

_KERNELS = Path(__file__).resolve().parent


def digest(kernel: Kernel) -> str:
    """A digest of a kernel's source file and of those of the kit and beside it that it includes or imports."""
    path = kernel.source.path
    if kernel.language == "cuda":
        files = included_files(path, [path.parent, _KERNELS])
    else:
        files = dict(imported_files(path))
    named = sorted((name_of(file, path.parent), text) for file, text in files.items())
    return hashlib.sha256(json.dumps(named).encode()).hexdigest()[:16]


def name_of(file: Path, folder: Path) -> str:
    """A source by a name that is the same wherever the kit and the op are installed."""
    for root in (folder, _KERNELS):
        if file.is_relative_to(root):
            return file.relative_to(root).as_posix()
    return file.name


def imported_files(path: Path) -> Iterator[tuple[Path, str]]:
    """A Python file and, recursively, what it imports from ``trtforge.kernels.<package>``."""
    seen: set[Path] = set()
    pending = [path]
    while pending:
        current = pending.pop()
        if current in seen:
            continue
        seen.add(current)
        text = current.read_text(encoding="utf-8")
        yield current, text
        try:
            tree = ast.parse(text)
        except SyntaxError:  # an unfinished edit: its text counts, what it imports is not known
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module and re.match(r"trtforge\.kernels\.\w+\.", node.module):
                spec = importlib.util.find_spec(node.module)
                if spec is not None and spec.origin is not None:
                    pending.append(Path(spec.origin).resolve())
