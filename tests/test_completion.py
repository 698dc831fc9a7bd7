"""Shell completion: the scripts are ones that the shells accept, and they know ops and options."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from trtforge import cli
from trtforge.bindings.optional import available

needs_shtab = pytest.mark.skipif(not available("shtab"), reason="needs the package shtab")


def script(shell: str, capsys: pytest.CaptureFixture[str], *options: str) -> str:
    assert cli.main(["completion", shell, *options]) == 0
    return capsys.readouterr().out


@needs_shtab
@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_shell_accepts_the_script(shell: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = script(shell, capsys)
    assert "flash_attention" in text and "every-case" in text and "undefined" in text
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed; the script was made but not parsed by it")
    file = tmp_path / "script"
    file.write_text(text)
    done = subprocess.run([shell, "-n", str(file)], capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr


COMPLETE = """
source "$1"
entry=$(complete -p trtforge | sed 's/.*-F \\([^ ]*\\).*/\\1/')
shift
COMP_WORDS=(trtforge "$@")
COMP_CWORD=$#
"$entry"
printf '%s\\n' "${COMPREPLY[@]}"
"""


@needs_shtab
@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    "words, found",
    [
        (["comp"], {"completion"}),
        (["check", "rms"], {"rms_norm"}),
        (["check", "rms_norm", "--as-plugin", ""], {"aot", "jit"}),
        (["profile", "--to"], {"--tool"}),
        (["profile", "net"], {"net.plan"}),
        (["inspect", "fused"], {"fused_gemm"}),
    ],
)
def test_bash_completes(words: list[str], found: set[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "net.plan").touch()
    file = tmp_path / "script"
    file.write_text(script("bash", capsys))
    command = ["bash", "-c", COMPLETE, "bash", str(file), *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True)
    assert found <= set(done.stdout.split()), done.stderr
    assert not {w for w in done.stdout.split() if not w.startswith(words[-1])}


def test_without_shtab_the_way_to_get_it_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert cli.main(["completion", "bash"]) == 2
    assert "MissingDependencyError: shell completion needs the Python package 'shtab'" in capsys.readouterr().err
