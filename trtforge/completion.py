"""``trtforge completion SHELL``: a script that completes commands, options, op names and files."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import Any

from trtforge.bindings.errors import MissingDependencyError

SHELLS = ("bash", "zsh", "fish")
_FILES = ("FILE", "JSON", "X.npz", "Y.npz", "FILE_OR_MODULE", "A", "B", "MODEL", "PLAN")
_FOLDERS = ("DIR",)
_OPS = ("op", "ops")


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("shell", choices=SHELLS)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = """where it goes:
  bash  source <(trtforge completion bash)            in ~/.bashrc
  zsh   trtforge completion zsh > DIR/_trtforge       for a DIR in $fpath
  fish  trtforge completion fish > ~/.config/fish/completions/trtforge.fish"""


def script(parser: argparse.ArgumentParser, shell: str, loads: Iterable[str] = ()) -> str:
    """The script for a shell, with the names of the ops that are declared now. Raises MissingDependencyError."""
    try:
        import shtab
    except ImportError as error:
        raise MissingDependencyError(
            "shell completion needs the Python package 'shtab'; pip install shtab, or 'trtforge[cli]'"
        ) from error
    if shell not in shtab.SUPPORTED_SHELLS:
        raise MissingDependencyError(
            f"shtab {shtab.__version__} writes no script for {shell}, only for {', '.join(shtab.SUPPORTED_SHELLS)}; "
            "pip install --upgrade shtab"
        )
    from trtforge.kernels import registry

    registry.load_builtin()
    for one in loads:
        registry.load(one)
    names = sorted(op.name.split("::")[1] for op in registry.ops())
    for action in _actions(parser):
        found = _kind(action, " ".join(names), shtab)
        if found is not None:
            action.complete = found
    return str(shtab.complete(parser, shell))


def _actions(parser: argparse.ArgumentParser) -> Iterable[Any]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for sub in action.choices.values():
                yield from _actions(sub)
        else:
            yield action


def _kind(action: Any, names: str, shtab: Any) -> Any:
    """What completes an argument, in shtab's terms; None where nothing does."""
    if action.choices or action.nargs == 0:
        return None
    if action.dest in _OPS:
        return _words("_trtforge_ops", names, files=False)
    if action.dest == "target":
        return _words("_trtforge_targets", names, files=True)
    metavars = action.metavar if isinstance(action.metavar, tuple) else (action.metavar,)
    if metavars[0] in _FILES:
        return shtab.FILE
    return shtab.DIRECTORY if metavars[0] in _FOLDERS else None


def _words(function: str, names: str, files: bool) -> dict[str, Any]:
    """Op names, and files too where ``files``; bash and zsh call a function that the script defines."""
    also = ' compgen -f -- "$1";' if files else ""
    listed = f"'ops:op:({names})'" + (" 'files:file:_files'" if files else "")
    return {
        "bash": function,
        "zsh": function,
        "fish": f"{names} (__fish_complete_path (commandline -ct))" if files else names,
        "preamble": {
            "bash": f'{function}() {{ compgen -W "{names}" -- "$1";{also} }}',
            "zsh": f"{function}() {{ _alternative {listed} }}",
        },
    }
