"""The libraries that our kernels are timed against, on the same PyTorch tensors.

For each op: ``peers`` gives callables by name, ``oracle`` the right answer in float32 for a sample of rows (indices
into the flattened leading dimensions of the output), computed by plain PyTorch expressions on the GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

Tensors = Mapping[str, torch.Tensor]
Attributes = Mapping[str, Any]

_ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "none": lambda x: x,
    "relu": F.relu,
    "gelu_erf": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
}


@dataclass(frozen=True)
class Reference:
    """What an op is compared with: ``peers(tensors, attributes)`` and ``oracle(tensors, attributes, rows)``."""

    peers: Callable[[Tensors, Attributes], dict[str, Callable[[], Any]]]
    oracle: Callable[[Tensors, Attributes, torch.Tensor], torch.Tensor]


def _attention_peers(t: Tensors, a: Attributes) -> dict[str, Callable[[], Any]]:
    if a["window"] > 0 or a["soft_cap"] or "k_lengths" in t:
        return {}
    grouped = t["q"].shape[1] != t["k"].shape[1]

    def run(backend: SDPBackend) -> Callable[[], Any]:
        def call() -> Any:
            with sdpa_kernel(backend):
                return F.scaled_dot_product_attention(
                    t["q"], t["k"], t["v"], is_causal=a["causal"], scale=a["scale"], enable_gqa=grouped
                )

        return call

    return {"cuDNN": run(SDPBackend.CUDNN_ATTENTION), "FlashAttention-2": run(SDPBackend.FLASH_ATTENTION)}


def _attention_oracle(t: Tensors, a: Attributes, rows: torch.Tensor) -> torch.Tensor:
    _, heads, length, _ = t["q"].shape
    keys = t["k"].shape[2]
    group = heads // t["k"].shape[1]
    results = []
    for row in rows.tolist():
        b, h, i = row // (heads * length), row // length % heads, row % length
        scores = t["k"][b, h // group].float() @ t["q"][b, h, i].float() * a["scale"]
        if a["causal"]:
            scores[keys - length + i + 1 :] = float("-inf")
        results.append(torch.softmax(scores, 0) @ t["v"][b, h // group].float())
    return torch.stack(results)


def _gemm_peers(t: Tensors, a: Attributes) -> dict[str, Callable[[], Any]]:
    x, w, bias, act = t["x"], t["w"].t(), t.get("bias"), _ACTIVATIONS[a["activation"]]
    found: dict[str, Callable[[], Any]] = {"cuBLAS": lambda: x @ w}
    if bias is not None:
        found["addmm, then activation"] = lambda: act(torch.addmm(bias, x, w))
        if a["activation"] in ("relu", "gelu_tanh"):
            gelu = a["activation"] == "gelu_tanh"
            found["cuBLASLt epilogue"] = lambda: torch._addmm_activation(bias, x, w, use_gelu=gelu)
    elif a["activation"] != "none":
        found["matmul, then activation"] = lambda: act(x @ w)
    return found


def _gemm_oracle(t: Tensors, a: Attributes, rows: torch.Tensor) -> torch.Tensor:
    y = t["x"][rows].float() @ t["w"].float().t()
    return _ACTIVATIONS[a["activation"]](y if "bias" not in t else y + t["bias"].float())


def _gated_peers(t: Tensors, a: Attributes) -> dict[str, Callable[[], Any]]:
    act = _ACTIVATIONS[a["activation"]]
    return {"two matmuls": lambda: act(t["x"] @ t["w_gate"].t()) * (t["x"] @ t["w_up"].t())}


def _gated_oracle(t: Tensors, a: Attributes, rows: torch.Tensor) -> torch.Tensor:
    x = t["x"][rows].float()
    return _ACTIVATIONS[a["activation"]](x @ t["w_gate"].float().t()) * (x @ t["w_up"].float().t())


def _norm_peers(t: Tensors, a: Attributes) -> dict[str, Callable[[], Any]]:
    def eager() -> Any:
        return F.rms_norm(t["x"], t["weight"].shape, t["weight"], a["eps"])

    return {"PyTorch eager": eager, "torch.compile": torch.compile(eager)}


def _norm_oracle(t: Tensors, a: Attributes, rows: torch.Tensor) -> torch.Tensor:
    x = t["x"][rows].float()
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + a["eps"]) * t["weight"].float()


REFERENCES = {
    "trtforge::flash_attention": Reference(_attention_peers, _attention_oracle),
    "trtforge::fused_gemm": Reference(_gemm_peers, _gemm_oracle),
    "trtforge::gated_gemm": Reference(_gated_peers, _gated_oracle),
    "trtforge::rms_norm": Reference(_norm_peers, _norm_oracle),
}
