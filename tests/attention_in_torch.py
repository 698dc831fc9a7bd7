"""Attention in float64 with PyTorch, for tests that hold many random calls on a GPU against it; and how they judge."""

from __future__ import annotations

import math
import warnings
from typing import Any

from trtforge.kernels import Tolerance

#: A 16-bit result of 16-bit probabilities: two roundings of the same size. Fewer are no fair measure.
ROUNDINGS = math.sqrt(2.0)
#: What errors may be, as a multiple of PyTorch's own on the same inputs.
ALLOWANCE = 1.5


def in_segments(offsets: Any, tokens: int) -> Any:
    """int64 [tokens]: the sequence that each token belongs to, -1 for those after the last offset."""
    import torch

    position = torch.arange(tokens, device=offsets.device)
    segment = torch.searchsorted(offsets[1:].long(), position, right=True)
    return torch.where(segment < len(offsets) - 1, segment, -1)


def visible(diagonal: Any, key: Any, valid: Any, causal: bool, window: int) -> Any:
    """Which keys a query sees: bool, of the shape that key positions, their number and diagonals broadcast to."""
    seen = (key >= 0) & (key < valid)
    if causal:
        seen = seen & (key <= diagonal)
    if window > 0:
        seen = seen & (key > diagonal - window)
    return seen


def dense_visible(queries: int, lengths: Any, keys: int, causal: bool, window: int) -> Any:
    """bool [B, 1, queries, keys]; ``lengths`` int [B] on the device."""
    import torch

    valid = lengths.clamp(0, keys).long()[:, None, None, None]
    diagonal = valid - queries + torch.arange(queries, device=lengths.device)[None, None, :, None]
    return visible(diagonal, torch.arange(keys, device=lengths.device), valid, causal, window)


def packed_visible(q_offsets: Any, k_offsets: Any, q_tokens: int, k_tokens: int, causal: bool, window: int) -> Any:
    """bool [1, 1, q_tokens, k_tokens]: the same sequence, and there what a query sees."""
    import torch

    of_query, of_key = in_segments(q_offsets, q_tokens), in_segments(k_offsets, k_tokens)
    some = of_query.clamp(min=0)
    q_begin, k_begin = q_offsets.long()[some], k_offsets.long()[some]
    q_length, k_length = q_offsets.diff().long()[some], k_offsets.diff().long()[some]
    query = torch.arange(q_tokens, device=q_offsets.device) - q_begin
    key = torch.arange(k_tokens, device=q_offsets.device)[None, :] - k_begin[:, None]
    diagonal = (k_length - q_length + query)[:, None]
    seen = visible(diagonal, key, k_length[:, None], causal, window)
    return (seen & (of_query[:, None] == of_key) & (of_query >= 0)[:, None])[None, None]


