"""``trtforge check --watch``: the check again, whenever a source of the op has changed.

Files are polled: no event interface works on every disk that people develop on, and a few dozen small files cost
nothing. Each check runs as a command of its own, so that every module is imported anew and an unfinished edit fails
that check only.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from trtforge.bindings.errors import ForgeError, UnknownNameError, UsageError
from trtforge.kernels import registry

_KERNELS = Path(registry.__file__).parent
_COMMON = _KERNELS / "common"
_SOURCES = frozenset({".cu", ".cuh", ".h", ".hpp", ".py"})
_INTERRUPTED = 130
#: Seconds that an interrupted check has for cleaning up.
_GRACE = 5.0


@dataclass(frozen=True)
class _State:
    """What a file was when it was last read: ``stamp`` tells whether to read again, ``digest`` whether it changed."""

    stamp: tuple[int, int, int]
    digest: bytes


def paths_to_watch(op: str | None, loads: Sequence[str] = ()) -> list[Path]:
    """Folders and files whose change may change a check of ``op`` (None: every op), ``loads`` being its --load.

    An op folder is watched whole. Of a single file's folder, the file, its CUDA sources and its ``*_triton.py`` are.
    Nothing of ``loads`` is run: a declaration may be unfinished. Raises UsageError for a target that has no file,
    UnknownNameError for an op that is not registered when there is nothing in ``loads`` that may declare it.
    """
    found = [path for target in loads for path in _sources_of(target)]
    if op is None:
        found.append(_KERNELS)
    else:
        try:
            found.append(registry.get(op).file.parent)
        except UnknownNameError:
            if not loads:
                raise
    return list(dict.fromkeys([*found, _COMMON]))


def _sources_of(target: str) -> list[Path]:
    path = Path(target)
    if path.is_dir():
        return [path]
    if path.suffix != ".py":
        spec = None
        with suppress(ImportError, ValueError):
            spec = importlib.util.find_spec(target)
        if spec is None or spec.origin is None or not Path(spec.origin).is_file():
            raise UsageError(f"--load {target} is no file, folder or module, so that there is nothing to watch")
        path = Path(spec.origin)
    if not path.parent.is_dir():
        raise UsageError(f"--load {target}: there is no folder {path.parent} to watch")
    if path.name == "op.py":
        return [path.parent]
    beside = [p for pattern in ("*.cu", "*.cuh", "*_triton.py") for p in sorted(path.parent.glob(pattern))]
    return [path, *beside]


def _files(paths: Iterable[Path]) -> Iterator[Path]:
    for path in paths:
        if not path.is_dir():
            yield path
            continue
        for folder, names, files in os.walk(path):
            names[:] = [name for name in names if not name.startswith((".", "__"))]
            yield from (Path(folder, name) for name in files if Path(name).suffix in _SOURCES)


def _snapshot(paths: Iterable[Path], before: Mapping[Path, _State]) -> dict[Path, _State]:
    """The state of every source; files whose size and times are as ``before`` are not read again."""
    states: dict[Path, _State] = {}
    for path in _files(paths):
        try:
            status = path.stat()
            stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
            known = before.get(path)
            if known is not None and known.stamp == stamp:
                states[path] = known
            else:
                states[path] = _State(stamp, hashlib.sha256(path.read_bytes()).digest())
        except OSError:  # between an editor's removal and its renaming, say: seen again at the next look
            continue
    return states


def _changed(before: Mapping[Path, _State], after: Mapping[Path, _State]) -> list[Path]:
    digests = [{path: state.digest for path, state in states.items()} for states in (before, after)]
    return sorted(path for path in {*before, *after} if digests[0].get(path) != digests[1].get(path))


def _drop_bytecode(paths: Iterable[Path]) -> None:
    """Remove cached bytecode: it is matched by size and whole seconds, which two quick edits can share."""
    for path in paths:
        if path.suffix == ".py":
            with suppress(OSError, NotImplementedError):
                Path(importlib.util.cache_from_source(str(path))).unlink(missing_ok=True)


def watch(
    paths: Sequence[Path],
    run_once: Callable[[], int],
    poll: float = 0.3,
    stop: Callable[[], bool] = lambda: False,
    on_change: Callable[[list[Path]], None] = lambda changed: None,
    on_status: Callable[[int], None] = lambda status: None,
) -> int:
    """Call ``run_once`` now and after every change of a source under ``paths``; returns its last status.

    A change counts when the files have stayed the same for one ``poll`` (seconds), so that a half written file is not
    run; one that happens during a run leads to another run. Ends when ``stop()`` is true, or with Ctrl-C. A ForgeError
    of ``run_once`` is status 2; it should print it itself.
    """
    status = _INTERRUPTED
    try:
        seen = _snapshot(paths, {})
        while True:
            try:
                status = run_once()
            except ForgeError as error:
                print(f"trtforge: {type(error).__name__}: {error}", file=sys.stderr)
                status = 2
            on_status(status)  # known by now, so that Ctrl-C returns it as soon as it has been announced
            changed: list[Path] = []
            latest = seen
            while not changed:
                if stop():
                    return status
                time.sleep(poll)
                looked = _snapshot(paths, latest)
                if looked == latest:
                    changed = _changed(seen, latest)
                latest = looked
            _drop_bytecode(changed)
            seen = latest
            on_change(changed)
    except KeyboardInterrupt:
        return status


def run_command(arguments: Sequence[str]) -> int:
    """Run ``trtforge ARGUMENTS`` as a process of its own on this terminal; returns its exit status.

    Ctrl-C ends it with all its worker processes, and is passed on.
    """
    with subprocess.Popen([sys.executable, "-m", "trtforge", *arguments], start_new_session=True) as process:
        try:
            return process.wait()
        except BaseException:
            _end_group(process)
            raise


def _end_group(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=_GRACE)
        os.killpg(process.pid, signal.SIGKILL)  # workers that outlived it


def follow(
    arguments: Sequence[str],
    op: str | None,
    loads: Sequence[str] = (),
    announce: Callable[[str], None] = lambda text: print(text, file=sys.stderr, flush=True),
) -> int:
    """``trtforge ARGUMENTS`` (a check, with or without --watch) now and after every change, until Ctrl-C.

    ``op`` and ``loads`` are those of the arguments. Returns the status of the last check that ended, 130 when none
    did. Raises what :func:`paths_to_watch` raises.
    """
    paths = paths_to_watch(op, loads)
    command = [a for a in arguments if not (len(a) >= len("--wa") and "--watch".startswith(a))]

    started = 0.0

    def run_once() -> int:
        nonlocal started
        started = time.perf_counter()
        return run_command(command)

    def on_status(status: int) -> None:
        took = time.perf_counter() - started
        announce(f"{time.strftime('%H:%M:%S')} status {status} after {took:.1f} s; waiting for a change, Ctrl-C ends")

    def on_change(changed: list[Path]) -> None:
        announce(f"{', '.join(path.name for path in changed)} changed")

    return watch(paths, run_once, on_change=on_change, on_status=on_status)
