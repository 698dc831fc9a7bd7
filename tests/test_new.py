"""The author's path: a new op from every template, edited, checked, inspected, called, used; and checked on save."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import compiler
import numpy as np
import pytest

from trtforge import cli
from trtforge.bindings.architectures import INSPECTED, architecture
from trtforge.bindings.errors import DeclarationError, UnknownNameError, UsageError
from trtforge.harness import new as new_module
from trtforge.harness import watch as watch_module
from trtforge.harness.check import check, summary
from trtforge.harness.inspection import inspect
from trtforge.harness.listing import list_kernels
from trtforge.harness.new import TEMPLATES, new, qualified
from trtforge.harness.watch import follow, paths_to_watch, run_command, watch
from trtforge.kernels import registry

ROOT = Path(__file__).parent.parent
ARCHITECTURES = 5
#: A third of the quarter of an hour that a person may take, for the machine's part of it.
NEW_USER_SECONDS = 300


@pytest.fixture(autouse=True)
def unregister() -> Iterator[None]:
    registry.load_builtin()
    before = dict(registry._ops)
    yield
    registry._ops.clear()
    registry._ops.update(before)


def substitute(path: Path, old: str, replacement: str) -> None:
    text = path.read_text()
    assert text.count(old) == 1, f"{old!r} occurs {text.count(old)} times in {path.name}"
    path.write_text(text.replace(old, replacement))


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal(shape).astype(np.float16)


# ---- every template: new, check, inspect, list, edit, check, call, network --------------------------------------


@dataclass(frozen=True)
class Edit:
    """One edit of the formula in the reference and in the kernel, and what the op computes afterwards."""

    reference: tuple[str, str]
    kernel: tuple[str, str]
    inputs: dict[str, np.ndarray]
    expected: Callable[..., np.ndarray]


def _attention(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    distance = np.abs(np.arange(5)[:, None] + 2 - np.arange(7))
    p = np.exp(q.astype(float) @ np.swapaxes(k, -1, -2).astype(float) / 4 - 0.125 * distance)
    return p @ v.astype(float) / p.sum(-1, keepdims=True)


LOGISTIC = Edit(
    ("return x / (1 + np.exp(-beta * x))", "return 1 / (1 + np.exp(-beta * x))"),
    ("return x / (1.0", "return 1.0 / (1.0"),
    {"x": normal(5, 7)},
    lambda x: 1 / (1 + np.exp(-x.astype(float))),
)
LARGEST = ("return np.sqrt(np.sum(np.square(x), axis=-1))", "return np.max(np.abs(x), axis=-1)")
EDITS = {
    "cuda-elementwise": LOGISTIC,
    "triton-elementwise": LOGISTIC,
    "cuda-reduction": Edit(
        LARGEST,
        (
            "return x * x;\n}\n\n__device__ __forceinline__ float combine(float a, float b) {\n    return a + b;\n}\n\n"
            "__device__ __forceinline__ float finish(float total, int N) {\n    return sqrtf(total);",
            "return fabsf(x);\n}\n\n__device__ __forceinline__ float combine(float a, float b) {\n"
            "    return fmaxf(a, b);\n}\n\n"
            "__device__ __forceinline__ float finish(float total, int N) {\n    return total;",
        ),
        {"x": normal(5, 7)},
        lambda x: np.abs(x).max(-1),
    ),
    "triton-reduction": Edit(
        LARGEST,
        (
            "return x * x\n\n\n@triton.jit\ndef combine(a, b):\n    return a + b\n\n\n"
            "@triton.jit\ndef finish(values, N):\n    return tl.sqrt(tl.sum(values, axis=0))",
            "return tl.abs(x)\n\n\n@triton.jit\ndef combine(a, b):\n    return tl.maximum(a, b)\n\n\n"
            "@triton.jit\ndef finish(values, N):\n    return tl.max(values, axis=0)",
        ),
        {"x": normal(5, 7)},
        lambda x: np.abs(x).max(-1),
    ),
    "cuda-gemm": Edit(
        ("return np.where(value > 0, value, slope * value)", "return np.clip(value, -slope, slope)"),
        ("return value > 0.0f ? value : SLOPE * value;", "return fminf(fmaxf(value, -SLOPE), SLOPE);"),
        {"x": normal(5, 7), "w": normal(3, 7), "bias": normal(3)},
        lambda x, w, bias: np.clip(x.astype(float) @ w.T.astype(float) + bias, -0.01, 0.01),
    ),
    "triton-attention": Edit(
        ("return product * scale", "return product * scale - 0.125 * np.abs(query - key)"),
        ("return product * SCALE", "return product * SCALE - 0.125 * tl.abs(query - key)"),
        {"q": normal(1, 2, 5, 16), "k": normal(1, 2, 7, 16), "v": normal(1, 2, 7, 16)},
        _attention,
    ),
}


def _code_of_readme(folder: Path) -> str:
    found = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.S)
    assert found is not None
    return found[1]


@pytest.mark.parametrize("template", TEMPLATES)
def test_from_a_template_to_an_edited_op_in_a_network(
    template: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    edit = EDITS[template]
    folder = new("mine::idea", template)
    kernel = folder / TEMPLATES[template].kernel.replace("OPNAME", "idea")
    assert sorted(p.name for p in folder.iterdir()) == sorted(["README.md", "op.py", kernel.name])
    load: dict[str, Any] = {"loads": [str(folder)]}
    quick: dict[str, Any] = {"device": "cpu", "architectures": ("sm_90a",), "workers": 2, **load}

    rows = check("mine::idea", **{**quick, "architectures": INSPECTED})
    assert summary(rows)["failed"] == 0, [r.reason for r in rows if r.status == "failed"]
    assert any(r.how == "interpreted" for r in rows) == template.startswith("triton")
    (op,) = registry.load(folder)
    served = {r.case for r in rows if r.status == "passed" and r.how == "interpreted"}
    assert template.startswith("cuda") or served == {c.label for c in op.cases if not c.tags}

    found = inspect("mine::idea", tactic=0, **load)
    assert len(found) == ARCHITECTURES * len(op.kernels)
    assert all(i.spills == 0 and i.blocks_per_sm >= 1 for i in found)
    assert all(entry.aot for entry in list_kernels("mine::idea", **load))

    exec(compile(_code_of_readme(folder), "README.md", "exec"), {})

    general = op.kernels[-1].name
    substitute(kernel, *edit.kernel)
    if template.startswith("triton"):
        assert summary(check("mine::idea", kernel=general, **{**quick, "architectures": ()}))["failed"] > 0
    substitute(folder / "op.py", *edit.reference)
    rows = check("mine::idea", kernel=general, **quick)
    assert summary(rows)["failed"] == 0, [r.reason for r in rows if r.status == "failed"]
    result = registry.load(folder)[0](*edit.inputs.values(), device="cpu")
    np.testing.assert_allclose(result.astype(float), edit.expected(**edit.inputs), rtol=2e-3, atol=2e-3)
    exec(compile(_code_of_readme(folder), "README.md", "exec"), {})


@pytest.mark.skipif(find_spec("tensorrt_bindings") is None, reason="needs NVIDIA's bindings: tensorrt-cu12-bindings")
@pytest.mark.parametrize("template", TEMPLATES)
def test_a_new_op_is_an_aot_plugin(template: str, tmp_path: Path) -> None:
    folder = new("mine::idea", template, into=tmp_path)
    rows = check("mine::idea", as_plugin="aot", device="cpu", architectures=("sm_90a",), workers=2, loads=[str(folder)])
    assert summary(rows)["failed"] == 0, [r.reason for r in rows if r.status == "failed"]
    passed = {r.kernel for r in rows if r.status == "passed"}
    assert passed == {k.name for k in registry.get("mine::idea").kernels}


@pytest.mark.parametrize("template", TEMPLATES)
def test_the_readme_names_commands_that_exist(template: str, tmp_path: Path) -> None:
    folder = new("mine::idea", template, into=tmp_path)
    commands = re.findall(r"^trtforge (.*?)(?:\s+#.*)?$", (folder / "README.md").read_text(), re.M)
    parsed = [cli._parser().parse_args(command.split()) for command in commands]
    assert {p.command for p in parsed} == {"check", "inspect", "list", "report", "bench", "profile"}
    assert all(p.load == ["idea"] for p in parsed)


@pytest.mark.parametrize("template", TEMPLATES)
def test_peers_compute_what_the_reference_does(template: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="peers compute with PyTorch")
    (op,) = registry.load(new("mine::idea", template, into=tmp_path))
    compared = 0
    for case in [c for c in op.cases if not c.tags]:
        dtypes = dict.fromkeys(op.dtype_combinations(case)[0], "float16")
        binding = op.bind_case(case, dtypes)
        inputs = op.sample_inputs(case, dtypes, 0)
        (expected,) = op.run_reference(inputs, case.attributes).values()
        context = binding.context(dev=architecture("sm_90a"))
        for peer in op.peers:
            if peer.refusal(context) is None:
                tensors = [torch.from_numpy(array) for array in inputs.values()]
                found = peer.fn(*tensors, **binding.attributes).double().numpy()
                assert found.shape == expected.shape
                np.testing.assert_allclose(found, expected.astype(float), rtol=5e-3, atol=5e-3)
                compared += 1
    assert compared >= 2


@pytest.mark.skipif(find_spec("tensorrt_bindings") is None, reason="needs NVIDIA's bindings: tensorrt-cu12-bindings")
def test_a_new_user_gets_from_an_idea_to_a_plugin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the commands that `new` and its README print, with one edit of the formula, in a fraction of the time."""
    monkeypatch.chdir(tmp_path)
    started = time.monotonic()

    def typed(line: str) -> tuple[int, str]:
        status = cli.main(line.split()[1:])
        return status, capsys.readouterr().out

    assert typed("trtforge new peak --template cuda-reduction")[0] == 0
    folder, edit = tmp_path / "peak", EDITS["cuda-reduction"]
    commands = re.findall(r"^(trtforge .*?)\s+# ", (folder / "README.md").read_text(), re.M)
    check, emulated, _, inspection, listing, plugin, page = commands[:7]
    assert "--as-plugin aot" in plugin and page.startswith("trtforge report") and emulated.endswith("--device emulate")

    substitute(folder / "op.py", *edit.reference)
    substitute(folder / "peak.cu", *edit.kernel)
    status, told = typed(f"{check} --device cpu --arch sm_90a")
    assert status == 0 and "0 failed" in told
    if compiler.FOUND:
        assert typed(emulated)[0] == 0
    status, told = typed(inspection)
    assert status == 0 and "occupancy" in told and "SHFL" in told
    status, told = typed(listing)
    assert status == 0 and "my::peak" in told
    status, told = typed(f"{plugin} --device cpu --arch sm_90a")
    assert status == 0 and "driven as an AOT plugin" in told and "0 failed" in told
    if find_spec("jinja2") is not None:
        assert typed(f"{page} --device cpu --arch sm_90a")[0] == 0
        assert "my::peak" in (tmp_path / "peak.html").read_text()
    assert time.monotonic() - started < NEW_USER_SECONDS


