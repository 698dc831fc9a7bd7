"""What writing into a KV cache is timed against: the same composition in PyTorch, eager and compiled."""

from typing import Any

from trtforge.kernels import Op

_LARGEST = {"int8": 127.0, "float8_e4m3fn": 448.0}
_CONTIGUOUS = [(lambda has: not has.block_table, "is written for contiguous caches")]


def _codes(value: Any, scale: Any, kind: Any) -> Any:
    """Rows of the cache, from float32 values [B, H, T, D]; 8-bit codes as bytes."""
    import torch

    if scale is None:
        return value.to(kind)
    quotient = value / scale[:, None, None]
    if kind == torch.int8:
        return quotient.round().clamp(-128.0, 127.0).to(kind)
    largest = _LARGEST["float8_e4m3fn"]
    return quotient.clamp(-largest, largest).to(kind).view(torch.uint8)


def _rope_kv_cache_update(
    k_cache: Any,
    v_cache: Any,
    k: Any,
    v: Any,
    cos: Any,
    sin: Any,
    positions: Any,
    k_scale: Any,
    v_scale: Any,
    block_table: Any,
) -> tuple[Any, Any]:
    import torch

    first, second = k.float().chunk(2, dim=-1)
    cosine, sine = cos[:, None], sin[:, None]
    turned = torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)
    sequence = torch.arange(k.shape[0], device=k.device)[:, None]
    rows = positions[:, None].long() + torch.arange(k.shape[2], device=k.device)
    for cache, scale, new in ((k_cache, k_scale, turned), (v_cache, v_scale, v.float())):
        codes = _codes(new, scale, cache.dtype)
        stored = cache if codes.dtype == cache.dtype else cache.view(torch.uint8)
        stored[sequence, :, rows] = codes.transpose(1, 2)
    return k_cache, v_cache


def declare(op: Op) -> None:
    """Both peers; rows that would be dropped are not expected of them."""
    op.peer("torch.compile", compile=True, requires=_CONTIGUOUS)(
        op.peer("PyTorch eager", requires=_CONTIGUOUS)(_rope_kv_cache_update)
    )
