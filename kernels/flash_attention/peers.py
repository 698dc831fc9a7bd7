"""What flash attention is timed against, and the parts of it that its reference is run on in a benchmark."""

from typing import Any

import numpy as np

from trtforge.kernels import Op

#: PyTorch aligns a causal mask to the first key, we to the last: they agree where there are as many queries as keys.
_PLAIN = [
    (
        lambda a, has: a.window <= 0 and a.soft_cap == 0.0 and not has.k_lengths,
        "takes no window, soft cap or key lengths",
    ),
    (lambda d, a: not a.causal or d.Sq == d.Sk, "aligns its causal mask to the first key"),
]
#: Queries of a part, shared out among the heads of a group, and key heads.
_QUERIES, _FEWEST_QUERIES, _KEY_HEADS = 64, 8, 2


def part_of_attention(rng: np.random.Generator, d: Any, a: Any, has: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Some queries of some heads of one sequence.

    Queries are aligned to the end of the keys: without the keys after the last of them, nothing changes for causal
    ones. Of windows and key lengths the last queries are taken, which keep their place as they are.
    """
    b, group = int(rng.integers(d.B)), d.Hq // d.Hkv
    count = max(_QUERIES // group, _FEWEST_QUERIES)
    first = int(rng.integers(d.Hkv))
    heads = slice(first, min(first + _KEY_HEADS, d.Hkv))
    of_queries = slice(heads.start * group, heads.stop * group)
    end, keys = d.Sq, d.Sk
    if a.window <= 0 and not has.k_lengths:
        end = int(rng.integers(min(count, d.Sq), d.Sq + 1))
    if a.causal and d.Sk - d.Sq + end >= 1:
        keys = d.Sk - d.Sq + end
    elif a.causal:
        end = d.Sq  # these queries would see no key at all
    queries = slice(max(end - count, 0), end)
    q = np.s_[b : b + 1, of_queries, queries]
    kv = np.s_[b : b + 1, heads, :keys]
    inputs: dict[str, Any] = {"q": q, "k": kv, "v": kv}
    if has.k_lengths:
        inputs["k_lengths"] = np.s_[b : b + 1]
    return inputs, {"o": q}


def declare(op: Op) -> None:
    """PyTorch's scaled dot-product attention by cuDNN and by FlashAttention-2."""

    def scaled_dot_product(q: Any, k: Any, v: Any, backend: str, causal: bool, scale: float) -> Any:
        import torch.nn.functional as F
        from torch.nn.attention import SDPBackend, sdpa_kernel

        with sdpa_kernel(getattr(SDPBackend, backend)):
            return F.scaled_dot_product_attention(
                q, k, v, is_causal=causal, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
            )

    @op.peer("cuDNN", requires=_PLAIN)
    def _(q: Any, k: Any, v: Any, k_lengths: Any, *, causal: bool, window: int, soft_cap: float, scale: float) -> Any:
        return scaled_dot_product(q, k, v, "CUDNN_ATTENTION", causal, scale)

    @op.peer("FlashAttention-2", requires=_PLAIN)
    def _(q: Any, k: Any, v: Any, k_lengths: Any, *, causal: bool, window: int, soft_cap: float, scale: float) -> Any:
        return scaled_dot_product(q, k, v, "FLASH_ATTENTION", causal, scale)

    op.part(part_of_attention)
