"""``trtforge new``: a folder with a complete op of one's own, which is checked, inspected and called at once."""

from __future__ import annotations

import keyword
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from trtforge.bindings.errors import UsageError
from trtforge.kernels import registry

_FOLDER = Path(__file__).parent / "templates"
_BUILTIN = Path(registry.__file__).parent
_DEFAULT_NAMESPACE = "my"
_LONGEST_NAME = 32
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")

_COMPILED = "compiled for five architectures and verified statically"
_INTERPRETED = f"run in Triton's interpreter, {_COMPILED}"

#: How a CUDA kernel is run without a GPU: a line of the README, which Triton kernels need not.
_EMULATE = """\
trtforge check NAMESPACE::OPNAME --load FOLDER --device emulate   # run on this CPU, by a C++ compiler
"""


@dataclass(frozen=True)
class Template:
    """What a template makes. ``kernel`` is the name of its kernel file, with OPNAME for the op's."""

    summary: str
    kernel: str
    proof: str


TEMPLATES = {
    "cuda-elementwise": Template("One function of every element, in CUDA C++.", "OPNAME.cu", _COMPILED),
    "cuda-reduction": Template("One number for every row, in CUDA C++.", "OPNAME.cu", _COMPILED),
    "cuda-gemm": Template("A matrix product on tensor cores with an epilogue, in CUDA C++.", "OPNAME.cu", _COMPILED),
    "triton-elementwise": Template("One function of every element, in Triton.", "OPNAME_triton.py", _INTERPRETED),
    "triton-reduction": Template("One number for every row, in Triton.", "OPNAME_triton.py", _INTERPRETED),
    "triton-attention": Template("Flash attention with a score function, in Triton.", "OPNAME_triton.py", _INTERPRETED),
}


def qualified(name: str) -> tuple[str, str]:
    """The namespace and the op of "ns::op", or of "op" in the namespace ``my``. Raises UsageError."""
    namespace, separator, op = name.partition("::")
    if not separator:
        namespace, op = _DEFAULT_NAMESPACE, name
    for part in (namespace, op):
        if not _NAME.fullmatch(part) or keyword.iskeyword(part) or len(part) > _LONGEST_NAME:
            raise UsageError(
                f"name is {name!r}, whose part {part!r} cannot be used; accepted: OP or NAMESPACE::OP, each a letter "
                f"followed by letters, digits and underscores, at most {_LONGEST_NAME} characters, no Python keyword"
            )
    return namespace, op


def new(name: str, template: str, into: str | Path = ".") -> Path:
    """Make the folder ``into/<op>`` with declaration, kernel and README; returns it.

    ``name``: "ns::op", or "op" for "my::op"; ``template``: a key of :data:`TEMPLATES`; ``into``: an existing folder,
    which may be ``kernels/`` of the repository. The folder appears whole or not at all. Raises UsageError.
    """
    namespace, op = qualified(name)
    if template not in TEMPLATES:
        raise UsageError(f"template is {template!r}; accepted: {', '.join(TEMPLATES)}")
    parent = Path(into)
    if not parent.is_dir():
        raise UsageError(f"into is {str(into)!r}, which is no folder; create it first, or name another")
    folder = parent / op
    if os.path.lexists(folder):
        raise UsageError(f"{folder} exists already; choose another name, or another folder with into (--into)")
    full = f"{namespace}::{op}"
    taken = next((known for known in registry.ops() if known.name == full), None)
    if taken is not None:
        raise UsageError(f"name is {full!r}, which {taken.file} declares already; choose another name or namespace")
    files = _contents(namespace, op, template, builtin=parent.resolve() == _BUILTIN)
    staging = parent / f".{op}.{os.getpid()}"
    try:
        staging.mkdir()
        for file, text in files.items():
            (staging / file).write_text(text, encoding="utf-8")
        staging.rename(folder)
    except OSError as error:
        shutil.rmtree(staging, ignore_errors=True)
        raise UsageError(f"{folder} cannot be written: {error.strerror or error}") from error
    return folder


def _contents(namespace: str, op: str, template: str, builtin: bool) -> dict[str, str]:
    """The text of every file of a new op, by file name."""
    chosen = TEMPLATES[template]
    words = {
        "NAMESPACE": namespace,
        "OPNAME": op,
        "FOLDER": f"{_BUILTIN.name}/{op}" if builtin else op,
        "SUMMARY": chosen.summary,
        "KERNEL_FILE": chosen.kernel.replace("OPNAME", op),
        "PROOF": chosen.proof,
    }
    texts = {name: _text(f"{template}/{name}") for name in ("op.py", chosen.kernel)}
    emulate = _EMULATE if template.startswith("cuda") else ""
    texts["README.md"] = _text("README.md").replace("USE\n", _text(f"{template}/use.py")).replace("EMULATE\n", emulate)
    if builtin:
        texts["__init__.py"] = ""
    placeholder = re.compile("|".join(words))
    return {
        name.replace("OPNAME", op): placeholder.sub(lambda found: words[found[0]], text) for name, text in texts.items()
    }


def _text(name: str) -> str:
    return (_FOLDER / name).read_text(encoding="utf-8")
