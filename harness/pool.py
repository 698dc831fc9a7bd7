"""Worker processes for the harness: jobs in, rows out, a lost worker costs one row."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence

from trtforge.harness.jobs import Job, Row, row_of
from trtforge.kernels import registry

#: Seconds after which a job's worker is ended and the job is reported as failed.
TIME_LIMIT = 300.0


#: Seconds that a worker has for ending what it has started.
_GRACE = 2.0
_OUTSIDE = (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT)


def _signal(number: int) -> str:
    known = {one.value: one.name for one in signal.Signals}
    return f"signal {number}{f' ({known[number]})' if number in known else ''}"


class _Worker:
    """One child process with its job loop."""

    def __init__(self, mode: str, loads: Sequence[str]):
        environment = dict(os.environ)
        environment["TRITON_INTERPRET"] = "1" if mode == "interpret" else "0"
        environment.setdefault("OMP_NUM_THREADS", "2")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "trtforge.harness.worker", json.dumps(list(loads))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.errors: list[str] = []
        self.expired = False
        threading.Thread(target=self._drain, daemon=True).start()
        self.ready = bool(self._read(TIME_LIMIT))

    def _drain(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.errors = [*self.errors[-30:], line.rstrip()]

    def _read(self, limit: float) -> str:
        """One reply line; "" when the process has ended or was ended at the time limit."""
        assert self.process.stdout is not None
        timer = threading.Timer(limit, self._expire)
        timer.start()
        try:
            return self.process.stdout.readline()
        finally:
            timer.cancel()

    def _expire(self) -> None:
        self.expired = True
        self.end()

    def end(self) -> None:
        """End the process: asked first, so that it ends what it has started itself."""
        self.process.terminate()
        try:
            self.process.wait(timeout=_GRACE)
        except subprocess.TimeoutExpired:
            self.process.kill()

    def run(self, job: Job, limit: float) -> Row | None:
        """The row of a job, or None when the worker was lost over it."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(job.to_json()) + "\n")
            self.process.stdin.flush()
            reply = self._read(limit)
        except (BrokenPipeError, OSError):
            reply = ""
        return Row(**json.loads(reply)) if reply else None

    def close(self) -> None:
        if self.process.stdin is not None:
            self.process.stdin.close()
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def last_words(self) -> str:
        self.process.wait()
        code = self.process.returncode
        fate = f"ended by {_signal(-code)}" if code and code < 0 else f"ended with status {code}"
        if code and -code in _OUTSIDE:
            fate += ", as a kernel does that reads or writes far outside its arrays"
        return f"{fate}: {' | '.join(self.errors[-4:])}" if self.errors else fate


def run_jobs(
    mode: str,
    jobs: Sequence[Job],
    loads: Sequence[str] = (),
    workers: int = 1,
    limit: float = TIME_LIMIT,
    on_row: Callable[[Row], None] | None = None,
) -> list[Row]:
    """Run jobs of one mode in ``workers`` processes; rows come back in the order of the jobs.

    The processes load ``loads``, and what this one has loaded the ops of the jobs from.
    Consecutive jobs on the same problem stay in one process, which computes its reference once.
    """
    loads = [*loads, *registry.targets(dict.fromkeys(job.op for job in jobs), loads)]
    pending: queue.SimpleQueue[list[tuple[int, Job]]] = queue.SimpleQueue()
    problems = itertools.groupby(enumerate(jobs), key=lambda item: _problem(mode, *item))
    for _, group in problems:
        pending.put(list(group))
    rows: dict[int, Row] = {}
    reporting = threading.Lock()
    working: list[_Worker] = []
    ended = threading.Event()

    def serve() -> None:
        worker: _Worker | None = None
        while True:
            try:
                group = pending.get_nowait()
            except queue.Empty:
                break
            for index, job in group:
                if ended.is_set():
                    return
                if worker is None or worker.process.poll() is not None:
                    worker = _Worker(mode, loads)
                    working.append(worker)
                row = worker.run(job, limit) if worker.ready else None
                if row is None:
                    row = _lost(job, worker, limit)
                    worker = None
                elif row.details.get("fatal"):  # it ends now: the device has failed in its process
                    worker.close()
                    worker = None
                with reporting:
                    rows[index] = row
                    if on_row is not None:
                        on_row(row)
        if worker is not None:
            worker.close()

    threads = [threading.Thread(target=serve) for _ in range(max(1, min(workers, len(jobs))))]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            thread.join()
    except KeyboardInterrupt:  # let nobody take another job or finish the one in hand
        ended.set()
        for one in working:
            one.process.terminate()
        for one in working:
            one.end()
        with contextlib.suppress(queue.Empty):
            while True:
                pending.get_nowait()
        raise
    return [rows[i] for i in range(len(jobs))]


def _problem(mode: str, index: int, job: Job) -> object:
    return index if mode == "compile" else (job.op, job.case, sorted(job.dtypes.items()))


def _lost(job: Job, worker: _Worker, limit: float) -> Row:
    op = registry.get(job.op)
    row = row_of(job, op, op.kernel_named(job.kernel), op.cases[job.case])
    row.status = "failed"
    if worker.expired:
        row.reason = f"did not end within {limit:g} s and was ended; does the kernel hang? (--time-limit)"
    else:
        row.reason = f"the process running it {worker.last_words()}"
    return row
