"""Networks from arrays to arrays, host time included: the shipped language model, and a BERT-type encoder.

Every backend's outputs are held against the reference backend's in the same run. ``tokens/s`` are in the extra
information of each benchmark, by its median.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trtforge.graph_api.llm import Session, open_checkpoint

ROOT = Path(__file__).parent.parent
MODEL = ROOT / "examples" / "pydoc_llama" / "model"
ENCODER = ROOT / "examples" / "encoder" / "encoder.py"
PROMPT = 256
BATCH, ROWS = 8, 128
#: Relative L2 error that float16 activations may make.
WRONG = 2e-2

backends = pytest.mark.parametrize("backend", ["reference", pytest.param("cuda", marks=pytest.mark.gpu)])


@cache
def session(backend: str) -> Session:
    return Session(open_checkpoint(MODEL), backend=backend)


@cache
def prompt() -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.integers(2, session("reference").config.vocab_size, (1, PROMPT)).astype(np.int32)


def measured(benchmark: Any, call: Callable[[], Any], tokens: int, backend: str) -> Any:
    """Time the call and note its tokens per second; returns its last result."""
    results: list[Any] = []
    slow = backend == "reference"
    benchmark.pedantic(
        lambda: results.__setitem__(slice(None), [call()]),
        rounds=5 if slow else 50,
        iterations=1,
        warmup_rounds=1 if slow else 5,
    )
    benchmark.extra_info["tokens/s"] = tokens / benchmark.stats.stats.median
    return results[0]


def error_of(found: np.ndarray, right: np.ndarray) -> float:
    wide = right.astype(np.float64)
    return float(np.linalg.norm(found.astype(np.float64) - wide) / np.linalg.norm(wide))


@pytest.mark.benchmark(group="language model, prefill of 256 tokens")
@backends
def test_prefill(benchmark: Any, backend: str) -> None:
    logits = measured(benchmark, lambda: session(backend).prefill(prompt()), PROMPT, backend)
    error = benchmark.extra_info["error"] = error_of(logits, session("reference").prefill(prompt()))
    assert error <= WRONG


@pytest.mark.benchmark(group="language model, one token after 256")
@backends
def test_decode(benchmark: Any, backend: str) -> None:
    token, place = np.array([[5]], np.int32), np.array([PROMPT], np.int32)

    def step(on: str) -> np.ndarray:
        return session(on).step(token, place)

    for on in (backend, "reference"):
        session(on).prefill(prompt())
    logits = measured(benchmark, lambda: step(backend), 1, backend)
    error = benchmark.extra_info["error"] = error_of(logits, step("reference"))
    assert error <= WRONG


@cache
def encoder_module() -> Any:
    spec = importlib.util.spec_from_file_location("trtforge_benchmarked_encoder", ENCODER)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def encoder(backend: str) -> tuple[Callable[..., Mapping[str, np.ndarray]], dict[str, np.ndarray]]:
    net = encoder_module().network()
    inputs: dict[str, np.ndarray] = encoder_module().example_inputs(net, BATCH, ROWS)
    net.fuse()
    return net.build(backend), inputs


@pytest.mark.benchmark(group="encoder, 8 sequences of 128 tokens")
@backends
def test_encoder(benchmark: Any, backend: str) -> None:
    run, inputs = encoder(backend)
    outputs = measured(benchmark, lambda: run(**inputs), BATCH * ROWS, backend)
    right = encoder("reference")[0](**inputs)
    kept = np.arange(ROWS) < inputs["lengths"][:, None]
    errors = [error_of(outputs["hidden"][kept], right["hidden"][kept]), error_of(outputs["pooled"], right["pooled"])]
    benchmark.extra_info["error"] = max(errors)
    assert max(errors) <= WRONG
