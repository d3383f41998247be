"""Workers as processes on this machine. Each keeps its model loaded from one task to the next."""

import multiprocessing
import os
import signal
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any, Self

from civman.domain.recipes.machine import Machine
from civman.errors import CivmanError
from civman.workers.dispatch import Made, Report
from civman.workers.packed_errors import Packed, packed, unpacked
from civman.workers.tasks import Task

# use spawn: a forked process could not use CUDA, and would copy locks that are held
_SPAWN = multiprocessing.get_context("spawn")
_PATIENCE_S = 5.0


@dataclass(slots=True)
class _Running:
    process: BaseProcess
    connection: Any
    """A Connection or, on Windows, a PipeConnection."""


class Processes:
    """A pool of processes on this machine, one for each of `machines`."""

    def __init__(self, machines: Sequence[Machine]) -> None:
        """Start the processes. They import torch when they get their first task."""
        self._machines = machines
        self._running = [_started(machine) for machine in machines]
        self._reports: deque[Report] = deque()

    @classmethod
    def on_cpu(cls, count: int, machine: Machine) -> Self:
        """Return a pool of `count` processes that share the cores, unless `machine` sets the number of threads."""
        threads = machine.threads or max(1, (os.cpu_count() or 1) // count)
        return cls([replace(machine, threads=threads)] * count)

    @property
    def size(self) -> int:
        """The number of processes."""
        return len(self._running)

    def send(self, worker: int, task: Task) -> None:
        """Give a task to a worker. If the worker's process has ended, `receive` reports that the worker is lost."""
        try:
            self._running[worker].connection.send(task)
        except OSError:
            self._reports.append(self._replaced(worker))

    def receive(self) -> Report:
        """Wait for the next report of any worker."""
        while not self._reports:
            places = {running.connection: number for number, running in enumerate(self._running)}
            ready: list[Any] = list(wait(list(places)))
            for connection in ready:
                number = places[connection]
                try:
                    task, drawn, error = connection.recv()
                except (EOFError, OSError):
                    self._reports.append(self._replaced(number))
                else:
                    found = error if error is None else unpacked(error)
                    self._reports.append(Report(number, task, drawn, found))
        return self._reports.popleft()

    def close(self) -> None:
        """End all processes. A process that is rendering is terminated."""
        for running in self._running:
            running.connection.close()
            running.process.terminate()
        for running in self._running:
            running.process.join(_PATIENCE_S)
            if running.process.is_alive():
                running.process.kill()
                running.process.join()
            running.process.close()

    def _replaced(self, worker: int) -> Report:
        lost = self._running[worker]
        lost.connection.close()
        lost.process.kill()
        lost.process.join()
        self._running[worker] = _started(self._machines[worker])
        return Report(worker)


def _started(machine: Machine) -> _Running:
    here, there = _SPAWN.Pipe()
    process = _SPAWN.Process(target=serve, args=(there, machine), daemon=True, name="civman worker")
    process.start()
    there.close()
    return _Running(process, here)


def serve(connection: Any, machine: Machine) -> None:
    """Process the tasks that arrive on `connection` until it is closed. Each worker process runs this."""
    # ignore Ctrl-C, which reaches all processes of a terminal; the head ends this process
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # imported here, in the new process: it imports torch, which takes 2 s
    from civman.workers.warm_worker import WarmWorker

    worker = WarmWorker(machine)
    while True:
        try:
            task: Task = connection.recv()
        except (EOFError, OSError):
            return
        plans = [each.planned for each in task.together]
        report = attempted(task, lambda: worker.draw(plans))  # noqa: B023  # called at once
        try:
            connection.send(report)
        except OSError:  # end this worker, because the head process no longer exists
            return


def attempted(task: Task, draw: Callable[[], tuple[Made, ...]]) -> tuple[int, tuple[Made, ...], Packed | str | None]:
    """Call `draw`; return the task's number with its images or its error. A bug is returned as its traceback."""
    try:
        return task.number, draw(), None
    except CivmanError as error:
        return task.number, (), packed(error)
    except Exception:  # noqa: BLE001  # a bug, which the head reports
        return task.number, (), traceback.format_exc()
