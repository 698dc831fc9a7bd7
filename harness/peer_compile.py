"""Fill the disk cache of torch.compile in parallel processes before a benchmark times compiled peers.

    warm ──▶ a few processes, each with a share of the (case, peer) pairs ──▶ Inductor's cache on disk
    bench, later, one pair after the other: traces again, finds code in the cache, tunes it on a quiet GPU

A process calls its peers once on zeros. What Inductor measures there to choose between configurations is not kept: the
processes disturb each other. A pair that cannot be compiled here is told of when the benchmark comes to it.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trtforge.bindings.device import current_device
from trtforge.bindings.optional import require
from trtforge.kernels import registry
from trtforge.kernels.peer import Peer

#: Fewer pairs are compiled faster by the benchmark itself than processes start.
_FEWEST, _PER_PROCESS = 4, 3
_MOST_PROCESSES = 16
_TIME_LIMIT = 300.0
#: Memory of one process: the CUDA context, and this many times the bytes of its largest case.
_CONTEXT_BYTES, _TIMES = 1 << 30, 4


@dataclass(frozen=True)
class Pair:
    """A compiled peer of an op on a case; ``case`` is the index in the op's cases."""

    op: str
    case: int
    dtypes: Mapping[str, str]
    peer: str


def compiled(fn: Callable[..., Any]) -> Callable[..., Any]:
    """torch.compile as peers get it: one graph for exactly these shapes, or an error that says why not."""
    made: Callable[..., Any] = require("torch", "timing peers").compile(fn, fullgraph=True, dynamic=False)
    return made


def plain(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes as Python's own numbers: a NumPy scalar breaks a traced graph."""
    return {k: v.item() if hasattr(v, "item") else v for k, v in attributes.items()}


def warm(pairs: Sequence[Pair], loads: Sequence[str], workers: int) -> None:
    """Compile what no earlier run has compiled; returns when all is done or a time limit has passed."""
    each = {json.dumps(asdict(pair), sort_keys=True): pair for pair in pairs}.values()
    marked = [(pair, _mark(pair)) for pair in each]
    left = [pair for pair, mark in marked if mark is None or not mark.exists()]
    if len(left) < _FEWEST:
        return
    count = min(workers, _MOST_PROCESSES, -(-len(left) // _PER_PROCESS), _fitting(left))
    environment = {**os.environ, "TORCHINDUCTOR_COMPILE_THREADS": "1", "OMP_NUM_THREADS": "1"}
    running: list[subprocess.Popen[str]] = []
    deadline = time.monotonic() + _TIME_LIMIT
    try:
        for first in range(count):
            share = json.dumps({"loads": list(loads), "pairs": [asdict(p) for p in left[first::count]]})
            process = subprocess.Popen(
                [sys.executable, "-m", "trtforge.harness.peer_compile"],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                text=True,
                env=environment,
            )
            running.append(process)
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError), process.stdin as pipe:
                pipe.write(share)
        for process in running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=max(deadline - time.monotonic(), 0.1))
    finally:
        for process in running:
            process.kill()
            process.wait()


def _fitting(pairs: Sequence[Pair]) -> int:
    """How many processes the device's memory has room for, at least one."""
    largest = 0
    for pair in pairs:
        op = registry.get(pair.op)
        largest = max(largest, op.cost_of(op.bind_case(op.cases[pair.case], pair.dtypes)).bytes or 0)
    return max(1, current_device().memory // (_CONTEXT_BYTES + _TIMES * largest))


def _mark(pair: Pair) -> Path | None:
    """An empty file in Inductor's cache that says that a pair has been compiled; None where there is no such cache."""
    torch = require("torch", "timing peers")
    try:
        from torch._inductor.runtime.cache_dir_utils import cache_dir
    except ImportError:
        return None
    op = registry.get(pair.op)
    source = inspect.getsourcefile(_peer(pair).fn)
    text = Path(source).read_text(encoding="utf-8") if source else ""
    known = [torch.__version__, torch.cuda.get_device_name(), asdict(pair), op.cases[pair.case].label, text]
    return Path(cache_dir()) / "trtforge" / hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()


def _peer(pair: Pair) -> Peer:
    return next(p for p in registry.get(pair.op).peers if p.name == pair.peer)


def compile_pair(pair: Pair, torch: Any) -> None:
    """Compile and call a peer once."""
    op = registry.get(pair.op)
    binding = op.bind_case(op.cases[pair.case], pair.dtypes)
    made = {
        name: torch.zeros(tuple(int(size) for size in shape), dtype=getattr(torch, binding.dtypes[name]), device="cuda")
        for name, shape in binding.inputs.items()
    }
    torch.compiler.reset()
    with torch.no_grad():
        compiled(_peer(pair).fn)(*(made.get(name) for name in op.inputs), **plain(binding.attributes))
    torch.cuda.synchronize()


def main() -> None:
    """Compile the pairs that standard input names, one after the other."""
    given = json.load(sys.stdin)
    torch = require("torch", "compiling peers")
    torch._inductor.config.autotune_local_cache = False
    for target in given["loads"]:
        registry.load(target)
    for one in given["pairs"]:
        pair = Pair(**one)
        try:
            compile_pair(pair, torch)
        except Exception as error:  # whatever a compiler raises; the others go on
            print(f"{pair}: {type(error).__name__}: {error}", file=sys.stderr)
            continue
        mark = _mark(pair)
        if mark is not None:
            mark.parent.mkdir(parents=True, exist_ok=True)
            mark.touch()


if __name__ == "__main__":
    main()
