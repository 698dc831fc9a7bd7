"""What attention over packed sequences is timed against."""

from collections.abc import Callable, Sequence
from typing import Any

from trtforge.kernels import Op

Attend = Callable[..., Any]

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

    def peer(name: str, requires: Sequence[tuple[Attend, str]] = (), modules: Sequence[str] = ()) -> Attend:
        """Declares ``attend((q, k, v), (offsets, longest of q and k), **attributes)``, which makes the call to time."""

        def declare_one(attend: Attend) -> Attend:
            @op.peer(name, setup=True, requires=requires, modules=modules)
            def _(q: Any, k: Any, v: Any, cu_seqlens_q: Any, cu_seqlens_k: Any, **attributes: Any) -> Attend:
                longest = _longest(cu_seqlens_q), _longest(cu_seqlens_k)
                return attend((q, k, v), (cu_seqlens_q, cu_seqlens_k, *longest), **attributes)

            return attend

        return declare_one

    @peer("FlashAttention-2", requires=[_PLAIN, _ALIGNED])
    def _(qkv: Any, packing: Any, *, causal: bool, window: int, soft_cap: float, scale: float) -> Attend:
        import torch

        attend = torch.ops.aten._flash_attention_forward
        return lambda: attend(*qkv, *packing, 0.0, causal, return_debug_mask=False, scale=scale)[0]

    @peer("cuDNN", requires=[_PLAIN, _ALIGNED])
    def _(qkv: Any, packing: Any, *, causal: bool, window: int, soft_cap: float, scale: float) -> Attend:
        import torch

        attend = torch.ops.aten._cudnn_attention_forward
        return lambda: attend(*qkv, None, *packing, False, 0.0, causal, False, scale=scale)[0]

    @peer("flash_attn_varlen_func", modules=("flash_attn",))
    def _(qkv: Any, packing: Any, *, causal: bool, window: int, soft_cap: float, scale: float) -> Attend:
        from flash_attn import flash_attn_varlen_func

        sides = (window - 1 if window > 0 else -1, 0 if causal else -1)
        options = {"softmax_scale": scale, "causal": causal, "window_size": sides, "softcap": soft_cap}
        return lambda: flash_attn_varlen_func(*qkv, *packing, **options)