@pytest.mark.parametrize("name", ["f", "Idea_2", "a" * 32])
def test_the_code_is_clean_under_any_name(name: str, tmp_path: Path) -> None:
    for template in TEMPLATES:
        (tmp_path / template).mkdir()
        folder = new(f"{'n' * len(name)}::{name}", template, into=tmp_path / template)
        (folder / "use.py").write_text(_code_of_readme(folder))
        text = "".join(path.read_text() for path in folder.iterdir())
        assert not re.search("NAMESPACE|OPNAME|FOLDER|KERNEL_FILE|SUMMARY|PROOF|EMULATE|USE\n", text)
    for command in (["check"], ["format", "--check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "--no-cache", "--config", ROOT / "pyproject.toml", tmp_path],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr


# ---- mistakes that an author makes ------------------------------------------------------------------------------

MISTAKES = [
    (
        "    tolerance={",
        "    rules=[(lambda d: d.Q > 0, 'no')],\n    tolerance={",
        r"'Q'; known: M, N \(idea/op\.py:\d+\)",
    ),
    ("    tolerance={", "    rules=[(lambda d: 1 // 0, 'no')],\n    tolerance={", r"op\.py:\d+: ZeroDivisionError"),
    ("    tolerance={", "    rules=[lambda d: d.N > 0],\n    tolerance={", r"rules are pairs \(predicate, message\)"),
    (
        "    tolerance={",
        "    rules=[(lambda d: d.N > 1, 'too small')],\n    tolerance={",
        "'M1 N1' is refused: too small",
    ),
    ("lambda d: d.N % 8 == 0", "lambda d: d.Q % 8 == 0", r"'Q'; known: M, N \(idea/op\.py:\d+\)"),
    ("return launch(d, t, vector=8)", "return launch(d, t.NO, vector=8)", "no tactic parameter 'NO'; known: BLOCK"),
    ("return launch(d, t, vector=8)", "launch(d, t, vector=8)", "launch function returned None; it must return Launch"),
    ('Case({"M": 1, "N": 1})', 'Case({"M": 1})', "the case 'M1' has no size for 'N'"),
    ('Case({"M": 1, "N": 1})', 'Case({"M": 1, "N": 1, "K": 1})', "sizes K, which no input has; dimensions: M, N"),
    ("import numpy as np", "import sys\nsys.exit(0)", "op.py:4 failed to load: SystemExit: 0"),
    ("def formula(x, beta):", "def formula(x, beta)", "SyntaxError: expected ':'"),
    ("op = Op(", "oop = Op(", r"op\.py:\d+ failed to load: NameError"),
    ('"my::idea"', '"trtforge::rms_norm"', "already declared in .*must use another name"),
]


@pytest.mark.parametrize(("old", "put", "message"), MISTAKES)
def test_a_mistake_in_a_declaration_is_told_without_a_traceback(
    old: str,
    put: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    new("idea", "triton-elementwise")
    file = Path("idea", "op.py")
    file.write_text(file.read_text().replace(old, put, 1))
    assert cli.main(["check", "idea", "--load", "idea", "--device", "cpu", "--arch", "sm_90a"]) == 2
    told = capsys.readouterr().err
    assert re.search(message, told) and "Traceback" not in told


def test_a_mistake_in_a_reference_or_a_sample_is_told(tmp_path: Path) -> None:
    (op,) = registry.load(new("idea", "triton-reduction", into=tmp_path))
    x = np.ones((2, 8), np.float16)

    def told(reference: Callable[..., Any]) -> str:
        op.reference(reference)
        with pytest.raises(DeclarationError) as caught:
            op.run_reference({"x": x})
        return str(caught.value)

    def changes(x: np.ndarray) -> None:
        x[...] = 0

    def refuses(x: np.ndarray) -> None:
        raise ValueError("bang")

    assert re.search(r"the reference raised ValueError: bang \(.*test_new\.py:\d+\)", told(refuses))
    assert "read-only" in told(changes) and x.all()
    assert "the reference returned None for 'y'" in told(lambda x: None)
    object.__setattr__(op.inputs["x"], "sample", lambda rng, shape: rng.standard_normal(3))
    with pytest.raises(DeclarationError, match=r"the sample of 'x' has shape \(3,\), not \(1, 1\)"):
        op.sample_inputs(op.cases[0], {"x": "float16"}, 0)


def test_nothing_checked_is_no_success(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    new("idea", "triton-elementwise")
    for options in (["--device", "emulate"], ["--device", "emulate", "--kernel", "triton", "--json"]):
        assert cli.main(["check", "idea", "--load", "idea", *options]) == 2
        captured = capsys.readouterr()
        assert "nothing was checked" in captured.err
    assert "nothing was checked" in json.loads(captured.out)["error"]["message"]
    assert cli.main(["check", "flash_attention", "--kernel", "sm90", "--device", "cpu", "--arch", "sm_80"]) == 2
    assert "has no kernel with a case for sm_80" in capsys.readouterr().err
    for option in ("--workers", "--time-limit"):
        assert cli.main(["check", "idea", "--load", "idea", option, "0"]) == 2
        assert f"{option} is 0" in capsys.readouterr().err


# ---- what new refuses -------------------------------------------------------------------------------------------


def test_names() -> None:
    assert qualified("softplus") == ("my", "softplus")
    assert qualified("lab::softplus") == ("lab", "softplus")


@pytest.mark.parametrize(
    "name", ["", "a b", "::x", "a::", "a::b::c", "1x", "_x", "class", "x-y", "é", "x" * 33, "../x", "if::x"]
)
def test_bad_names_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="accepted: OP or NAMESPACE::OP"):
        new(name, "cuda-gemm", into=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_other_bad_input_is_refused_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"'cuda'; accepted: cuda-elementwise, .*triton-attention"):
        new("idea", "cuda", into=tmp_path)
    with pytest.raises(UsageError, match="is no folder; create it first"):
        new("idea", "cuda-gemm", into=tmp_path / "absent")
    with pytest.raises(UsageError, match=r"rms_norm/op\.py declares already"):
        new("trtforge::rms_norm", "cuda-gemm", into=tmp_path)
    (tmp_path / "taken").mkdir()
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("taken", "link"):
        with pytest.raises(UsageError, match="exists already"):
            new(name, "cuda-gemm", into=tmp_path)
    assert list((tmp_path / "taken").iterdir()) == []


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = Path.write_text

    def fails_at_the_kernel(path: Path, *arguments: Any, **options: Any) -> int:
        if path.suffix == ".cu":
            raise OSError(28, "No space left on device")
        return write(path, *arguments, **options)

    monkeypatch.setattr(Path, "write_text", fails_at_the_kernel)
    with pytest.raises(UsageError, match=r"idea cannot be written: No space left"):
        new("idea", "cuda-gemm", into=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_inside_the_repository_a_family_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = tmp_path / "kernels"
    kernels.mkdir()
    monkeypatch.setattr(new_module, "_BUILTIN", kernels)
    folder = new("idea", "cuda-gemm", into=kernels)
    assert (folder / "__init__.py").read_text() == ""
    assert "--load kernels/idea" in (folder / "README.md").read_text()


# ---- watching ---------------------------------------------------------------------------------------------------

POLL = 0.05


def _in_turn(*steps: Callable[[], int]) -> tuple[Callable[[], int], Callable[[], bool]]:
    """A run_once that takes one step per call, and a stop that is true after the last."""
    left = list(steps)

    def run_once() -> int:
        return left.pop(0)()

    return run_once, lambda: not left


def test_a_wrong_edit_fails_and_the_corrected_one_passes(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every edit falls into one second, and the first keeps the size: bytecode of before looks valid to Python."""
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
    second = 10**18
    folder = new("idea", "triton-elementwise", into=tmp_path)
    command = ["check", "my::idea", "--kernel", "triton_any", "--arch", "sm_90a", "--load", str(folder)]
    command += ["--device", "cpu"]
    os.utime(folder / "op.py", ns=(second, second))
    statuses: list[int] = []

    def checked_then(old: str, replacement: str) -> Callable[[], int]:
        def step() -> int:
            statuses.append(run_command(command))
            if old:
                substitute(folder / "op.py", old, replacement)
                os.utime(folder / "op.py", ns=(second, second + len(statuses)))
            return statuses[-1]

        return step

    right, wrong, unfinished = "(1 + np.exp(-beta * x))", "(2 + np.exp(-beta * x))", "(2 + np.exp(-beta * x)"
    run_once, stop = _in_turn(
        checked_then(right, wrong),
        checked_then(wrong, unfinished),
        checked_then(f"{unfinished}\n", f"{right}\n"),
        checked_then("", ""),
    )
    watched = paths_to_watch("my::idea", [str(folder)])
    assert watch(watched, run_once, poll=POLL, stop=stop) == 0
    assert statuses == [0, 1, 2, 0]
    assert "SyntaxError" in capfd.readouterr().err


def test_only_changed_content_counts_and_new_files_too(tmp_path: Path) -> None:
    source = tmp_path / "op.py"
    source.write_text("1")
    changes: list[list[str]] = []

    def touch() -> int:
        os.utime(source, (1, 1))
        threading.Timer(4 * POLL, source.write_text, ["2"]).start()
        return 0

    def add() -> int:
        (tmp_path / "notes.txt").write_text("no source")
        (tmp_path / "part.cuh").write_text("a")
        return 1

    def remove() -> int:
        (tmp_path / "part.cuh").unlink()
        return 5

    def fail() -> int:
        raise DeclarationError("unfinished")

    run_once, stop = _in_turn(touch, add, remove, fail)
    status = watch([tmp_path], run_once, POLL, stop, lambda changed: changes.append([p.name for p in changed]))
    assert changes == [["op.py"], ["part.cuh"], ["part.cuh"]] and status == 2


def test_what_is_watched(tmp_path: Path) -> None:
    common = registry.get("rms_norm").file.parent.parent / "common"
    assert paths_to_watch(None) == [common.parent, common]
    assert paths_to_watch("rms_norm") == [common.parent / "rms_norm", common]
    (tmp_path / "single.py").write_text("def broken(:")
    (tmp_path / "single.cu").write_text("")
    (tmp_path / "other.py").write_text("")
    found = paths_to_watch("single", [str(tmp_path / "single.py")])
    assert found == [tmp_path / "single.py", tmp_path / "single.cu", common]
    assert paths_to_watch("my::x", ["trtforge.kernels.rms_norm.op"]) == [common.parent / "rms_norm", common]
    with pytest.raises(UnknownNameError, match="no op 'absent'"):
        paths_to_watch("absent")
    with pytest.raises(UsageError, match="is no file, folder or module"):
        paths_to_watch("absent", ["no_such_module_anywhere"])


def test_following_runs_the_command_without_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[list[str]] = []

    def interrupted_later(arguments: list[str]) -> int:
        if ran:
            raise KeyboardInterrupt
        ran.append(arguments)
        return 1

    lines: list[str] = []
    monkeypatch.setattr(watch_module, "run_command", interrupted_later)
    monkeypatch.setattr(watch_module, "_snapshot", lambda paths, before: {Path(f"{len(lines)}.cu"): len(lines)})
    monkeypatch.setattr(watch_module, "_changed", lambda before, after: sorted(after))
    assert follow(["check", "rms_norm", "--watch", "--workers", "1"], "rms_norm", announce=lines.append) == 1
    assert ran == [["check", "rms_norm", "--workers", "1"]]
    assert "status 1" in lines[0] and "changed" in lines[1]


def test_ctrl_c_ends_with_the_status_of_the_last_run() -> None:
    code = (  # a shell ignores Ctrl-C in what it starts in the background, and children inherit that
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from trtforge.harness.watch import follow; sys.exit(follow(['list', 'absent'], 'rms_norm'))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if "waiting for a change" in line:
            process.send_signal(signal.SIGINT)
    assert process.wait(timeout=20) == 2
    assert "UnknownNameError" in lines[0] and "status 2" in lines[1] and len(lines) == 2
