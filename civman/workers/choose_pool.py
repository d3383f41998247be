"""Choose where a job runs: in processes on this machine, or on a Ray cluster."""

import os
from collections.abc import Callable
from dataclasses import replace

from civman.domain.recipes.machine import Machine
from civman.errors import Cause, UsageError
from civman.workers.dispatch import Pool
from civman.workers.processes import Processes
from civman.workers.tasks import Task

_CORES_EACH = 4
"""The number of cores per process on a machine without a GPU.

With fewer cores each, more processes would run at once and wait for memory access instead of computing.
"""
_MOST = 256


def choose_pool(where: str | None, machine: Machine) -> Callable[[list[Task]], Pool]:
    """Choose the function that starts a pool for the tasks of a job.

    `where`: None (this process), "auto" (a process for each GPU, or for every four cores if there is no GPU), a number
    of processes, "ray" (the cluster that this machine belongs to) or "ray://HOST:PORT".

    Raises: UsageError (`bad-workers`): `where` has another value.
    """
    if where is None:
        from civman.workers.inline import Inline  # imported here, not at the top: it imports torch, which takes 2 s

        return lambda _: Inline(machine)
    if where == "ray" or where.startswith("ray://"):
        from civman.workers.ray_pool import RayPool

        return lambda tasks: RayPool(where.removeprefix("ray").removeprefix("://") or None, machine, tasks)
    if where != "auto" and not (where.isdecimal() and 0 < int(where) <= _MOST):
        raise UsageError(
            f"`{where}` is not a valid place to render on",
            hint="use auto, a number of processes such as 2, ray, or ray://HOST:PORT", code=Cause.BAD_WORKERS,
        )  # fmt: skip

    def start(tasks: list[Task]) -> Pool:
        from civman.diffusion.environment import cuda_devices

        cards = cuda_devices() if machine.device in (None, "cuda") else []
        usual = len(cards) or max(1, (os.cpu_count() or 1) // _CORES_EACH)
        count = max(1, min(usual if where == "auto" else int(where), len(tasks)))
        if cards:
            return Processes([replace(machine, device=cards[number % len(cards)]) for number in range(count)])
        return Processes.on_cpu(count, machine)

    return start
