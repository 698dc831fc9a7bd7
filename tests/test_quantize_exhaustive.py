"""Every 16-bit pattern through every kernel that quantizes: bit for bit the reference's codes.

On a GPU all kernels, tactics, target formats and both languages; on a CPU one CUDA kernel in emulation (Triton's are
interpreted on all patterns in test_quantize.py).
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from compiler import needs_compiler

from trtforge.bindings import device
from trtforge.bindings.architectures import Architecture, architecture
from trtforge.harness import on_device
from trtforge.harness.emulate.emulator import run as emulated
from trtforge.kernels import registry
from trtforge.kernels.compile import compile_kernel
from trtforge.kernels.op import Op
from trtforge.kernels.quantize import op as family

CODES = ("int8", "float8_e4m3fn", "float8_e5m2")
PATTERNS = np.arange(1 << 16, dtype=np.uint16)
KINDS = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
#: Plain, inexact, powers of two, near both ends of the exponents' range, and a subnormal one.
SCALES = np.array([1.0, 0.037, 3.0, 2.0**-14, 1e-38, 2.5e30, 1e-42, 448.0], np.float32)


def static_inputs(granularity: str, kind: str, columns: int = 4096) -> Iterator[dict[str, np.ndarray]]:
    """All patterns, once for every scale, as rows of ``columns``."""
    values = PATTERNS.view(KINDS[kind])
    if granularity == "tensor":
        for scale in SCALES:
            yield {"x": values.reshape(-1, columns), "scale": np.array([scale])}
        return
    x = np.tile(values, len(SCALES)).reshape(-1, columns)
    rows = x.shape[0]
    shape = {
        "token": (rows,),
        "block": (rows, -(-columns // 128)),
        "tile": (-(-rows // 128), -(-columns // 128)),
    }[granularity]
    scale = np.resize(np.repeat(SCALES, max(1, int(np.prod(shape)) // len(SCALES))), shape)
    if granularity == "tile":
        scale = np.resize(SCALES, shape)
    yield {"x": x, "scale": scale}


def dynamic_inputs(granularity: str, kind: str) -> Iterator[dict[str, np.ndarray]]:
    """All patterns in rows of several widths: every value stands beside others that set its scale."""
    values = np.random.default_rng(0).permutation(PATTERNS).view(KINDS[kind])
    for columns in (64, 1024, 4096, 65536) if granularity == "token" else (4096,):
        x = values.reshape(-1, columns)
        if granularity == "tensor":
            yield {"x": x, "partials": family.absmax_partials.run_reference({"x": x})["partials"]}
        else:
            yield {"x": x}


def same(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray], label: str) -> None:
    for name, right in wanted.items():
        a, b = (np.ascontiguousarray(v).reshape(-1).view(np.uint8) for v in (found[name], right))
        different = int((a != b).sum())
        assert not different, f"{label}: {different} bytes of {name} differ"


Job = tuple[str, dict[str, tuple[int, ...]], dict[str, str], str, str, int]


def jobs(op: Op, inputs: dict[str, np.ndarray], to: str, target: Architecture) -> Iterator[Job]:
    """Every kernel and tactic that serves a call."""
    shapes = {name: array.shape for name, array in inputs.items()}
    kinds = {name: array.dtype.name for name, array in inputs.items()}
    binding = op.bind(shapes, kinds, {"to": to})
    for kernel in op.kernels:
        for tactic in range(len(kernel.tactics)):
            if kernel.refusal(binding, tactic, target) is None:
                yield op.name, shapes, kinds, to, kernel.name, tactic


def compiled(job: Job, target: Architecture) -> None:
    """Put one kernel into the cache on disk."""
    name, shapes, kinds, to, kernel, tactic = job
    registry.load_builtin()
    op = registry.get(name)
    compile_kernel(op.kernel_named(kernel), op.bind(shapes, kinds, {"to": to}), tactic, target)


@pytest.fixture(scope="module")
def target() -> Architecture:
    """The GPU; all kernels are compiled for it before, side by side."""
    device.require_gpu("this test")
    found = device.current_device().architecture
    listed = [
        job
        for table, make in ((family.STATIC, static_inputs), (family.DYNAMIC, dynamic_inputs))
        for granularity, op in table.items()
        for kind in KINDS
        for inputs in make(granularity, kind)
        for to in CODES
        for job in jobs(op, inputs, to, found)
    ]
    distinct = list({repr(job): job for job in listed}.values())
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(os.cpu_count(), context) as pool:
        list(pool.map(compiled, distinct, [found] * len(distinct), chunksize=4))
    return found


def hold(
    op: Op, inputs: dict[str, np.ndarray], to: str, target: Architecture, run: Callable[..., dict[str, np.ndarray]]
) -> int:
    """Every kernel and tactic that serves the call; returns how many there were."""
    wanted = op.run_reference(inputs, {"to": to})
    count = 0
    for _, shapes, kinds, _, name, tactic in jobs(op, inputs, to, target):
        kernel = op.kernel_named(name)
        label = f"{kernel} [{kernel.tactic_label(tactic)}] {kinds['x']} to {to} {inputs['x'].shape}"
        same(run(kernel, op.bind(shapes, kinds, {"to": to}), tactic, inputs), wanted, label)
        count += 1
    return count


def test_what_the_gpu_is_given_is_right_by_the_reference() -> None:
    """The same calls, the reference in every kernel's place: shapes, scales and counts are what they should be."""
    h200 = architecture("sm_90a")
    for table, make in ((family.STATIC, static_inputs), (family.DYNAMIC, dynamic_inputs)):
        for granularity, op in table.items():
            for inputs in make(granularity, "bfloat16"):
                answer = op.run_reference(inputs, {"to": "int8"})
                assert hold(op, inputs, "int8", h200, lambda *_, a=answer: a) >= 3, granularity
                assert np.unique(np.ascontiguousarray(inputs["x"]).view(np.uint16)).size == 1 << 16


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("granularity", family.STATIC)
def test_static_scales_on_the_gpu(granularity: str, kind: str, target: Architecture) -> None:
    for to in CODES:
        for inputs in static_inputs(granularity, kind):
            assert hold(family.STATIC[granularity], inputs, to, target, on_device.run) >= 3


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("granularity", family.DYNAMIC)
def test_dynamic_scales_on_the_gpu(granularity: str, kind: str, target: Architecture) -> None:
    for to in CODES:
        for inputs in dynamic_inputs(granularity, kind):
            assert hold(family.DYNAMIC[granularity], inputs, to, target, on_device.run) >= 2


