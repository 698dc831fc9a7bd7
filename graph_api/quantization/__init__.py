"""Quantized networks: recipes, calibration, the pass, checkpoints, and what quantization costs in accuracy."""

from trtforge.graph_api.quantization.checkpoint import save_quantized
from trtforge.graph_api.quantization.observers import MSE, OBSERVERS, AbsMax, Observer, Percentile
from trtforge.graph_api.quantization.passes import SKIPPED, quantize_network
from trtforge.graph_api.quantization.recipes import (
    CACHES,
    RECIPES,
    ActivationFormat,
    Recipe,
    Scheme,
    WeightFormat,
)
from trtforge.graph_api.quantization.report import QuantizationReport, Quantized

__all__ = [
    "CACHES",
    "MSE",
    "OBSERVERS",
    "RECIPES",
    "SKIPPED",
    "AbsMax",
    "ActivationFormat",
    "Observer",
    "Percentile",
    "QuantizationReport",
    "Quantized",
    "Recipe",
    "Scheme",
    "WeightFormat",
    "quantize_network",
    "save_quantized",
]
