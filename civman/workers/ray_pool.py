"""Workers on a Ray cluster: one actor for each GPU, or for some cores of each machine. Needs the extra `cluster`.

Ray places the actors and restarts lost ones. Everything else is as for processes on one machine: tasks are given out a
few at a time, the head saves the results, and models are fetched by digest. Models are not put into Ray's object store.

Ray runs any code that is sent to it, so a cluster should only be reachable from a private network.
"""

import importlib
import os
import socket
from collections import deque
from pathlib import Path
from typing import Any

import platformdirs

from civman.domain.recipes.machine import Machine
from civman.errors import Cause, NetworkError, UsageError
from civman.workers.blob_server import BlobServer
from civman.workers.dispatch import Report
from civman.workers.packed_errors import unpacked
from civman.workers.tasks import Task, Work

CACHE_VARIABLE = "CIVMAN_WORKER_CACHE"
_CONNECT_S = 10.0
_THIS_MACHINE = ("localhost", "127.0.0.1", "[::1]")
_CORES_EACH = 4
_RETRIES = 2
"""How often Ray retries a task after its actor was lost and restarted."""


class RayPool:
    """A pool of Ray actors."""

    def __init__(self, address: str | None, machine: Machine, tasks: "list[Task]") -> None:
        """Connect to the cluster at `address` (HOST:PORT; None: the one that this machine belongs to).

        Raises: UsageError: Ray is not installed (`no-cluster-extra`), or `address` is not HOST:PORT (`bad-workers`).
        NetworkError: there is no cluster.
        """
        self._ray: Any = _ray()
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        if address is not None:
            self._require_answer(address)
        try:
            self._ray.init(address=address or "auto", log_to_driver=False, namespace="civman", logging_level="error")
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise _no_cluster(
                f"there is no Ray cluster {f'at `{address}`' if address else 'on this machine'}"
            ) from error
        files = {file.sha256: file.path for each in tasks for task in each.together for file in task.planned.files}
        self._server = BlobServer(files, str(self._ray.util.get_node_ip_address())).__enter__()
        room, each = self._share(machine)
        self._actors = [self._actor(machine, each) for _ in range(max(1, min(int(room), len(tasks))))]
        self._waiting: dict[Any, int] = {}
        self._reports: deque[Report] = deque()

    @property
    def size(self) -> int:
        """The number of actors."""
        return len(self._actors)

    def send(self, worker: int, task: Task) -> None:
        """Give a task to an actor."""
        self._waiting[self._actors[worker].draw.remote(task)] = worker

    def receive(self) -> Report:
        """Wait for the next report of any actor."""
        if self._reports:
            return self._reports.popleft()
        (ready,), _ = self._ray.wait(list(self._waiting), num_returns=1)
        worker = self._waiting.pop(ready)
        try:
            number, drawn, error = self._ray.get(ready)
        # the actor was lost despite Ray's retries, so forget its other tasks as well
        except self._ray.exceptions.RayError:
            self._waiting = {ref: other for ref, other in self._waiting.items() if other != worker}
            return Report(worker)
        return Report(worker, number, drawn, None if error is None else unpacked(error))

    def close(self) -> None:
        """End the actors and the connection to the cluster."""
        for actor in self._actors:
            self._ray.kill(actor)
        self._ray.shutdown()
        self._server.__exit__()

    def _require_answer(self, address: str) -> None:
        """Check that a program accepts connections at `address`; Ray itself would try for minutes.

        Raises: UsageError (`bad-workers`): not HOST:PORT. NetworkError: nothing answers there.
        """
        host, _, port = address.rpartition(":")
        if not host or not port.isdecimal() or int(port) not in range(1, 1 << 16):
            raise UsageError(
                f"`ray://{address}` does not have the form ray://HOST:PORT",
                hint="for example ray://192.0.2.7:6379, as `ray start --head` prints it", code=Cause.BAD_WORKERS,
            )  # fmt: skip
        # Ray replaces addresses of this machine by the one that other machines can reach
        real = self._ray.util.get_node_ip_address() if host in _THIS_MACHINE else host.strip("[]")
        try:
            socket.create_connection((real, int(port)), timeout=_CONNECT_S).close()
        except OSError as error:
            where = f"`{host}:{port}`" if real == host.strip("[]") else f"`{real}:{port}` (this machine)"
            raise _no_cluster(f"no Ray cluster answers at {where}") from error

    def _share(self, machine: Machine) -> tuple[float, dict[str, float]]:
        """The number of actors that the cluster has room for, and the resources that each actor gets."""
        here = self._ray.cluster_resources()
        if here.get("GPU") and machine.device in (None, "cuda"):
            return here["GPU"], {"num_gpus": 1.0}
        cores = float(machine.threads or _CORES_EACH)
        return here.get("CPU", 1.0) // cores, {"num_cpus": min(cores, here.get("CPU", 1.0))}

    def _actor(self, machine: Machine, each: dict[str, float]) -> Any:
        home = self._ray.get_runtime_context().get_node_id()
        kind = self._ray.remote(max_restarts=-1, max_task_retries=_RETRIES, **each)(_Actor)
        return kind.remote(machine, home, self._server.origin, self._server.token)


class _Actor:
    """One worker of the cluster, which runs in its own process."""

    def __init__(self, machine: Machine, home: str, origin: str, token: str) -> None:
        from civman.workers.fetch_files import Source
        from civman.workers.warm_worker import WarmWorker

        ray: Any = importlib.import_module("ray")
        is_at_home = ray.get_runtime_context().get_node_id() == home
        self._source = None if is_at_home else Source(origin, token)
        self._cache = Path(os.environ.get(CACHE_VARIABLE) or platformdirs.user_cache_path("civman") / "worker")
        self._worker = WarmWorker(machine)

    def draw(self, task: Task) -> tuple[int, Any, Any]:
        """Render a task; return its number with its images or, if it failed, with the error."""
        from civman.workers.processes import attempted

        return attempted(task, lambda: self._worker.draw([self._localised(each.planned) for each in task.together]))

    def _localised(self, planned: Work) -> Work:
        if self._source is None:
            return planned
        from civman.workers.fetch_files import with_local_files

        return with_local_files(planned, self._source, self._cache)


def _no_cluster(message: str) -> NetworkError:
    hint = "start a cluster with `ray start --head`, and `ray start --address=HOST:PORT` on the other machines"
    return NetworkError(message, hint=hint)


def _ray() -> Any:
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise UsageError(
            "rendering on a cluster needs the extra `cluster`", hint="install it: pip install 'civman[cluster,render]'",
            code=Cause.NO_CLUSTER_EXTRA,
        ) from error  # fmt: skip
