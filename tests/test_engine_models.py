"""Real TensorRT-RTX plans of the shipped language model and of the encoder; on a GPU their outputs and their memory."""

from __future__ import annotations

import importlib.util
import json
import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_engine_plan import edits, mutated

from trtforge.bindings.device import has_gpu
from trtforge.bindings.errors import CompileError, DeviceError, UsageError
from trtforge.graph_api import Dim, Network
from trtforge.graph_api import functional as F
from trtforge.graph_api.engines import commands, library, plan
from trtforge.graph_api.engines.builder import BuildOptions
from trtforge.graph_api.llm import generate

ROOT = Path(__file__).parent.parent
MODEL = ROOT / "examples" / "pydoc_llama" / "model"
ENCODER = ROOT / "examples" / "encoder" / "encoder.py"
RTX, FULL = library.why_absent("tensorrt-rtx"), library.why_absent("tensorrt")
rtx = pytest.mark.skipif(bool(RTX), reason=RTX)
full = pytest.mark.skipif(bool(FULL), reason=FULL)
#: Without a GPU for one that there is not; with one for that one.
OPTIONS = BuildOptions() if has_gpu() else BuildOptions(compute_capability="8.9")


def encoder_module() -> Any:
    spec = importlib.util.spec_from_file_location("trtforge_encoder_example", ENCODER)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_the_encoder_attends_to_what_is_no_padding() -> None:
    module = encoder_module()
    net = module.network()
    exe = net.build()
    inputs = module.example_inputs(net, 2, 12)
    inputs["lengths"] = np.array([5, 12], np.int32)
    before = exe(**inputs)
    inputs["tokens"][0, 5:] = 1  # padding
    after = exe(**inputs)
    assert np.array_equal(before["hidden"][0, :5], after["hidden"][0, :5])
    assert np.array_equal(before["pooled"], after["pooled"])
    assert before["hidden"].shape == (2, 12, 128) and np.isfinite(before["hidden"].astype(np.float32)).all()
    again = module.network()
    assert all(np.array_equal(again.weights[n], w) for n, w in net.weights.items())
    fused = module.network()
    assert {r.op for r in fused.fuse().replacements} == {"trtforge::flash_attention", "trtforge::fused_gemm"}
    shown, expected = fused.build()(**inputs)["hidden"].astype(np.float32), after["hidden"].astype(np.float32)
    rows = np.arange(12) < inputs["lengths"][:, None]
    np.testing.assert_allclose(shown[rows], expected[rows], atol=2e-2, rtol=0)


@rtx
@pytest.mark.parametrize("fuse", [None, "none", "all"])
def test_the_encoder_builds(tmp_path: Path, fuse: str | None) -> None:
    made = commands.build_plan(ENCODER, tmp_path / "encoder.plan", fuse=fuse, options=OPTIONS)
    pieces, kernels = made.partition.pieces, made.partition.singles
    expected = {None: (3, 2), "none": (1, 0), "all": (10, 15)}[fuse]
    assert (len(pieces), len([s for s in kernels if s.kind == "kernel"])) == expected
    found = commands.inspect_plan(made.file.path)
    assert found["network"]["dims"] == {"B": [1, 4, 8], "S": [1, 64, 128]}
    assert all(row["bytes"] > 10_000 for row in found["pieces"])
    assert json.dumps(found)


@rtx
def test_the_language_model_builds(tmp_path: Path) -> None:
    made = commands.build_plan(MODEL, tmp_path / "lm.plan", options=OPTIONS)
    assert len(made.partition.pieces) == 6
    assert [s.node.op for s in made.partition.singles] == ["trtforge::flash_attention"] * 5
    assert sum(len(p.aliases) for p in made.partition.pieces) == 10  # keys and values of five layers, in place
    assert made.language_model == {"dtype": "float16", "batch": 1, "max_length": 512}
    assert made.attachment("tokenizer.json") == (MODEL / "tokenizer.json").read_bytes()
    whole = commands.build_plan(MODEL, tmp_path / "whole.plan", options=OPTIONS, fuse="none", dtype="bfloat16", batch=2)
    assert len(whole.partition.pieces) == 1 and not whole.partition.singles


@rtx
@pytest.mark.skipif(has_gpu(), reason="there is a GPU")
def test_without_a_gpu_a_plan_is_verified_and_not_run(tmp_path: Path) -> None:
    path = commands.build_plan(ENCODER, tmp_path / "encoder.plan", options=OPTIONS).file.path
    with pytest.raises(DeviceError, match="needs an NVIDIA GPU"):
        commands.run_plan(path, {})
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data[:-1])
    with pytest.raises(plan.PlanError, match="cut off"):
        commands.run_plan(path, {})


