"""Distribute tasks to a pool of workers, and collect and check the images that the workers render.

Each worker has one task in progress and one waiting, so that it is never idle. If a worker is lost, its tasks are given
to another one. All state that a job needs to continue is on the head's disk: images that are saved and indexed are
finished, and a restarted job renders only the rest.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Protocol

from civman.domain.events import Notice, OnEvent, Step
from civman.errors import CannotRender, Cause, CivmanError, IntegrityError
from civman.planning.plan_upscale import PlannedUpscale
from civman.planning.recipe_sources import pixel_sha256
from civman.rendering.draw import Drawn
from civman.rendering.upscale import UpscaledPicture
from civman.workers.tasks import Task, TaskQueue

Made = Drawn | UpscaledPicture
"""An image that a worker rendered or upscaled."""
OnFailure = Callable[[Task, CivmanError], None]
"""A function that is called with each failed task and its error, so that the other tasks can continue."""

_AHEAD = 2
"""The number of tasks that a worker has at once: the one in progress and the next one."""
_ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class Report:
    """What a worker reports: a task's images, or a task's error, or (without a task) that the worker is lost."""

    worker: int
    task: int | None = None
    drawn: "tuple[Made, ...]" = field(default=(), repr=False)
    error: Exception | None = None


class Pool(Protocol):
    """A pool of workers, each identified by a number. A lost worker is replaced by a new one with the same number."""

    @property
    def size(self) -> int:
        """The number of workers."""
        ...

    def send(self, worker: int, task: Task) -> None:
        """Give a task to a worker; it works on its tasks in order."""
        ...

    def receive(self) -> Report:
        """Wait for the next report."""
        ...

    def close(self) -> None:
        """End all workers, whatever they are doing."""
        ...


def work_off(
    tasks: Sequence[Task], pool: Pool, on_event: OnEvent, on_failure: OnFailure | None = None
) -> Iterator[tuple[Task, tuple[Made, ...]]]:
    """Carry out all `tasks` and the tasks joined to them; yield each with its images, in the order of completion.

    `on_failure` receives each task that fails and its error; without it, the first error ends the job.

    Raises: the first error of a task, after which no further tasks are given to workers. CannotRender (`worker-lost`):
    workers were lost several times while computing the same task. IntegrityError (`worker-lied`): a worker's images do
    not match its records.
    """
    queue, attempts = TaskQueue.of(tasks), dict.fromkeys((task.number for task in tasks), 0)
    given: list[list[Task]] = [[] for _ in range(pool.size)]
    held: list[tuple[object, ...] | None] = [None] * pool.size
    images, done = sum(each.count for task in tasks for each in task.together), 0

    def supply() -> None:
        for most in range(1, _AHEAD + 1):  # give each worker its first task before any worker gets a second one
            for worker in range(pool.size):
                if len(given[worker]) < most and (task := queue.take(held[worker])) is not None:
                    held[worker] = task.model
                    given[worker].append(task)
                    pool.send(worker, task)

    supply()
    while any(given):
        report = pool.receive()
        mine = given[report.worker]
        if report.task is None:
            lost, given[report.worker], held[report.worker] = mine, [], None
            on_event(Notice("render", "a worker was lost; another one renders its images"))
            for task in reversed(lost):
                queue.put_back(task)
            if lost:
                attempts[lost[0].number] += 1
                if attempts[lost[0].number] >= _ATTEMPTS:
                    raise CannotRender(
                        f"the worker that rendered image {lost[0].number + 1} was lost {_ATTEMPTS} times",
                        hint="the image may need more memory than is available: use fewer workers (--on)",
                        code=Cause.WORKER_LOST,
                    )  # fmt: skip
            supply()
            continue
        task = next(each for each in mine if each.number == report.task)
        mine.remove(task)
        if report.error is not None:
            _report_failure(task, report.error, on_failure)
            supply()
            continue
        found = _require_honest(task, report.drawn)
        supply()
        done += len(report.drawn)
        stage = "upscale" if isinstance(task.planned, PlannedUpscale) else "first"
        on_event(Step(key="render", step=1, steps=1, first=done - len(report.drawn) + 1, pictures=len(report.drawn),
                      count=images, stage=stage))  # fmt: skip
        yield from found


def _report_failure(task: Task, error: Exception, on_failure: OnFailure | None) -> None:
    """Call `on_failure` for a failed task and the tasks joined to it; if it is None, or for a bug, raise the error."""
    if on_failure is None or not isinstance(error, CivmanError):
        raise error
    for each in task.together:
        on_failure(each, error)


def _require_honest(task: Task, drawn: Sequence[Made]) -> list[tuple[Task, tuple[Made, ...]]]:
    """Check that a worker's images belong to its tasks and match their records; return the images by task.

    Raises: IntegrityError (`worker-lied`).
    """
    remaining = iter(drawn)
    found = [(each, tuple(islice(remaining, each.count))) for each in task.together]
    is_right = len(drawn) == sum(each.count for each in task.together) and all(
        one.record.recipe == each.planned.recipe and pixel_sha256(one.pixels) == one.record.pixel_sha256
        for each, mine in found
        for one in mine
    )
    if not is_right:
        raise IntegrityError(
            "a worker returned images that do not match their own records; none of them was saved",
            hint="check that all machines have the same version of civman and no memory errors", code=Cause.WORKER_LIED,
        )  # fmt: skip
    return found
