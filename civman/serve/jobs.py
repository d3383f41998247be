"""The job queue, in which clients take turns, with everything that is known about each job."""

import contextlib
import itertools
import threading
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Protocol

from civman.errors import NotFound, Refused, StoreError, UsageError

_MOST_QUEUED = 100
_MOST_ENDED = 500
_MOST_LINES = 10_000


class JobState(StrEnum):
    """The state of a job. A job that is DONE, FAILED or CANCELLED has ended."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


class JobKind(StrEnum):
    """What a job does."""

    RENDER = "render"
    GRID = "grid"
    """Render images that vary along one or two axes, and make a contact sheet of them."""
    REPLAY = "replay"
    """Render an image of the library again, unchanged or with changed fields."""
    REDRAW = "redraw"
    """Render an image from a recipe, or from settings that another program wrote."""
    UPSCALE = "upscale"
    """Enlarge images with an upscaler."""
    COMMAND = "command"
    """Run a command line, such as `civman render`, that a terminal handed over."""
    DOWNLOAD = "download"


ENGINE_KINDS = frozenset(set(JobKind) - {JobKind.DOWNLOAD})
_FINAL = (JobState.DONE, JobState.FAILED, JobState.CANCELLED)


@dataclass(slots=True)
class ServerJob:
    """One job. `payload` is the input for the engine or the downloader; `result` and `error` are JSON values."""

    number: int
    kind: JobKind
    client: str
    title: str
    payload: dict[str, Any] = field(repr=False)
    created_at: datetime
    state: JobState = JobState.QUEUED
    started_at: datetime | None = None
    ended_at: datetime | None = None
    progress: dict[str, Any] = field(default_factory=dict)
    preview: bytes | None = field(default=None, repr=False)
    """A small JPEG of the image that is being computed."""
    result: Any = None
    error: dict[str, Any] | None = None
    is_cancelling: bool = False
    lasts: bool = False
    """Whether a restarted server may run the job; true if no client waits for the job on an open connection."""
    written: list[tuple[str, str]] = field(default_factory=list, repr=False)
    """The output of a handed-over command, as pairs of a stream's name ("stdout" or "stderr") and text."""

    @property
    def is_over(self) -> bool:
        """Whether the job has ended: it is done, failed or cancelled."""
        return self.state in _FINAL

    def value(self) -> dict[str, Any]:
        """Convert to a JSON object."""
        times = {
            "created_at": self.created_at, "started_at": self.started_at, "ended_at": self.ended_at,
        }  # fmt: skip
        return {
            "id": self.number, "kind": self.kind.value, "client": self.client, "title": self.title,
            "state": self.state.value, "is_cancelling": self.is_cancelling,
            **{name: at.isoformat() if at else None for name, at in times.items()},
            "progress": self.progress, "result": self.result, "error": self.error,
        }  # fmt: skip


OnJob = Callable[[str, ServerJob], None]
"""A function to call, from any thread, when a job changes.

Its arguments are the kind of change ("job", "step", "preview" or "written") and the job.
"""


class Journal(Protocol):
    """Stores the jobs of a queue; `job_journal.JobJournal` stores them in a file."""

    def load(self) -> list[ServerJob]:
        """Read the jobs of the previous server."""
        ...

    def rewrite(self, jobs: Iterable[ServerJob]) -> None:
        """Replace the journal's contents with the current state of these jobs."""
        ...

    def keep(self, job: ServerJob) -> None:
        """Append the current state of a job."""
        ...

    @property
    def is_long(self) -> bool:
        """Whether the journal is long enough to be rewritten."""
        ...


