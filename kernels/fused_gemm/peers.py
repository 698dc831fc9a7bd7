"""What the fused matrix products are timed against: cuBLAS, cuBLASLt's epilogues and what torch.compile makes."""

from collections.abc import Callable
from typing import Any

from trtforge.kernels import Op


def activation_function(name: str) -> Callable[[Any], Any]:
    """PyTorch's function for an activation of the family."""
    import torch.nn.functional as F

    functions: dict[str, Callable[[Any], Any]] = {
        "none": lambda x: x,
        "relu": F.relu,
        "gelu_erf": F.gelu,
        "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
        "silu": F.silu,
    }
    return functions[name]


def declare(fused_gemm: Op, gated_gemm: Op) -> None:
    """The peers of y = act(x wᵀ + bias) + residual and of the gated product."""

    @fused_gemm.peer("matmul, then activation")
    @fused_gemm.peer("torch.compile", compile=True)
    def _(x: Any, w: Any, bias: Any, residual: Any, *, activation: str) -> Any:
        import torch.nn.functional as F

        y = activation_function(activation)(F.linear(x, w, bias))
        return y if residual is None else y + residual

    has_epilogue = (
        lambda a, has: has.bias and not has.residual and a.activation in ("relu", "gelu_tanh"),
        "is offered by PyTorch for bias and relu or tanh-gelu, without a residual",
    )

    @fused_gemm.peer("cuBLASLt epilogue", requires=[has_epilogue])
    def _(x: Any, w: Any, bias: Any, residual: Any, *, activation: str) -> Any:
        import torch

        return torch._addmm_activation(bias, x.reshape(-1, x.shape[-1]), w.t(), use_gelu=activation == "gelu_tanh")

    @fused_gemm.peer("cuBLAS", instead="the bare product")
    def _(x: Any, w: Any, bias: Any, residual: Any, *, activation: str) -> Any:
        return x @ w.t()

    plain_residual = (
        lambda a, has: has.residual and not has.bias and a.activation == "none",
        "adds a residual to a product without bias and activation",
    )

    @fused_gemm.peer("cuBLAS addmm", requires=[plain_residual])
    def _(x: Any, w: Any, bias: Any, residual: Any, *, activation: str) -> Any:
        import torch

        rows = torch.addmm(residual.reshape(-1, residual.shape[-1]), x.reshape(-1, x.shape[-1]), w.t())
        return rows.reshape(residual.shape)

    @gated_gemm.peer("two matmuls")
    @gated_gemm.peer("torch.compile", compile=True)
    def _(x: Any, w_gate: Any, w_up: Any, bias_gate: Any, bias_up: Any, *, activation: str) -> Any:
        import torch.nn.functional as F

        return activation_function(activation)(F.linear(x, w_gate, bias_gate)) * F.linear(x, w_up, bias_up)
