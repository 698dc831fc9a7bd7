"""What 8-bit flash attention is timed against: 16-bit attention of the values that the codes stand for.

PyTorch 2.11 hands no 8-bit attention to cuDNN, and the fp8 kernels of FlashAttention-3 come in a package of their own.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

from trtforge.kernels import Op
from trtforge.kernels.flash_attention.op import flash_attention
from trtforge.kernels.flash_attention.peers import part_of_attention

Attend = Callable[[], Any]


def declare(op: Op) -> None:
    """Our bfloat16 attention, and FlashAttention-3 where it is installed."""

    def values(codes: Any, scale: Any) -> Any:
        import torch

        return (codes.float() * scale[:, :, None, None]).to(torch.bfloat16)

    @op.peer(
        "flash_attention in bfloat16",
        setup=True,
        requires=[(lambda a: a.to == "bfloat16", "returns what q has: bfloat16")],
    )
    def _(q: Any, k: Any, v: Any, q_scale: Any, k_scale: Any, v_scale: Any, *, to: str, **attributes: Any) -> Attend:
        wide = [values(x, scale) for x, scale in ((q, q_scale), (k, k_scale), (v, v_scale))]
        return lambda: flash_attention(*wide, **attributes)

    @op.peer(
        "FlashAttention-3",
        setup=True,
        modules=("flash_attn_interface",),
        requires=[
            (lambda d: d.D in (64, 128, 256), "has fp8 kernels for D 64, 128 and 256"),
            (lambda a: a.to == "bfloat16", "returns bfloat16"),
            (lambda d: d.Hq == d.Hkv, "takes one scale for each key head, also of q"),
        ],
    )
    def _(q: Any, k: Any, v: Any, q_scale: Any, k_scale: Any, v_scale: Any, *, to: str, **attributes: Any) -> Attend:
        from flash_attn_interface import flash_attn_func

        tokens_first = [x.transpose(1, 2).contiguous() for x in (q, k, v)]
        descales = dict(
            zip(
                ("q_descale", "k_descale", "v_descale"), (x.expand(q.shape[0], -1) for x in (q_scale, k_scale, v_scale))
            )
        )
        window = attributes["window"]
        sides = (window - 1 if window > 0 else -1, 0 if attributes["causal"] else -1)
        return lambda: flash_attn_func(
            *tokens_first, softmax_scale=attributes["scale"], causal=attributes["causal"], window_size=sides, **descales
        ).transpose(1, 2)

    @op.part
    def _(rng: np.random.Generator, d: Any, a: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """A part of 16-bit attention, and the scales of its heads."""
        inputs, outputs = part_of_attention(rng, d, a, SimpleNamespace(k_lengths=False))
        for name in "qkv":
            sequence, heads = inputs[name][:2]
            inputs[f"{name}_scale"] = (sequence if d.SB > 1 else slice(None), heads)
        return inputs, outputs
