"""Attention as graphs write it out in primitive ops: the subgraphs that the flash_attention op replaces.

scores = matmul(q, k^T) * scale      or  matmul(q * scale, k^T), or no scale
scores = cap * tanh(scores / cap)    optional
scores = where(mask, scores, -inf)   optional: causal, window, lengths, any of them together
o = matmul(softmax(scores), v)       k and v may be repeated head by head to serve a group of query heads
"""

import itertools
import math
from dataclasses import dataclass
from typing import Any

from trtforge.kernels.op import Op


@dataclass(frozen=True)
class Form:
    """One way to write attention; every part is there or not."""

    causal: bool
    window: bool
    lengths: bool
    capped: bool
    scaled: bool

    @property
    def masked(self) -> bool:
        return self.causal or self.window or self.lengths

    @property
    def name(self) -> str:
        parts = ("causal", "window", "lengths", "capped")
        words = [part for part in parts if getattr(self, part)]
        return "_".join(["attention", *(words or ["full"]), *([] if self.scaled else ["unscaled"])])

    def trace(self, f: Any, q: Any, k: Any, v: Any, k_lengths: Any = None) -> Any:
        keys, values = (f.either(f.repeat_interleave(x, f.any(), axis=1), x) for x in (k, v))
        scores = f.matmul(q, keys, transpose_b=True)
        if self.scaled:
            scale = f.capture("scale")
            scores = f.either(f.mul(scores, scale), f.matmul(f.mul(q, scale), keys, transpose_b=True))
        if self.capped:
            cap = f.capture("soft_cap")
            scores = f.mul(f.tanh(f.div(scores, cap)), cap)
        if self.masked:
            mask = f.attention_mask(
                q.shape[-2],
                k.shape[-2],
                causal=self.causal,
                window=f.capture("window") if self.window else -1,
                k_lengths=k_lengths,
            )
            scores = f.where(mask, scores, f.masked())
            f.require(
                lambda shape_of, captures, at_most: (
                    captures["masked"] == -math.inf or (not self.lengths and at_most(shape_of(q)[-2], shape_of(k)[-2]))
                ),
                "a query may see no key: the written-out form then averages all values, the op gives zeros; mask "
                "with minus infinity, or have at most as many queries as keys",
            )
        return f.matmul(f.softmax(scores, axis=-1), values)


def declare(op: Op) -> None:
    """Declare every form as a pattern of ``op``."""
    for causal, window, lengths, capped, scaled in itertools.product((False, True), repeat=5):
        form = Form(causal, window, lengths, capped, scaled)
        inputs = ("q", "k", "v", "k_lengths") if lengths else ("q", "k", "v")
        attributes = {"causal": causal} if scaled else {"causal": causal, "scale": 1.0}
        op.pattern(inputs, attributes, name=form.name)(form.trace)
