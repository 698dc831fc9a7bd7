"""Fused and gated GEMM without a GPU: references, contracts, choice of kernel, machine code, fusion patterns."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from emulated import changed

import trtforge.kernels
from trtforge.bindings.architectures import INSPECTED, architecture
from trtforge.bindings.disassemble import sass
from trtforge.bindings.errors import ContractError, DeclarationError
from trtforge.bindings.nvrtc import compile_cuda
from trtforge.graph_api import Network
from trtforge.graph_api import functional as F
from trtforge.graph_api.fusion import fuse
from trtforge.harness.check import check
from trtforge.harness.inspection import inspect
from trtforge.kernels import Case, Op
from trtforge.kernels.compile import compile_kernel
from trtforge.kernels.fused_gemm.op import (
    ACTIVATIONS,
    GATES,
    SM90_GATED_TACTICS,
    SM90_TACTICS,
    fused_gemm,
    gated_gemm,
)

OPS = (fused_gemm, gated_gemm)
BIASES = {"trtforge::fused_gemm": ("bias",), "trtforge::gated_gemm": ("bias_gate", "bias_up")}

SCALAR_ACTIVATIONS: dict[str, Callable[[float], float]] = {
    "none": lambda x: x,
    "relu": lambda x: max(x, 0.0),
    "gelu_erf": lambda x: x * 0.5 * math.erfc(-x / math.sqrt(2.0)),
    "gelu_tanh": lambda x: 0.5 * x * (1.0 + math.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x * x * x))),
    "silu": lambda x: x / (1.0 + math.exp(-x)),
}


def bind(op: Op, m: int, n: int, k: int, dtype: str = "bfloat16", biased: bool = False, **attributes: Any) -> Any:
    case = Case({"M": m, "N": n, "K": k}, attributes, BIASES[op.name] if biased else ())
    return op.bind_case(case, dict.fromkeys(op.inputs, dtype))


# ---- references --------------------------------------------------------------------------------------------


def sum_of_products(x: np.ndarray, w: np.ndarray, bias: np.ndarray | None, row: tuple[int, ...], n: int) -> float:
    products = [float(a) * float(b) for a, b in zip(x[row], w[n])]
    return math.fsum(products + ([] if bias is None else [float(bias[n])]))


@pytest.mark.parametrize("lead", [(3,), (2, 3), ()])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_fused_reference_is_the_definition(activation: str, biased: bool, lead: tuple[int, ...]) -> None:
    rng = np.random.default_rng(3)
    x, w = (rng.standard_normal((*s, 9)).astype(np.float16) for s in (lead, (5,)))
    inputs = {"x": x, "w": w} | ({"bias": rng.standard_normal(5).astype(np.float16)} if biased else {})
    found = fused_gemm.run_reference(inputs, {"activation": activation})["y"]
    assert found.shape == (*lead, 5)
    for row in np.ndindex(lead):
        for n in range(5):
            expected = SCALAR_ACTIVATIONS[activation](sum_of_products(x, w, inputs.get("bias"), row, n))
            assert float(found[(*row, n)]) == pytest.approx(expected, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("present", [(), ("bias_gate",), ("bias_up",), ("bias_gate", "bias_up")])
@pytest.mark.parametrize("activation", GATES)
def test_gated_reference_is_the_definition(activation: str, present: tuple[str, ...]) -> None:
    rng = np.random.default_rng(4)
    x, gate, up = (rng.standard_normal((rows, 7)).astype(np.float16) for rows in (4, 6, 6))
    biases = {name: rng.standard_normal(6).astype(np.float16) for name in present}
    found = gated_gemm.run_reference({"x": x, "w_gate": gate, "w_up": up, **biases}, {"activation": activation})["y"]
    for m in range(4):
        for n in range(6):
            left = SCALAR_ACTIVATIONS[activation](sum_of_products(x, gate, biases.get("bias_gate"), (m,), n))
            right = sum_of_products(x, up, biases.get("bias_up"), (m,), n)
            assert float(found[m, n]) == pytest.approx(left * right, rel=1e-3, abs=1e-5)


def test_cost() -> None:
    assert fused_gemm.cost_of(bind(fused_gemm, 3, 5, 7)).flops == 2 * 3 * 5 * 7
    cost = gated_gemm.cost_of(bind(gated_gemm, 3, 5, 7))
    assert cost.flops == 4 * 3 * 5 * 7
    assert cost.bytes == 2 * (3 * 7 + 2 * 5 * 7 + 3 * 5)


# ---- contract and choice -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shapes", "attributes", "words"),
    [
        ({"x": (2, 8), "w": (4, 9)}, {}, "axis 1"),
        ({"x": (2, 8), "w": (4, 8), "bias": (5,)}, {}, "'bias'"),
        ({"x": (2, 8), "w": (4, 8)}, {"activation": "swish"}, "accepted: 'none'"),
        ({"x": (2, 8)}, {}, "w"),
    ],
)
def test_refusals_name_what_is_wrong(shapes: dict[str, Any], attributes: dict[str, Any], words: str) -> None:
    with pytest.raises(ContractError, match=words):
        fused_gemm.bind(shapes, dict.fromkeys(shapes, "float16"), attributes)


def test_gates_are_smooth_activations_only() -> None:
    with pytest.raises(ContractError, match="accepted: 'silu'"):
        bind(gated_gemm, 1, 8, 8, activation="relu")


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
@pytest.mark.parametrize(
    ("kernel", "size", "words"),
    [
        ("sm90", (64, 64, 12), "K must be a multiple of 8"),
        ("sm90", (64, 12, 64), "N must be a multiple of 8"),
        ("mma", (64, 64, 12), "K must be a multiple of 8"),
        ("triton", (64, 12, 64), "N must be a multiple of 8"),
    ],
)
def test_alignment_is_refused_with_the_reason(op: Op, kernel: str, size: tuple[int, int, int], words: str) -> None:
    assert words in str(op.kernel_named(kernel).refusal(bind(op, *size), 0, architecture("sm_90a")))
    with pytest.raises(ContractError, match=words):
        op.choose(bind(op, *size), architecture("sm_90a"), kernel=kernel)


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_unaligned_pointers_take_an_elementwise_kernel(op: Op) -> None:
    choice = op.choose(bind(op, 64, 64, 64), architecture("sm_90a"), alignment=2)
    assert choice.kernel.name == "mma_elementwise"


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
@pytest.mark.parametrize(
    ("size", "arch", "kernel", "rows"),
    [
        ((1, 4096, 4096), "sm_90a", "mma", 16),
        ((16, 4096, 4096), "sm_90a", "mma", 16),
        ((64, 8192, 8192), "sm_90a", "sm90", 64),
        ((4096, 4096, 4096), "sm_90a", "sm90", 128),
        ((8192, 14336, 4096), "sm_90a", "sm90", 128),
        ((4096, 4096, 4096), "sm_80", "mma", 128),
        ((16, 4096, 4096), "sm_120a", "mma", 16),
        ((4096, 4096, 4095), "sm_90a", "mma_elementwise", 64),
        ((1, 1, 1), "sm_100a", "mma_elementwise", None),
    ],
)
def test_heuristic(op: Op, size: tuple[int, int, int], arch: str, kernel: str, rows: int | None) -> None:
    choice = op.choose(bind(op, *size), architecture(arch))
    assert choice.kernel.name == kernel
    if rows is not None:
        assert choice.kernel.tactics[choice.tactic]["BLOCK_M"] == rows


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_every_case_has_a_kernel_everywhere(op: Op) -> None:
    for case in op.cases:
        for dtypes in op.dtype_combinations(case):
            for arch in INSPECTED:
                op.choose(op.bind_case(case, dtypes), architecture(arch))


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_every_tactic_fits_every_architecture(op: Op) -> None:
    binding = bind(op, 4096, 4096, 4096)
    for kernel in op.kernels:
        for arch in INSPECTED:
            target = architecture(arch)
            for tactic in range(len(kernel.tactics)):
                if kernel.serves(target):
                    launch = kernel.launch(binding, tactic, target)
                    assert int(launch.shared) <= target.smem_per_block, (str(kernel), tactic, arch)


@pytest.mark.parametrize("tactic", range(len(SM90_TACTICS)))
@pytest.mark.parametrize("size", [(1, 8, 8), (128, 256, 64), (4097, 4104, 4096), (8192, 14336, 4096)])
def test_persistent_grid_is_whole_clusters_and_no_more_than_the_device(size: tuple[int, int, int], tactic: int) -> None:
    kernel, target = fused_gemm.kernel_named("sm90"), architecture("sm_90a")
    launch = kernel.launch(bind(fused_gemm, *size), tactic, target)
    parameters = kernel.tactics[tactic]
    cluster = parameters["CLUSTER_M"]
    rows, columns = parameters["BLOCK_M"] * cluster, parameters["BLOCK_N"]
    tiles = -(-size[0] // rows) * -(-size[1] // columns)
    assert launch.grid % cluster == 0
    assert 1 <= launch.grid <= min(tiles * cluster, target.sms)
    assert launch.cluster == ((cluster, 1, 1) if cluster > 1 else None)


# ---- Triton, interpreted -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", ["triton", "triton_elementwise"])
@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_triton_kernels_in_the_interpreter(op: Op, kernel: str) -> None:
    rows = check(op.name, kernel=kernel, device="cpu", architectures=())
    failed = [(r.case, r.tactic, r.dtype, r.reason) for r in rows if r.status == "failed"]
    assert not failed
    assert sum(r.status == "passed" for r in rows) >= 20


# ---- machine code ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("op", "tactic"),
    [(fused_gemm, t) for t in range(len(SM90_TACTICS))] + [(gated_gemm, t) for t in range(len(SM90_GATED_TACTICS))],
    ids=lambda value: value.name if isinstance(value, Op) else str(value),
)
def test_sm90_machine_code(op: Op, tactic: int) -> None:
    """wgmma on tiles that the copy engine brings, four per stage without moves between; nothing in local memory."""
    (code,) = inspect(f"{op.name}/sm90", arch="sm_90a", tactic=tactic)
    mix = code.instructions
    assert mix["HGMMA"] == 4
    assert mix["UTMALDG"] == (2 if op is fused_gemm else 3)
    assert mix["UTMASTG"] and mix["STSM"]
    assert not code.spills and not code.stack and not mix.get("LDL") and not mix.get("STL")
    assert not code.warnings, code.warnings
    if code.threads == 384:  # two consumer warpgroups: setmaxnreg must find what it asks for, or waits for ever
        assert mix["USETMAXREG"] == 2
        assert code.registers * code.threads >= 40 * 128 + 232 * 256


def test_warpgroups_that_ask_for_more_registers_than_there_are_are_refused(tmp_path: Path) -> None:
    """On a GPU the last of them would wait for ever."""
    kernel = fused_gemm.kernel_named("sm90")
    kernel = changed(kernel, tmp_path, "sm90_tile.cuh", "CONSUMER_REGISTERS = 232", "CONSUMER_REGISTERS = 240")
    case = fused_gemm.cases[0]
    binding = fused_gemm.bind_case(case, fused_gemm.dtype_combinations(case)[0])
    with pytest.raises(DeclarationError, match=r"2 x 240 \+ 40 = 520 registers, but the 3 warpgroups have 504"):
        compile_kernel(kernel, binding, 0, architecture("sm_90a"))


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_cluster_tactics_multicast_the_weights(op: Op) -> None:
    kernel, target = op.kernel_named("sm90"), architecture("sm_90a")
    tactic = next(i for i, t in enumerate(kernel.tactics) if t["CLUSTER_M"] > 1)
    text = sass(compile_kernel(kernel, bind(op, 256, 256, 256), tactic, target))
    assert text.count("UTMALDG.2D.MULTICAST") == sum(name.startswith("w") for name in op.inputs)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(
    ("op", "activation"),
    [(fused_gemm, a) for a in ACTIVATIONS] + [(gated_gemm, a) for a in GATES],
    ids=lambda value: value.name if isinstance(value, Op) else value,
)
def test_no_epilogue_spills_on_the_largest_tile(op: Op, activation: str, biased: bool, dtype: str) -> None:
    binding = bind(op, 4096, 4096, 4096, dtype, biased, activation=activation)
    resources = compile_kernel(op.kernel_named("sm90"), binding, 0, architecture("sm_90a")).resources
    assert not resources.spill_stores and not resources.spill_loads and not resources.warnings


@pytest.mark.parametrize("arch", ["sm_80", "sm_120a"])
@pytest.mark.parametrize("kernel", ["mma", "mma_elementwise"])
@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_mma_machine_code(op: Op, kernel: str, arch: str) -> None:
    for tactic in range(len(op.kernel_named(kernel).tactics)):
        (code,) = inspect(f"{op.name}/{kernel}", arch=arch, tactic=tactic)
        mix = code.instructions
        assert mix["HMMA"] and mix["LDSM"]
        assert bool(mix.get("LDGSTS")) == (kernel == "mma")
        assert not code.spills and not code.stack, (tactic, code.spills)


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_wide_triton_kernel_copies_vectors(op: Op) -> None:
    for tactic in range(len(op.kernel_named("triton").tactics)):
        (code,) = inspect(f"{op.name}/triton", arch="sm_80", tactic=tactic)
        assert code.instructions["LDGSTS"] and code.instructions["HMMA"] and not code.spills


WGMMA_PROBE = """
#include "common/wgmma.cuh"
using namespace forge;
template <class T, int N>
__device__ void multiply(float* out, uint64_t a, uint64_t b, const uint32_t* words) {
    float d[N / 2];
    const uint32_t fragment[4] = {words[0], words[1], words[2], words[3]};
    wgmma_fence();
    wgmma_ss<T, N, 0, 0>(d, a, b, 0);
    wgmma_ss<T, N, 1, 1>(d, a, b, 1);
    wgmma_rs<T, N, 0>(d, fragment, b, 1);
    wgmma_rs<T, N, 1>(d, fragment, b, 1);
    wgmma_commit();
    wgmma_wait<0>();
    wgmma_hold(d);
    for (int i = 0; i < N / 2; ++i) out[128 * i + threadIdx.x] = d[i];
}
extern "C" __global__ void probe(float* out, uint64_t a, uint64_t b, const uint32_t* words) {
    multiply<__half, COLUMNS>(out, a, b, words);
    multiply<__nv_bfloat16, COLUMNS>(out, a, b, words);
}
"""


@pytest.mark.parametrize("columns", [*range(8, 97, 8), *range(112, 257, 16)])
def test_wgmma_wrappers_assemble(columns: int, tmp_path: Path) -> None:
    source = tmp_path / "probe.cu"
    source.write_text(WGMMA_PROBE)
    kernels = Path(trtforge.kernels.__file__).parent
    binary = compile_cuda(source, "probe", "sm_90a", {"COLUMNS": str(columns)}, [kernels])
    text = sass(binary)
    assert text.count(f"HGMMA.64x{columns}x16.F32") >= 8
    assert not binary.resources.spill_stores and not binary.resources.warnings


# ---- fusion ------------------------------------------------------------------------------------------------

GRAPH_ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "none": lambda x: x,
    "relu": F.relu,
    "gelu_erf": lambda x: F.gelu(x, approximate="none"),
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
}


def fused(write: Callable[..., Any]) -> Any:
    with Network("linear") as network:
        x = network.input("x", "float16", (2, 5, 16))
        w = network.input("w", "float16", (24, 16))
        v = network.input("v", "float16", (24, 16))
        bias = network.input("bias", "float16", (24,))
        network.mark_output(write(x, w, v, bias), "y")
    return fuse(network)


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_linear_layers_become_fused_gemm(activation: str, biased: bool) -> None:
    def layer(x: Any, w: Any, _: Any, bias: Any) -> Any:
        product = F.matmul(x, w, transpose_b=True)
        return GRAPH_ACTIVATIONS[activation](F.add(product, bias) if biased else product)

    replacements = fused(layer).replacements
    if activation == "none" and not biased:
        assert not replacements  # a bare product is not ours to take
        return
    (replacement,) = replacements
    assert replacement.op == "trtforge::fused_gemm"
    assert replacement.attributes["activation"] == activation
    assert replacement.inputs == (("x", "w", "bias") if biased else ("x", "w"))


@pytest.mark.parametrize("gate_first", [False, True])
@pytest.mark.parametrize("activation", GATES)
def test_gated_products_become_gated_gemm(activation: str, gate_first: bool) -> None:
    def layer(x: Any, w: Any, v: Any, _: Any) -> Any:
        gate = GRAPH_ACTIVATIONS[activation](F.matmul(x, w, transpose_b=True))
        up = F.matmul(x, v, transpose_b=True)
        return F.mul(gate, up) if gate_first else F.mul(up, gate)

    (replacement,) = fused(layer).replacements
    assert replacement.op == "trtforge::gated_gemm"
    assert replacement.attributes["activation"] == activation
    assert replacement.inputs == ("x", "w", "v")


# ---- on a GPU ----------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_extreme_sums_stay_finite(op: Op) -> None:
    """Activations of large sums of either sign neither overflow nor turn into NaN, in any kernel."""
    from trtforge.bindings.device import current_device

    case = Case({"M": 64, "N": 64, "K": 64}, {"activation": "gelu_tanh"})
    inputs = op.sample_inputs(case, dict.fromkeys(op.inputs, "bfloat16"), seed=6)
    inputs["x"] = (inputs["x"].astype(np.float32) * 1e6).astype(inputs["x"].dtype)
    target = current_device().architecture
    for kernel in op.kernels:
        if not kernel.serves(target):
            continue
        found = op(*inputs.values(), **case.attributes, kernel=kernel.name, device="cuda")
        assert np.isfinite(np.asarray(found, dtype=np.float32)).all(), kernel.name
