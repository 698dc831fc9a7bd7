"""The documentation holds: generated pages are up to date, links lead somewhere, the README's kernel works."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from trtforge.kernels import registry

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*.md")])
LAYERS = ("bindings", "kernels", "plugins", "graph_api")


def test_generated_pages_are_up_to_date() -> None:
    done = subprocess.run([sys.executable, ROOT / "docs" / "generate.py", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, f"run `make docs`: {done.stdout}{done.stderr}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_to_files(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)\)", page.read_text())
    missing = [t for t in targets if "://" not in t and not (page.parent / t).exists()]
    assert missing == []


def test_the_readmes_kernel_works(tmp_path: Path) -> None:
    code = re.search(r"## A kernel\n+```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert code is not None
    text = code[1].replace("examples::squared_relu", "readme::squared_relu")
    file = tmp_path / "squared_relu.py"
    file.write_text(text)
    before = {op.name: op for op in registry.ops()}
    try:
        (op,) = registry.load(file)
        x = np.array([[-1.0, 2.0, 3.0]], np.float16)
        assert np.array_equal(op(x, device="cpu"), [[0.0, 4.0, 9.0]])
    finally:
        registry._ops.clear()
        registry._ops.update(before)


def _imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "trtforge":
            found |= {f"trtforge.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


@pytest.mark.parametrize("layer", [*LAYERS, "harness"])
def test_imports_run_one_way(layer: str) -> None:
    below = {"harness": ("bindings", "kernels", "plugins")}.get(
        layer, LAYERS[: LAYERS.index(layer)] if layer in LAYERS else ()
    )
    allowed = {f"trtforge.{name}" for name in (*below, layer)}
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in (ROOT / layer).rglob("*.py")
        if "templates" not in path.parts  # what `trtforge new` writes is a user's code
        for name in _imports(path)
        if name.startswith("trtforge") and not any(name == a or name.startswith(f"{a}.") for a in allowed)
    ]
    assert wrong == []
