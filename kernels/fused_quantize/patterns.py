"""The subgraphs that the ops of this family replace: a norm or a gated product, then quantization."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trtforge.kernels import Op


def declare(ops: Mapping[str, Op], to: str) -> None:
    """Declare the subgraphs that end in codes of the format ``to``, with one scale per row or one that is given.

    ``ops``: the four ops by their names without ``_quantize_token``.
    """
    attributes = {"to": to}

    def rows(f: Any, value: Any) -> Any:
        return f.outputs(f.call("trtforge::quantize_token", value, to=to), 2)

    def given(f: Any, value: Any, static_scale: Any) -> Any:
        return f.call("trtforge::quantize_tensor_static", value, static_scale, to=to), None

    @ops["add_rms_norm"].pattern(
        inputs=("x", "residual", "weight"), attributes=attributes, name=f"add_rms_norm_quantize_{to}"
    )
    def _(f: Any, x: Any, residual: Any, weight: Any) -> Any:
        total = f.add(x, residual)
        return (*rows(f, f.rms_norm(total, weight, eps=f.capture("eps"))), total)

    @ops["add_rms_norm"].pattern(
        inputs=("x", "residual", "weight", "static_scale"),
        attributes=attributes,
        name=f"add_rms_norm_quantize_static_{to}",
    )
    def _(f: Any, x: Any, residual: Any, weight: Any, static_scale: Any) -> Any:
        total = f.add(x, residual)
        return (*given(f, f.rms_norm(total, weight, eps=f.capture("eps")), static_scale), total)

    @ops["rms_norm"].pattern(inputs=("x", "weight"), attributes=attributes, name=f"rms_norm_quantize_{to}")
    def _(f: Any, x: Any, weight: Any) -> Any:
        return rows(f, f.rms_norm(x, weight, eps=f.capture("eps")))

    @ops["rms_norm"].pattern(
        inputs=("x", "weight", "static_scale"), attributes=attributes, name=f"rms_norm_quantize_static_{to}"
    )
    def _(f: Any, x: Any, weight: Any, static_scale: Any) -> Any:
        return given(f, f.rms_norm(x, weight, eps=f.capture("eps")), static_scale)

    @ops["layer_norm"].pattern(
        inputs=("x", "weight", "bias"), attributes=attributes, name=f"layer_norm_bias_quantize_{to}"
    )
    def _(f: Any, x: Any, weight: Any, bias: Any) -> Any:
        return rows(f, f.layer_norm(x, weight, bias, eps=f.capture("eps")))

    @ops["layer_norm"].pattern(inputs=("x", "weight"), attributes=attributes, name=f"layer_norm_quantize_{to}")
    def _(f: Any, x: Any, weight: Any) -> Any:
        return rows(f, f.layer_norm(x, weight, eps=f.capture("eps")))

    @ops["silu_mul"].pattern(inputs=("gate", "up"), attributes=attributes, name=f"silu_mul_quantize_{to}")
    def _(f: Any, gate: Any, up: Any) -> Any:
        return rows(f, f.mul(f.silu(gate), up))

    @ops["silu_mul"].pattern(
        inputs=("gate", "up", "static_scale"), attributes=attributes, name=f"silu_mul_quantize_static_{to}"
    )
    def _(f: Any, gate: Any, up: Any, static_scale: Any) -> Any:
        return given(f, f.mul(f.silu(gate), up), static_scale)
