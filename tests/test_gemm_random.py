"""2,000 random matrix products on a GPU against float64: odd sizes, epilogues, dtypes, every kernel of the family.

What is compiled in (dtype, activation, optional inputs, tactic) comes from a short list, so that compiling takes a
minute; shapes are drawn anew for each call. Outputs lie between guard bands that nobody may write to.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from attention_in_torch import ALLOWANCE, ROUNDINGS, relative
from emulated import agrees

from trtforge.bindings.architectures import architecture
from trtforge.bindings.errors import ForgeError
from trtforge.harness.compare import tolerance_of
from trtforge.harness.emulate.toolchain import find_compiler
from trtforge.kernels import Case, Op
from trtforge.kernels.fused_gemm.op import fused_gemm, gated_gemm
from trtforge.kernels.scaled_gemm.op import scaled_gemm

CALLS = 60  # of each specialization
PRODUCTS = 4_000_000_000  # multiplications of one call at most
GUARD = 64  # elements before and after an output; keeps 16-byte alignment
SENTINEL = -7.0


@dataclass(frozen=True)
class Special:
    """What one compiled kernel is made for."""

    op: Op
    kernel: str
    tactic: Mapping[str, int]  # some of its parameters
    dtype: str
    activation: str
    optional: tuple[str, ...] = ()
    step: int = 8  # N and K are multiples of it
    rows: int = 3000  # at most
    attributes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        tactic = "".join(f"{k[0]}{v}" for k, v in self.tactic.items())
        return "-".join([self.op.name.split("::")[1], self.kernel, tactic, self.dtype, self.activation, *self.optional])


BOTH, GATES = ("bias", "residual"), ("bias_gate", "bias_up")
BF16, FP16 = "bfloat16", "float16"
SPECIALS = [
    Special(fused_gemm, "sm90", {"BLOCK_M": 128, "BLOCK_N": 256, "CLUSTER_M": 1}, BF16, "gelu_tanh", ("bias",)),
    Special(fused_gemm, "sm90", {"BLOCK_M": 128, "BLOCK_N": 256, "CLUSTER_M": 2}, FP16, "none", ("residual",)),
    Special(fused_gemm, "sm90", {"BLOCK_M": 64, "BLOCK_N": 256, "CLUSTER_M": 1}, BF16, "silu", BOTH),
    Special(fused_gemm, "sm90", {"BLOCK_M": 64, "BLOCK_N": 256, "CLUSTER_M": 2}, FP16, "gelu_erf"),
    Special(fused_gemm, "sm90", {"BLOCK_M": 128, "BLOCK_N": 128, "CLUSTER_M": 1}, FP16, "relu", BOTH),
    Special(fused_gemm, "sm90", {"BLOCK_M": 128, "BLOCK_N": 128, "CLUSTER_M": 2}, BF16, "none"),
    Special(fused_gemm, "sm90", {"BLOCK_M": 64, "BLOCK_N": 128, "CLUSTER_M": 1}, BF16, "none", ("residual",)),
    Special(fused_gemm, "sm90", {"BLOCK_M": 64, "BLOCK_N": 64}, FP16, "silu", ("bias",)),
    Special(fused_gemm, "sm90_split", {"TILE_M": 16, "SPLIT_K": 2}, BF16, "gelu_tanh", ("bias",), rows=100),
    Special(fused_gemm, "sm90_split", {"TILE_M": 16, "SPLIT_K": 4}, FP16, "none", ("residual",), rows=100),
    Special(fused_gemm, "sm90_split", {"TILE_M": 16, "SPLIT_K": 8}, BF16, "none", rows=100),
    Special(fused_gemm, "sm90_split", {"TILE_M": 64}, BF16, "silu", BOTH, rows=200),
    Special(fused_gemm, "sm90_split", {"TILE_M": 128}, FP16, "relu", ("bias",), rows=600),
    Special(fused_gemm, "sm90_split", {"TILE_M": 256}, BF16, "gelu_erf", BOTH, rows=900),
    Special(fused_gemm, "mma", {"BLOCK_M": 128}, BF16, "gelu_tanh", BOTH),
    Special(fused_gemm, "mma", {"BLOCK_M": 64}, FP16, "none", ("residual",)),
    Special(fused_gemm, "mma", {"BLOCK_M": 16, "BLOCK_N": 32}, BF16, "silu", ("bias",), rows=200),
    Special(fused_gemm, "mma_elementwise", {"BLOCK_M": 64}, BF16, "none", BOTH, step=1),
    Special(fused_gemm, "mma_elementwise", {"BLOCK_M": 16}, FP16, "gelu_erf", step=1, rows=200),
    Special(fused_gemm, "triton", {"BLOCK_M": 128}, BF16, "silu", BOTH),
    Special(fused_gemm, "triton_elementwise", {"BLOCK_M": 16}, FP16, "relu", ("residual",), step=1, rows=200),
    Special(gated_gemm, "sm90", {"BLOCK_M": 128, "BLOCK_N": 128, "CLUSTER_M": 1}, BF16, "silu"),
    Special(gated_gemm, "sm90", {"BLOCK_M": 64, "BLOCK_N": 128, "CLUSTER_M": 2}, FP16, "gelu_tanh", GATES),
    Special(gated_gemm, "sm90", {"BLOCK_M": 64, "BLOCK_N": 64}, BF16, "gelu_erf", ("bias_up",)),
    Special(gated_gemm, "sm90_split", {"TILE_M": 16}, BF16, "silu", rows=100),
    Special(gated_gemm, "sm90_split", {"TILE_M": 64}, FP16, "gelu_tanh", GATES, rows=200),
    Special(gated_gemm, "sm90_split", {"TILE_M": 256}, BF16, "silu", ("bias_gate",), rows=900),
    Special(gated_gemm, "mma", {"BLOCK_M": 128}, FP16, "silu", GATES),
    Special(gated_gemm, "mma_elementwise", {"BLOCK_M": 64}, BF16, "gelu_erf", step=1),
    Special(gated_gemm, "triton", {"BLOCK_M": 128}, BF16, "silu"),
    Special(scaled_gemm, "sm90", {"BLOCK_M": 128, "CLUSTER_M": 1}, "float8_e4m3fn", "none", step=16),
    Special(
        scaled_gemm, "sm90", {"BLOCK_M": 64, "BLOCK_N": 256, "CLUSTER_M": 1}, "float8_e4m3fn", "silu", ("bias",), 16
    ),
    Special(scaled_gemm, "sm90", {"BLOCK_M": 128, "BLOCK_N": 128}, "int8", "gelu_tanh", ("bias",), 16),
    Special(scaled_gemm, "triton", {"BLOCK_M": 64}, "int8", "none", step=16),
]


def random_sizes(rng: np.random.Generator, special: Special) -> tuple[int, int, int]:
    """M, N, K of any magnitude, often at or beside a multiple of a tile."""

    def size(largest: int, step: int = 1) -> int:
        if rng.random() < 0.4:
            near = 64.0 * int(rng.integers(1, max(largest // 64, 1) + 1)) + step * int(rng.integers(-1, 2))
        else:
            near = math.exp(rng.uniform(0.0, math.log(largest)))
        return max(step, min(int(near), largest) // step * step)

    m, n, k = size(special.rows), size(5000, special.step), size(5000, special.step)
    while m * n * k > PRODUCTS:
        m = (m + 1) // 2
    return m, n, k


def activate(name: str, x: Any) -> Any:
    from trtforge.kernels.fused_gemm.peers import activation_function

    return activation_function(name)(x)


def product(x: Any, w: Any, bias: Any) -> Any:
    import torch.nn.functional as F

    return F.linear(x, w, bias)


def defined(special: Special, given: Mapping[str, Any]) -> Any:
    """The op's definition in float64."""
    wide: dict[str, Any] = {name: None if value is None else value.double() for name, value in given.items()}
    if special.op is gated_gemm:
        gate = activate(special.activation, product(wide["x"], wide["w_gate"], wide["bias_gate"]))
        return gate * product(wide["x"], wide["w_up"], wide["bias_up"])
    if special.op is scaled_gemm:
        sums = product(wide["x"], wide["w"], None) * wide["x_scale"][:, None] * wide["w_scale"]
        return activate(special.activation, sums if wide["bias"] is None else sums + wide["bias"])
    y = activate(special.activation, product(wide["x"], wide["w"], wide["bias"]))
    return y if wide["residual"] is None else y + wide["residual"]


