"""Show the library's progress events as bars on a terminal, or as plain lines elsewhere.

A bar appears only if the work takes longer than 0.25 s, and disappears when the work is done. It fits the width of the
terminal: the description is shortened first, and the remaining time is always shown.
"""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from civman.cli.job_progress import JobProgress, Share
from civman.cli.output import Output, clean, counted, size
from civman.domain.events import (
    Event,
    Failed,
    Finished,
    Notice,
    OnEvent,
    Queued,
    Received,
    Restarted,
    Started,
    Step,
    Verifying,
    Waiting,
)

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn, Task, TaskID

_MOMENT_S = 0.25
"""A bar is shown only for work that takes longer than this many seconds."""
_LINES_EVERY_S = 10.0
_TEXT, _BAR, _NUMBERS, _REST = 36, 40, 17, 19
"""Widths of the columns in cells.

The text and the bar have a maximum width. The numbers and the rest (speed and remaining time) have a fixed width.
"""
_LEAST_TEXT = 10


@contextmanager
def downloading(output: Output, files: int = 1) -> Iterator[OnEvent]:
    """Show a progress bar for each download and, if there is more than one, a total; `files`: how many are expected.

    The listener may be called from several threads.
    """
    if not output.is_live:
        yield _Lines(output).on_event
        return
    with _display(output, _download_columns) as display:
        yield _Bars(display, files).on_event


@contextmanager
def reading(output: Output) -> Iterator[OnEvent]:
    """Show a progress bar while stored files are read one by one; without a terminal, only notices are printed."""
    if not output.is_live:
        yield _notices(output)
        return
    with _display(output, _download_columns) as display:
        progress = display.progress
        task = progress.add_task("", total=None)

        def on_event(event: Event) -> None:
            match event:
                case Started(_, name, total, _):
                    progress.reset(task, description=clean(name), total=total)
                case Verifying(_, done, _, name):
                    display.show_soon()
                    progress.update(task, completed=done)
                    if name:
                        progress.update(task, description=clean(name))
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
    with _display(output, _download_columns) as display:
        progress = display.progress
        task = progress.add_task("", total=None)

        def on_event(event: Event) -> None:
            with lock:
                match event:
                    case Started(key, name, total, _) if key == WHOLE:
                        progress.update(task, description=f"reading {name}", total=total)
                    case Verifying(key, count, _):
                        display.show_soon()
                        progress.advance(task, count - read.get(key, 0))
                        read[key] = count
                    case _:
                        _print_notice(progress, event)

        yield on_event


@contextmanager
def drawing(output: Output, job: Sequence[Share], *, called: str = "prompt") -> Iterator[OnEvent]:
    """Show the finished fraction of a job, the steps per second and the remaining time.

    `job`: the work of each plan, in order; `called`: the word for a plan, which is displayed if there are several.
    Without a terminal, only notices are printed.
    """
    if not output.is_live:
        yield _notices(output)
        return
    with _display(output, _drawing_columns) as display:
        progress = display.progress
        task = progress.add_task("loading the model", total=None, speed="")
        display.show()
        done = JobProgress(job, called=called)

        def on_event(event: Event) -> None:
            match event:
                case Step():
                    done.advance(event, time.monotonic())
                    progress.update(
                        task, description=done.words, completed=done.completed, total=1.0, speed=done.speed_words
                    )
                case _:
                    _print_notice(progress, event)

        yield on_event


@contextmanager
def upscaling(output: Output, images: int) -> Iterator[OnEvent]:
    """Show how many tiles of all images are upscaled; without a terminal, only notices are printed."""
    if not output.is_live:
        yield _notices(output)
        return
    with _display(output, _drawing_columns) as display:
        progress = display.progress
        task = progress.add_task("loading the model", total=None, speed="")
        display.show()

        def on_event(event: Event) -> None:
            match event:
                case Step():
                    which = f"image {event.first} of {images}, " if images > 1 else ""
                    done = (event.first - 1 + event.step / event.steps) / images
                    progress.update(
                        task, description=f"{which}tile {event.step} of {event.steps}", completed=done, total=1.0
                    )
                case _:
                    _print_notice(progress, event)

        yield on_event


def _notices(output: Output) -> OnEvent:
    """Return a listener for output without a terminal. It prints notices and ignores other events."""
    return lambda event: output.notice(event.message) if isinstance(event, Notice) else None


def _print_notice(progress: "Progress", event: Event) -> None:
    if isinstance(event, Notice):
        progress.console.print(f"Note: {clean(event.message)}")


