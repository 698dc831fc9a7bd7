"""Rung 3: the generated plugins inside TensorRT itself. Needs the full library and a GPU; skipped with the reason."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trtforge.bindings import device
from trtforge.bindings.dtypes import dtype
from trtforge.harness.compare import compare, tolerance_of
from trtforge.kernels import registry
from trtforge.plugins import nvidia
from trtforge.plugins.generate import complete_attributes, register
from trtforge.plugins.schema import plugin_name, to_tensorrt

REASON = nvidia.why_no_engine_layer() or device.why_no_gpu()
pytestmark = [
    pytest.mark.tensorrt,
    pytest.mark.skipif(bool(REASON), reason=f"needs the full TensorRT library and a GPU: {REASON}"),
]

Shapes = Mapping[str, Sequence[int]]
Range = tuple[Shapes, Shapes, Shapes]

CASES: dict[str, tuple[dict[str, Any], Range]] = {
    "rms_norm": (
        {"eps": 1e-5},
        tuple({"x": (m, 1024), "weight": (1024,)} for m in (1, 8, 64)),  # type: ignore[dict-item]
    ),
    "fused_gemm": (
        {"activation": "gelu_tanh"},
        tuple({"x": (m, 256), "w": (512, 256), "bias": (512,)} for m in (1, 32, 200)),  # type: ignore[dict-item]
    ),
    "flash_attention": (
        {"causal": True},
        tuple({"q": (2, 8, s, 64), "k": (2, 2, s, 64), "v": (2, 2, s, 64)} for s in (1, 64, 300)),  # type: ignore[dict-item]
    ),
}


def build(name: str, aot: bool) -> bytes:
    """A serialized engine that holds one plugin."""
    op = registry.get(name)
    attributes, profile_shapes = CASES[name]
    smallest, optimal, largest = profile_shapes
    layer = nvidia.engine_layer()
    trt = layer.trt
    register(op, layer=layer)
    logger = trt.Logger(trt.Logger.WARNING)
    builder = trt.Builder(logger)
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if flag is None else 1 << int(flag))
    profile = builder.create_optimization_profile()
    tensors, axes = [], {}
    for tensor, shape in optimal.items():
        ends = (smallest[tensor], shape, largest[tensor])
        axes[tensor] = [low if low == high else -1 for low, high in zip(ends[0], ends[2])]
        tensors.append(network.add_input(tensor, to_tensorrt(layer, "float16"), axes[tensor]))
        if -1 in axes[tensor]:
            profile.set_shape(tensor, *map(tuple, ends))
    fields = complete_attributes(op, attributes, axes, dict.fromkeys(axes, "float16"), layer=layer)
    namespace, short = plugin_name(op, tuple(optimal)).split("::")
    call = getattr(getattr(layer.plugin.op, namespace), short)
    plugin = network.add_plugin(call(*tensors, **fields), aot=aot)
    for index, output in enumerate(op.outputs):
        plugin.get_output(index).name = output
        network.mark_output(plugin.get_output(index))
    config = builder.create_builder_config()
    config.add_optimization_profile(profile)
    made = builder.build_serialized_network(network, config)
    assert made is not None
    return bytes(made)


#: Loads and runs an engine; imports nothing of the kit.
RUNNER = """
import sys
import cupy, numpy as np, tensorrt as trt
engine_path, inputs_path, outputs_path = sys.argv[1:]
assert not any(name.startswith("trtforge") for name in sys.modules)
runtime = trt.Runtime(trt.Logger(trt.Logger.WARNING))
engine = runtime.deserialize_cuda_engine(open(engine_path, "rb").read())
assert engine is not None
context = engine.create_execution_context()
stream = cupy.cuda.Stream(non_blocking=True)
held, outputs = [], {}
given = np.load(inputs_path)
for name in given.files:
    array = cupy.asarray(given[name])
    held.append(array)
    assert context.set_input_shape(name, array.shape)
    context.set_tensor_address(name, array.data.ptr)
for i in range(engine.num_io_tensors):
    name = engine.get_tensor_name(i)
    if engine.get_tensor_mode(name) == trt.TensorIOMode.OUTPUT:
        outputs[name] = cupy.full(tuple(context.get_tensor_shape(name)), 0x7E7E, np.uint16).view(np.float16)
        context.set_tensor_address(name, outputs[name].data.ptr)
assert context.execute_async_v3(stream.ptr)
stream.synchronize()
np.savez(outputs_path, **{name: array.get() for name, array in outputs.items()})
"""


def run_and_compare(name: str, shapes: Shapes, output: np.ndarray, inputs: dict[str, np.ndarray]) -> None:
    op = registry.get(name)
    (reference,) = op.run_reference(inputs, CASES[name][0]).values()
    found = compare(output, reference, tolerance_of(op, "float16"))
    assert found.passed, f"{name} {shapes}: {found.reason} (error {found.error})"


def random_inputs(shapes: Shapes) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    scale = {"w": 1 / 16}
    return {n: (rng.standard_normal(s) * scale.get(n, 1.0)).astype(dtype("float16").numpy) for n, s in shapes.items()}


@pytest.mark.parametrize("name", CASES)
def test_an_aot_engine_runs_in_a_process_without_the_kit(name: str, tmp_path: Path) -> None:
    engine = tmp_path / "engine"
    engine.write_bytes(build(name, aot=True))
    for shapes in CASES[name][1]:
        inputs = random_inputs(shapes)
        np.savez(tmp_path / "inputs.npz", **inputs)  # type: ignore[arg-type]
        command = [sys.executable, "-c", RUNNER, str(engine), str(tmp_path / "inputs.npz"), str(tmp_path / "out.npz")]
        subprocess.run(command, check=True, timeout=300)
        with np.load(tmp_path / "out.npz") as outputs:
            run_and_compare(name, shapes, outputs[outputs.files[0]], inputs)


@pytest.mark.parametrize("name", CASES)
def test_a_jit_engine_runs_here(name: str) -> None:
    import cupy

    trt = nvidia.engine_layer().trt
    runtime = trt.Runtime(trt.Logger(trt.Logger.WARNING))
    engine = runtime.deserialize_cuda_engine(build(name, aot=False))
    context = engine.create_execution_context()
    (output_name,) = registry.get(name).outputs
    for shapes in CASES[name][1]:
        inputs = random_inputs(shapes)
        held = {n: cupy.asarray(a) for n, a in inputs.items()}
        for tensor, array in held.items():
            assert context.set_input_shape(tensor, array.shape)
            context.set_tensor_address(tensor, array.data.ptr)
        output = cupy.full(tuple(context.get_tensor_shape(output_name)), 0x7E7E, np.uint16).view(np.float16)
        context.set_tensor_address(output_name, output.data.ptr)
        stream = cupy.cuda.Stream(non_blocking=True)
        assert context.execute_async_v3(stream.ptr)
        stream.synchronize()
        run_and_compare(name, shapes, output.get(), inputs)


def test_the_autotuner_offers_tma_kernels_to_jit_plugins_only() -> None:
    """What the host assumes about NVIDIA's layer holds in the engine's copy of it."""
    layer = nvidia.engine_layer()
    from trtforge.plugins import generate

    asked: list[bool] = []
    true = generate._tactics_for

    def record(*arguments: Any) -> Any:
        asked.append(arguments[4])
        return true(*arguments)

    generate._tactics_for = record
    try:
        for aot in (True, False):
            build("rms_norm", aot=aot)
    finally:
        generate._tactics_for = true
    assert True in asked and False in asked and asked.index(True) < asked.index(False), str(layer)
