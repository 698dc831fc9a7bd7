"""The shared registry: ops by name, from this repository, from files, modules and entry points."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Iterable, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from trtforge.bindings.errors import DeclarationError, ForgeError, UnknownNameError

if TYPE_CHECKING:
    from trtforge.kernels.op import Op

ENTRY_POINT_GROUP = "trtforge.ops"

_ops: dict[str, Op] = {}
_targets: dict[str, str] = {}
_state = {"loaded": False}


def add(op: Op) -> None:
    """Register an op (creating an :class:`Op` does this). The same file may declare its ops anew; another may not."""
    known = _ops.get(op.name)
    if known is not None and known.file.resolve() != op.file.resolve():
        raise DeclarationError(
            f"the op {op.name!r} is already declared in {known.file}; {op.file} must use another name"
        )
    _ops[op.name] = op


def load_builtin() -> None:
    """Import every ``kernels/<family>/op.py``, then the entry points of the group ``trtforge.ops``. Idempotent."""
    if _state["loaded"]:
        return
    _state["loaded"] = True
    try:
        for path in sorted(Path(__file__).parent.glob("*/op.py")):
            importlib.import_module(f"trtforge.kernels.{path.parent.name}.op")
        for entry in entry_points(group=ENTRY_POINT_GROUP):
            try:
                entry.load()
            except ForgeError:
                raise
            except Exception as error:
                raise DeclarationError(
                    f"the entry point {entry.name!r} = {entry.value!r} in group {ENTRY_POINT_GROUP!r} failed to "
                    f"load: {type(error).__name__}: {error}"
                ) from error
    except BaseException:
        _state["loaded"] = False
        raise


def load(target: str | Path) -> list[Op]:
    """Load a Python file or module that declares ops; returns the ops it declared.

    Raises DeclarationError when it cannot be found, does not run, or declares none.
    """
    load_builtin()
    before = dict(_ops)
    path = Path(target)
    if path.suffix == ".py" or path.exists() or len(path.parts) > 1:
        if path.is_dir():
            path = path / "op.py"
        if not path.is_file():
            raise DeclarationError(f"--load {target}: there is no such file")
        module = import_file(path)
        declared = [op for op in _ops.values() if op.file.resolve() == path.resolve()]
    else:
        try:
            module = importlib.import_module(str(target))
        except ForgeError:
            raise
        except (Exception, SystemExit) as error:
            if isinstance(error, ModuleNotFoundError) and error.name == str(target).partition(".")[0]:
                raise DeclarationError(f"--load {target}: there is no such file, folder or module") from error
            raise DeclarationError(f"--load {target}: {type(error).__name__}: {error}") from error
        declared = [op for name, op in _ops.items() if before.get(name) is not op]
        declared = declared or [v for v in vars(module).values() if type(v).__name__ == "Op"]
    if not declared:
        raise DeclarationError(f"--load {target} declares no op; create one with trtforge.kernels.Op(...)")
    found = str(path.resolve()) if path.is_file() else str(target)
    _targets.update({op.name: found for op in declared})
    return declared


def targets(names: Iterable[str], beyond: Sequence[str | Path] = ()) -> list[str]:
    """What another process must :func:`load` to have these ops, ``beyond`` what it loads anyway."""
    known = {str(path) for one in beyond for path in (one, Path(one).resolve(), Path(one).resolve() / "op.py")}
    return list(dict.fromkeys(_targets[n] for n in names if n in _targets and _targets[n] not in known))


def import_file(path: Path) -> ModuleType:
    """Import a Python file under a name made of its path; a second call runs it anew.

    Its text is compiled each time: byte code on disk is matched by whole seconds, and edits come faster.
    """
    path = path.resolve()
    name = f"trtforge_file_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise DeclarationError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        exec(compile(path.read_bytes(), str(path), "exec"), module.__dict__)
    except ForgeError:
        del sys.modules[name]
        raise
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        where = _line(error, path)
        raise DeclarationError(f"{path}{where} failed to load: {type(error).__name__}: {error}") from error
    return module


def _line(error: BaseException, path: Path) -> str:
    """ ":12" for an error that came by line 12 of the file; a syntax error names its line itself."""
    lines = [
        number for frame, number in traceback.walk_tb(error.__traceback__) if frame.f_code.co_filename == str(path)
    ]
    return f":{lines[-1]}" if lines else ""


def get(name: str) -> Op:
    """The op of that name; the namespace may be left out where that is unambiguous. Raises UnknownNameError."""
    load_builtin()
    if name in _ops:
        return _ops[name]
    matches = [op for full, op in _ops.items() if full.split("::")[1] == name]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise UnknownNameError(f"{name!r} is ambiguous: {', '.join(op.name for op in matches)}")
    short = {full.split("::")[1]: full for full in _ops}
    alike = [short[found] for found in difflib.get_close_matches(name.split("::")[-1], short, n=3)]
    known = f"meant: {' or '.join(alike)}?" if alike else f"known: {', '.join(_ops)}"
    more = f"load others with --load {name if Path(name).exists() else 'FILE_OR_MODULE'}"
    file = ", and no file of that name" if Path(name).suffix and not Path(name).exists() else ""
    raise UnknownNameError(f"there is no op {name!r}{file}; {known}; {more}")


def ops() -> list[Op]:
    """Every registered op, in order of declaration."""
    load_builtin()
    return list(_ops.values())
