"""Attention and what surrounds it: rotary embedding, masks, the KV cache; written out, or as the registered op."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np

from trtforge.bindings.errors import GraphError
from trtforge.graph_api import shapes
from trtforge.graph_api.functional import basic, layout
from trtforge.graph_api.functional.basic import (
    as_tensor,
    call,
    cast,
    cos,
    div,
    matmul,
    mul,
    network_of,
    sin,
    softmax,
    tanh,
    where,
)
from trtforge.graph_api.functional.layout import repeat_interleave, unsqueeze
from trtforge.graph_api.primitive import Call
from trtforge.graph_api.shapes import DimLike
from trtforge.graph_api.tensor import Tensor

FLASH_ATTENTION = "trtforge::flash_attention"
#: The functions that a mask is composed of, as one namespace.
_FUNCTIONAL = SimpleNamespace(**vars(basic), **{name: getattr(layout, name) for name in layout.__all__})


def rope_frequencies(width: int, theta: float = 10000.0, scaling: Mapping[str, Any] | None = None) -> np.ndarray:
    """The width/2 angular frequencies theta^(-2i/width) of a rotary embedding, float32 (Su et al., arXiv:2104.09864).

    ``scaling``: None, or the ``rope_scaling`` of a Hugging Face configuration with ``rope_type`` "default",
    "linear" (all divided by ``factor``) or "llama3" (low frequencies divided by ``factor``, high ones kept, a linear
    blend between wavelengths original/low_freq_factor and original/high_freq_factor).
    """
    if width < 2 or width % 2:
        raise GraphError(f"rope_frequencies: the width is {width}; accepted: even, at least 2")
    frequencies = float(theta) ** (-np.arange(0, width, 2, dtype=np.float64) / width)
    kind = (scaling or {}).get("rope_type", (scaling or {}).get("type", "default"))
    if kind == "linear":
        assert scaling is not None
        frequencies = frequencies / float(scaling["factor"])
    elif kind == "llama3":
        assert scaling is not None
        low, high = float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
        turns = float(scaling["original_max_position_embeddings"]) * frequencies / (2 * math.pi)
        keep = np.clip((turns - low) / (high - low), 0.0, 1.0)
        frequencies = frequencies * keep + frequencies / float(scaling["factor"]) * (1 - keep)
    elif kind != "default":
        raise GraphError(f"rope_frequencies: unknown rope_type {kind!r}; accepted: 'default', 'linear', 'llama3'")
    return frequencies.astype(np.float32)


def rope_tables(positions: Tensor, frequencies: np.ndarray) -> tuple[Tensor, Tensor]:
    """cos and sin, float32 [*positions.shape, D/2], of integer positions times the D/2 frequencies."""
    angles = mul(unsqueeze(cast(positions, "float32"), -1), as_tensor(frequencies, positions.network))
    return cos(angles), sin(angles)


def rope(
    x: Tensor,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
    *,
    positions: Tensor | None = None,
    theta: float = 10000.0,
    frequencies: np.ndarray | None = None,
) -> Tensor:
    """Rotary embedding of x [B, H, S, D], halves rotated as in GPT-NeoX and Llama, computed in float32.

    Give float32 tables ``cos`` and ``sin`` ([S, D/2], [B, S, D/2] or [B, 1, S, D/2]), or integer ``positions`` ([S]
    or [B, S]) with ``theta``, or with the D/2 ``frequencies`` themselves.
    """
    if positions is not None:
        if cos is not None or sin is not None:
            raise GraphError("rope: give cos and sin, or positions, not both")
        width = x.shape[-1]
        if not isinstance(width, int):
            raise GraphError(f"rope: the last dimension of {x} must be an int")
        table = rope_frequencies(width, theta) if frequencies is None else frequencies
        cos, sin = rope_tables(positions, table)
    if cos is None or sin is None:
        raise GraphError("rope: give both cos and sin, or positions")
    return x.network.emit("rope", (x, cos, sin))[0]


def kv_cache_update(cache: Tensor, new: Tensor, positions: Tensor) -> Tensor:
    """Write new [B, H, S, D] into cache [B, H, Smax, D] in place, sequence b from row ``positions[b]`` (int32 [B]) on.

    ``cache`` is a network state (or an input); only the returned tensor may be read afterwards. Rows past Smax are
    an error in the reference backend and are not written by the cuda backend, nor by trtforge::rope_kv_cache_update,
    which fusion puts in the place of the writes of turned keys and of their values.
    """
    return cache.network.emit("kv_cache_update", (cache, new, positions))[0]


def attention_mask(
    queries: DimLike, keys: DimLike, *, causal: bool = False, window: int = -1, k_lengths: Tensor | None = None
) -> Tensor:
    """Which keys each query sees, as bool: [Sq, Sk], or [B, 1, Sq, Sk] with ``k_lengths`` (int32 [B]).

    With L keys (Sk, or the sequence's length) query i stands at diagonal d = i + L - Sq and sees key j if j < L,
    j <= d (``causal``), and j > d - window (``window`` > 0).
    """
    if window == 0 or window < -1 or (not causal and window == -1 and k_lengths is None):
        raise GraphError(
            f"attention_mask: nothing is masked, or the window is {window}; accepted: causal=True, window > 0, or "
            "k_lengths"
        )
    sq, sk = shapes.dim(queries), shapes.dim(keys)
    with network_of(k_lengths):
        return compose_mask(_FUNCTIONAL, sq, sk, causal, window, k_lengths)


def compose_mask(f: Any, sq: Any, sk: Any, causal: bool, window: Any, k_lengths: Any, diagonal: Any = None) -> Any:
    """The ops of :func:`attention_mask` in the namespace ``f``: functional, or a pattern that is being traced.

    ``diagonal``: another way to write the diagonal key of each query.
    """
    j = f.arange(sk)
    valid = f.dim_value(sk) if k_lengths is None else f.reshape(k_lengths, (k_lengths.shape[0], 1, 1, 1))
    parts = []
    if causal or window != -1:
        if diagonal is None:
            diagonal = f.add(f.unsqueeze(f.arange(sq), -1), f.sub(valid, f.dim_value(sq)))
        if causal:
            parts.append(f.le(j, diagonal))
        if window != -1:
            parts.append(f.gt(j, f.sub(diagonal, window)))
    if k_lengths is not None and not causal:
        parts.append(f.lt(j, valid))
    mask = parts[0]
    for part in parts[1:]:
        mask = f.logical_and(mask, part)
    return mask


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    k_lengths: Tensor | None = None,
    causal: bool = False,
    window: int = -1,
    soft_cap: float = 0.0,
    scale: float | None = None,
) -> Tensor:
    """softmax(q k^T * scale) v by the registered op trtforge::flash_attention.

    q [B, Hq, Sq, D], k and v [B, Hkv, Sk, D] with Hq a multiple of Hkv; ``k_lengths`` int32 [B]: valid keys of each
    sequence. Masks are those of :func:`attention_mask`; ``soft_cap`` > 0 replaces scores s by soft_cap * tanh(s /
    soft_cap); ``scale`` is D^-0.5 by default.
    """
    options: dict[str, Any] = {"causal": causal, "window": window, "soft_cap": soft_cap}
    if scale is not None:
        options["scale"] = scale
    return call(FLASH_ATTENTION, q, k, v, k_lengths=k_lengths, **options)


def causal_mask(q: Tensor, k: Tensor) -> Tensor:
    """bool [Sq, Sk] for q [..., Sq, D] and k [..., Sk, D]: key j <= Sk - Sq + i, aligned to the end."""
    with q.network:
        return attention_mask(q.shape[-2], k.shape[-2], causal=True)


def attention_written_out(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    k_lengths: Tensor | None = None,
    causal: bool = False,
    window: int = -1,
    soft_cap: float = 0.0,
    scale: float | None = None,
) -> Tensor:
    """The same function as :func:`attention` in primitive ops, which fusion recognizes."""
    heads, kv_heads, width = _heads(q, k, v)
    if heads != kv_heads:
        k, v = repeat_interleave(k, heads // kv_heads, 1), repeat_interleave(v, heads // kv_heads, 1)
    scores = mul(matmul(q, k, transpose_b=True), width**-0.5 if scale is None else scale)
    if soft_cap > 0:
        scores = mul(tanh(div(scores, soft_cap)), soft_cap)
    if causal or window != -1 or k_lengths is not None:
        mask = attention_mask(q.shape[2], k.shape[2], causal=causal, window=window, k_lengths=k_lengths)
        scores = where(mask, scores, -math.inf)
    return matmul(softmax(scores, -1), v)


def _heads(q: Tensor, k: Tensor, v: Tensor) -> tuple[int, int, int]:
    check = Call("attention", ("q", "k", "v"), (q, k, v), {})
    if any(t.rank != 4 for t in (q, k, v)) or k.shape != v.shape or q.shape[3] != k.shape[3]:
        check.fail("the shapes do not fit", "q [B, Hq, Sq, D], k and v [B, Hkv, Sk, D]")
    heads, kv_heads, width = q.shape[1], k.shape[1], q.shape[3]
    if not (isinstance(heads, int) and isinstance(kv_heads, int) and isinstance(width, int)):
        check.fail("heads or head width are dynamic", "ints for Hq, Hkv and D")
    if heads % kv_heads:
        check.fail(f"{heads} query heads are no multiple of {kv_heads} key heads", "Hq a multiple of Hkv")
    return heads, kv_heads, width


__all__ = [
    "attention",
    "attention_mask",
    "attention_written_out",
    "causal_mask",
    "kv_cache_update",
    "rope",
    "rope_frequencies",
    "rope_tables",
]
