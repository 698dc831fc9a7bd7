"""A model that is ready to run: the built network with its KV cache, and the loop that writes text."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from trtforge.bindings import ranges
from trtforge.bindings.device import has_gpu
from trtforge.bindings.errors import UsageError
from trtforge.bindings.optional import available
from trtforge.graph_api.backends import BACKENDS, default_fusion
from trtforge.graph_api.executable import Executable
from trtforge.graph_api.fusion import FusionReport
from trtforge.graph_api.llm.checkpoint import Checkpoint
from trtforge.graph_api.llm.config import COMPUTE_DTYPES, LlamaConfig
from trtforge.graph_api.llm.explain import Explanation, Placed
from trtforge.graph_api.llm.model import LONGEST_STEP, bind_checkpoint, build_network
from trtforge.graph_api.llm.sampling import Sampler, Sampling
from trtforge.graph_api.llm.tokenizer import TextStream, Tokenizer

ROUNDING = 64  # cache lengths are multiples of this, so that similar requests build the same network


@dataclass(frozen=True)
class GenerationResult:
    """What a prompt became.

    ``text`` and ``token_ids`` are the continuation alone, without the end token. ``finish_reason``:
    ``stop`` (the model ended its text), ``length`` (``max_tokens`` were written) or ``context`` (the cache
    is full). ``seed`` repeats a sampled text and is None for a greedy one. ``prefill_seconds`` is the
    prompt's step, out of which the first token comes; ``decode_seconds`` are the steps of one token each.
    """

    prompt: str
    text: str
    token_ids: tuple[int, ...]
    prompt_tokens: int
    finish_reason: str
    backend: str
    dtype: str
    seed: int | None
    prefill_seconds: float
    decode_seconds: float
    decode_steps: int

    @property
    def prefill_tokens_per_second(self) -> float:
        """Tokens of the prompt per second."""
        return self.prompt_tokens / max(self.prefill_seconds, 1e-9)

    @property
    def decode_tokens_per_second(self) -> float:
        """Tokens after the first per second; 0 where there were none."""
        return self.decode_steps / max(self.decode_seconds, 1e-9) if self.decode_steps else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return every field and both rates, ready for JSON."""
        rates = ("prefill_tokens_per_second", "decode_tokens_per_second")
        return {**asdict(self), **{name: getattr(self, name) for name in rates}}


