"""Tiny ops for the tests of the emulation, and copies of the kit's kernels with a line changed."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from trtforge.bindings.architectures import architecture
from trtforge.harness.compare import compare, tolerance_of
from trtforge.harness.emulate.emulator import run
from trtforge.kernels import Case, Launch, Op, Tensor, cuda
from trtforge.kernels.op import Kernel, Source

TARGET = architecture("sm_90a")
HEAD = 'extern "C" __global__ void tiny(const float* __restrict__ x, int N, float* __restrict__ y)'


def tiny_op(folder: Path, body: str, block: int = 64, shared: int = 0, head: str = HEAD, grid: int = 1) -> Op:
    """An op with one kernel ``tiny(x, N, y)`` of float32 vectors, as long as a block."""
    path = folder / "tiny.cu"
    path.write_text(f"{head} {{\n{body}\n}}\n")
    op = Op(
        "tests::tiny",
        inputs={"x": Tensor("N", dtype="float32")},
        outputs={"y": Tensor("N", dtype="float32")},
        cases=[Case({"N": block})],
    )

    @op.reference
    def _(x: np.ndarray) -> np.ndarray:
        return np.roll(x, -1)

    @op.kernel(cuda(path))
    def _(d: Any) -> Launch:
        return Launch(grid=grid, block=block, shared=shared, scalars=(d.N,))

    return op


def run_tiny(op: Op, sanitize: str | None = None) -> np.ndarray:
    """y of x = 0, 1, 2, …"""
    case = op.cases[0]
    binding = op.bind_case(case, {"x": "float32"})
    x = np.arange(int(case.dims["N"]), dtype=np.float32)
    return run(op.kernels[0], binding, 0, {"x": x}, TARGET, sanitize)["y"]


def changed(kernel: Kernel, folder: Path, file: str, old: str, new: str) -> Kernel:
    """The kernel with ``old`` replaced by ``new`` in a copy of one of its files."""
    source = kernel.source
    for path in source.path.parent.glob("*.cu*"):
        shutil.copy(path, folder / path.name)
    text = (folder / file).read_text()
    assert old in text, f"{file} no longer has {old!r}"
    (folder / file).write_text(text.replace(old, new))
    return replace(kernel, source=Source("cuda", folder / source.path.name, source.entry))


def matching(op: Op, case: Case, dtypes: Mapping[str, str]) -> dict[str, str]:
    """The first dtype combination of the case that has these."""
    return next(dict(d) for d in op.dtype_combinations(case) if all(d.get(n) == kind for n, kind in dtypes.items()))


def agrees(
    op: Op, kernel: Kernel, case: Case, dtypes: Mapping[str, str], tactic: int = 0, sanitize: str | None = None
) -> None:
    """Run one case with these dtypes, as far as they are given, and hold it against the reference."""
    dtypes = matching(op, case, dtypes)
    binding = op.bind_case(case, dict(dtypes))
    refused = kernel.refusal(binding, tactic, TARGET)
    assert not refused, refused
    inputs = op.sample_inputs(case, dict(dtypes), 0)
    outputs = run(kernel, binding, tactic, inputs, TARGET, sanitize)
    for name, expected in op.run_reference(inputs, case.attributes).items():
        found = compare(outputs[name], expected, tolerance_of(op, binding.dtypes[name]))
        assert found.passed, f"{name}: {found.reason} (error {found.error})"
