"""`generate`: equality with full recomputation, streaming, endings, bad arguments, the shipped model."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
import time
from types import ModuleType

import llm_checkpoints as tiny
import numpy as np
import pytest
from safetensors.numpy import load_file

from trtforge.bindings.errors import CheckpointError, UsageError
from trtforge.graph_api.llm import Sampling, Session, generate, open_checkpoint, open_session

PROMPT = "The following"


@pytest.fixture(scope="module")
def shipped() -> Session:
    return Session(open_checkpoint(tiny.SHIPPED), backend="reference")


@pytest.fixture(scope="module")
def corpus() -> ModuleType:
    path = tiny.SHIPPED.parent / "corpus.py"
    spec = importlib.util.spec_from_file_location("pydoc_llama_corpus", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def texts(corpus) -> list[str]:
    return corpus.documents()


def test_incremental_greedy_equals_full_recomputation():
    """Token for token, with the plain NumPy model run over the whole text for every token."""
    session = Session(open_checkpoint(tiny.SHIPPED), backend="reference", dtype="float32")
    result = session.generate(PROMPT, max_tokens=25)
    config = json.loads((tiny.SHIPPED / "config.json").read_text())
    stored = load_file(tiny.SHIPPED / "model.safetensors")
    weights = {name: value.astype(np.float64) for name, value in stored.items()}
    ids = session.checkpoint.tokenizer.encode(PROMPT)
    for token in result.token_ids:
        assert token == tiny.plain_llama(config, weights, np.array(ids))[-1].argmax()
        ids.append(token)


def test_float16_greedy_equals_its_own_recomputation(shipped):
    """The same network with one prefill per token: what was written is its choice, or a near tie."""
    result = shipped.generate(PROMPT, max_tokens=20)
    ids = shipped.checkpoint.tokenizer.encode(PROMPT)
    for token in result.token_ids:
        logits = shipped.prefill(np.array([ids], np.int32))[0]
        assert logits.max() - logits[token] <= 1e-2 * np.abs(logits).max()
        ids.append(token)


def test_text_is_streamed_and_adds_up(shipped):
    pieces: list[str] = []
    result = shipped.generate(PROMPT, max_tokens=60, on_text=pieces.append)
    assert "".join(pieces) == result.text == shipped.checkpoint.tokenizer.decode(result.token_ids)
    assert all(pieces) and len(pieces) > 30
    assert result.prompt_tokens == len(shipped.checkpoint.tokenizer.encode(PROMPT))
    assert result.prefill_tokens_per_second > 0 and result.decode_tokens_per_second > 0
    assert json.loads(json.dumps(result.to_dict()))["text"] == result.text


def test_the_shipped_model_writes_words(corpus, texts):
    """Greedy and sampled text of several prompts: nearly all words occur in the training text."""
    known = corpus.words(texts)
    sampled = {"temperature": 0.8, "top_k": 50, "top_p": 0.95}
    text = ""
    for prompt in (PROMPT, "If the object"):
        for options in ({}, sampled | {"seed": 1}, sampled | {"seed": 2}):
            text += generate(tiny.SHIPPED, prompt, max_tokens=60, backend="reference", **options).text + "\n"
    words = re.findall(r"[a-z]+", text.lower())
    share = sum(word in known for word in words) / len(words)
    assert len(words) > 200 and share > 0.9, f"{share:.0%} of {len(words)} words are known: {text}"
    assert len(set(words)) > 80, text


def test_the_demo_text_is_written_in_good_time():
    started = time.perf_counter()
    generate(tiny.SHIPPED, PROMPT, max_tokens=80, backend="reference")
    assert time.perf_counter() - started < 30


def test_the_corpus_is_prose_without_repetition(corpus, texts):
    paragraphs = [paragraph for text in texts for paragraph in text.split("\n")]
    assert len(paragraphs) == len(set(paragraphs)) > 2000
    assert sum(map(len, texts)) > 500_000 and all(text.isascii() for text in texts)
    readme = (tiny.SHIPPED.parent / "README.md").read_text()
    recorded = re.search(r"SHA-256 `([0-9a-f]{64})`.*Python (3\.\d+\.\d+)", readme, re.DOTALL)
    assert recorded is not None
    if sys.version.startswith(recorded[2] + " "):
        assert corpus.sha256(texts) == recorded[1]


def test_a_seed_repeats_the_text_and_greedy_has_none(shipped):
    first = shipped.generate(PROMPT, max_tokens=20, sampling=Sampling(1.0))
    again = shipped.generate(PROMPT, max_tokens=20, sampling=Sampling(1.0, seed=first.seed))
    assert first.token_ids == again.token_ids
    other = shipped.generate(PROMPT, max_tokens=20, sampling=Sampling(1.0, seed=first.seed + 1))
    assert first.token_ids != other.token_ids
    assert shipped.generate(PROMPT, max_tokens=2).seed is None


def test_a_batch_session_does_not_generate(tmp_path):
    session = Session(open_checkpoint(tiny.write(tmp_path)), backend="reference", batch=2)
    with pytest.raises(UsageError, match="batch of 2"):
        session.generate("x")


def test_generation_stops_at_an_end_token_at_the_length_and_at_the_context(tmp_path):
    config = tiny.tiny_config()
    folder = tiny.write(tmp_path, config)
    endless = generate(folder, "ab", max_tokens=1000, backend="reference")
    assert endless.finish_reason == "context"
    assert endless.prompt_tokens + len(endless.token_ids) == config["max_position_embeddings"]
    short = generate(folder, "ab", max_tokens=5, backend="reference")
    assert (short.finish_reason, short.token_ids) == ("length", endless.token_ids[:5])
    assert short.decode_steps == 4
    one = generate(folder, "ab", max_tokens=1, backend="reference")
    assert (one.token_ids, one.decode_tokens_per_second) == (endless.token_ids[:1], 0.0)
    index = next(i for i, token in enumerate(endless.token_ids) if i and token not in endless.token_ids[:i])
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, endless.token_ids[index]]}))
    stopped = generate(folder, "ab", max_tokens=1000, backend="reference")
    assert (stopped.finish_reason, stopped.token_ids) == ("stop", endless.token_ids[:index])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"max_tokens": 1.5}, "max_tokens is 1.5"),
        ({"temperature": -1}, "temperature is -1"),
        ({"top_k": -1}, "top_k is -1"),
        ({"top_p": 0}, "top_p is 0"),
        ({"seed": -3}, "seed is -3"),
        ({"backend": "tpu"}, "backend is 'tpu'"),
        ({"dtype": "float8"}, "dtype is 'float8'"),
        ({"prompt": ""}, "prompt is empty"),
        ({"prompt": "x" * 63}, "the prompt has 64 tokens; accepted are fewer than 64"),
        ({"prompt": "x" * 500}, "the prompt has 501 tokens"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_bad_arguments(tmp_path, arguments, message):
    tiny.write(tmp_path)
    with pytest.raises(UsageError, match=message):
        generate(tmp_path, **({"prompt": "ab", "backend": "reference"} | arguments))


def test_a_missing_checkpoint_is_told(tmp_path):
    with pytest.raises(CheckpointError, match="does not exist"):
        generate(tmp_path / "nowhere", "ab")


def test_a_session_is_just_long_enough():
    session = open_session(tiny.SHIPPED, PROMPT, max_tokens=100, backend="reference")
    assert session.max_length == 128
