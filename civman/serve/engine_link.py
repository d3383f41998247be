"""The server's connection to the engine's process: starts the process, sends it jobs, and restarts it after a crash."""

import contextlib
import multiprocessing
import threading
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from civman.domain.json_values import error_value
from civman.errors import CannotRender, Cause, ExitCode
from civman.serve.engine_process import RunCommand, run_engine
from civman.serve.jobs import JobQueue, JobState, ServerJob


class EngineLink:
    """Sends the queue's render jobs to the engine's process, in a separate thread."""

    def __init__(self, jobs: JobQueue, library: Path, budget_bytes: int, run_command: RunCommand) -> None:
        """`budget_bytes`: the maximum memory in bytes for all loaded models together."""
        self._jobs, self._library, self._run_command = jobs, library, run_command
        self.budget_bytes = budget_bytes
        self._process: BaseProcess | None = None
        self._pipe: Any = None  # a Connection or, on Windows, a PipeConnection
        self._lock, self._start_lock = threading.Lock(), threading.Lock()
        self._device: str | None = None
        self._is_closed = False
        self._current: ServerJob | None = None
        self.kept = (0, 0)
        """How many models are loaded, and the approximate memory in bytes that they need."""
        self.watchers = 0
        """How many clients want previews of the image being rendered."""
        self._watched_until, self._is_told_watched = 0.0, False
        self._thread = threading.Thread(target=self._run, name="engine-link", daemon=True)
        self._unlisten = jobs.listen(self._heard)

    @property
    def pid(self) -> int | None:
        """The id of the engine's process; None if the process is not running."""
        process = self._process
        return process.pid if process is not None and process.is_alive() else None

    @property
    def current(self) -> ServerJob | None:
        """The job that the engine is running; None if it is idle."""
        return self._current

    def watch_for(self, seconds: float) -> None:
        """Request previews for the next `seconds`, for a client that polls instead of listening to a stream."""
        self._watched_until = time.monotonic() + seconds

    def _tell_watched(self, pipe: Any) -> None:
        """Tell the engine's process whether any client wants previews, if that has changed since the last time."""
        is_watched = self.watchers > 0 or time.monotonic() < self._watched_until
        if is_watched != self._is_told_watched:
            self._is_told_watched = is_watched
            pipe.send(("watch", is_watched))

    def start(self, *, at_once: bool = False) -> None:
        """Start running the queue's jobs. `at_once`: start the engine's process now instead of with the first job."""
        self._thread.start()
        if at_once:
            threading.Thread(target=self.device, name="engine-start", daemon=True).start()

    def device(self) -> str | None:
        """Return the engine's default device, after starting its process if needed; None if it cannot be started."""
        if self._device is None and not self._is_closed:
            with contextlib.suppress(EOFError, OSError):
                self._ensure()
        return self._device

    def close(self) -> None:
        """Stop the engine's process, and the thread that sends it jobs."""
        self._is_closed = True
        self._unlisten()
        self._end_process()
        if self._thread.ident is not None:
            self._thread.join(5)

    def unload(self) -> bool:
        """Stop the engine's process to free its memory, unless it is running a job.

        Returns whether the process is stopped.
        """
        with self._lock:
            if self._current is not None:
                return False
        self._end_process()
        return True

    def _end_process(self) -> None:
        process, pipe = self._process, self._pipe
        self._process = self._pipe = None
        self.kept = (0, 0)
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()
        if process is not None:
            process.terminate()
            process.join(3)
            if process.is_alive():
                process.kill()
                process.join()

    def _ensure(self) -> Any:
        """Start the engine's process if it is not running, wait until it is ready, and return the pipe to it.

        Raises: EOFError, OSError: the process ended while it started.
        """
        with self._start_lock:
            return self._started()

    def _started(self) -> Any:
        if self._process is not None and self._process.is_alive() and self._pipe is not None:
            return self._pipe
        self._end_process()
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(
            target=run_engine, args=(theirs, str(self._library), self.budget_bytes, self._run_command),
            name="civman-engine", daemon=True,
        )  # fmt: skip
        process.start()
        theirs.close()
        self._process, self._pipe, self._is_told_watched = process, ours, False
        _, _, self._device = ours.recv()  # the engine's process sends its device once it has loaded torch
        return ours

    def _heard(self, what: str, job: ServerJob) -> None:
        pipe = self._pipe
        if what == "job" and job is self._current and job.is_cancelling and not job.is_over and pipe is not None:
            with contextlib.suppress(OSError):
                pipe.send(("cancel", job.number))

    def _run(self) -> None:
        while (job := self._jobs.take(engine=True)) is not None:
            try:
                pipe = self._ensure()
                with self._lock:
                    self._current = job
                self._tell_watched(pipe)
                pipe.send(("job", job.number, job.kind.value, job.payload))
                if job.is_cancelling:
                    pipe.send(("cancel", job.number))
                while not job.is_over:
                    self._handle(job, pipe.recv())
                    self._tell_watched(pipe)
            except (EOFError, OSError) as error:
                self._lost(job, error)
            finally:
                self._current = None

    def _lost(self, job: ServerJob, error: Exception) -> None:
        process = self._process
        if process is not None:
            process.join(2)
        code = process.exitcode if process is not None else None
        reason = f"killed by signal {-code}" if code is not None and code < 0 else f"exit code {code}"
        if self._is_closed:
            reason = "the server stopped"
        wrong = CannotRender(
            f"the rendering process ended: {reason}", code=Cause.WORKER_LOST,
            hint="the next job starts a new process; if the system killed the old one because memory ran out, try a "
            "smaller size",
        )  # fmt: skip
        del error
        self._end_process()
        self._jobs.end(job, JobState.FAILED, error=error_value(wrong))

    def _handle(self, job: ServerJob, message: tuple[Any, ...]) -> None:
        what, rest = message[0], message[1:]
        if what == "kept":
            self.kept = (rest[0], rest[1])
        if not rest or what == "kept" or rest[0] != job.number:
            return
        if what in ("step", "plan"):
            job.progress = {**job.progress, **rest[1]}
            self._jobs.tell("step", job)
        elif what == "preview":
            job.preview = rest[1]
            self._jobs.tell("preview", job)
        elif what == "written":
            self._jobs.write(job, rest[1], rest[2])
        elif what == "done":
            stopped = job.is_cancelling and rest[1].get("exit_code") == ExitCode.INTERRUPTED
            self._jobs.end(job, JobState.CANCELLED if stopped else JobState.DONE, result=rest[1])
        elif what == "failed":
            stopped = job.is_cancelling and rest[1]["exit_code"] == ExitCode.INTERRUPTED
            self._jobs.end(job, JobState.CANCELLED if stopped else JobState.FAILED, error=rest[1])
