"""``quantize_network``: the pass that puts a recipe to work on a network with bound weights."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from trtforge.bindings.dtypes import DTYPES
from trtforge.bindings.errors import GraphError, UsageError
from trtforge.graph_api.network import Network
from trtforge.graph_api.quantization.calibration import Statistics, calibrate, samples_of
from trtforge.graph_api.quantization.linears import Linear, by_input, find
from trtforge.graph_api.quantization.observers import Observer, fresh
from trtforge.graph_api.quantization.packing import PackedLinear, pack
from trtforge.graph_api.quantization.recipes import CACHES, Recipe, recipe_of
from trtforge.graph_api.quantization.report import QuantizationReport, Quantized
from trtforge.graph_api.quantization.rewriting import Rewriter, caches, quantize_cache
from trtforge.graph_api.quantization.smoothing import move_scales, pack_clipped, pack_least_error
from trtforge.graph_api.tensor import Tensor
from trtforge.kernels.quantize import reference

#: Patterns of layers that stay in float unless the caller says otherwise: they decide every token.
SKIPPED = ("*lm_head*", "*embed*")


def quantize_network(
    network: Network,
    recipe: str | Recipe | None,
    calibration_data: Any = None,
    *,
    skip: Sequence[str] = SKIPPED,
    observer: str | Observer = "absmax",
    kv_cache: str | None = None,
) -> QuantizationReport:
    """Replace the linear layers of ``network`` (weights bound, not yet fused) by quantized ones, in place.

    A linear layer is a ``matmul`` with a parameter [N, K], transposed. Its weight becomes codes and scales; the product
    becomes ``quantize -> trtforge::scaled_gemm`` where activations are quantized (float32 networks: dequantize and
    matmul), and ``dequantize -> matmul`` where weights alone are.

    ``recipe``: a name in ``RECIPES``, a :class:`Recipe`, or None where ``kv_cache`` alone is wanted.
    ``calibration_data``: a series of mappings from input names to arrays, needed by int8_smoothquant, fp8_tensor,
    w4a16_awq and ``kv_cache``, and used by all for the error of each layer. ``skip``: patterns (fnmatch) of layer,
    weight or node names that stay in float. ``observer``: ``absmax``, ``percentile``, ``mse`` or an observer object,
    for static scales. ``kv_cache``: ``float8_e4m3fn`` or ``int8`` keeps the states that ``kv_cache_update`` writes in
    codes, one static scale each.

    Raises UsageError for a wrong recipe, observer, kv_cache or kind of data, GraphError for data that do not fit the
    network's inputs, and for a network with fused or unbound layers. Nothing has changed when it raises.
    """
    started = time.perf_counter()
    chosen = None if recipe is None else recipe_of(recipe)
    if chosen is None and kv_cache is None:
        raise UsageError("recipe and kv_cache are None, which quantizes nothing; give one of them, or both")
    fresh(observer)
    if isinstance(skip, str):
        raise UsageError(f"skip is the string {skip!r}; accepted: a list of patterns, [{skip!r}]")
    if kv_cache is not None and kv_cache not in CACHES:
        raise UsageError(f"kv_cache is {kv_cache!r}; accepted: {', '.join(CACHES)}, None")
    linears, skipped = ([], []) if chosen is None else find(network, skip, chosen.scheme.weights.num_bits)
    _check(network, chosen, linears)
    writers = caches(network) if kv_cache is not None else []
    if kv_cache is not None and not writers:
        raise GraphError(f"network {network.name!r} writes no float state by kv_cache_update; leave kv_cache out")
    needing = chosen is not None and chosen.needs_data
    if calibration_data is None and (needing or writers):
        why = f"the recipe {_name(chosen)}" if needing else f"kv_cache={kv_cache!r}"
        raise UsageError(f"{why} needs calibration_data: a series of mappings from input names to arrays")
    groups = by_input(linears)
    known: dict[Tensor, Statistics] = {}
    if calibration_data is not None:
        watched = [*groups, *(node.tensors[1] for node in writers)]
        known = calibrate(network, watched, samples_of(calibration_data), lambda: fresh(observer))
    moved: list[str] = []
    layers: list[Quantized] = []
    packed: dict[str, PackedLinear] = {}
    scales = [] if kv_cache is None else [_static_scale(known[node.tensors[1]], kv_cache) for node in writers]
    if chosen is not None:
        moved, packed, layers = _quantize_layers(network, chosen, linears, groups, known)
    names = [quantize_cache(network, node, s, kv_cache or "") for node, s in zip(writers, scales)]
    return QuantizationReport(
        network.name,
        _name(chosen),
        tuple(layers),
        tuple(skipped),
        tuple(moved),
        tuple(names),
        kv_cache,
        time.perf_counter() - started,
        packed,
    )


def _quantize_layers(
    network: Network,
    recipe: Recipe,
    linears: list[Linear],
    groups: Mapping[Tensor, list[Linear]],
    known: Mapping[Tensor, Statistics],
) -> tuple[list[str], dict[str, PackedLinear], list[Quantized]]:
    """Parameters that took moved scales, the codes by layer, and what became of each layer."""
    moved: list[str] = []
    before = {linear.name: network.weights[linear.weight.name].nbytes for linear in linears}
    if recipe.smooth is not None or recipe.search:
        moved = move_scales(network, groups, known, recipe.scheme, recipe.smooth)
    packed = {linear.name: _packed(network, linear, recipe, known) for linear in linears}
    errors = {linear.name: _errors(network, linear, packed[linear.name], known) for linear in linears}
    rewriter = Rewriter(network)
    layers = []
    for linear in linears:
        one = packed[linear.name]
        node, how = rewriter.replace(linear, one)
        bits = recipe.scheme.weights.num_bits
        sizes = before[linear.name], one.nbytes
        layers.append(Quantized(linear.name, node.name, one.shape, bits, how, *errors[linear.name], *sizes))
    return moved, packed, layers


def _name(recipe: Recipe | None) -> str:
    return "float" if recipe is None else recipe.name


def _check(network: Network, recipe: Recipe | None, linears: list[Linear]) -> None:
    if network.fusion_report is not None and network.fusion_report.replacements:
        raise GraphError(f"network {network.name!r} was fused already; quantize it before .fuse()")
    if recipe is not None and not linears:
        raise GraphError(f"network {network.name!r} has no linear layer for the recipe {recipe.name}; see skip=")
    unbound = [linear.weight.name for linear in linears if linear.weight.name not in network.weights]
    if unbound:
        raise GraphError(
            f"network {network.name!r} has layers without weights: {', '.join(unbound[:8])}; call net.bind_weights"
        )
    broken = [n for n in (x.weight.name for x in linears) if not _finite(network.weights[n])]
    if broken:
        raise GraphError(
            f"the weights {', '.join(broken[:8])} hold NaN or infinite values; codes cannot stand for them"
        )


def _finite(array: np.ndarray) -> bool:
    return bool(np.isfinite(array.astype(np.float32)).all())


def _packed(network: Network, linear: Linear, recipe: Recipe, known: Mapping[Tensor, Statistics]) -> PackedLinear:
    weight = network.weights[linear.weight.name]
    if recipe.search:
        return pack_clipped(linear.name, weight, recipe.scheme, known[linear.x].rows)
    activations = recipe.scheme.activations
    scale = None
    if activations is not None and recipe.scheme.static:
        scale = _static_scale(known[linear.x], activations.codes)
    if recipe.power is not None:
        return pack_least_error(linear.name, weight, recipe.scheme, recipe.power, scale)
    return pack(linear.name, weight, recipe.scheme, scale)


def _static_scale(statistics: Statistics, to: str) -> np.ndarray:
    return reference.scale_of(np.array([statistics.observer.largest(to)], np.float32), to)


def _errors(
    network: Network, linear: Linear, packed: PackedLinear, known: Mapping[Tensor, Statistics]
) -> tuple[float, float | None]:
    """Relative errors of the weight, and of the product on the rows that calibration kept."""
    exact = network.weights[linear.weight.name].astype(np.float32)
    weight = packed.dequantized()
    if linear.x not in known:
        return relative(weight, exact), None
    rows = known[linear.x].rows
    seen = rows
    activations = packed.scheme.activations
    if activations is not None:
        half = rows.astype(DTYPES[linear.x.dtype].numpy).astype(np.float32)
        group = (1, 0) if packed.input_scale is None else (0, 0)
        if packed.input_scale is None:
            scale = reference.scale_of(reference.absmax(half, group), activations.codes)
        else:
            scale = packed.input_scale.reshape(1, 1)
        codes = reference.quantize(half, scale, group, activations.codes)
        seen = reference.dequantize(codes, scale, group, np.dtype(np.float32))
    return relative(weight, exact), relative(seen @ weight.T, rows @ exact.T)


def relative(found: np.ndarray, wanted: np.ndarray) -> float:
    """‖found - wanted‖ / ‖wanted‖, 0 where both are 0."""
    size = float(np.linalg.norm(wanted.astype(np.float64)))
    gap = float(np.linalg.norm(found.astype(np.float64) - wanted.astype(np.float64)))
    return gap / size if size else gap
