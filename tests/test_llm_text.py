"""Text that comes out token by token equals the text decoded at once, and never holds half a character."""

from __future__ import annotations

import llm_checkpoints as tiny
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trtforge.graph_api.llm.tokenizer import TextStream, Tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Tokenizer:
    path = tmp_path_factory.mktemp("bytes") / "tokenizer.json"
    tiny.byte_tokenizer().save(str(path))
    return Tokenizer(path, 260)


def stream(tokenizer: Tokenizer, prompt: str, ids: list[int]) -> list[str]:
    text = TextStream(tokenizer, tokenizer.encode(prompt))
    return [*(text.push(token) for token in ids), text.finish()]


@given(st.text(max_size=30), st.sampled_from(["a", "déjà ", "漢", " "]))
@settings(max_examples=100, deadline=None)
def test_pieces_are_whole_characters_and_add_up(tokenizer, text, prompt):
    ids = tokenizer.backend.encode(text, add_special_tokens=False).ids
    pieces = stream(tokenizer, prompt, ids)
    assert "".join(pieces) == text == tokenizer.decode(ids)
    if "\ufffd" not in text:
        assert all("\ufffd" not in piece for piece in pieces)


@given(st.lists(st.integers(0, 257), max_size=30))
@settings(max_examples=200, deadline=None)
def test_any_token_sequence_adds_up_to_its_decoding(tokenizer, ids):
    assert "".join(stream(tokenizer, "x", ids)) == tokenizer.decode(ids)


def test_a_character_appears_when_its_last_byte_does(tokenizer):
    ids = tokenizer.backend.encode("é🙂", add_special_tokens=False).ids
    assert stream(tokenizer, "x", ids) == ["", "é", "", "", "", "🙂", ""]
    assert stream(tokenizer, "x", ids[:4]) == ["", "é", "", "", "\ufffd"]


def test_the_shipped_tokenizer_streams_what_it_decodes():
    tokenizer = Tokenizer(tiny.SHIPPED / "tokenizer.json", 2048)
    text = "The following table – naïve, 漢字, 🙂 – lists  the\n\noperators."
    ids = tokenizer.backend.encode(text, add_special_tokens=False).ids
    assert "".join(stream(tokenizer, "In Python", ids)) == text
