"""What quantization costs a language model: perplexity, errors layer by layer, bytes, seconds."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from trtforge.bindings.errors import UsageError
from trtforge.graph_api.backends.reference import ReferenceExecutable
from trtforge.graph_api.llm.checkpoint import Checkpoint
from trtforge.graph_api.llm.model import bind_checkpoint, build_network
from trtforge.graph_api.network import Network
from trtforge.graph_api.quantization.calibration import WatchingExecutable, run_all
from trtforge.graph_api.quantization.linears import find
from trtforge.graph_api.quantization.passes import SKIPPED, quantize_network, relative
from trtforge.graph_api.quantization.recipes import Recipe, recipe_of
from trtforge.graph_api.quantization.text import Text, samples
from trtforge.graph_api.tensor import Tensor

WINDOW = 256
CALIBRATION_WINDOWS = 16
#: The largest share of perplexity that a recipe may cost the shipped model.
BOUNDS = {
    "int8_smoothquant": 0.03,
    "fp8_tensor": 0.01,
    "fp8_token": 0.01,
    "w8a16": 0.01,
    "w4a16": 0.05,
    "w4a16_awq": 0.05,
}


#: The same for a cache in codes, with float weights.
CACHE_BOUND = 0.01


@dataclass(frozen=True)
class Accuracy:
    """One recipe, or a cache in codes with float weights (``recipe`` is "float"), against the float model on a text.

    ``loss``: how much larger the perplexity is, as a share; ``layers``: ‖q - f‖ / ‖f‖ of each layer's output by layer,
    with everything before it quantized too; ``nbytes``: of all weights, those in float too; ``quantize_seconds`` with
    calibration, ``run_seconds`` for the whole text on the reference backend.
    """

    recipe: str
    perplexity: float
    loss: float
    bound: float | None
    nbytes: int
    quantize_seconds: float
    run_seconds: float
    kv_cache: str | None = None
    layers: dict[str, float] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The recipe, and the format of the cache where that is in codes."""
        return self.recipe + (f" + {self.kv_cache} cache" if self.kv_cache else "")

    @property
    def within(self) -> bool:
        """Whether the loss keeps to its bound."""
        return self.bound is None or self.loss < self.bound

    @property
    def worst(self) -> tuple[str, float]:
        """The layer with the largest error."""
        return max(self.layers.items(), key=lambda entry: entry[1], default=("", 0.0))


def fresh_network(checkpoint: Checkpoint, window: int) -> Network:
    """The model with logits for every token of one sequence of up to ``window`` tokens, weights bound."""
    network = build_network(checkpoint.config, checkpoint.config.dtype, 1, window, every=True)
    bind_checkpoint(network, checkpoint)
    return network


def perplexity(network: Network, tokens: np.ndarray, window: int = WINDOW, title: str = "perplexity") -> float:
    """exp of the mean negative log-likelihood of each token given those before it in its window.

    ``tokens``: int32 [T], cut into windows that do not overlap, each begun without context; the logits are those of the
    reference backend, the logarithm in float64. Raises UsageError for a text shorter than one window and a token.
    """
    starts = list(range(0, len(tokens) - window, window))
    if not starts:
        raise UsageError(f"the text has {len(tokens)} tokens to measure on; at least {window + 1} are needed")
    totals: list[float] = []

    class Scored(ReferenceExecutable):
        def __call__(self, **inputs: Any) -> dict[str, np.ndarray]:
            start = starts[len(totals)]
            result = super().__call__(**inputs)
            logits = result["logits"][0].astype(np.float64)
            wanted = tokens[start + 1 : start + window + 1]
            top = logits.max(axis=-1, keepdims=True)
            normalizer = top[:, 0] + np.log(np.exp(logits - top).sum(axis=-1))
            totals.append(float((normalizer - logits[np.arange(window), wanted]).sum()))
            return result

    positions = np.zeros(1, np.int32)
    windows = [{"tokens": tokens[None, start : start + window], "positions": positions} for start in starts]
    run_all(Scored(network), windows, title, "tokens")
    return float(np.exp(sum(totals) / (window * len(starts))))


