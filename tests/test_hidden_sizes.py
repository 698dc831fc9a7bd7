"""The curve over hidden sizes: equal bytes at every width, and a stored run drawn again."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

from trtforge.bindings.architectures import architecture
from trtforge.harness.measurement import Measurement, Run, write
from trtforge.harness.plots import digest_in
from trtforge.kernels import registry

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "hidden_sizes.py"
registry.load_builtin()


@pytest.fixture(scope="module")
def curve() -> Any:
    spec = importlib.util.spec_from_file_location("hidden_sizes", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_every_width_moves_the_same_bytes_and_has_a_kernel_that_reads_rows_once(curve: Any) -> None:
    target = architecture("sm_90a")
    for name in curve.OPS:
        op = registry.get(name)
        for width in curve.WIDTHS:
            case = curve.case_of(op, width)
            assert abs(curve.cost_of(op, case) / curve.TOTAL - 1) < 5e-3
            choice = op.choose(op.bind_case(case, op.dtype_combinations(case)[0]), target)
            assert choice.kernel.name in ("cuda", "cluster")
            assert not choice.kernel.tactics[choice.tactic].get("OVERFLOW")
    assert (min(curve.WIDTHS), max(curve.WIDTHS)) == (64, 65536)


def test_a_stored_run_is_drawn_and_told_beside_the_copy(
    curve: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib", reason="plots need Matplotlib")
    rows = []
    for width, rate in ((64, 2000.0), (1024, 4000.0), (65536, 3000.0)):
        common = {"op": "trtforge::quantize_token", "case": f"N{width}", "dtype": "bfloat16", "microseconds": 16.0}
        rows.append(Measurement(**common, contender="ours: cuda [x]", ours=True, kernel="cuda", rate=rate))
        rows.append(Measurement(**common, contender=curve.DEVICE_COPY, rate=4000.0))
    run = Run({"gpu": "a GPU", "date": "2026-11-23"}, {"copy GB/s": 4200.0}, rows)
    write(run, tmp_path / "run.json")
    curve.main(["--from", str(tmp_path / "run.json"), "--plot", str(tmp_path / "curve.svg")])
    told = capsys.readouterr().out
    assert "50.0% of a copy" in told and "100.0% of a copy" in told and "75.0% of a copy" in told
    assert digest_in((tmp_path / "curve.svg").read_text()) == curve.figure(run).digest
