"""The builder's phases as a progress bar."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def monitor_of(trt: Any, progress: Any) -> Iterator[Any]:
    """A progress monitor that shows each phase as a task of a ``rich.progress.Progress``.

    Phases nest: a task is indented by its depth, and goes when the phase is done. A builder may call from its own
    thread; rich's progress is safe there. An exception must not cross the library, so an interrupt stops the build.
    """

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.tasks: dict[str, tuple[Any, int]] = {}
            self.interrupted = False

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            depth = self.tasks[parent_phase][1] + 1 if parent_phase in self.tasks else 0
            self.tasks[phase_name] = progress.add_task("  " * depth + phase_name, total=num_steps), depth

        def step_complete(self, phase_name: str, step: int) -> bool:
            try:
                if phase_name in self.tasks:
                    progress.update(self.tasks[phase_name][0], completed=step + 1)
            except KeyboardInterrupt:
                self.interrupted = True
            return not self.interrupted

        def phase_finish(self, phase_name: str) -> None:
            task, _ = self.tasks.pop(phase_name, (None, 0))
            if task is not None:
                progress.remove_task(task)

    monitor = Monitor()
    yield monitor
    for task, _ in monitor.tasks.values():
        progress.remove_task(task)
    if monitor.interrupted:
        raise KeyboardInterrupt
