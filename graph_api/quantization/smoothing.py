"""Moving scale between the columns of an activation and those of the weights that multiply it.

x W^T = (x / s) (W * s)^T for any positive s [K]. Dividing x costs nothing where a normalization with a weight, or
a product whose one factor comes out of a linear layer, makes x: s goes into that weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from trtforge.bindings.dtypes import DTYPES
from trtforge.graph_api.network import Network
from trtforge.graph_api.quantization.calibration import Statistics
from trtforge.graph_api.quantization.linears import Linear, is_linear
from trtforge.graph_api.quantization.packing import PackedLinear, pack, rounded
from trtforge.graph_api.quantization.recipes import Scheme
from trtforge.graph_api.tensor import Tensor
from trtforge.kernels.quantize import reference

NORMS = ("rms_norm", "layer_norm")
SMALLEST = 1e-5  # of a magnitude that a scale is made of
#: Exponents of the mean activation that the search of AWQ tries; 0 is rounding to nearest.
EXPONENTS = np.linspace(0.0, 1.0, 21)
#: Shares of a group's largest magnitude that the search for clipping tries.
CLIPS = np.linspace(0.5, 1.0, 51, dtype=np.float32)


@dataclass(frozen=True)
class Fold:
    """Where a value can be divided for free: the parameters that are divided with it, along their first axis."""

    parameters: tuple[Tensor, ...]
    kind: str


def fold_of(x: Tensor, readers: list[Linear], through_products: bool) -> Fold | None:
    """The parameters in front of ``x`` that can take a division of its columns, if only ``readers`` read it."""
    node = x.producer
    if node is None or x.is_output or {n.name for n in x.consumers} != {r.node.name for r in readers}:
        return None
    if node.op in NORMS:
        parameters = [t for t in node.inputs[1:] if t is not None]
        if not parameters or any(t.kind != "parameter" or len(t.users) != 1 for t in parameters):
            return None
        return Fold(tuple(parameters), node.op)
    if through_products and node.op == "mul":
        for factor in node.tensors:
            maker = factor.producer
            if maker is None or not is_linear(maker) or len(factor.users) != 1 or factor.is_output:
                continue
            weight = maker.tensors[1]
            if len(weight.users) == 1 and factor.shape == x.shape:
                return Fold((weight,), "mul")
    return None


def divide(network: Network, fold: Fold, readers: list[Linear], scale: np.ndarray) -> np.ndarray:
    """Divide the columns of a value by about ``scale`` [K] and multiply its readers' weights by as much.

    The parameters in front are rounded to their dtype, and the weights are multiplied by what was really divided by.
    Returns that.
    """
    exact = np.asarray(scale, np.float32)
    norm = fold.parameters[0] if fold.kind in NORMS else None
    if norm is not None:
        old = network.weights[norm.name].astype(np.float32)
        new = (old / exact).astype(DTYPES[norm.dtype].numpy).astype(np.float32)
        usable = (new != 0) & np.isfinite(new)
        exact = np.where(usable, old / np.where(usable, new, 1.0), 1.0).astype(np.float32)
    for parameter in fold.parameters:
        old = network.weights[parameter.name]
        column = exact.reshape(-1, *(1,) * (old.ndim - 1))
        network.weights[parameter.name] = (old.astype(np.float32) / column).astype(old.dtype)
    for reader in readers:
        old = network.weights[reader.weight.name]
        network.weights[reader.weight.name] = old.astype(np.float32) * exact
    return exact


def smooth_scale(statistics: Statistics, weights: list[np.ndarray], exponent: float) -> np.ndarray:
    """SmoothQuant's scale, max|x_j|^a / max|w_j|^(1 - a) for each column j (arXiv:2211.10438, equation 4)."""
    assert statistics.largest is not None
    of_x = np.maximum(statistics.largest, SMALLEST)
    of_w = np.maximum(np.max([np.abs(w.astype(np.float32)).max(axis=0) for w in weights], axis=0), SMALLEST)
    return (of_x**exponent / of_w ** (1.0 - exponent)).astype(np.float32)


