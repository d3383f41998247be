"""A pool with one worker, which is this process; for jobs that are continued without other processes."""

from collections import deque

from civman.domain.recipes.machine import Machine
from civman.errors import CivmanError
from civman.workers.dispatch import Report
from civman.workers.tasks import Task
from civman.workers.warm_worker import WarmWorker


class Inline:
    """A pool whose only worker is this process. A task is rendered when its report is requested."""

    size = 1

    def __init__(self, machine: Machine) -> None:
        self._worker = WarmWorker(machine)
        self._tasks: deque[Task] = deque()

    def send(self, worker: int, task: Task) -> None:  # noqa: ARG002  # there is only one
        """Queue a task."""
        self._tasks.append(task)

    def receive(self) -> Report:
        """Render the next task."""
        task = self._tasks.popleft()
        try:
            return Report(0, task.number, self._worker.draw([each.planned for each in task.together]))
        except CivmanError as error:
            return Report(0, task.number, error=error)

    def close(self) -> None:
        """Release the loaded model."""
        self._worker.close()