def outputs_of(network: Network, nodes: dict[str, str], sample: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The outputs, on one sample, of nodes given as {layer: node name}; by layer."""
    found: dict[str, np.ndarray] = {}
    watch: dict[Tensor, Callable[[np.ndarray], None]] = {}
    for layer, name in nodes.items():
        watch[network.node(name).outputs[0]] = lambda array, layer=layer: found.update({layer: array.copy()})  # type: ignore[misc]
    WatchingExecutable(network, watch)(**sample)
    return found


def measure(
    checkpoint: Checkpoint,
    text: Text,
    recipes: Sequence[str],
    *,
    window: int = WINDOW,
    calibration_windows: int = CALIBRATION_WINDOWS,
    kv_cache: str | None = None,
    caches: Sequence[str] = (),
    on_row: Callable[[Accuracy], None] = lambda row: None,
) -> list[Accuracy]:
    """The float model (first), and every recipe, on ``text.held_out``; calibrated on ``text.calibration``.

    ``kv_cache``: the format of the cache with every recipe; ``caches``: formats to measure with float weights.

    Raises UsageError for an unknown recipe, a text too short, or a checkpoint that is quantized already.
    """
    if checkpoint.config.quantization is not None:
        raise UsageError(f"{checkpoint.directory}: is quantized already; accepted is the float checkpoint")
    chosen: list[tuple[Recipe | None, str | None]] = [(recipe_of(name), kv_cache) for name in recipes]
    chosen += [(None, cache) for cache in caches]
    window = min(window, checkpoint.config.max_position_embeddings)
    data = samples(text.calibration, calibration_windows, window)
    network = fresh_network(checkpoint, window)
    nodes = {linear.name: linear.node.name for linear in find(network, SKIPPED, num_bits=8)[0]}
    started = time.perf_counter()
    base = perplexity(network, text.held_out, window, "float model")
    rows = [Accuracy("float", base, 0.0, None, _nbytes(network), 0.0, time.perf_counter() - started)]
    on_row(rows[0])
    probe = {"tokens": text.held_out[None, :window], "positions": np.zeros(1, np.int32)}
    exact = outputs_of(network, nodes, probe)
    for recipe, cache in chosen:
        network = fresh_network(checkpoint, window)
        started = time.perf_counter()
        report = quantize_network(network, recipe, data, kv_cache=cache)
        quantized = time.perf_counter()
        found = perplexity(network, text.held_out, window, report.recipe)
        ended = time.perf_counter()
        watched = {layer.name: layer.node for layer in report.layers} if recipe else nodes
        outputs = outputs_of(network, watched, probe)
        errors = {name: relative(array, exact[name]) for name, array in outputs.items()}
        row = Accuracy(
            report.recipe,
            found,
            found / base - 1.0,
            BOUNDS.get(recipe.name) if recipe else CACHE_BOUND,
            _nbytes(network),
            quantized - started,
            ended - quantized,
            cache,
            errors,
        )
        rows.append(row)
        on_row(row)
    return rows


def _nbytes(network: Network) -> int:
    return sum(network.weights[name].nbytes for name in network.parameters)


def document(checkpoint: Checkpoint, text: Text, rows: Sequence[Accuracy], version: str) -> dict[str, Any]:
    """The rows and where they come from, ready for JSON (``trtforge.accuracy/1``)."""
    about = {
        "model": checkpoint.directory.name
        if checkpoint.directory.name != "model"
        else checkpoint.directory.parent.name,
        "text": text.source,
        "tokens": len(text.held_out),
        "window": WINDOW,
        "dtype": checkpoint.config.dtype,
        "backend": "reference (NumPy)",
        "machine": platform.machine(),
        "python": platform.python_version(),
        "version": version,
        "date": time.strftime("%Y-%m-%d"),
    }
    return {"format": "trtforge.accuracy/1", "about": about, "rows": [asdict(row) for row in rows]}
