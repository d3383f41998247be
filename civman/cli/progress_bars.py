"""Show the library's progress events as bars on a terminal, or as plain lines elsewhere."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from civman.cli.output import Output, clean, size
from civman.domain.events import (
    Event,
    Failed,
    Finished,
    Notice,
    OnEvent,
    Received,
    Restarted,
    Started,
    Step,
    Verifying,
    Waiting,
)

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_LEFT = "TimeRemainingColumn"
_BYTES = ("DownloadColumn", "TransferSpeedColumn")
_BYTES_LEFT = (*_BYTES, _LEFT)
_STEPS_LEFT = ("MofNCompleteColumn", _LEFT)


@contextmanager
def downloading(output: Output) -> Iterator[OnEvent]:
    """Show the progress of downloads while the context is active; the listener may be called from several threads."""
    if not output.is_live:
        yield _Lines(output).on_event
        return
    from rich.progress import TextColumn  # importing this takes 0.06 s, and only a terminal needs it

    with _progress(output, "{task.fields[label]}", *_BYTES_LEFT, transient=False) as progress:
        progress.columns = (*progress.columns, TextColumn("{task.fields[state]}"))
        yield _Bars(progress).on_event


@contextmanager
def reading(output: Output) -> Iterator[OnEvent]:
    """Show a progress bar while stored files are read in turn; without a terminal, only notices are printed."""
    if not output.is_live:
        yield _notices(output)
        return
    with _progress(output, "{task.description}", *_BYTES) as progress:
        task = progress.add_task("")

        def on_event(event: Event) -> None:
            match event:
                case Started(_, name, total, _):
                    progress.reset(task, description=_short(name), total=total)
                case Verifying(_, done, _):
                    progress.update(task, completed=done)
                case _:
                    _print_notice(progress, event)

        yield on_event


@contextmanager
def verifying(output: Output) -> Iterator[OnEvent]:
    """Show one progress bar while several threads read files; without a terminal, only notices are printed."""
    if not output.is_live:
        yield _notices(output)
        return
    from civman.manage.verify import WHOLE

    lock, read = threading.Lock(), dict[str, int]()
    with _progress(output, "{task.description}", *_BYTES_LEFT) as progress:
        task = progress.add_task("looking", total=None)

        def on_event(event: Event) -> None:
            with lock:
                match event:
                    case Started(key, name, total, _) if key == WHOLE:
                        progress.update(task, description=f"reading {name}", total=total)
                    case Verifying(key, count, _):
                        progress.advance(task, count - read.get(key, 0))
                        read[key] = count
                    case _:
                        _print_notice(progress, event)

        yield on_event


@contextmanager
def drawing(output: Output, plans: int, *, called: str = "prompt") -> Iterator[OnEvent]:
    """Show the sampling steps while plans are rendered; without a terminal, only notices are printed."""
    if not output.is_live:
        yield _notices(output)
        return
    with _progress(output, "{task.description}", *_STEPS_LEFT) as progress:
        task = progress.add_task("loading the model", total=None)
        begun = 0

        def on_event(event: Event) -> None:
            nonlocal begun
            match event:
                case Step(step=step, steps=steps, first=first, pictures=pictures, count=count, stage=stage):
                    begun += step == 1 and first == 1 and stage == "first"
                    last = first + pictures - 1
                    which = f"{first} to {last}" if pictures > 1 else str(first)
                    words = [f"picture {which} of {count}"] + ["second pass"] * (stage == "hires")
                    words += [f"{called} {begun} of {plans}"] * (plans > 1)
                    progress.update(task, description=", ".join(words), completed=step, total=steps)
                case _:
                    _print_notice(progress, event)

        yield on_event


def _notices(output: Output) -> OnEvent:
    """A listener for output without a terminal: prints notices and ignores other events."""
    return lambda event: output.notice(event.message) if isinstance(event, Notice) else None


def _print_notice(progress: "Progress", event: Event) -> None:
    if isinstance(event, Notice):
        progress.console.print(f"Note: {clean(event.message)}")


def _progress(output: Output, text: str, *columns: str, transient: bool = True) -> "Progress":
    """A progress bar after the text `text` and before the rich columns named `columns`."""
    from rich import progress as rich  # importing this takes 0.06 s, and only a terminal needs it

    after = [rich.TimeRemainingColumn(compact=True) if name == _LEFT else getattr(rich, name)() for name in columns]
    return rich.Progress(
        rich.TextColumn(text), rich.BarColumn(bar_width=None), *after,
        console=output.console(to_stderr=True), transient=transient, speed_estimate_period=30 if transient else 10,
    )  # fmt: skip


class _Bars:
    def __init__(self, progress: "Progress") -> None:
        self._progress = progress
        self._lock = threading.Lock()
        self._tasks: dict[str, TaskID] = {}
        self._received: dict[str, int] = {}

    def on_event(self, event: Event) -> None:
        with self._lock:
            self._show(event)

    def _show(self, event: Event) -> None:  # noqa: C901  # one short case for each event
        progress = self._progress
        match event:
            case Started(key, name, total, held):
                self._received[key] = held
                if key not in self._tasks:
                    self._tasks[key] = progress.add_task("", label=_short(name), state="", total=total)
                progress.update(self._tasks[key], completed=held, total=total)
                if held:
                    progress.console.print(f"{clean(name)}: going on from {size(held)}")
            case Received(key, count):
                self._received[key] = self._received.get(key, 0) + count
                progress.update(self._tasks[key], completed=self._received[key], state="")
            case Waiting(key, reason, seconds):
                words = f"{reason}, {seconds:.0f} s" if seconds else reason
                progress.update(self._tasks[key], state=clean(words))
            case Restarted(key, reason):
                progress.console.print(f"starting over: {clean(reason)}")
                if key in self._tasks:
                    self._received[key] = 0
                    progress.update(self._tasks[key], completed=0)
            case Verifying(key, done, total):
                if key in self._tasks and self._received.get(key, 0) >= total:
                    progress.update(self._tasks[key], state="verified" if done >= total else "verifying")
            case Finished(key, name, total, was_present):
                if key not in self._tasks:
                    self._tasks[key] = progress.add_task("", label=_short(name), state="", total=total)
                state = "was here" if was_present else "verified"
                progress.update(self._tasks[key], completed=total, total=total, state=state)
            case Failed(key, name, _, message):
                if key in self._tasks:
                    progress.update(self._tasks[key], state="failed")
                progress.console.print(f"{clean(name)}: {clean(message)}", style="red")
            case Notice(_, message):
                progress.console.print(f"Note: {clean(message)}")


class _Lines:
    """Progress for logs and pipes: a line when a download starts or ends, and the state of all every ten seconds."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._lock = threading.Lock()
        self._names: dict[str, tuple[str, int | None]] = {}
        self._received: dict[str, int] = {}
        self._told_at = time.monotonic()

    def on_event(self, event: Event) -> None:
        with self._lock:
            match event:
                case Started(key, name, total, held):
                    if key not in self._names or held:
                        start = f", {size(held)} are here already" if held else ""
                        self._output.notice(f"{name}: {size(total)}{start}")
                    self._names[key], self._received[key] = (name, total), held
                case Received(key, count):
                    self._received[key] = self._received.get(key, 0) + count
                    if time.monotonic() - self._told_at > 10:
                        self._told_at = time.monotonic()
                        for key, (name, total) in self._names.items():
                            self._output.notice(f"{name}: {size(self._received[key])} of {size(total)}")
                case Waiting(_, reason, seconds):
                    self._output.notice(f"waiting: {reason}" + (f" ({seconds:.0f} s)" if seconds else ""))
                case Restarted(_, reason):
                    self._output.notice(f"starting over: {reason}")
                case Finished(key, name, total, was_present):
                    self._names.pop(key, None)
                    self._output.notice(f"{name}: {'was here' if was_present else 'verified'}, {size(total)}")
                case Failed(key, name, code, message):
                    self._names.pop(key, None)
                    self._output.notice(f"{name}: failed [{code}]: {message}")
                case Notice(_, message):
                    self._output.notice(message)
                case Verifying():
                    pass


def _short(name: str) -> str:
    name = clean(name)
    return name if len(name) <= 36 else f"{name[:24]}…{name[-11:]}"
