"""Stores the queue on disk, so that a restarted server continues it: a JSON line for each state of each job.

The payload of a job, without which it cannot be run again, is stored only if no client waits for the job on an open
connection.
"""

import json
import os
import secrets
import threading
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from civman.domain.json_values import error_value
from civman.errors import CannotRender, Cause, StoreError
from civman.serve.jobs import JobKind, JobState, ServerJob
from civman.store.partial import store_error

NAME = "serve-jobs.jsonl"
_VERSION = 1
_SPARE_LINES = 5_000


class JobJournal:
    """The file that stores a queue's jobs. Safe to use from several threads."""

    def __init__(self, library: Path) -> None:
        self._path = library / NAME
        self._lock = threading.Lock()
        self._lines = 0
        self._file: Any = None

    def load(self) -> list[ServerJob]:
        """Read the previous server's jobs, in the order of their numbers.

        Jobs that cannot be continued are marked as failed. Raises: StoreError: the file is damaged, or was written by a
        later version of civman.
        """
        found: dict[int, ServerJob] = {}
        try:
            lines = self._path.read_bytes().split(b"\n")
        except FileNotFoundError:
            return []
        except OSError as error:
            raise store_error(error, self._path) from error
        # skip the text after the last line end: it is incomplete if the server was killed while writing
        for number, line in enumerate(lines[:-1], 1):
            try:
                value = json.loads(line)
                if value.get("version", _VERSION) != _VERSION:
                    raise ValueError(f"version {value['version']}")  # noqa: TRY301  # told below
                if "id" in value:
                    found[value["id"]] = _job_of(value)
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                raise StoreError(
                    f"the list of jobs in `{self._path}` cannot be read at line {number}: {error}",
                    hint="delete the file to start without the jobs in it",
                ) from error
        return [_left(found[number]) for number in sorted(found)]

    def rewrite(self, jobs: Iterable[ServerJob]) -> None:
        """Replace the file's contents with the current state of these jobs. Raises: StoreError."""
        with self._lock:
            self._close()
            partial = self._path.with_name(f".{NAME}.{secrets.token_hex(4)}")
            try:
                descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
                with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                    file.write(json.dumps({"version": _VERSION}) + "\n")
                    self._lines = 1
                    for job in jobs:
                        file.write(_line(job))
                        self._lines += 1
                    file.flush()
                    os.fsync(file.fileno())
                partial.replace(self._path)
                self._file = self._path.open("a", encoding="utf-8")
            except OSError as error:
                raise store_error(error, self._path) from error

    def keep(self, job: ServerJob) -> None:
        """Append the current state of a job, so that it survives if this process is killed. Raises: StoreError."""
        with self._lock:
            try:
                if self._file is None:
                    raise FileNotFoundError(2, "the list of jobs is closed")  # told below
                self._file.write(_line(job))
                self._file.flush()
                self._lines += 1
            except OSError as error:
                raise store_error(error, self._path) from error

    @property
    def is_long(self) -> bool:
        """Whether the file has so many lines, most of them outdated, that it should be rewritten."""
        return self._lines > _SPARE_LINES

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._close()

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def _line(job: ServerJob) -> str:
    kept = {**job.value(), "lasts": job.lasts, "payload": job.payload if job.lasts else {}}
    return json.dumps(kept, default=str) + "\n"


def _job_of(value: dict[str, Any]) -> ServerJob:
    job = ServerJob(
        value["id"], JobKind(value["kind"]), value["client"], value["title"], value["payload"],
        datetime.fromisoformat(value["created_at"]), lasts=value["lasts"],
    )  # fmt: skip
    job.state, job.is_cancelling = JobState(value["state"]), value["is_cancelling"]
    job.started_at, job.ended_at = (
        datetime.fromisoformat(value[name]) if value[name] else None for name in ("started_at", "ended_at")
    )
    job.progress, job.result, job.error = value["progress"], value["result"], value["error"]
    return job


def _left(job: ServerJob) -> ServerJob:
    """Update an unfinished job after its server ended: it is queued again, cancelled or failed."""
    if job.is_over:
        return job
    was_running = job.state is JobState.RUNNING
    job.ended_at = datetime.now(UTC)
    if job.is_cancelling:
        job.state = JobState.CANCELLED
    elif job.lasts and (not was_running or job.kind is JobKind.DOWNLOAD):
        # run the job again, even if it was running: a download resumes where it stopped
        job.state, job.started_at, job.ended_at, job.progress = JobState.QUEUED, None, None, {}
    else:
        job.state = JobState.FAILED
        ended = "the server ended while this job was running"
        if not was_running:
            ended = "the server ended before this job began"
        gone = "" if job.lasts else ", and the client that waited for the job is no longer connected"
        job.error = error_value(CannotRender(f"{ended}{gone}", hint="start the job again", code=Cause.WORKER_LOST))
    return job
