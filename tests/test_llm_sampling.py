"""The laws of sampling: exact candidate sets, greedy is argmax, a seed repeats, frequencies are right."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trtforge.bindings.errors import GraphError, UsageError
from trtforge.graph_api.llm.sampling import Sampler, Sampling, candidates

logit_rows = st.lists(st.floats(-30, 30, width=16), min_size=1, max_size=40).map(np.array)


@given(logit_rows, st.integers(1, 50), st.floats(0.01, 10))
@settings(max_examples=100, deadline=None)
def test_top_k_keeps_exactly_the_k_largest(logits, k, temperature):
    tokens, probabilities = candidates(logits, Sampling(temperature, top_k=k))
    assert len(tokens) == min(k, len(logits)) == len(set(tokens))
    left = np.delete(logits, tokens)
    assert left.size == 0 or logits[tokens].min() >= left.max()
    assert probabilities.sum() == pytest.approx(1, abs=1e-12)


@given(logit_rows, st.floats(0.01, 1.0), st.floats(0.1, 10))
@settings(max_examples=100, deadline=None)
def test_top_p_keeps_the_smallest_set_that_reaches_p(logits, p, temperature):
    full = np.exp((logits - logits.max()) / temperature)
    full /= full.sum()
    tokens, probabilities = candidates(logits, Sampling(temperature, top_p=p))
    mass = full[tokens].sum()
    assert mass >= p - 1e-12
    assert len(tokens) == 1 or mass - full[tokens].min() < p + 1e-12
    np.testing.assert_allclose(probabilities, full[tokens] / mass, rtol=1e-9)


def test_top_p_applies_to_what_top_k_left():
    logits = np.log(np.array([0.4, 0.3, 0.2, 0.1]))
    tokens, probabilities = candidates(logits, Sampling(1.0, top_k=2, top_p=0.5))
    assert tokens.tolist() == [0]  # 0.4 of 0.7 reaches one half
    assert candidates(logits, Sampling(1.0, top_p=0.5))[0].tolist() == [0, 1]
    assert probabilities.tolist() == [1.0]


def test_equal_logits_prefer_the_lower_id():
    logits = np.zeros(5)
    assert candidates(logits, Sampling(1.0, top_k=3))[0].tolist() == [0, 1, 2]
    assert Sampler(Sampling()).choose(logits) == 0


@given(logit_rows, st.integers(0, 2**32))
@settings(max_examples=50, deadline=None)
def test_greedy_and_top_k_of_one_are_argmax(logits, seed):
    assert Sampler(Sampling()).choose(logits) == logits.argmax()
    assert Sampler(Sampling(1.5, top_k=1, seed=seed)).choose(logits) == logits.argmax()
    assert Sampler(Sampling(1e-300, seed=seed)).choose(logits) in np.flatnonzero(logits == logits.max())


def test_a_seed_repeats_and_a_fresh_seed_is_told():
    logits = np.random.default_rng(0).standard_normal((40, 100)).astype(np.float16)
    first, again = Sampler(Sampling(1.0, seed=7)), Sampler(Sampling(1.0, seed=7))
    drawn = [first.choose(row) for row in logits]
    assert drawn == [again.choose(row) for row in logits]
    assert drawn != [Sampler(Sampling(1.0, seed=8)).choose(row) for row in logits]
    fresh = Sampler(Sampling(1.0))
    drawn = [fresh.choose(row) for row in logits]
    repeated = Sampler(Sampling(1.0, seed=fresh.seed))
    assert drawn == [repeated.choose(row) for row in logits]


def test_frequencies_follow_the_softmax():
    probabilities = np.array([0.5, 0.25, 0.15, 0.1])
    sampler = Sampler(Sampling(1.0, seed=1))
    counts = np.bincount([sampler.choose(np.log(probabilities)) for _ in range(20000)], minlength=4)
    np.testing.assert_allclose(counts / counts.sum(), probabilities, atol=0.015)


def test_masked_logits_are_never_drawn():
    logits = np.array([0.0, -np.inf, 0.0, -np.inf])
    sampler = Sampler(Sampling(1.0, seed=3))
    assert {sampler.choose(logits) for _ in range(200)} == {0, 2}


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_are_not_numbers_are_refused(bad):
    with pytest.raises(GraphError, match="float16"):
        Sampler(Sampling()).choose(np.array([0.0, bad], np.float16))


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_k": -1}, "top_k"),
        ({"top_k": 2.5}, "top_k"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.01}, "top_p"),
        ({"top_p": float("nan")}, "top_p"),
        ({"seed": -1}, "seed"),
        ({"seed": True}, "seed"),
    ],
)
def test_bad_arguments_are_named(arguments, name):
    with pytest.raises(UsageError, match=rf"^{name} is .*accepted is"):
        Sampling(**arguments)
