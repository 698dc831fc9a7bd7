"""The subgraphs that writing into a cache in one launch replaces: rotary embedding, quantization, two writes in place.

k ── rope(cos, sin) ──[ quantize(k_scale) ]── kv_cache_update(k_cache, ., positions) ──▶ k_updated
v ────────────────────[ quantize(v_scale) ]── kv_cache_update(v_cache, ., positions) ──▶ v_updated

Keys and values meet in ``positions`` alone: of several caches that are written from the same positions, the write that
is nearest to that of the keys goes with it.
"""

from __future__ import annotations

from typing import Any

from trtforge.kernels import Op


def declare(op: Op) -> None:
    """Declare the form with a 16-bit cache, and the one with codes under one scale for all heads.

    With codes, the op quantizes the turned keys as they come out of float32; the separate steps round them to the type
    of ``k`` first. A key that lies that near to the middle between two codes may get the other one.
    """

    @op.pattern(inputs=("k_cache", "v_cache", "k", "v", "cos", "sin", "positions"), name="rope_into_cache")
    def _(f: Any, k_cache: Any, v_cache: Any, k: Any, v: Any, cos: Any, sin: Any, positions: Any) -> Any:
        return (
            f.kv_cache_update(k_cache, f.rope(k, cos, sin), positions),
            f.kv_cache_update(v_cache, v, positions),
        )

    @op.pattern(
        inputs=("k_cache", "v_cache", "k", "v", "cos", "sin", "positions", "k_scale", "v_scale"),
        name="rope_quantize_into_cache",
    )
    def _(
        f: Any,
        k_cache: Any,
        v_cache: Any,
        k: Any,
        v: Any,
        cos: Any,
        sin: Any,
        positions: Any,
        k_scale: Any,
        v_scale: Any,
    ) -> Any:
        def codes(value: Any, scale: Any) -> Any:
            return f.call("trtforge::quantize_tensor_static", value, scale)

        return (
            f.kv_cache_update(k_cache, codes(f.rope(k, cos, sin), k_scale), positions),
            f.kv_cache_update(v_cache, codes(v, v_scale), positions),
        )