def by_cublas(special: Special, given: Mapping[str, Any]) -> Any:
    """The product by cuBLAS, rounded as it rounds; what follows in float32. None where there is no such product."""
    import torch

    if special.op is gated_gemm:
        gate = product(given["x"], given["w_gate"], given["bias_gate"]).float()
        y = activate(special.activation, gate) * product(given["x"], given["w_up"], given["bias_up"]).float()
        return y.to(given["x"].dtype)
    if special.op is scaled_gemm:
        plain = special.activation == "none" and given["bias"] is None
        if special.dtype == "int8" or not plain or len(given["x"]) <= 16:
            return None
        scales = given["x_scale"].view(-1, 1), given["w_scale"].view(1, -1)
        return torch._scaled_mm(given["x"], given["w"].t(), *scales, out_dtype=torch.bfloat16, use_fast_accum=True)
    y = activate(special.activation, product(given["x"], given["w"], given["bias"]).float())
    return (y if given["residual"] is None else y + given["residual"].float()).to(given["x"].dtype)


def draw(rng: np.random.Generator, generator: Any, special: Special) -> dict[str, Any]:
    """All inputs by name, None for those that are absent; x N(0, 1), weights such that sums are."""
    import torch

    m, n, k = random_sizes(rng, special)

    def normal(*shape: int, scale: float = 1.0, dtype: str) -> Any:
        made = torch.randn(shape, generator=generator, device=generator.device) * scale
        return (
            (made * 16).round().clamp(-127, 127).to(torch.int8) if dtype == "int8" else made.to(getattr(torch, dtype))
        )

    outside = "bfloat16" if special.op is scaled_gemm else special.dtype
    shapes = {"x": (m, k), "residual": (m, n), "x_scale": (m,), "w_scale": (n,)}
    given: dict[str, Any] = {}
    for name, declared in special.op.inputs.items():
        if declared.optional and name not in special.optional:
            given[name] = None
        elif name.endswith("_scale"):
            uniform = torch.rand(shapes[name], generator=generator, device=generator.device) + 0.5
            given[name] = uniform / (16 if special.dtype == "int8" else 1) / k**0.25
        elif name.startswith("w"):
            scale = 1.0 if special.op is scaled_gemm else k**-0.5
            given[name] = normal(n, k, scale=scale, dtype=special.dtype)
        else:
            given[name] = normal(*shapes.get(name, (n,)), dtype=special.dtype if name == "x" else outside)
    return given