@pytest.mark.gpu
@pytest.mark.parametrize("to", KINDS)
@pytest.mark.parametrize("codes", CODES)
def test_every_code_is_dequantized_on_the_gpu(codes: str, to: str) -> None:
    device.require_gpu("this test")
    target = device.current_device().architecture
    numpy = {"int8": np.int8}.get(codes) or getattr(ml_dtypes, codes)
    y = np.tile(np.arange(256, dtype=np.uint8).view(numpy), (len(SCALES), 1))
    op = family.DEQUANTIZE["token"]
    binding = op.bind({"y": y.shape, "scale": SCALES.shape}, {"y": codes, "scale": "float32"}, {"to": to})
    wanted = op.run_reference({"y": y, "scale": SCALES}, {"to": to})["x"].astype(np.float32)
    for kernel in op.kernels:
        if kernel.refusal(binding, 0, target) is None:
            found = on_device.run(kernel, binding, 0, {"y": y, "scale": SCALES})["x"].astype(np.float32)
            assert np.array_equal(found, wanted, equal_nan=True), str(kernel)


@needs_compiler
@pytest.mark.parametrize(("kind", "to"), [("bfloat16", "float8_e4m3fn"), ("float16", "int8")])
def test_cuda_kernels_emulated_on_every_pattern(kind: str, to: str) -> None:
    target = architecture("sm_90a")
    static: Any = {"x": PATTERNS.view(KINDS[kind]).reshape(16, 4096), "scale": np.resize(SCALES, 16)}
    dynamic = {"x": np.random.default_rng(0).permutation(PATTERNS).view(KINDS[kind]).reshape(64, 1024)}
    for op, inputs in ((family.STATIC["token"], static), (family.DYNAMIC["token"], dynamic)):
        kinds = {name: array.dtype.name for name, array in inputs.items()}
        binding = op.bind({name: array.shape for name, array in inputs.items()}, kinds, {"to": to})
        kernel = op.kernel_named("cuda")
        tactic = next(i for i in range(len(kernel.tactics)) if kernel.refusal(binding, i, target) is None)
        found = emulated(kernel, binding, tactic, inputs, target)
        same(found, op.run_reference(inputs, {"to": to}), f"{kernel} {kind} to {to}")
