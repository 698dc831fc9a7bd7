"""What attention over a paged cache is timed against: the same keys in one piece, gathered before the clock starts."""

from collections.abc import Callable
from typing import Any

from trtforge.kernels import Op

_PLAIN: list[tuple[Callable[..., Any], str]] = [
    (lambda a: a.window < 0 and a.soft_cap == 0.0, "has neither a window nor a soft cap"),
    (lambda has: not has.k_lengths, "is called with full sequences only"),
    (lambda d, a: d.Sq == 1 or not a.causal, "aligns causal queries to the start of the keys"),
]


def _in_one_piece(cache: Any, block_table: Any) -> Any:
    """[pages, Hkv, page_size, D] as [B, Hkv, keys, D]."""
    if block_table is None:
        return cache
    own = cache[block_table.long()]
    return own.transpose(1, 2).reshape(own.shape[0], own.shape[2], -1, own.shape[4])


def _attention(q: Any, k: Any, v: Any, scale: float, backend: str) -> Any:
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    chosen = getattr(SDPBackend, backend)

    def call() -> Any:
        with sdpa_kernel(chosen):
            return torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=scale, enable_gqa=True)

    return call


def declare(op: Op) -> None:
    """Peers of the op with a 16-bit cache."""
    for name, backend in (("cuDNN", "CUDNN_ATTENTION"), ("FlashAttention-2", "FLASH_ATTENTION")):

        @op.peer(f"{name}, contiguous cache", setup=True, requires=_PLAIN)
        def _(
            q: Any,
            k_cache: Any,
            v_cache: Any,
            k_lengths: Any,
            block_table: Any,
            *,
            scale: float,
            backend: str = backend,
            **others: Any,
        ) -> Any:
            k, v = (_in_one_piece(cache, block_table) for cache in (k_cache, v_cache))
            return _attention(q, k, v, scale, backend)


def declare_8bit(op: Op) -> None:
    """Peers of the op with an 8-bit cache: the same values as 16-bit numbers, which is twice the bytes."""

    @op.peer("cuDNN, contiguous 16-bit cache", setup=True, requires=_PLAIN)
    def _(
        q: Any,
        k_cache: Any,
        v_cache: Any,
        k_scale: Any,
        v_scale: Any,
        k_lengths: Any,
        block_table: Any,
        *,
        scale: float,
        **others: Any,
    ) -> Any:
        k, v = (
            (_in_one_piece(cache, block_table).float() * factor[None, :, None, None]).to(q.dtype)
            for cache, factor in ((k_cache, k_scale), (v_cache, v_scale))
        )
        return _attention(q, k, v, scale, "CUDNN_ATTENTION")
