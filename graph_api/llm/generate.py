"""From a checkpoint directory and a prompt to text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from trtforge.graph_api.llm.checkpoint import open_checkpoint
from trtforge.graph_api.llm.sampling import Sampling
from trtforge.graph_api.llm.session import GenerationResult, Session, at_least_one, resolve_backend


def open_session(
    model_dir: str | Path, prompt: str, *, max_tokens: int = 100, backend: str = "auto", dtype: str = "auto"
) -> Session:
    """Return a session whose cache is just long enough for ``prompt`` and ``max_tokens`` more tokens.

    Arguments are checked before anything is read. Raises :class:`UsageError` and :class:`CheckpointError`.
    """
    at_least_one("max_tokens", max_tokens)
    backend = resolve_backend(backend)
    checkpoint = open_checkpoint(model_dir)
    length = len(checkpoint.tokenizer.encode(prompt)) + max_tokens
    return Session(checkpoint, backend=backend, dtype=dtype, max_length=length)


def generate(
    model_dir: str | Path,
    prompt: str,
    *,
    max_tokens: int = 100,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int | None = None,
    backend: str = "auto",
    dtype: str = "auto",
    on_text: Callable[[str], None] | None = None,
) -> GenerationResult:
    """Continue ``prompt`` with the Llama-architecture checkpoint in ``model_dir`` (Hugging Face layout).

    Greedy by default; :class:`Sampling` says what ``temperature``, ``top_k``, ``top_p`` and ``seed`` mean
    and in which order they apply. ``on_text`` gets the text piece by piece, in whole characters.
    ``backend``: ``reference`` (NumPy), ``cuda``, or ``auto``; ``dtype``: ``float16``, ``bfloat16``,
    ``float32``, or ``auto``, the checkpoint's own. Raises :class:`UsageError` for arguments,
    :class:`CheckpointError` for the directory.
    """
    sampling = Sampling(temperature, top_k, top_p, seed)
    session = open_session(model_dir, prompt, max_tokens=max_tokens, backend=backend, dtype=dtype)
    return session.generate(prompt, max_tokens=max_tokens, sampling=sampling, on_text=on_text)