@rtx
def test_200_altered_real_plans_are_refused(tmp_path: Path) -> None:
    path = commands.build_plan(ENCODER, tmp_path / "encoder.plan", options=OPTIONS).file.path
    data, altered = path.read_bytes(), tmp_path / "altered.plan"
    for seed in range(len(edits()), len(edits()) + 200):
        altered.unlink(missing_ok=True)
        altered.write_bytes(mutated(data, seed))
        with pytest.raises(plan.PlanError, match=str(altered)):
            plan.read_plan(altered)


@rtx
def test_the_library_speaks_through_logging(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Network("wrong") as net:
        x = net.input("x", "float32", (Dim("S", max=4), 4))
        net.mark_output(F.exp(x), "y")
    with caplog.at_level(logging.DEBUG, logger="trtforge.tensorrt"):
        plan.save_plan(net, tmp_path / "p", options=OPTIONS)
    assert {r.name for r in caplog.records} == {"trtforge.tensorrt"}
    # What the library refuses is told in its own words.
    trt = library.open_library("tensorrt-rtx")
    from trtforge.graph_api.engines.builder import build_piece
    from trtforge.graph_api.engines.partition import Piece, make_piece

    piece = make_piece(net, "piece", tuple(net.nodes))
    broken = Piece("piece", piece.nodes, piece.inputs, (), (), {}, ())
    with pytest.raises(CompileError, match=r"wrong/piece \(1 nodes\) was not built: .*output"):
        build_piece(trt, net, broken, {}, OPTIONS)


@rtx
def test_progress_is_shown(tmp_path: Path) -> None:
    from rich.progress import Progress

    seen: list[str] = []

    class Recorded(Progress):
        def add_task(self, description: str, *args: Any, **kwargs: Any) -> Any:
            seen.append(description)
            return super().add_task(description, *args, **kwargs)

    with Recorded(disable=True) as bar:
        commands.build_plan(ENCODER, tmp_path / "p", options=OPTIONS, fuse="none", progress=bar)
        assert seen[0] == "building encoder" and len(seen) > 1
        assert [t.description for t in bar.tasks] == ["building encoder"], "the library's phases are gone when done"


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "none.py").write_text("network = 3\ndef other():\n    return 4\n")
    for wrong, reason in (
        (tmp_path / "absent", "is no model"),
        (tmp_path / "absent.py", "does not exist"),
        (tmp_path / "none.py", "has no function 'network'"),
        (f"{tmp_path}/none.py:other", "returned int"),
    ):
        with pytest.raises(UsageError, match=reason):
            commands.build_plan(wrong, tmp_path / "p")


# --- on a GPU ----------------------------------------------------------------------------------------------------


def check_encoder(path: Path, module: Any) -> Any:
    """The smallest, tuned and largest shapes of the profile against the reference."""
    loaded, net = plan.load_plan(path), module.network()
    reference = net.build()
    for batch, rows in ((1, 1), (4, 64), (8, 128)):
        inputs = module.example_inputs(net, batch, rows)
        for _ in range(3):  # step by step, captured, replayed
            found, expected = loaded(**inputs), reference(**inputs)
            valid = np.arange(rows) < inputs["lengths"][:, None]
            pairs = [(found["hidden"][valid], expected["hidden"][valid]), (found["pooled"], expected["pooled"])]
            for got, wanted in pairs:
                wide = wanted.astype(np.float32)
                assert np.linalg.norm(got.astype(np.float32) - wide) <= 2e-2 * np.linalg.norm(wide)
    return loaded


@pytest.mark.gpu
@rtx
@pytest.mark.parametrize("fuse", [None, "none", "all"])
def test_the_encoder_runs(tmp_path: Path, fuse: str | None) -> None:
    path = commands.build_plan(ENCODER, tmp_path / "encoder.plan", fuse=fuse).file.path
    check_encoder(path, encoder_module())
    assert commands.inspect_plan(path)["pieces"][0]["inspected"]["layers"]


@pytest.mark.gpu
@rtx
@pytest.mark.parametrize("fuse", [None, "none", "all"])
def test_greedy_text_equals_the_cuda_backends(tmp_path: Path, fuse: str | None) -> None:
    path = commands.build_plan(MODEL, tmp_path / "lm.plan", fuse=fuse).file.path
    expected = generate(MODEL, "def read(self, ", max_tokens=60, backend="cuda")
    assert commands.generate_plan(path, "def read(self, ", max_tokens=60).token_ids == expected.token_ids


@pytest.mark.gpu
@rtx
def test_refit_equals_a_fresh_build() -> None:
    module = encoder_module()
    net, other = module.network(), module.network(seed=5)
    for one in (net, other):
        one.fuse(("flash_attention",))
    inputs = module.example_inputs(net, 2, 20)
    exe = net.build(backend="tensorrt-rtx")
    for _ in range(3):
        exe(**inputs)
    exe.refit(other.weights)
    for _ in range(3):
        found, fresh = exe(**inputs), other.build(backend="tensorrt-rtx")(**inputs)
        assert np.array_equal(found["pooled"], fresh["pooled"])