def attend(q: Any, k: Any, v: Any, seen: Any, soft_cap: float, scale: float) -> Any:
    """float64 [B, Hq, Sq, D]; q [B, Hq, Sq, D], k and v [B, Hkv, Sk, D], all float64 and finite where seen."""
    batch, heads, queries, width = q.shape
    kv_heads = k.shape[1]
    group = q.reshape(batch, kv_heads, heads // kv_heads * queries, width)
    s = ((group @ k.transpose(-1, -2)) * scale).reshape(batch, heads, queries, -1)
    if soft_cap > 0:
        s = soft_cap * (s / soft_cap).tanh()
    p = s.masked_fill(~seen, -math.inf).softmax(dim=-1).nan_to_num(0.0)
    return (p.reshape(batch, kv_heads, heads // kv_heads * queries, -1) @ v).reshape(q.shape)


def pytorch_attention(q: Any, k: Any, v: Any, seen: Any, scale: float) -> Any:
    """PyTorch's own on the same inputs, by a fused kernel where one takes them; zeros where nothing is seen."""
    import torch
    import torch.nn.functional as F
    from torch.nn.attention import SDPBackend, sdpa_kernel

    group = q.shape[1] // k.shape[1]
    wide = [x.repeat_interleave(group, dim=1) for x in (k, v)]
    mask = seen.expand(q.shape[0], q.shape[1], *seen.shape[2:])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with sdpa_kernel(SDPBackend.EFFICIENT_ATTENTION):  # cuDNN would prepare anew for each shape
                o = F.scaled_dot_product_attention(q, *wide, attn_mask=mask, scale=scale)
        except RuntimeError:
            o = F.scaled_dot_product_attention(q, *wide, attn_mask=mask, scale=scale)
    return torch.where(seen.any(-1, keepdim=True), o, 0)


def relative(found: Any, expected: Any) -> float:
    """||found - expected|| / ||expected||, in float64; the plain norm where nothing is expected."""
    norm = float(expected.norm())
    difference = float((found.double() - expected).norm())
    return difference / norm if norm else difference


def scale_of(expected: Any) -> Any:
    """What errors of an element are measured by, [..., 1]: its query's RMS, or that of all queries that see a key.

    The larger of the two. Each for a reason:

    - Rounding the probabilities to u = 2^-9 (bfloat16; 2^-11 for float16) changes element j of a query by at most
      u Σ p_i |v_ij|, and by about u sqrt(Σ p_i² v_ij²), which is the size of the query's own results: near 1 where it
      sees two keys, near 0.03 where it sees a thousand. An RMS over all queries mixes both and is too small for the
      first: the largest errors are there, and so is the right scale for them.
    - Queries that see nothing are exactly zero and say nothing of the others' size: 1,022 of 1,025 of them would
      make the RMS 18 times smaller. Of few elements (head dimension 5, say) a query's RMS may be small by chance; then
      the others' stands in.

    In these units errors are near normal with a standard deviation of about u / sqrt(3). The largest of n is expected
    at sqrt(2 ln n) of them, 5.7 for n = 1e7: 6e-3 in bfloat16 and 1.6e-3 in float16. The declared atol (5e-2 and 1e-2)
    leaves a factor of 6 to 8 above that, so it is what must hold for every element, with no share of exceptions.
    """
    import torch

    squares = expected.square().mean(-1, keepdim=True)
    visible_rows = squares[squares > 0]
    of_all = visible_rows.mean() if visible_rows.numel() else squares.new_zeros(())
    return torch.maximum(squares, of_all).sqrt()


def verdict(found: Any, expected: Any, tolerance: Tolerance, peer: Any = None) -> tuple[str, float]:
    """What is wrong ("" if nothing), and the error over the larger of PyTorch's and of what rounding alone makes.

    As a whole: the relative L2 error is within ``tolerance.l2`` and at most 1.5 times ``peer``'s on the same inputs.
    Element by element: |found - expected| ≤ atol · scale_of(expected) + rtol · |expected|; an element beyond that is
    wrong unless PyTorch makes errors of two thirds of its size on these very inputs.
    """
    error = relative(found, expected)
    if not math.isfinite(error):
        return "not finite", math.inf
    if error > tolerance.l2:
        return f"error {error:.2e} above the tolerance of {tolerance.l2:.1e}", math.inf
    assert tolerance.atol is not None and tolerance.rtol is not None
    off = (found.double() - expected).abs()
    excess = off - tolerance.atol * scale_of(expected) - tolerance.rtol * expected.abs()
    beyond = excess > 0
    if bool(beyond.any()):
        theirs = 0.0 if peer is None else float((peer.double() - expected).abs().max().nan_to_num(0.0))
        largest = float(off[beyond].max())
        if largest > ALLOWANCE * theirs:
            told = f"an element is off by {largest:.2e}, {float(excess.max()):.2e} more than the tolerance"
            return told + (f"; PyTorch's largest error is {theirs:.2e}" if peer is not None else ""), math.inf
    if peer is None:
        return "", 0.0
    theirs = relative(peer, expected)
    fair = max(theirs if math.isfinite(theirs) else 0.0, ROUNDINGS * relative(expected.to(found.dtype), expected))
    ratio = error / fair if fair else 0.0
    if ratio > ALLOWANCE:
        return f"error {error:.2e}, {ratio:.2f} times PyTorch's {theirs:.2e} (rounding alone: {fair:.2e})", ratio
    return "", ratio