class _Display:
    """A rich progress display that stays invisible if the work ends within a moment."""

    def __init__(self, progress: "Progress") -> None:
        self.progress = progress
        self._is_shown = False
        self._begun: float | None = None

    def show(self) -> None:
        """Make the bars visible."""
        if not self._is_shown:
            self._is_shown = True
            self.progress.start()

    def show_soon(self) -> None:
        """Make the bars visible if at least 0.25 s have passed since the first call."""
        now = time.monotonic()
        self._begun = now if self._begun is None else self._begun
        if now - self._begun >= _MOMENT_S:
            self.show()

    def hide(self) -> None:
        """Remove the bars from the terminal."""
        if self._is_shown:
            self.progress.stop()


@contextmanager
def _display(output: Output, columns: Any) -> Iterator[_Display]:
    """Create a progress display for stderr; `columns` returns its columns for the width of the terminal."""
    from rich.progress import Progress  # the import takes 0.06 s, and only a terminal needs it

    console = output.console(to_stderr=True)
    display = _Display(
        Progress(*columns(console.width), console=console, transient=True, speed_estimate_period=30)
    )  # fmt: skip
    try:
        yield display
    finally:
        display.hide()


def _download_columns(width: int) -> "Sequence[ProgressColumn]":
    """Create the columns name, bar, bytes, speed and remaining time, which together are `width` cells wide.

    While a download is waiting or being verified, a word for this state replaces the speed and the remaining time.
    """

    def numbers(task: "Task") -> str:
        if task.total is None:
            return size(int(task.completed)) if task.completed else ""
        return f"{size(int(task.completed))}/{size(int(task.total))}"

    def rest(task: "Task") -> str:
        speed = f"{size(int(task.speed))}/s" if task.speed else ""
        return str(task.fields.get("state") or f"{speed:>10} {remaining(task.time_remaining)}")

    return _columns(width, numbers, rest)


def _drawing_columns(width: int) -> "Sequence[ProgressColumn]":
    """Create the columns description, bar, percentage, steps per second and remaining time, in `width` cells."""

    def rest(task: "Task") -> str:
        left = remaining(task.time_remaining) if task.total else ""
        return f"{task.fields.get('speed') or '':>10} {left}"

    return _columns(width, lambda task: f"{task.percentage:3.0f}%" if task.total else "", rest, numbers_width=4)


def remaining(seconds: float | None) -> str:
    """Format a remaining time in at most 7 characters: "0:09", "12:30", "3:05:00"; "--:--" if unknown."""
    if seconds is None:
        return "--:--"
    whole = max(0, int(seconds))
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    if hours >= 100:
        return f"{hours // 24} d"
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _columns(width: int, numbers: Any, rest: Any, *, numbers_width: int = _NUMBERS) -> "Sequence[ProgressColumn]":
    """Create four columns that together fit in `width`; the bar is left out if it would be shorter than 8 cells."""
    from rich.progress import BarColumn, ProgressColumn
    from rich.table import Column
    from rich.text import Text

    class Words(ProgressColumn):
        def __init__(self, words: Any, cells: int) -> None:
            super().__init__(Column(no_wrap=True, width=cells, overflow="ellipsis"))
            self._words = words

        def render(self, task: "Task") -> Text:
            return Text(str(self._words(task)), overflow="ellipsis")

    text, bar = layout(width, numbers_width)
    name = Words(lambda task: _shortened(task.description, text), text)
    bars = [BarColumn(bar_width=bar)] if bar else []
    return [name, *bars, Words(numbers, numbers_width), Words(rest, _REST)]


def layout(width: int, numbers_width: int) -> tuple[int, int]:
    """Compute the widths of text and bar for a line of `width` cells; a bar of width 0 is left out."""
    room = width - numbers_width - _REST - 3
    text = min(_TEXT, room - 9)
    if text < 24 and room >= _LEAST_TEXT:
        return min(_TEXT, room + 1), 0
    return max(text, _LEAST_TEXT), min(_BAR, max(room - max(text, _LEAST_TEXT), 0))


