"""The text that the example model learns: English prose which every Python installation carries.

Two sources, nothing to download: the language reference behind ``help()`` (``pydoc_data.topics``) and the
docstrings of the standard library, read from its source files without importing them. Both are cut into
paragraphs; code, grammar and tables are left out, line breaks inside a paragraph are undone, and repeated
paragraphs are kept once. The result depends on the Python version alone, so its SHA-256 identifies the
training data.
"""

from __future__ import annotations

import ast
import hashlib
import re
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

SKIPPED_FOLDERS = {
    "__pycache__", "dist-packages", "ensurepip", "idlelib", "lib2to3", "lib-dynload", "msilib", "pydoc_data",
    "site-packages", "test", "tests", "turtledemo",
}  # fmt: skip
MINIMUM_WORDS = 6
MINIMUM_PROSE = 0.88  # share of letters, spaces and sentence punctuation in a paragraph of prose
CODE_MARKS = (">>>", "::=", "...  ", "==", "+--", "|  ", "<!", "->", "%(", "__all__", "@param", ":param")


def documents() -> list[str]:
    """Return the documents in a fixed order: one paragraph a line, paragraphs separated by one newline."""
    seen: set[str] = set()
    result = []
    for text in [*_topics(), *_docstrings()]:
        kept = []
        for paragraph in _paragraphs(text):
            if paragraph not in seen:
                seen.add(paragraph)
                kept.append(paragraph)
        if kept:
            result.append("\n".join(kept))
    return result


def sha256(texts: list[str]) -> str:
    """Return the SHA-256 of the documents, joined by form feeds, in UTF-8."""
    return hashlib.sha256("\f".join(texts).encode()).hexdigest()


def words(texts: list[str]) -> set[str]:
    """Return the lower-case words that occur in the documents."""
    return {word for text in texts for word in re.findall(r"[a-z]+", text.lower())}


def _topics() -> Iterator[str]:
    from pydoc_data.topics import topics

    for name in sorted(topics):
        yield topics[name]


def _docstrings() -> Iterator[str]:
    library = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(library.rglob("*.py"), key=lambda path: path.relative_to(library).as_posix()):
        parts = path.relative_to(library).parts
        if SKIPPED_FOLDERS.intersection(parts) or any(part.startswith(("config-", "_sysconfigdata")) for part in parts):
            continue
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue  # a file in another encoding, or kept broken on purpose: neither holds prose
        found = []
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                found.append(ast.get_docstring(node) or "")
        yield "\n\n".join(found)


def _paragraphs(text: str) -> Iterator[str]:
    for block in re.split(r"\n\s*\n", text.expandtabs()):
        joined = " ".join(line.strip() for line in block.splitlines())
        joined = re.sub(r"^(?:[*-]|\d+[.)])\s+", "", joined)
        joined = re.sub(r"\*\*(.+?)\*\*", r"\1", joined)
        joined = re.sub(r"(?<!\w)\*(\w[^*]*)\*(?!\w)", r"\1", joined)
        joined = joined.translate({0x2018: "'", 0x2019: "'", 0x201C: '"', 0x201D: '"', 0x2013: "-", 0x2014: "-"})
        joined = re.sub(r"\s+", " ", joined).strip()
        if _is_prose(joined):
            yield joined


def _is_prose(paragraph: str) -> bool:
    if len(paragraph.split()) < MINIMUM_WORDS or not paragraph[:1].isupper() or paragraph[-1] not in '.:!?)"':
        return False
    if any(mark in paragraph for mark in CODE_MARKS) or not paragraph.isascii():
        return False
    prose = sum(character.isalpha() or character in " ,.'\"" for character in paragraph)
    return prose / len(paragraph) >= MINIMUM_PROSE


if __name__ == "__main__":
    texts = documents()
    size = sum(len(text) for text in texts)
    print(f"{len(texts)} documents, {size} characters, {len(words(texts))} distinct words")
    print(f"sha256 {sha256(texts)} with Python {sys.version.split()[0]}")
