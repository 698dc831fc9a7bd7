"""Rung 2: eager calls on arrays of every framework, streams, graph capture, and the errors of a device call."""

from __future__ import annotations

import numpy as np
import pytest

import trtforge
from trtforge.bindings import arrays, device
from trtforge.bindings.errors import ContractError
from trtforge.harness.compare import compare, tolerance_of
from trtforge.kernels import registry

pytestmark = pytest.mark.gpu


def _problem(dtype: str = "float16", rows: int = 33, columns: int = 1024) -> dict[str, np.ndarray]:
    op = registry.get("rms_norm")
    case = trtforge.Case({"M": rows, "N": columns})
    return op.sample_inputs(case, {"x": dtype, "weight": dtype}, seed=3)


def _agrees(op_name: str, output: np.ndarray, reference: np.ndarray, dtype: str) -> None:
    found = compare(output, reference, tolerance_of(registry.get(op_name), dtype))
    assert found.passed, found


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_numpy_in_numpy_out(dtype: str) -> None:
    op = registry.get("rms_norm")
    inputs = _problem(dtype)
    y = op(inputs["x"], inputs["weight"], device="cuda")
    assert isinstance(y, np.ndarray) and y.dtype == inputs["x"].dtype
    _agrees("rms_norm", y, op.run_reference(inputs)["y"], dtype)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_cupy_in_cupy_out_on_a_stream(dtype: str) -> None:
    cupy = pytest.importorskip("cupy")
    op = registry.get("rms_norm")
    inputs = _problem(dtype)
    x, weight = cupy.asarray(inputs["x"]), cupy.asarray(inputs["weight"])
    device.synchronize()
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        y = op(x, weight)
    stream.synchronize()
    assert isinstance(y, cupy.ndarray)
    _agrees("rms_norm", y.get(), op.run_reference(inputs)["y"], dtype)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_torch_in_torch_out(dtype: str) -> None:
    torch = pytest.importorskip("torch")
    op = registry.get("rms_norm")
    inputs = _problem(dtype)
    kind = getattr(torch, dtype)
    x = torch.tensor(inputs["x"].astype(np.float32), device="cuda").to(kind)
    weight = torch.tensor(inputs["weight"].astype(np.float32), device="cuda").to(kind)
    y = op(x, weight)
    assert isinstance(y, torch.Tensor) and y.dtype == kind and y.shape == x.shape
    _agrees("rms_norm", y.float().cpu().numpy().astype(inputs["x"].dtype), op.run_reference(inputs)["y"], dtype)


def test_jax_in_jax_out() -> None:
    jax = pytest.importorskip("jax")
    if jax.default_backend() != "gpu":
        pytest.skip(f"JAX runs on {jax.default_backend()} here")
    op = registry.get("rms_norm")
    inputs = _problem("bfloat16")
    x, weight = jax.numpy.asarray(inputs["x"]), jax.numpy.asarray(inputs["weight"])
    jax.block_until_ready((x, weight))
    y = op(x, weight)
    device.synchronize()
    assert isinstance(y, jax.Array)
    _agrees("rms_norm", np.asarray(y), op.run_reference(inputs)["y"], "bfloat16")


def test_fp8_array_to_numpy_and_torch() -> None:
    host = np.arange(-8, 8, dtype=np.float32).astype(arrays.dtype("float8_e4m3fn").numpy)
    on_device = arrays.to_device(host)
    assert on_device.dtype == "float8_e4m3fn"
    assert np.array_equal(on_device.to_numpy().view(np.uint8), host.view(np.uint8))
    torch = pytest.importorskip("torch")
    tensor = on_device.to_torch()
    assert tensor.dtype == torch.float8_e4m3fn
    assert np.array_equal(tensor.float().cpu().numpy(), host.astype(np.float32))


def test_out_argument_and_its_errors() -> None:
    cupy = pytest.importorskip("cupy")
    op = registry.get("rms_norm")
    inputs = _problem()
    x, weight = cupy.asarray(inputs["x"]), cupy.asarray(inputs["weight"])
    out = cupy.empty_like(x)
    assert op(x, weight, out=out) is out
    _agrees("rms_norm", out.get(), op.run_reference(inputs)["y"], "float16")
    with pytest.raises(ContractError, match="output 'y' must be a contiguous float16 array"):
        op(x, weight, out=cupy.empty((3, 3), np.float16))


def test_not_contiguous_and_misaligned_inputs() -> None:
    cupy = pytest.importorskip("cupy")
    op = registry.get("rms_norm")
    inputs = _problem()
    x, weight = cupy.asarray(inputs["x"]), cupy.asarray(inputs["weight"])
    with pytest.raises(ContractError, match="not contiguous"):
        op(x[:, ::2], weight[::2])
    shifted = cupy.empty(x.size + 1, np.float16)[1:].reshape(x.shape)
    shifted[...] = x
    y = op(shifted, weight)  # the heuristic must fall back to the kernel without 16-byte accesses
    _agrees("rms_norm", y.get(), op.run_reference(inputs)["y"], "float16")
    with pytest.raises(ContractError, match="aligned to 16 bytes"):
        op(shifted, weight, kernel="cuda")


def test_inputs_on_different_devices_are_refused() -> None:
    cupy = pytest.importorskip("cupy")
    inputs = _problem()
    with pytest.raises(ContractError, match="one device"):
        registry.get("rms_norm")(cupy.asarray(inputs["x"]), inputs["weight"])


def test_launches_are_captured_in_a_cuda_graph() -> None:
    cupy = pytest.importorskip("cupy")
    op = registry.get("rms_norm")
    first, second = (
        _problem(rows=16),
        op.sample_inputs(trtforge.Case({"M": 16, "N": 1024}), {"x": "float16", "weight": "float16"}, seed=9),
    )
    x, weight = cupy.asarray(first["x"]), cupy.asarray(first["weight"])
    y = cupy.empty_like(x)
    stream = cupy.cuda.Stream(non_blocking=True)
    op(x, weight, out=y)
    device.synchronize()
    with stream:
        stream.begin_capture()
        op(x, weight, out=y)
        graph = stream.end_capture()
        x.set(second["x"], stream=stream)
        weight.set(second["weight"], stream=stream)
        graph.launch(stream)
    stream.synchronize()
    _agrees("rms_norm", y.get(), op.run_reference(second)["y"], "float16")


def test_pinned_kernels_and_tactics_agree() -> None:
    op = registry.get("rms_norm")
    inputs = _problem()
    reference = op.run_reference(inputs)["y"]
    for kernel in op.kernels:
        for tactic in range(len(kernel.tactics)):
            y = op(inputs["x"], inputs["weight"], device="cuda", kernel=kernel.name, tactic=tactic)
            _agrees("rms_norm", y, reference, "float16")
