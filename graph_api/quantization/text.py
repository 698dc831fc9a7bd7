"""Text to calibrate on, and other text to measure on: a file of the user's, or Python's own documentation."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trtforge.bindings.errors import UsageError
from trtforge.graph_api.llm.config import LlamaConfig
from trtforge.graph_api.llm.tokenizer import Tokenizer

CORPUS = Path(__file__).resolve().parents[2] / "examples" / "pydoc_llama" / "corpus.py"
#: How examples/pydoc_llama/train.py orders the documents, and the share at the end that it never trained on.
ORDER_SEED = 20
HELD_OUT = 0.02
#: The digest of the documentation that the shipped model was trained on.
TRAINED_ON = "aa3a57f659456da7388f40f6f432cd759abe561140481c2312f89e7736da9e23"


@dataclass(frozen=True)
class Text:
    """Token ids, int32 [T]: ``calibration``, and ``held_out``, which shares nothing with it. ``source`` in words."""

    calibration: np.ndarray
    held_out: np.ndarray
    source: str


def documentation(tokenizer: Tokenizer, config: LlamaConfig) -> Text:
    """Python's documentation, cut where the training of the shipped model cut it.

    With the Python that it was trained with (3.11.7), ``held_out`` is the text that training never saw; with another
    one the documents differ, and ``source`` says so. Raises UsageError outside a checkout of the repository.
    """
    if not CORPUS.is_file():
        raise UsageError(f"{CORPUS} is missing, which collects the text to measure on; give a text file with --text")
    spec = importlib.util.spec_from_file_location("pydoc_corpus", CORPUS)
    assert spec is not None and spec.loader is not None
    corpus = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(corpus)
    documents: list[str] = corpus.documents()
    end = config.eos_token_ids[:1]
    ids = [token for i in order(len(documents)) for token in (*tokenizer.encode(documents[i]), *end)]
    split = int(len(ids) * (1 - HELD_OUT))
    same = corpus.sha256(documents) == TRAINED_ON
    source = "Python's documentation, the 2 % of it that the shipped model was not trained on"
    if not same:
        source = "Python's documentation, of another version than the shipped model was trained on"
    return Text(np.array(ids[:split], np.int32), np.array(ids[split:], np.int32), source)


def order(count: int) -> list[int]:
    """The permutation of ``torch.randperm`` on a CPU with a generator seeded ``ORDER_SEED``: a Fisher-Yates shuffle
    over the raw 32-bit numbers of a Mersenne Twister."""
    numbers = np.random.RandomState(ORDER_SEED).randint(0, 2**32, count, dtype=np.uint32)
    found = list(range(count))
    for i in range(count - 1):
        j = i + int(numbers[i]) % (count - i)
        found[i], found[j] = found[j], found[i]
    return found


def from_file(path: str | Path, tokenizer: Tokenizer) -> Text:
    """A UTF-8 text file: its first half to calibrate on, its second half to measure on. Raises UsageError."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read as UTF-8 text ({error})") from error
    ids = np.array(tokenizer.encode(text), np.int32) if text else np.zeros(0, np.int32)
    half = len(ids) // 2
    return Text(ids[:half], ids[half:], f"the second half of {Path(path).name}")


def samples(tokens: np.ndarray, count: int, window: int) -> list[dict[str, np.ndarray]]:
    """``count`` windows of ``window`` tokens, evenly spread, as inputs of a language model's network."""
    if len(tokens) < window:
        raise UsageError(f"the text has {len(tokens)} tokens to calibrate on; at least {window} are needed")
    starts: Sequence[int] = np.linspace(0, len(tokens) - window, count).astype(int).tolist()
    positions = np.zeros(1, np.int32)
    return [{"tokens": tokens[None, start : start + window], "positions": positions} for start in starts]
