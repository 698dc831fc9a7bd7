"""One text on every backend: the greedy choice is the same, token for token, or a tie that the test proves.

Both backends are led along the reference's own 200 tokens. Where their choices differ, the float32 model must hold
the two tokens closer together than the float16 rounding of either backend.
"""

from __future__ import annotations

import llm_checkpoints as tiny
import numpy as np
import pytest

from trtforge.graph_api.llm import Session, open_checkpoint

TOKENS = 200
LARGEST_NOISE = 0.02  # of the largest logit: what float16 activations may move it by


def led_along(session: Session, prompt: list[int], tokens: tuple[int, ...]) -> np.ndarray:
    """Logits ``[len(tokens), V]``: before each token, with the cache filled by the tokens before it."""
    rows = [session.prefill(np.array([prompt], np.int32))[0]]
    for i, token in enumerate(tokens[:-1]):
        place = np.array([len(prompt) + i], np.int32)
        rows.append(session.step(np.array([[token]], np.int32), place)[0])
    return np.stack(rows)


def ties(ours: np.ndarray, theirs: np.ndarray, truth: np.ndarray) -> list[int]:
    """The steps at which the choices differ; each is proved to be a tie."""
    steps = np.flatnonzero(ours.argmax(1) != theirs.argmax(1)).tolist()
    for i in steps:
        gap = abs(truth[i, ours[i].argmax()] - truth[i, theirs[i].argmax()])
        noise = np.abs(ours[i] - truth[i]).max() + np.abs(theirs[i] - truth[i]).max()
        assert gap <= noise <= LARGEST_NOISE * np.abs(truth[i]).max(), f"step {i}: gap {gap}, noise {noise}"
    return steps


def agree(other: Session, prompt: str) -> None:
    checkpoint = other.checkpoint
    reference = Session(checkpoint, backend="reference", dtype=other.dtype)
    exact = Session(checkpoint, backend="reference", dtype="float32")
    result = reference.generate(prompt, max_tokens=TOKENS)
    ids = checkpoint.tokenizer.encode(prompt)
    rows = [led_along(session, ids, result.token_ids) for session in (reference, other, exact)]
    differing = ties(*rows)
    assert len(differing) <= TOKENS // 20
    written = other.generate(prompt, max_tokens=TOKENS)
    until = differing[0] if differing else len(result.token_ids)
    assert written.token_ids[:until] == result.token_ids[:until]
    if not differing:
        assert written.text == result.text


def test_fused_and_written_out_networks_agree():
    agree(Session(open_checkpoint(tiny.SHIPPED), backend="reference", fuse=False), "The following")


def test_a_difference_that_is_no_tie_is_caught():
    truth = np.array([[0.0, 1.0, 5.0]])
    with pytest.raises(AssertionError, match="step 0"):
        ties(truth, np.array([[0.0, 6.0, 5.0]]), truth)
    assert ties(truth, truth + 0.5, truth) == []


@pytest.mark.gpu
@pytest.mark.parametrize("prompt", ["The following", "In Python, a generator"])
def test_cuda_and_reference_agree(prompt):
    agree(Session(open_checkpoint(tiny.SHIPPED), backend="cuda"), prompt)


@pytest.mark.gpu
@pytest.mark.parametrize("fuse", [True, False])
@pytest.mark.parametrize(("dtype", "error"), [("float32", 1e-5), ("float16", 4e-3), ("bfloat16", 3e-2)])
def test_cuda_equals_the_plain_model(tmp_path, dtype, error, fuse):
    """Prefill, then a batch whose sequences stand at different positions."""
    config = tiny.tiny_config(attention_bias=True)
    weights = tiny.random_weights(config)
    checkpoint = open_checkpoint(tiny.write(tmp_path, config, weights))
    session = Session(checkpoint, backend="cuda", dtype=dtype, batch=2, fuse=fuse)
    rng = np.random.default_rng(3)
    first, second = rng.integers(0, 260, (2, 40)).astype(np.int32)
    expected = [tiny.plain_llama(config, weights, tokens) for tokens in (first, second)]
    steps = [(session.prefill(np.stack([first[:30], second[:30]])), 29, 29)]
    for i in range(10):  # the same shapes again and again: the captured graph is replayed
        tokens = np.array([[first[30 + i]], [second[20 + i]]], np.int32)
        steps.append((session.step(tokens, np.array([30 + i, 20 + i], np.int32)), 30 + i, 20 + i))
    for logits, i, j in steps:
        wanted = np.stack([expected[0][i], expected[1][j]])
        assert np.linalg.norm(logits - wanted) <= error * np.linalg.norm(wanted)
