"""Plans of quantized networks: each recipe built, saved and loaded, against the reference backend.

With a stand-in for TensorRT-RTX on any machine, with the real one where it is installed, and run on a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trt_double
from test_graph_cuda import compare
from test_quantization_pass import block, data

from trtforge.bindings.device import has_gpu
from trtforge.graph_api import Network
from trtforge.graph_api.engines import library, plan
from trtforge.graph_api.engines.builder import BuildOptions
from trtforge.graph_api.quantization import RECIPES, quantize_network

ABSENT = library.why_absent("tensorrt-rtx")
OPTIONS = BuildOptions() if has_gpu() else BuildOptions(compute_capability="8.9")
#: Codes of activations differ by a step where engines round elsewhere than NumPy does.
TOLERANCE = 3e-2


@pytest.fixture
def doubles(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    yield trt_double.install(monkeypatch)
    trt_double.remove()


def quantized(recipe: str, dtype: str = "float16") -> Network:
    net = block(dtype)
    quantize_network(net, recipe, data(dtype=dtype))
    net.fuse()
    return net


@pytest.mark.parametrize("recipe", RECIPES)
def test_each_recipe_becomes_a_plan_that_computes_what_the_network_does(
    doubles: Any, tmp_path: Path, recipe: str
) -> None:
    net = quantized(recipe)
    registered = [node.op for node in net.nodes if "::" in node.op]
    made = plan.save_plan(net, tmp_path / "block.plan", options=OPTIONS)
    loaded, reference = plan.load_plan(made.file.path), net.build("reference")
    for sample in data(2, seed=9):
        compare(reference(**sample), loaded(**sample), TOLERANCE)
    assert registered, "fusion left no registered op to run"


@pytest.mark.skipif(bool(ABSENT), reason=ABSENT)
@pytest.mark.parametrize("recipe", RECIPES)
def test_each_recipe_builds_with_tensorrt_rtx(tmp_path: Path, recipe: str) -> None:
    made = plan.save_plan(quantized(recipe), tmp_path / "block.plan", options=OPTIONS)
    assert made.partition.pieces or made.partition.singles
    assert made.file.path.stat().st_size > 1000


@pytest.mark.gpu
@pytest.mark.skipif(bool(ABSENT), reason=ABSENT)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_each_recipe_runs_on_a_gpu(recipe: str, dtype: str) -> None:
    net = quantized(recipe, dtype)
    tested, cuda, reference = net.build("tensorrt-rtx"), net.build("cuda"), net.build("reference")
    for sample in data(2, dtype=dtype, seed=9):
        wanted = reference(**sample)
        compare(wanted, tested(**sample), TOLERANCE if dtype == "float16" else 8e-2)
        compare(wanted, cuda(**sample), TOLERANCE if dtype == "float16" else 8e-2)
        assert all(np.isfinite(np.asarray(v, np.float32)).all() for v in wanted.values())
