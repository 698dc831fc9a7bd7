"""The residual of the fused product, and products of few rows by clusters that share K: without a GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from emulated import agrees

from trtforge.bindings.architectures import architecture
from trtforge.bindings.disassemble import sass
from trtforge.bindings.errors import ContractError, ForgeError
from trtforge.graph_api import Network
from trtforge.graph_api import functional as F
from trtforge.graph_api.fusion import FusionReport
from trtforge.harness.emulate.toolchain import find_compiler
from trtforge.harness.inspection import inspect
from trtforge.kernels import Case, Op, registry
from trtforge.kernels.compile import compile_kernel
from trtforge.kernels.fused_gemm.op import ACTIVATIONS, fused_gemm, gated_gemm

SM90 = architecture("sm_90a")
BOTH = ("bias", "residual")


def bind(op: Op, m: int, n: int, k: int, optional: tuple[str, ...] = (), dtype: str = "bfloat16") -> Any:
    case = Case({"M": m, "N": n, "K": k}, {}, optional)
    return op.bind_case(case, dict.fromkeys(op.inputs, dtype))


@pytest.fixture
def compiler() -> None:
    try:
        find_compiler()
    except ForgeError as error:
        pytest.skip(str(error))


# ---- the residual ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_residual_is_added_after_the_activation(activation: str) -> None:
    rng = np.random.default_rng(2)
    inputs = {name: rng.standard_normal(s) for name, s in {"x": (2, 3, 9), "w": (5, 9), "bias": (5,)}.items()}
    inputs = {name: value.astype(np.float16) for name, value in inputs.items()}
    residual = rng.standard_normal((2, 3, 5)).astype(np.float16)
    without = fused_gemm.run_reference(inputs, {"activation": activation}, rounded=False)["y"]
    found = fused_gemm.run_reference({**inputs, "residual": residual}, {"activation": activation}, rounded=False)["y"]
    np.testing.assert_allclose(found, without + residual, rtol=1e-12)


def test_a_residual_of_another_shape_is_refused() -> None:
    shapes = {"x": (2, 3, 8), "w": (5, 8), "residual": (5,)}
    with pytest.raises(ContractError, match="'residual'"):
        fused_gemm.bind(shapes, dict.fromkeys(shapes, "float16"), {})


def test_its_bytes_count() -> None:
    plain, with_residual = (fused_gemm.cost_of(bind(fused_gemm, 3, 5, 7, o)) for o in ((), ("residual",)))
    assert with_residual.bytes == (plain.bytes or 0) + 2 * 3 * 5
    assert with_residual.flops == plain.flops


@pytest.mark.parametrize("tactic", [0, 2, 4, 6])
def test_the_residual_comes_by_the_copy_engine_and_costs_nothing_where_it_is_absent(tactic: int) -> None:
    kernel = fused_gemm.kernel_named("sm90")
    plain, with_residual = (
        compile_kernel(kernel, bind(fused_gemm, 4096, 4096, 4096, o), tactic, SM90) for o in (("bias",), BOTH)
    )
    assert not with_residual.resources.spill_stores and not with_residual.resources.warnings
    more, without = sass(with_residual), sass(plain)
    assert "LDSM" in more and "LDSM" not in without
    assert without.count("UTMALDG") == 2 < more.count("UTMALDG")
    launches = [kernel.launch(bind(fused_gemm, 64, 64, 64, o), tactic, SM90) for o in ((), ("residual",))]
    assert [m.tensor for launch in launches for m in launch.tensor_maps] == ["x", "w", "y", "x", "w", "residual", "y"]


@pytest.mark.parametrize(
    ("kernel", "sizes", "tactic"),
    [
        ("sm90", (130, 136, 72), {"BLOCK_N": 256}),  # the second box, of eight columns
        ("sm90", (133, 328, 72), {"BLOCK_M": 64, "BLOCK_N": 64}),  # several tiles of one box for a block
        ("sm90", (133, 328, 72), {"BLOCK_M": 64, "BLOCK_N": 256, "PINGPONG": 1}),  # boxes 2 and 3, taking turns
        ("mma", (17, 40, 72), {}),
        ("mma_elementwise", (17, 41, 13), {}),
    ],
)
def test_residuals_on_the_emulated_gpu(
    kernel: str, sizes: tuple[int, int, int], tactic: dict[str, int], compiler: None
) -> None:
    chosen = fused_gemm.kernel_named(kernel)
    case = Case(dict(zip("MNK", sizes)), {"activation": "relu"}, BOTH)
    agrees(fused_gemm, chosen, case, {"x": "bfloat16"}, fused_gemm.tactic_index(chosen, tactic))


# ---- split K -----------------------------------------------------------------------------------------------

SPLIT = [(op, i) for op in (fused_gemm, gated_gemm) for i in range(len(op.kernel_named("sm90_split").tactics))]


def _label(value: Any) -> str:
    return value.name.split("::")[1] if isinstance(value, Op) else str(value)


@pytest.mark.parametrize(("op", "tactic"), SPLIT, ids=_label)
def test_split_machine_code(op: Op, tactic: int) -> None:
    """wgmma on tiles that the copy engine brings; sums read from the cluster; nothing in local memory."""
    (code,) = inspect(f"{op.name}/sm90_split", arch="sm_90a", tactic=tactic)
    mix = code.instructions
    assert mix["HGMMA"] == 4
    assert mix["UTMALDG"] == (2 if op is fused_gemm else 3)
    assert not code.spills and not code.stack and not mix.get("LDL") and not mix.get("STL")
    assert not code.warnings, code.warnings


@pytest.mark.parametrize(("op", "tactic"), SPLIT, ids=_label)
@pytest.mark.parametrize("sizes", [(1, 8, 8), (16, 4096, 4096), (257, 520, 1032)])
def test_split_launches_are_whole_clusters(op: Op, tactic: int, sizes: tuple[int, int, int]) -> None:
    kernel = op.kernel_named("sm90_split")
    t = kernel.tactics[tactic]
    launch = kernel.launch(bind(op, *sizes), tactic, SM90)
    tiles = -(-sizes[0] // t["TILE_M"]) * -(-sizes[1] // t["TILE_N"])
    assert launch.grid == tiles * t["SPLIT_K"]
    assert launch.cluster == (t["SPLIT_K"], 1, 1)
    assert int(launch.shared) <= SM90.smem_per_block


def test_sixteen_rows_keep_every_multiprocessor_busy_with_enough_in_flight() -> None:
    """16 x 4096 x 4096 on an H200: 128 of 132 multiprocessors, at least 64 KB of weights on their way to each."""
    kernel = fused_gemm.kernel_named("sm90_split")
    launch = kernel.launch(bind(fused_gemm, 16, 4096, 4096), 0, SM90)
    t = kernel.tactics[0]
    assert launch.grid == 128
    assert t["STAGES"] * t["TILE_N"] * 128 >= 64 << 10


@pytest.mark.parametrize(
    ("op", "sizes", "tactic", "optional"),
    [
        (fused_gemm, (5, 8, 8), {"SPLIT_K": 2}, ()),  # blocks without a part of K
        (fused_gemm, (19, 72, 328), {"SPLIT_K": 8}, BOTH),
        (fused_gemm, (70, 136, 200), {"TILE_M": 64}, ("residual",)),
        (fused_gemm, (130, 136, 264), {"TILE_M": 256}, BOTH),
        (gated_gemm, (19, 72, 200), {"TILE_M": 16}, ("bias_up",)),
        (gated_gemm, (70, 72, 136), {"TILE_M": 256}, ("bias_gate", "bias_up")),
    ],
    ids=_label,
)
def test_split_products_on_the_emulated_gpu(
    op: Op, sizes: tuple[int, int, int], tactic: dict[str, int], optional: tuple[str, ...], compiler: None
) -> None:
    kernel = op.kernel_named("sm90_split")
    case = Case(dict(zip("MNK", sizes)), {"activation": "silu"}, optional)
    agrees(op, kernel, case, {"x": "float16"}, op.tactic_index(kernel, tactic))


def test_split_products_are_clean_under_the_address_sanitizer(compiler: None) -> None:
    case = Case({"M": 9, "N": 72, "K": 200}, {"activation": "relu"}, BOTH)
    agrees(fused_gemm, fused_gemm.kernel_named("sm90_split"), case, {"x": "bfloat16"}, sanitize="address")


# ---- fusion ------------------------------------------------------------------------------------------------

GRAPH_ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "none": lambda x: x,
    "relu": F.relu,
    "gelu_erf": lambda x: F.gelu(x, approximate="none"),
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
}


def fused(write: Callable[..., Any]) -> tuple[Network, FusionReport]:
    with Network("linear") as network:
        x = network.input("x", "float16", (2, 5, 16))
        w = network.input("w", "float16", (24, 16))
        bias = network.input("bias", "float16", (24,))
        residual = network.input("residual", "float16", (2, 5, 24))
        network.mark_output(write(x, w, bias, residual), "y")
    rng = np.random.default_rng(5)
    given = {"x": (2, 5, 16), "w": (24, 16), "bias": (24,), "residual": (2, 5, 24)}
    inputs = {name: (rng.standard_normal(shape) / 2).astype(np.float16) for name, shape in given.items()}
    before = network.build()(**inputs)
    report = network.fuse()
    after = network.build()(**inputs)
    np.testing.assert_allclose(after["y"].astype(np.float32), before["y"].astype(np.float32), rtol=5e-3, atol=5e-3)
    return network, report


@pytest.mark.parametrize("residual_first", [False, True])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_residual_adds_become_part_of_the_product(activation: str, biased: bool, residual_first: bool) -> None:
    def layer(x: Any, w: Any, bias: Any, residual: Any) -> Any:
        product = F.matmul(x, w, transpose_b=True)
        y = GRAPH_ACTIVATIONS[activation](F.add(product, bias) if biased else product)
        return F.add(residual, y) if residual_first else F.add(y, residual)

    _, report = fused(layer)
    (replacement,) = report.replacements
    assert replacement.op == "trtforge::fused_gemm"
    assert replacement.attributes["activation"] == activation
    assert replacement.inputs == (("x", "w", "bias", "residual") if biased else ("x", "w", "residual"))


def test_a_product_that_is_also_read_elsewhere_keeps_its_own_node() -> None:
    def layer(x: Any, w: Any, bias: Any, residual: Any) -> Any:
        y = F.add(F.matmul(x, w, transpose_b=True), bias)
        return F.mul(F.add(y, residual), y)

    network, report = fused(layer)
    assert [n.op for n in network.nodes] == ["trtforge::fused_gemm", "add", "mul"]
    assert report.replacements[0].inputs == ("x", "w", "bias")


def test_a_broadcast_residual_is_left_alone() -> None:
    def layer(x: Any, w: Any, _: Any, residual: Any) -> Any:
        return F.add(F.matmul(x, w, transpose_b=True), F.slice(residual, 0, 0, 1))

    _, report = fused(layer)
    assert not report.replacements
    assert registry.get("fused_gemm") is fused_gemm