class Session:
    """One built model with a static KV cache for ``batch`` sequences of at most ``max_length`` tokens.

    ``backend``: ``reference``, ``cuda``, or ``auto``: ``cuda`` where a GPU and CuPy are at hand. ``dtype``:
    the dtype of the weights, the activations and the cache; ``auto`` takes the checkpoint's own.
    ``max_length`` is rounded up to a multiple of 64 and bounded by the model's context (None: the whole
    context). ``fuse=False`` leaves every op as the model writes it. Raises :class:`CheckpointError` where
    the weights cannot be read, :class:`UsageError` for the arguments.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        backend: str = "auto",
        dtype: str = "auto",
        batch: int = 1,
        max_length: int | None = None,
        fuse: bool = True,
    ) -> None:
        self.checkpoint: Checkpoint | None = checkpoint
        self.config = checkpoint.config
        self.tokenizer = checkpoint.tokenizer
        self.backend = resolve_backend(backend)
        self.dtype, self.max_length = session_shape(self.config, dtype, batch, max_length)
        self.batch = batch
        self.network = build_network(self.config, self.dtype, batch, self.max_length)
        bind_checkpoint(self.network, checkpoint)
        self.network.fuse(default_fusion(self.backend) if fuse else ())
        self.executable = self.network.build(self.backend)

    @classmethod
    def of_executable(
        cls,
        config: LlamaConfig,
        tokenizer: Tokenizer,
        executable: Executable,
        *,
        dtype: str,
        batch: int,
        max_length: int,
    ) -> Session:
        """A session over a model that was built elsewhere (a plan file); it has no checkpoint."""
        session = cls.__new__(cls)
        session.checkpoint = None
        session.config, session.tokenizer = config, tokenizer
        session.executable, session.network = executable, executable.network
        session.backend, session.dtype, session.batch, session.max_length = executable.backend, dtype, batch, max_length
        return session

    @property
    def fusion_report(self) -> FusionReport:
        """What fusion did to the network; empty for a network that comes out of a plan file."""
        count = len(self.network.nodes)
        return self.network.fusion_report or FusionReport(self.network.name, count, count)

    def explain(self) -> Explanation:
        """Return what fusion replaced, and what runs each node of the network that is left."""
        placement = self.executable.placement
        nodes = (Placed(node.name, node.op, placement.get(node.name, "")) for node in self.network.nodes)
        return Explanation(self.backend, self.dtype, self.fusion_report, tuple(nodes))

    def step(self, tokens: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Feed ``tokens`` int32 ``[B, S]`` at ``positions`` int32 ``[B]`` (of each first token) to the cache.

        Returns the logits after the last of them, float32 ``[B, vocab_size]``.
        """
        return self.executable(tokens=tokens, positions=positions)["logits"]

    def prefill(self, tokens: np.ndarray) -> np.ndarray:
        """Feed the first tokens, int32 ``[B, S]``, 512 at a time; returns the logits ``[B, vocab_size]``."""
        for start in range(0, tokens.shape[1], LONGEST_STEP):
            positions = np.full(self.batch, start, np.int32)
            chunk = np.ascontiguousarray(tokens[:, start : start + LONGEST_STEP])
            with ranges.phase("prefill", (("start", start), ("tokens", chunk.shape[1]))):
                logits = self.step(chunk, positions)
        return logits

    def tokens(self, prompt: list[int], sampler: Sampler) -> Iterator[int]:
        """Yield the continuation of ``prompt`` until the cache is full, or up to an end token."""
        logits = self.prefill(np.array([prompt], np.int32))
        for position in range(len(prompt), self.max_length):
            token = sampler.choose(logits[0])
            yield token
            if token in self.config.eos_token_ids or position + 1 == self.max_length:
                return
            with ranges.phase("decode"):
                logits = self.step(np.array([[token]], np.int32), np.array([position], np.int32))

    def generate(
        self,
        prompt: str,
        *,
        max_tokens: int = 100,
        sampling: Sampling | None = None,
        on_text: Callable[[str], None] | None = None,
    ) -> GenerationResult:
        """Continue ``prompt`` by at most ``max_tokens`` tokens; ``on_text`` gets the text piece by piece.

        Greedy where ``sampling`` is None. Raises :class:`UsageError` for a prompt that is empty or leaves
        no room.
        """
        at_least_one("max_tokens", max_tokens)
        if self.batch != 1:
            raise UsageError(f"this session was built for a batch of {self.batch}; generate needs batch=1")
        ids = self.tokenizer.encode(prompt)
        if len(ids) >= self.max_length:
            raise UsageError(
                f"the prompt has {len(ids)} tokens; accepted are fewer than {self.max_length}, the length of "
                f"the cache (the model's own context is {self.config.max_position_embeddings})"
            )
        sampler = Sampler(sampling or Sampling())
        stream = TextStream(self.tokenizer, ids)
        pieces: list[str] = []
        written: list[int] = []

        def give(piece: str) -> None:
            pieces.append(piece)
            if piece and on_text is not None:
                on_text(piece)

        finish, times = "context", [time.perf_counter()]
        for token in self.tokens(ids, sampler):
            times.append(time.perf_counter())
            if token in self.config.eos_token_ids:
                finish = "stop"
                break
            written.append(token)
            give(stream.push(token))
            if len(written) == max_tokens:
                finish = "length"
                break
        give(stream.finish())
        return GenerationResult(
            prompt=prompt,
            text="".join(pieces),
            token_ids=tuple(written),
            prompt_tokens=len(ids),
            finish_reason=finish,
            backend=self.backend,
            dtype=self.dtype,
            seed=None if sampler.sampling.temperature == 0 else sampler.seed,
            prefill_seconds=times[1] - times[0],
            decode_seconds=times[-1] - times[1],
            decode_steps=len(times) - 2,
        )


def session_shape(config: LlamaConfig, dtype: str, batch: int, max_length: int | None) -> tuple[str, int]:
    """The dtype, and the length of the KV cache, that a session with these arguments takes. Raises UsageError."""
    at_least_one("batch", batch)
    limit = config.max_position_embeddings
    wanted = limit if max_length is None else at_least_one("max_length", max_length)
    chosen = _one_of("dtype", config.dtype if dtype == "auto" else dtype, COMPUTE_DTYPES)
    return chosen, min(limit, -(-wanted // ROUNDING) * ROUNDING)


def resolve_backend(backend: str) -> str:
    """Return the backend that a name stands for: ``auto`` is ``cuda`` where a GPU and CuPy are at hand."""
    if backend == "auto":
        return "cuda" if has_gpu() and available("cupy") else "reference"
    return _one_of("backend", backend, ("auto", *BACKENDS))


def _one_of(name: str, value: str, accepted: tuple[str, ...]) -> str:
    if value not in accepted:
        raise UsageError(f"{name} is {value!r}; accepted is one of {', '.join(accepted)}")
    return value


def at_least_one(name: str, value: int) -> int:
    """Return ``value``, an integer of at least 1, or raise :class:`UsageError` that names the argument."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise UsageError(f"{name} is {value!r}; accepted is an integer of at least 1")
    return int(value)