def judged(special: Special, found: Any, expected: Any, peer: Any) -> tuple[str, float]:
    """What is wrong ("" if nothing), and the error over the larger of cuBLAS's and of what rounding alone makes."""
    tolerance = tolerance_of(special.op, str(found.dtype).removeprefix("torch."))
    error = relative(found, expected)
    if not error <= tolerance.l2:
        return f"error {error:.2e} above the tolerance of {tolerance.l2:.1e}", math.inf
    assert tolerance.atol is not None and tolerance.rtol is not None
    rms = float(expected.norm()) / expected.numel() ** 0.5
    excess = float(((found.double() - expected).abs() - tolerance.rtol * expected.abs()).max()) - tolerance.atol * rms
    if excess > 0:
        return f"an element is off by {excess:.2e} more than the tolerance", math.inf
    theirs = 0.0 if peer is None else relative(peer, expected)
    fair = max(theirs if math.isfinite(theirs) else 0.0, ROUNDINGS * relative(expected.to(found.dtype), expected))
    ratio = error / fair if fair else 0.0
    if ratio > ALLOWANCE:
        return f"error {error:.2e}, {ratio:.2f} times cuBLAS's {theirs:.2e} (or rounding's: {fair:.2e})", ratio
    return "", ratio


def check_calls(special: Special, seed: int, device: str, calls: int, **choice: Any) -> float:
    """Draw and judge; the largest ratio of our error to cuBLAS's. ``choice`` goes to the op."""
    import torch

    wrong, largest = [], 0.0
    attributes = {"activation": special.activation, **special.attributes}
    for number in range(calls):
        rng = np.random.default_rng((seed, number))
        generator = torch.Generator(device).manual_seed(1000 * seed + number)
        given = draw(rng, generator, special)
        expected = defined(special, given)
        kind = torch.bfloat16 if special.op is scaled_gemm else given["x"].dtype
        buffer = torch.full((expected.numel() + 2 * GUARD,), SENTINEL, dtype=kind, device=device)
        out = buffer[GUARD:-GUARD].view(expected.shape)
        special.op(*given.values(), **attributes, out=out, **choice)
        message, ratio = judged(special, out, expected, by_cublas(special, given))
        largest = max(largest, ratio)
        if not message and bool((buffer[:GUARD] != SENTINEL).any() | (buffer[-GUARD:] != SENTINEL).any()):
            message = "wrote outside of its output"
        if message:
            wrong.append((number, message, [None if x is None else tuple(x.shape) for x in given.values()]))
    assert not wrong, f"{len(wrong)} of {calls} calls: {wrong[:5]}"
    return largest


