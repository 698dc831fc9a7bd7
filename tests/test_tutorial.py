"""The tutorial: every step is right, and the page says what the files say."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest
from compiler import needs_compiler
from emulated import TARGET, agrees

from trtforge.harness.measurement import COPY, Measurement, Run
from trtforge.kernels import registry
from trtforge.kernels.compile import compile_kernel
from trtforge.kernels.op import Op

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "examples" / "tutorial"
PAGE = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
STEPS = ("step1", "step2", "step3", "step4", "step5")


@pytest.fixture
def op(monkeypatch: pytest.MonkeyPatch) -> Op:
    registry.load_builtin()
    monkeypatch.setattr(registry, "_ops", dict(registry._ops))
    (declared,) = registry.load(FOLDER / "add_rms_norm_fp8.py")
    return declared


@pytest.fixture
def figures() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tutorial_figures", FOLDER / "figures.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@needs_compiler
@pytest.mark.parametrize("step", STEPS)
def test_every_step_agrees_with_the_reference(op: Op, step: str) -> None:
    for case in [c for c in op.cases if not c.tags]:
        agrees(op, op.kernel_named(step), case, {})


@pytest.mark.parametrize("step", STEPS)
def test_every_step_compiles_without_spills(op: Op, step: str) -> None:
    case = next(c for c in op.cases if c.dims == {"M": 16384, "N": 8192})
    binding = op.bind_case(case, op.dtype_combinations(case)[0])
    resources = compile_kernel(op.kernel_named(step), binding, 0, TARGET).resources
    assert not resources.spill_stores and not resources.spill_loads


def test_code_on_the_page_is_in_the_files() -> None:
    files = [*FOLDER.glob("*.cu"), *(ROOT / "kernels" / "fused_quantize").glob("*.cu*")]
    sources = [path.read_text(encoding="utf-8") for path in files]
    excerpts = re.findall(r"```cuda\n(.*?)```", PAGE, re.S)
    assert len(excerpts) == len(STEPS)
    for excerpt in excerpts:
        assert any(excerpt in source for source in sources), excerpt


def test_the_page_links_every_step_and_no_missing_file() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", PAGE)
    for link in links:
        assert (ROOT / "docs" / link).exists(), link
    for source in FOLDER.glob("step*.cu"):
        assert any(link.endswith(source.name) for link in links), source.name


def test_the_generated_block_is_what_the_results_say(figures: ModuleType) -> None:
    assert figures.fill(PAGE) == PAGE, "run python examples/tutorial/figures.py"


def test_a_run_becomes_a_table(figures: ModuleType) -> None:
    def row(name: str, time: float | None, **more: object) -> Measurement:
        fields = {"microseconds": time, "rate": 1000.0 if time else None, **more}
        return Measurement("tutorial::add_rms_norm_fp8", "M8 N8", "bfloat16", name, **fields)

    ours = [row(f"ours {s}", 100.0 - 10 * i, ours=True, kernel=s, form="direct") for i, s in enumerate(STEPS)]
    run = Run({"gpu": "a GPU"}, {COPY: 4000.0}, [*ours, row("torch.compile", 80.0), row("PyTorch eager", None)])
    text = figures.table(run)
    assert "| step1 | 100.0 | 1,000 | 25% | 1.00× |" in text and "| step5 | 60.0 | 1,000 | 25% | 1.67× |" in text
    assert "| torch.compile | 80.0 | 1,000 | 25% | 1.25× |" in text and "| PyTorch eager | - | - | - | - |" in text


def test_a_missing_results_file_is_said(figures: ModuleType, tmp_path: Path) -> None:
    assert "Not measured yet" in figures.fill(PAGE, tmp_path / "none.json")
