"""The tokenizer of a checkpoint, and text that comes out of it piece by piece."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer as Backend

from trtforge.bindings.errors import CheckpointError, UsageError

REPLACEMENT = "\ufffd"


class Tokenizer:
    """``tokenizer.json`` through the ``tokenizers`` library, held to the model's vocabulary."""

    def __init__(self, path: Path, vocabulary: int) -> None:
        if not path.is_file():
            others = [name for name in ("tokenizer.model", "vocab.json") if (path.parent / name).is_file()]
            found = f"only {', '.join(others)}" if others else "no tokenizer at all"
            raise CheckpointError(
                f"{path}: is missing ({found}); accepted is a tokenizer.json: "
                "transformers' AutoTokenizer.from_pretrained(folder).save_pretrained(folder) writes one"
            )
        try:
            self.backend = Backend.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise CheckpointError(f"{path}: not a tokenizer that the tokenizers library reads: {error}") from error
        self.path = path
        self.vocabulary = vocabulary
        ids = self.backend.get_vocab(with_added_tokens=False).values()
        if ids and max(ids) >= vocabulary:
            raise CheckpointError(
                f"{path}: has token ids up to {max(ids)}, but config.json says vocab_size {vocabulary}; "
                "the tokenizer belongs to another model"
            )

    def encode(self, prompt: str) -> list[int]:
        """Return the token ids of ``prompt``, with the special tokens that belong around a text."""
        if not prompt:
            raise UsageError("prompt is empty; accepted is a text of at least one character")
        try:
            prompt.encode("utf-8")
        except UnicodeEncodeError as error:
            raise UsageError(
                f"prompt is not valid Unicode at character {error.start}; accepted is UTF-8 text"
            ) from error
        ids = self.backend.encode(prompt).ids
        beyond = sorted({token for token in ids if token >= self.vocabulary})
        if beyond:
            raise CheckpointError(
                f"{self.path}: gives the token ids {beyond} for this prompt; config.json says vocab_size "
                f"{self.vocabulary}, so ids up to {self.vocabulary - 1} are accepted"
            )
        if not ids:
            raise UsageError(f"prompt {prompt!r} gives no token; accepted is a text that the tokenizer can encode")
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ``ids`` without special tokens; bytes that are not UTF-8 become U+FFFD."""
        return self.backend.decode(list(ids), skip_special_tokens=True)


class TextStream:
    """Turns token ids into text as they come, never cutting a character in two.

    A byte-level token may end in the middle of a UTF-8 character, and some tokenizers strip a space at the
    start of whatever they decode. So each token is decoded together with the piece before it, and text is
    given out only when it does not end in an incomplete character. The prompt's tokens stand before the
    first piece.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int]) -> None:
        self.tokenizer = tokenizer
        self._window = list(prompt)
        self._shown = tokenizer.decode(self._window)
        self._given = len(self._window)

    def push(self, token: int) -> str:
        """Return the text that ``token`` completes, possibly none."""
        self._window.append(token)
        text = self.tokenizer.decode(self._window)
        if text.endswith(REPLACEMENT):
            return ""
        return self._release(text)

    def finish(self) -> str:
        """Return what is still held back: bytes that never became a character, as U+FFFD."""
        return self._release(self.tokenizer.decode(self._window))

    def _release(self, text: str) -> str:
        piece = text[len(self._shown) :]
        if not piece:
            return ""
        self._window = self._window[self._given :]
        self._given = len(self._window)
        self._shown = self.tokenizer.decode(self._window)
        return piece