@pytest.mark.gpu
@rtx
def test_10000_runs_leave_memory_flat(tmp_path: Path) -> None:
    import resource

    import cupy

    module = encoder_module()
    path = commands.build_plan(ENCODER, tmp_path / "encoder.plan").file.path
    loaded, net = plan.load_plan(path), module.network()
    calls = [module.example_inputs(net, b, s) for b, s in ((1, 7), (8, 128), (3, 33), (4, 64))]

    def run(count: int) -> tuple[int, int]:
        for i in range(count):
            loaded(**calls[i % len(calls)])
        free, total = cupy.cuda.runtime.memGetInfo()
        return total - free, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    device_before, host_before = run(200)
    device_after, host_after = run(10_000)
    assert device_after - device_before <= 2 << 20
    assert host_after - host_before <= 16 << 10  # KiB


# --- full TensorRT -----------------------------------------------------------------------------------------------


@pytest.mark.tensorrt
@full
@pytest.mark.parametrize("plugins", ["aot", "jit"])
def test_one_engine_with_plugins(tmp_path: Path, plugins: str) -> None:
    options = BuildOptions(plugins=plugins)
    made = commands.build_plan(ENCODER, tmp_path / "e.plan", backend="tensorrt", options=options)
    assert len(made.partition.pieces) == 1 and not made.partition.singles
    assert made.file.header["pieces"][0]["plugins"]
    if has_gpu():
        check_encoder(made.file.path, encoder_module())


@pytest.mark.tensorrt
@pytest.mark.gpu
@full
def test_refit_in_place() -> None:
    module = encoder_module()
    net, other = module.network(), module.network(seed=5)
    for one in (net, other):
        one.fuse()
    inputs = module.example_inputs(net, 2, 20)
    exe = net.build(backend="tensorrt")
    exe(**inputs)
    exe.refit(other.weights)
    found, fresh = exe(**inputs), other.build(backend="tensorrt")(**inputs)
    np.testing.assert_allclose(found["pooled"].astype(np.float32), fresh["pooled"].astype(np.float32), atol=1e-2)


@pytest.mark.tensorrt
@pytest.mark.gpu
@full
def test_greedy_text_of_a_tensorrt_plan(tmp_path: Path) -> None:
    path = commands.build_plan(MODEL, tmp_path / "lm.plan", backend="tensorrt").file.path
    expected = generate(MODEL, "def read(self, ", max_tokens=40, backend="cuda")
    assert commands.generate_plan(path, "def read(self, ", max_tokens=40).token_ids == expected.token_ids


#: A program that knows TensorRT and CuPy, and not this kit.
PLAIN = """
import sys, cupy, numpy, tensorrt
log = tensorrt.Logger(tensorrt.Logger.WARNING)
engine = tensorrt.Runtime(log).deserialize_cuda_engine(open(sys.argv[1], "rb").read())
context, stream = engine.create_execution_context(), cupy.cuda.Stream(non_blocking=True)
given, held = numpy.load(sys.argv[2]), {}
with stream:
    for name in given.files:
        held[name] = cupy.asarray(given[name])
        context.set_input_shape(name, given[name].shape)
    for i in range(engine.num_io_tensors):
        name = engine.get_tensor_name(i)
        if name not in held:
            kind = tensorrt.nptype(engine.get_tensor_dtype(name))
            held[name] = cupy.empty(tuple(context.get_tensor_shape(name)), kind)
        context.set_tensor_address(name, held[name].data.ptr)
    assert context.execute_async_v3(stream.ptr)
    numpy.savez(sys.argv[3], **{n: cupy.asnumpy(a) for n, a in held.items() if n not in given.files})
assert not any(name.startswith("trtforge") for name in sys.modules)
"""


@pytest.mark.tensorrt
@pytest.mark.gpu
@full
def test_an_aot_engine_runs_without_the_kit(tmp_path: Path) -> None:
    import subprocess

    module = encoder_module()
    net = module.network()
    net.fuse()
    made = plan.save_plan(net, tmp_path / "e.plan", "tensorrt", BuildOptions(plugins="aot"))
    (engine,) = commands.export_engines(made.file.path, tmp_path)
    inputs = module.example_inputs(net, 3, 40)
    np.savez(tmp_path / "in.npz", **inputs)
    command = [sys.executable, "-c", PLAIN, str(engine), str(tmp_path / "in.npz"), str(tmp_path / "out.npz")]
    subprocess.run(command, check=True, cwd=tmp_path)
    found = np.load(tmp_path / "out.npz")[net.outputs["pooled"].name]
    np.testing.assert_allclose(found, net.build()(**inputs)["pooled"], atol=2e-2, rtol=0)