@pytest.mark.gpu
@pytest.mark.parametrize("special", SPECIALS, ids=lambda s: s.name)
def test_random_calls(special: Special, record_property: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """60 calls each: at most 1.5 times cuBLAS's error on the same inputs, and within the declared tolerance."""
    torch = pytest.importorskip("torch")
    from trtforge.bindings import device

    settings = torch.backends.cuda.matmul  # partial sums of cuBLAS in float32, as ours
    monkeypatch.setattr(settings, "allow_bf16_reduced_precision_reduction", False)
    monkeypatch.setattr(settings, "allow_fp16_reduced_precision_reduction", False)
    kernel, target = special.op.kernel_named(special.kernel), device.current_device().architecture
    if not kernel.serves(target):
        pytest.skip(f"{special.kernel} does not run on {target.name}")
    choice = {"kernel": special.kernel, "tactic": special.op.tactic_index(kernel, special.tactic)}
    largest = check_calls(special, SPECIALS.index(special), "cuda", CALLS, **choice)
    record_property("largest_error_over_cublas", largest)
    print(f"{special.name}: at most {largest:.2f} times cuBLAS's error")


def case_of(special: Special, sizes: tuple[int, int, int]) -> Case:
    dims = dict(zip("MNK", sizes))
    scales = {"SX": sizes[0], "SW": sizes[1]} if special.op is scaled_gemm else {}
    return Case({**dims, **scales}, {"activation": special.activation, **special.attributes}, special.optional)


def test_there_are_two_thousand_calls_and_every_kernel_can_serve_its_own() -> None:
    assert len(SPECIALS) * CALLS >= 2000
    assert len({s.name for s in SPECIALS}) == len(SPECIALS)
    for special in SPECIALS:
        kernel = special.op.kernel_named(special.kernel)
        index = special.op.tactic_index(kernel, special.tactic)
        for number in range(20):
            sizes = random_sizes(np.random.default_rng(number), special)
            dtypes = special.op.dtype_combinations(case_of(special, sizes))
            fitting = next(d for d in dtypes if d["x"] == special.dtype)
            binding = special.op.bind_case(case_of(special, sizes), fitting)
            assert kernel.refusal(binding, index, architecture("sm_90a")) is None, (special.name, sizes)


@pytest.mark.parametrize("kernel", ["sm90_split", "mma_elementwise"])
def test_small_random_calls_on_the_emulated_gpu(kernel: str) -> None:
    """The same on any machine: one specialization a kernel, sizes that take seconds."""
    try:
        find_compiler()
    except ForgeError as error:
        pytest.skip(str(error))
    special = next(s for s in SPECIALS if s.kernel == kernel and "residual" in s.optional)
    rng = np.random.default_rng(8)
    index = fused_gemm.tactic_index(fused_gemm.kernel_named(kernel), special.tactic)
    for _ in range(4):
        m = int(rng.integers(1, 20))
        n, k = (max(int(rng.integers(1, 150)) // special.step, 1) * special.step for _ in range(2))
        kinds = {"x": special.dtype}
        agrees(fused_gemm, fused_gemm.kernel_named(kernel), case_of(special, (m, n, k)), kinds, index)
