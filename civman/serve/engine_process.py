"""The process that renders: it runs one job after another and keeps their models loaded.

It is separate from the server, so that a crash or the system's out-of-memory killer ends one job instead of the server.
The server and this process exchange tuples through a pipe; the first element of a tuple names the kind of message.
"""

import io
import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from civman.domain.events import Event, Step
from civman.domain.json_values import error_value
from civman.errors import Cause, CivmanError, ExitCode, Interrupted
from civman.serve.hand_over import passed_environment

RunCommand = Callable[[Sequence[str]], int]
"""Runs a command line, writing to `sys.stdout` and `sys.stderr`, and returns its exit code."""
PREVIEW_SECONDS = 0.2
"""The minimum time in seconds between two previews of a render."""


def run_engine(pipe: Connection, library: str, budget_bytes: int, run_command: RunCommand) -> None:
    """Run the jobs that arrive through `pipe` until it is closed; this is the main function of the engine's process."""
    # ignore Ctrl-C in the server's terminal: the server stops this process itself
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["CIVMAN_LIBRARY"] = library
    from civman.diffusion.environment import choose_device  # torch
    from civman.rendering.warm_engines import WARM, WarmEngines

    engine = _EngineProcess(pipe, Path(library), run_command)
    engine.warm = WarmEngines(budget_bytes, engine.on_event)
    WARM.set(engine.warm)
    pipe.send(("ready", os.getpid(), str(choose_device())))
    engine.run()


class _EngineProcess:
    def __init__(self, pipe: Connection, library: Path, run_command: RunCommand) -> None:
        self._pipe, self._library, self._run_command = pipe, library, run_command
        self._send_lock = threading.Lock()
        self._jobs: queue.SimpleQueue[tuple[int, str, dict[str, Any]] | None] = queue.SimpleQueue()
        self._cancelled: set[int] = set()
        self._current = 0
        self._is_watched, self._shown_at = False, 0.0
        self._images, self._done = 0, 0
        """The number of images in the current job, and how many of them belong to finished plans."""
        self._last: tuple[int, str, int, int] | None = None
        self.warm: Any = None

    def run(self) -> None:
        threading.Thread(target=self._read, daemon=True).start()
        while (job := self._jobs.get()) is not None:
            number, kind, payload = job
            self._current, self._images, self._done, self._last = number, 0, 0, None
            try:
                done = self._command(payload) if kind == "command" else self._run(kind, payload)
                self._send(("done", number, done))
            except CivmanError as error:
                self._send(("failed", number, error_value(error)))
            except KeyboardInterrupt:
                self._send(("failed", number, error_value(Interrupted("stopped"))))
            except Exception as error:  # noqa: BLE001  # a bug ends the job, not the process with its models
                traceback.print_exc()
                wrong = CivmanError(f"civman has a bug: {type(error).__name__}: {error}", code=Cause.BUG)
                self._send(("failed", number, error_value(wrong)))
            self._current = 0
            self._send(("kept", self.warm.count, self.warm.needed_bytes))

    def _read(self) -> None:
        try:
            while True:
                message = self._pipe.recv()
                if message[0] == "job":
                    self._jobs.put(message[1:])
                elif message[0] == "cancel":
                    self._cancelled.add(message[1])
                elif message[0] == "watch":
                    self._is_watched = message[1]
        except (EOFError, OSError):
            os._exit(0)  # the server has ended, so nobody would receive the result

    def _send(self, message: tuple[Any, ...]) -> None:
        with self._send_lock:
            self._pipe.send(message)

    def _send_text(self, number: int, stream: str, text: str) -> None:
        self._send(("written", number, stream, text))

    def on_event(self, event: Event) -> None:
        """Report an event of the current render. Raises: KeyboardInterrupt: the render was cancelled."""
        if isinstance(event, Step):
            if self._last is not None and (event.first, event.stage, event.step) <= self._last[:3]:
                # the step number has not increased, so the job's next plan has begun: count the images of the finished
                # plan
                self._done += self._last[3]
            self._last = event.first, event.stage, event.step, event.count
            value = {
                "step": event.step, "steps": event.steps, "first": self._done + event.first,
                "pictures": event.pictures, "count": max(self._images, event.count), "stage": event.stage,
            }  # fmt: skip
            self._send(("step", self._current, value))
            self._show(event)
        if self._current in self._cancelled:
            raise KeyboardInterrupt

    def _show(self, step: Step) -> None:
        """Send a preview if a client wants previews and the last one was sent at least PREVIEW_SECONDS ago."""
        now = time.monotonic()
        if self._is_watched and step.preview is not None and now - self._shown_at >= PREVIEW_SECONDS:
            self._shown_at = now
            try:
                data = step.preview()
            except Exception:  # noqa: BLE001  # a render does not fail for want of a preview
                traceback.print_exc()
                return
            self._send(("preview", self._current, data))

    def _run(self, kind: str, payload: dict[str, Any]) -> Any:
        from civman.serve.engine_jobs import run_job

        return run_job(kind, self._library, payload, self._started)

    def _started(self, images: int, steps: int) -> None:
        """Report how much work the current job has. Raises: KeyboardInterrupt: the job was cancelled."""
        self._images, self._done, self._last = images, 0, None
        self._send(("plan", self._current, {"count": images, "steps": steps}))
        if self._current in self._cancelled:
            raise KeyboardInterrupt

    def _command(self, payload: dict[str, Any]) -> Any:
        with self._as_client(payload):
            command, *rest = payload["argv"]
            code = self._run_command([command, "--here", *rest])
        if self._current in self._cancelled and code != ExitCode.INTERRUPTED:
            # the command finished before the cancellation took effect, so it counts as done
            self._cancelled.discard(self._current)
        return {"exit_code": int(code)}

    @contextmanager
    def _as_client(self, payload: dict[str, Any]) -> Iterator[None]:
        """Run a command with the client's working folder and environment, and send its output to the client."""
        number, before = self._current, dict(os.environ)
        streams, folder = (sys.stdout, sys.stderr), Path.cwd()
        for name in passed_environment():
            del os.environ[name]
        os.environ.update(payload["environment"])
        os.environ["CIVMAN_LIBRARY"] = str(self._library)
        os.chdir(payload["folder"])
        for name in ("stdout", "stderr"):
            raw = _SentStream(partial(self._send_text, number, name))
            setattr(sys, name, _SentText(raw, is_terminal=bool(payload["terminals"][name])))
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            sys.stdout, sys.stderr = streams
            os.chdir(folder)
            os.environ.clear()
            os.environ.update(before)


class _SentStream(io.RawIOBase):
    """A binary stream whose bytes are decoded as UTF-8 and sent to the server."""

    def __init__(self, send: Callable[[str], None]) -> None:
        self._send = send

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._send(bytes(data).decode("utf-8", "replace"))
        return len(data)


class _SentText(io.TextIOWrapper):
    """A text stream for a command's output; it reports itself as a terminal if the client's stream is one."""

    def __init__(self, raw: _SentStream, *, is_terminal: bool) -> None:
        super().__init__(io.BufferedWriter(raw), encoding="utf-8", errors="replace", write_through=False)
        self._is_terminal = is_terminal

    def isatty(self) -> bool:
        return self._is_terminal

    def write(self, text: str) -> int:
        count = super().write(text)
        if self._is_terminal or "\n" in text:
            self.flush()
        return count
