"""The units of work of a large job, and the order in which workers take them.

A task is one batch of one plan or the upscale of one image. Tasks whose images share slots are joined, so that one
worker computes them together. All tasks are determined before any is given to a worker, so the images do not depend on
the number of workers.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import count

from civman.diffusion import samplers
from civman.planning.plan_types import MODEL_FIELDS, Planned
from civman.planning.plan_upscale import PlannedUpscale
from civman.planning.slot_groups import slot_groups

Work = Planned | PlannedUpscale
"""A unit of a job: the plan of a render or of an upscale."""


@dataclass(frozen=True, slots=True)
class Task:
    """One batch of one plan, or one upscale.

    `number`: the task's position in the whole job. `plan`: the position of the task's plan.
    """

    number: int
    plan: int
    planned: Work
    others: tuple["Task", ...] = ()
    """The tasks that the same worker computes in further slots; empty for images without slots."""

    @property
    def together(self) -> tuple["Task", ...]:
        """This task and the tasks that are computed together with it, in other slots."""
        return (self, *self.others)

    @property
    def count(self) -> int:
        """The number of images that this task makes, without those of the tasks that are joined to it."""
        return self.planned.recipe.count if isinstance(self.planned, Planned) else 1

    @property
    def model(self) -> tuple[object, ...]:
        """What a worker has to load and merge for this task.

        A worker can compute tasks with equal values one after another without reloading.
        """
        if isinstance(self.planned, PlannedUpscale):
            return ("upscaler", self.planned.recipe.enlargement.model)
        recipe = self.planned.recipe
        return (*(getattr(recipe, name) for name in MODEL_FIELDS), recipe.loras)


def tasks_of(plans: Iterable[Work]) -> list[Task]:
    """Split plans into tasks, in order. Each task's images are recorded with the task's own recipe."""
    numbers = count()
    return [
        Task(next(numbers), place, batch)
        for place, planned in enumerate(plans)
        for batch in ([planned] if isinstance(planned, PlannedUpscale) else _batches(planned))
    ]


def side_by_side(tasks: Sequence[Task]) -> list[Task]:
    """Join tasks whose images can share slots, one task for each slot; other tasks are unchanged."""
    renders = [(task, task.planned) for task in tasks if isinstance(task.planned, Planned)]
    joined = [task for task in tasks if not isinstance(task.planned, Planned)]
    for places in slot_groups([planned for _, planned in renders]):
        width = renders[places[0]][1].recipe.slots or 1
        for first in range(0, len(places), width):
            task, *others = (renders[place][0] for place in places[first : first + width])
            joined.append(replace(task, others=tuple(others)))
    return joined


def _batches(planned: Planned) -> Iterator[Planned]:
    recipe = planned.recipe
    is_adaptive = samplers.of_recipe(recipe.sampler, recipe.rules).is_adaptive
    # an adaptive sampler needs batches of one image, because the images of a batch would affect each other
    size = 1 if is_adaptive else recipe.batch_size
    for first in range(0, recipe.count, size):
        number = min(size, recipe.count - first)
        batch = replace(recipe, seed=recipe.seed + first, count=number, batch_size=number)
        yield replace(planned, recipe=batch)


@dataclass(slots=True)
class TaskQueue:
    """Tasks that are not assigned to a worker yet, grouped by the model that they need."""

    groups: dict[tuple[object, ...], deque[Task]] = field(default_factory=dict)
    holders: dict[tuple[object, ...], int] = field(default_factory=dict)
    """Maps each group to the number of workers that have loaded its model."""

    @classmethod
    def of(cls, tasks: Sequence[Task]) -> "TaskQueue":
        """Queue all `tasks`; tasks of the same group keep their order."""
        queue = cls()
        for task in tasks:
            queue.groups.setdefault(task.model, deque()).append(task)
        return queue

    def take(self, held: tuple[object, ...] | None) -> Task | None:
        """Take the next task for a worker that has loaded the model `held`; None if no task is left.

        A worker keeps its model as long as there are tasks for it. After that, it gets a task from the group with the
        most tasks per worker.
        """
        if held not in self.groups:
            if held is not None:
                self.holders[held] = self.holders.get(held, 1) - 1
            if not self.groups:
                return None
            held = max(self.groups, key=lambda model: len(self.groups[model]) / (1 + self.holders.get(model, 0)))
            self.holders[held] = self.holders.get(held, 0) + 1
        assert held is not None
        task = self.groups[held].popleft()
        if not self.groups[held]:
            del self.groups[held]
        return task

    def put_back(self, task: Task) -> None:
        """Queue a task again, as the first one of its group."""
        self.groups.setdefault(task.model, deque()).appendleft(task)

    def __len__(self) -> int:
        return sum(map(len, self.groups.values()))
