"""The four ways of launching a kernel: what they launch, what the table says, and a one-op plan."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import trt_double

from trtforge.bindings.architectures import architecture
from trtforge.harness import plugin_check, plugin_paths
from trtforge.harness.measurement import Measurement, Run
from trtforge.kernels import Case, embedded, registry
from trtforge.plugins import stand_ins

SM90 = architecture("sm_90a")
SCRIPT = Path(__file__).parent.parent / "benchmarks" / "plugin_paths.py"
needs_bindings = pytest.mark.skipif(
    importlib.util.find_spec(stand_ins.BINDINGS) is None, reason=f"needs pip install {stand_ins.WHEEL}"
)


def script() -> Any:
    spec = importlib.util.spec_from_file_location("plugin_paths_benchmark", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@needs_bindings
def test_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugin_paths.plan, "make", lambda *a: SimpleNamespace(launch=None))
    monkeypatch.setattr(plugin_check, "launcher", lambda driven, binding: driven)
    monkeypatch.setattr(plugin_check, "current_device", lambda: SimpleNamespace(architecture=SM90))

    def ways(op: str, case: Case) -> list[tuple[str, str]]:
        one = registry.get(op)
        found = plugin_paths.ways(one, case, one.bind_case(case, one.dtype_combinations(case)[0]), SM90)
        assert all(w.launch is None if w.form == "direct" else w.launch for w in found)
        return [(w.form, w.choice.kernel.name) for w in found]

    assert ways("rms_norm", Case({"M": 16, "N": 512})) == [("direct", "cuda"), ("jit", "cuda"), ("aot", "cuda")]
    large = Case({"M": 4096, "N": 4096, "K": 4096})
    assert ways("fused_gemm", large) == [("direct", "sm90"), ("jit", "sm90"), ("aot", "sm90")]
    step = Case({"B": 1, "Hq": 4, "Hkv": 1, "Sq": 1, "Sk": 32768, "D": 128})
    assert ways("flash_attention", step) == [("direct", "decode"), ("jit", "decode"), ("aot", "decode")]
    monkeypatch.setattr(embedded, "obstacle", lambda kernel, *_: "it is the test's" if kernel.name == "sm90" else None)
    assert ways("fused_gemm", large)[2:] in ([("direct", other), ("aot", other)] for other in ("mma", "sm90_split"))


def test_table() -> None:
    def row(form: str, kernel: str, time: float | None, note: str = "") -> Measurement:
        host = None if time is None else 3.25
        return Measurement(
            "a::b", "M1", "float16", form, True, kernel, "T=1", form, "eager", time, host=host, note=note
        )

    rows = [row("direct", "sm90", 10.0), row("jit", "sm90", 11.0), row("aot", "mma", 12.04, "sm90 takes maps")]
    text = plugin_paths.table(Run(rows=[*rows, row("plan", "sm90", None, "absent: no library")]))
    assert "| b | M1 float16 | sm90 [T=1] | 10.0 / 3.2 | 11.0 / 3.2 | – | absent |" in text
    assert "| b | M1 float16 | mma [T=1] | – | – | 12.0 / 3.2 | – |" in text
    assert "- b, M1: sm90 takes maps" in text and text.index("µs") < text.index("|---")


def test_one_op_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    trt_double.install(monkeypatch)
    op, case = registry.get("rms_norm"), Case({"M": 4, "N": 8})
    dtypes = op.dtype_combinations(case)[0]
    problem: Any = SimpleNamespace(
        op=op, case=case, binding=op.bind_case(case, dtypes), inputs=op.sample_inputs(case, dtypes, 0)
    )
    executable, outputs, label = script().planned(problem)
    expected = op.run_reference(problem.inputs)["y"]
    found = outputs[0].view(expected.dtype).reshape(expected.shape)
    np.testing.assert_allclose(found.astype(np.float32), expected.astype(np.float32), atol=1e-2)
    assert label.startswith("trtforge::rms_norm") and executable.captured().graph is not None
    trt_double.remove()


def test_cases_fit_their_ops() -> None:
    for name, cases in script().CASES.items():
        op = registry.get(name)
        for case in cases:
            (dtypes,) = op.dtype_combinations(case)
            assert op.choose(op.bind_case(case, dtypes), SM90).kernel