def _shortened(text: str, cells: int) -> str:
    """Shorten the text to `cells` characters by omitting its middle: names of similar files differ at their ends."""
    if len(text) <= cells:
        return text
    end = min(cells // 3, 11)
    return f"{text[: cells - end - 1]}…{text[len(text) - end :]}"


class _Bars:
    """A progress bar for each download. With several downloads, the first line shows the total of all."""

    def __init__(self, display: _Display, files: int) -> None:
        self._display = display
        self._progress = display.progress
        self._lock = threading.Lock()
        self._files = files
        self._total = self._progress.add_task("", total=None, visible=False)
        self._tasks: dict[str, TaskID] = {}
        self._received: dict[str, int] = {}
        self._sizes: dict[str, int | None] = {}
        self._finished: set[str] = set()

    def on_event(self, event: Event) -> None:
        with self._lock:
            self._show(event)
            self._show_total()
            self._display.show_soon()

    def _show_total(self) -> None:
        files, known = max(self._files, len(self._sizes)), self._sizes.values()
        if files < 2:
            return
        total = None if None in known or len(self._sizes) < files else sum(each or 0 for each in known)
        self._progress.update(
            self._total, description=f"{len(self._finished)} of {counted(files, 'file')}", visible=True,
            completed=sum(self._received.values()), total=total,
        )  # fmt: skip

    def _show(self, event: Event) -> None:  # noqa: C901  # one short case for each event
        progress = self._progress
        match event:
            case Queued(key, _, total):
                self._sizes[key] = total
            case Started(key, name, total, held):
                self._received[key], self._sizes[key] = held, total
                if key not in self._tasks:
                    self._tasks[key] = progress.add_task(clean(name), state="", total=total)
                progress.update(self._tasks[key], completed=held, total=total)
                if held:
                    progress.console.print(f"{clean(name)}: continuing from {size(held)}")
            case Received(key, count):
                self._received[key] = self._received.get(key, 0) + count
                progress.update(self._tasks[key], completed=self._received[key], state="")
            case Waiting(key, reason, seconds):
                self._wait(key, reason, seconds)
            case Restarted(key, reason):
                progress.console.print(f"starting over: {clean(reason)}")
                if key in self._tasks:
                    self._received[key] = 0
                    progress.update(self._tasks[key], completed=0)
            case Verifying(key, done, total):
                if key in self._tasks and self._received.get(key, 0) >= total:
                    progress.update(self._tasks[key], state="verified" if done >= total else "verifying")
            case Finished(key, _, total, was_present):
                self._received[key] = self._sizes[key] = total
                self._end(key, "stored already" if was_present else "verified")
            case Failed(key):  # print nothing: the error itself is printed once, at the end
                self._sizes[key] = self._received.get(key, 0)
                self._end(key, "failed")
            case Notice(_, message):
                progress.console.print(f"Note: {clean(message)}")

    def _wait(self, key: str, reason: str, seconds: float | None) -> None:
        state = f"waiting {seconds:.0f} s" if seconds else "waiting"
        task = next((each for each in self._progress.tasks if each.id == self._tasks.get(key)), None)
        if task is None or not str(task.fields.get("state")).startswith("waiting"):
            name = f"{task.description}: " if task is not None else ""
            self._progress.console.print(f"{name}waiting: {clean(reason)}")
        if task is not None:
            self._progress.update(task.id, state=state)

    def _end(self, key: str, state: str) -> None:
        self._finished.add(key)
        if key in self._tasks:
            self._progress.update(self._tasks[key], completed=self._received.get(key, 0), state=state)


class _Lines:
    """Progress for logs and pipes: lines when a download starts or ends, and every ten seconds for all downloads."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._lock = threading.Lock()
        self._names: dict[str, tuple[str, int | None]] = {}
        self._received: dict[str, int] = {}
        self._written_at = time.monotonic()

    def on_event(self, event: Event) -> None:
        with self._lock:
            match event:
                case Started(key, name, total, held):
                    if key not in self._names or held:
                        start = f", {size(held)} already received" if held else ""
                        self._output.notice(f"{name}: started, {size(total)}{start}")
                    self._names[key], self._received[key] = (name, total), held
                case Received(key, count):
                    self._received[key] = self._received.get(key, 0) + count
                    if time.monotonic() - self._written_at > _LINES_EVERY_S:
                        self._written_at = time.monotonic()
                        for key, (name, total) in self._names.items():
                            self._output.notice(f"{name}: {size(self._received[key])} of {size(total)}")
                case Waiting(_, reason, seconds):
                    self._output.notice(f"waiting: {reason}" + (f" ({seconds:.0f} s)" if seconds else ""))
                case Restarted(_, reason):
                    self._output.notice(f"starting over: {reason}")
                case Finished(key, name, total, was_present):
                    self._names.pop(key, None)
                    self._output.notice(f"{name}: {'stored already' if was_present else 'verified'}, {size(total)}")
                case Failed(key):  # print nothing: the error itself is printed once, at the end
                    self._names.pop(key, None)
                case Notice(_, message):
                    self._output.notice(message)
                case Queued() | Verifying():
                    pass