def search_scale(statistics: Statistics, weights: list[np.ndarray], scheme: Scheme) -> np.ndarray:
    """AWQ's scale: mean|x_j|^a, normalized, with the exponent that makes the error of the products least on the
    calibration rows (arXiv:2306.00978, section 3.2)."""
    rows, mean = statistics.rows, np.maximum(statistics.mean, SMALLEST)
    wide = [w.astype(np.float32) for w in weights]
    best, least = np.ones_like(mean), np.inf
    for exponent in EXPONENTS:
        scale = mean**exponent
        scale = (scale / np.sqrt(scale.max() * scale.min())).astype(np.float32)
        error = 0.0
        for weight in wide:
            packed = pack("", weight * scale, scheme)
            error += float(np.square(rows @ (packed.dequantized() / scale - weight).T).sum())
        if error < least:
            best, least = scale, error
    return best


def pack_clipped(name: str, weight: np.ndarray, scheme: Scheme, rows: np.ndarray) -> PackedLinear:
    """The codes of ``weight`` with the largest magnitude of every group shrunk to what makes that group's share of the
    products' error least on ``rows``."""
    wide = weight.astype(np.float32)
    group = scheme.weights.group
    width = group[1] or wide.shape[1]
    top = reference.absmax(wide, group)
    best = top.copy()
    for column in range(top.shape[1]):
        part = slice(column * width, (column + 1) * width)
        gram = rows[:, part].T @ rows[:, part]
        least = np.full(len(wide), np.inf, np.float32)
        for clip in CLIPS[::-1]:
            tried = top[:, column : column + 1] * clip
            scale = reference.scale_of(tried, scheme.weights.codes)
            codes = rounded(wide[:, part], scale, scheme.weights)
            gap = codes.astype(np.float32) * scale - wide[:, part]
            error = np.einsum("nk,nk->n", gap @ gram, gap)
            better = error < least
            least = np.where(better, error, least)
            best[better, column] = tried[better, 0]
    return pack(name, wide, scheme, largest=best)


def pack_least_error(
    name: str, weight: np.ndarray, scheme: Scheme, power: float, input_scale: np.ndarray | None = None
) -> PackedLinear:
    """The codes of ``weight``, each rounded to nearest, with the largest magnitude of every group shrunk to what makes
    the sum of |error|^power least in the group; needs no data. Powers above 2 guard the large weights."""
    wide = weight.astype(np.float32)
    group, to = scheme.weights.group, scheme.weights.codes
    top = reference.absmax(wide, group)
    starts = np.arange(0, wide.shape[1], group[1] or wide.shape[1])
    best, least = top.copy(), np.full(top.shape, np.inf)
    for clip in CLIPS[::-1]:
        scale = reference.scale_of(top * clip, to)
        codes = rounded(wide, scale, scheme.weights)
        gap = np.abs(codes.astype(np.float32) * reference.spread(scale, group, wide.shape) - wide) ** power
        error = np.add.reduceat(gap, starts, axis=1)
        better = error < least
        least, best = np.where(better, error, least), np.where(better, top * clip, best)
    return pack(name, wide, scheme, input_scale, largest=best)


def move_scales(
    network: Network,
    groups: Mapping[Tensor, list[Linear]],
    statistics: Mapping[Tensor, Statistics],
    scheme: Scheme,
    exponent: float | None,
) -> list[str]:
    """Divide every value that can be, by SmoothQuant's scale (``exponent``) or by AWQ's search (None); returns the
    names of the parameters that took the divisions."""
    moved: list[str] = []
    for x, readers in groups.items():
        fold = fold_of(x, readers, through_products=exponent is None)
        if fold is None:
            continue
        weights = [network.weights[reader.weight.name] for reader in readers]
        if exponent is None:
            scale = search_scale(statistics[x], weights, scheme)
        else:
            scale = smooth_scale(statistics[x], weights, exponent)
        statistics[x].divided(divide(network, fold, readers, scale))
        moved += [parameter.name for parameter in fold.parameters]
    return moved