class JobQueue:
    """The queue of all jobs of the server. Safe to use from several threads."""

    def __init__(self, journal: Journal | None = None) -> None:
        """`journal` stores the jobs; those of the previous server are read from it. Raises: StoreError."""
        self._changed = threading.Condition()
        self._jobs: dict[int, ServerJob] = {}
        self._waiting: dict[bool, dict[str, deque[ServerJob]]] = {True: {}, False: {}}
        self._served: dict[str, int] = {}
        self._turns = itertools.count(1)
        self._listeners: set[OnJob] = set()
        self._is_closed = False
        self._journal = journal
        for job in journal.load() if journal is not None else ():
            self._jobs[job.number] = job
            if job.state is JobState.QUEUED:
                self._waiting[job.kind in ENGINE_KINDS].setdefault(job.client, deque()).append(job)
        self._numbers = itertools.count(max(self._jobs, default=0) + 1)
        self._forget_oldest()
        if journal is not None:
            journal.rewrite(self._jobs.values())

    def submit(
        self, kind: JobKind, client: str, title: str, payload: dict[str, Any], *, lasts: bool = False
    ) -> ServerJob:
        """Queue a job. Raises: Refused (`queue-full`); StoreError: the journal cannot be written."""
        with self._changed:
            lane = self._waiting[kind in ENGINE_KINDS]
            if sum(map(len, lane.values())) >= _MOST_QUEUED:
                raise Refused(
                    f"{_MOST_QUEUED} jobs are waiting already",
                    hint="wait until some jobs are done, or cancel jobs with `civman jobs --cancel`",
                )  # fmt: skip
            job = ServerJob(next(self._numbers), kind, client, title[:200], payload, datetime.now(UTC), lasts=lasts)
            if self._journal is not None:
                self._journal.keep(job)
            self._jobs[job.number] = job
            lane.setdefault(client, deque()).append(job)
            self._forget_oldest()
            self._changed.notify_all()
        self.tell("job", job)
        return job

    def _forget_oldest(self) -> None:
        ended = [number for number, job in self._jobs.items() if job.is_over]
        for number in ended[: max(0, len(ended) - _MOST_ENDED)]:
            del self._jobs[number]

    def take(self, *, engine: bool) -> ServerJob | None:
        """Wait for the next render job or, if `engine` is False, the next download; None once the queue is closed.

        The client that has waited longest since its last job is next; the jobs of one client run in their order.
        """
        with self._changed:
            lane = self._waiting[engine]
            while not lane and not self._is_closed:
                self._changed.wait()
            if self._is_closed:
                return None
            client = min(lane, key=lambda name: (self._served.get(name, 0), lane[name][0].number))
            job = lane[client].popleft()
            if not lane[client]:
                del lane[client]
            self._served[client] = next(self._turns)
            job.state, job.started_at = JobState.RUNNING, datetime.now(UTC)
            self._keep(job)
        self.tell("job", job)
        return job

    def end(self, job: ServerJob, state: JobState, *, result: Any = None, error: dict[str, Any] | None = None) -> None:
        """End a job with its final state and its result or error; does nothing if the job has ended already."""
        with self._changed:
            if job.is_over:
                return
            job.state, job.result, job.error, job.ended_at = state, result, error, datetime.now(UTC)
            job.preview, job.payload = None, {}
            self._keep(job)
            self._changed.notify_all()
        self.tell("job", job)

    def cancel(self, number: int) -> ServerJob | None:
        """Cancel a job: at once if it is queued, otherwise as soon as the running job notices.

        Returns None if there is no job with this number.
        """
        with self._changed:
            job = self._jobs.get(number)
            if job is None or job.is_over:
                return job
            job.is_cancelling = True
            self._keep(job)
            if job.state is JobState.QUEUED:
                lane = self._waiting[job.kind in ENGINE_KINDS]
                lane[job.client].remove(job)
                if not lane[job.client]:
                    del lane[job.client]
        if job.state is JobState.QUEUED:
            self.end(job, JobState.CANCELLED)
        else:
            self.tell("job", job)
        return job

    def _keep(self, job: ServerJob) -> None:
        """Write a job's new state to the journal. Ignores errors, such as a full disk, so that the jobs go on."""
        journal = self._journal
        if journal is None or self._is_closed:
            return
        with contextlib.suppress(StoreError):
            if journal.is_long:
                journal.rewrite(self._jobs.values())
            else:
                journal.keep(job)

    def move(self, number: int, to: str) -> ServerJob:
        """Move a waiting job among its client's jobs; `to` is "first", "up", "down" or "last".

        The new position is not saved: after a restart of the server, the jobs are in the order of their numbers.

        Raises: NotFound: no such job. UsageError: the job is not waiting, or `to` is invalid.
        """
        if to not in ("first", "up", "down", "last"):
            raise UsageError("`to` must be first, up, down or last")
        with self._changed:
            job = self._jobs.get(number)
            if job is None:
                raise NotFound(f"there is no job {number}", hint="`civman jobs` lists all jobs")
            if job.state is not JobState.QUEUED:
                raise UsageError(f"job {number} is {job.state}, but only a waiting job can be moved")
            line = self._waiting[job.kind in ENGINE_KINDS][job.client]
            place = line.index(job)
            line.remove(job)
            line.insert({"first": 0, "up": max(0, place - 1), "down": place + 1, "last": len(line)}[to], job)
        self.tell("job", job)
        return job

    def places(self) -> dict[int, int]:
        """Map the number of each waiting job to its position among its client's jobs, counted from 1."""
        with self._changed:
            lines = [line for lane in self._waiting.values() for line in lane.values()]
            return {job.number: place for line in lines for place, job in enumerate(line, 1)}

    def get(self, number: int) -> ServerJob | None:
        """Return the job with this number; None if the queue does not have it or has forgotten it."""
        return self._jobs.get(number)

    def all(self) -> list[ServerJob]:
        """Return all jobs that the queue remembers, in the order in which they were submitted."""
        with self._changed:
            return list(self._jobs.values())

    def write(self, job: ServerJob, stream: str, text: str) -> None:
        """Append text to the recorded output of a command."""
        if len(job.written) < _MOST_LINES:
            job.written.append((stream, text))
        self.tell("written", job)

    def wait(self, job: ServerJob, timeout: float | None = None) -> bool:
        """Wait until a job has ended or the queue is closed. Returns False on a timeout."""
        with self._changed:
            return self._changed.wait_for(lambda: job.is_over or self._is_closed, timeout)

    def close(self) -> None:
        """Close the queue: no more jobs start, and all waiting threads are woken."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def listen(self, listener: OnJob) -> Callable[[], None]:
        """Call `listener` on every change of a job. Returns a function that removes the listener."""
        self._listeners.add(listener)
        return lambda: self._listeners.discard(listener)

    def tell(self, what: str, job: ServerJob) -> None:
        """Call all listeners, passing on the kind of change (see `OnJob`) and the job."""
        for listener in tuple(self._listeners):
            listener(what, job)
