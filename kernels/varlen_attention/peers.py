"""What attention over packed sequences is timed against."""

from collections.abc import Callable
from typing import Any

from trtforge.kernels import Op

_ALIGNED = (
    lambda d, a: not (a.causal or a.window > 0) or d.Tq == d.Tk,
    "may align its causal mask and window to the first key",
)
_PLAIN = (lambda a: a.window <= 0 and a.soft_cap == 0.0, "takes no window or soft cap")


def _longest(offsets: Any) -> int:
    """The longest sequence: what these functions want to know on the host."""
    return int(offsets.diff().max().item())


def declare(op: Op) -> None:
    """FlashAttention as PyTorch builds it in, cuDNN through PyTorch, and the flash_attn package."""

    @op.peer("FlashAttention-2", setup=True, requires=[_PLAIN, _ALIGNED])
    def _(
        q: Any,
        k: Any,
        v: Any,
        cu_seqlens_q: Any,
        cu_seqlens_k: Any,
        *,
        causal: bool,
        window: int,
        soft_cap: float,
        scale: float,
    ) -> Callable[[], Any]:
        import torch

        longest = _longest(cu_seqlens_q), _longest(cu_seqlens_k)
        attend = torch.ops.aten._flash_attention_forward
        return lambda: attend(
            q, k, v, cu_seqlens_q, cu_seqlens_k, *longest, 0.0, causal, return_debug_mask=False, scale=scale
        )[0]

    @op.peer("cuDNN", setup=True, requires=[_PLAIN, _ALIGNED])
    def _(
        q: Any,
        k: Any,
        v: Any,
        cu_seqlens_q: Any,
        cu_seqlens_k: Any,
        *,
        causal: bool,
        window: int,
        soft_cap: float,
        scale: float,
    ) -> Callable[[], Any]:
        import torch

        longest = _longest(cu_seqlens_q), _longest(cu_seqlens_k)
        attend = torch.ops.aten._cudnn_attention_forward
        return lambda: attend(
            q, k, v, None, cu_seqlens_q, cu_seqlens_k, *longest, False, 0.0, causal, False, scale=scale
        )[0]

    @op.peer("flash_attn_varlen_func", setup=True, modules=("flash_attn",))
    def _(
        q: Any,
        k: Any,
        v: Any,
        cu_seqlens_q: Any,
        cu_seqlens_k: Any,
        *,
        causal: bool,
        window: int,
        soft_cap: float,
        scale: float,
    ) -> Callable[[], Any]:
        from flash_attn import flash_attn_varlen_func

        longest = _longest(cu_seqlens_q), _longest(cu_seqlens_k)
        sides = (window - 1 if window > 0 else -1, 0 if causal else -1)
        return lambda: flash_attn_varlen_func(
            q,
            k,
            v,
            cu_seqlens_q,
            cu_seqlens_k,
            *longest,
            softmax_scale=scale,
            causal=causal,
            window_size=sides,
            softcap=soft_cap,
        )
