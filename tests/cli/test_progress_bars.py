"""Progress bars on terminals of several widths, and the progress of a whole job of images."""

import io
import re
import time
from collections.abc import Callable, Iterator

import pytest

from civman.cli import progress_bars
from civman.cli.job_progress import JobProgress, Share
from civman.cli.output import Output
from civman.domain.events import Event, Failed, Finished, OnEvent, Queued, Received, Started, Step, Verifying, Waiting
from civman.errors import Cause

NAME = "a-very-long-file-name-of-a-checkpoint-that-goes-on_v2.0-fp16.safetensors"
MOMENT_S = 0.3
"""Longer than work that shows no bar."""
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(width: int, monkeypatch: pytest.MonkeyPatch, run: Callable[[Output], None]) -> list[str]:
    """The lines that a terminal of this width is sent, without escape sequences."""
    for name, value in {"COLUMNS": str(width), "LINES": "40", "TERM": "xterm", "NO_COLOR": "1"}.items():
        monkeypatch.setenv(name, value)
    terminal = Terminal()
    run(Output(stderr=terminal))
    return [ESCAPES.sub("", line) for line in re.split(r"[\r\n]+", terminal.getvalue())]


def two_downloads(on_event: OnEvent) -> None:
    for key, total in (("a", 6_460_000_000), ("b", 912_300_000)):
        on_event(Queued(key, NAME, total))
    time.sleep(MOMENT_S)
    for key, total in (("a", 6_460_000_000), ("b", 912_300_000)):
        on_event(Started(key, NAME, total))
        for _ in range(3):
            on_event(Received(key, total // 4))
    on_event(Waiting("b", "CivitAI asks for fewer requests at the moment", 12))


@pytest.mark.parametrize("width", [60, 80, 100, 200])
def test_download_bars_fit_and_keep_bytes_and_time(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(output: Output) -> None:
        with progress_bars.downloading(output, 2) as on_event:
            two_downloads(on_event)

    lines = shown(width, monkeypatch, run)

    assert all(len(line) <= width for line in lines)
    assert any("4.84 GB/6.46 GB" in line and re.search(r"(\d:\d\d|--:--)\s*$", line) for line in lines)
    assert any(line.startswith("0 of 2 files") and "5.53 GB/7.37 GB" in line for line in lines)
    assert any("waiting 12 s" in line for line in lines)
    assert sum("fewer requests" in line for line in lines) == 1


def test_one_download_has_no_total(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(output: Output) -> None:
        with progress_bars.downloading(output) as on_event:
            on_event(Queued("a", NAME, 100))
            time.sleep(MOMENT_S)
            on_event(Started("a", NAME, 100))
            on_event(Received("a", 50))

    lines = shown(100, monkeypatch, run)

    assert any("50 B/100 B" in line for line in lines)
    assert not any("1 file" in line for line in lines)


@pytest.mark.parametrize("width", [60, 100])
def test_quick_work_shows_no_bar_at_all(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(output: Output) -> None:
        with progress_bars.reading(output) as on_event:
            on_event(Started("plan", NAME, 100))
            on_event(Verifying("plan", 100, 100))
        with progress_bars.downloading(output) as on_event:
            on_event(Finished("a", NAME, 100, was_present=True))

    assert "".join(shown(width, monkeypatch, run)) == ""


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_failure_is_left_to_the_error_that_follows(is_terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal() if is_terminal else io.StringIO()

    with progress_bars.downloading(Output(stderr=stream)) as on_event:
        on_event(Started("a", NAME, 100))
        time.sleep(MOMENT_S)
        on_event(Failed("a", NAME, Cause.HASH_MISMATCH, "the bytes are not what CivitAI declares"))

    assert "declares" not in stream.getvalue()


def steps(count: int, plans: int = 1, *, steps: int = 4, batch: int = 1, hires: bool = False) -> Iterator[Event]:
    for _ in range(plans):
        for first in range(1, count + 1, batch):
            for stage in ["first", "hires"][: 1 + hires]:
                for step in range(1, steps + 1):
                    yield Step("render", step, steps, first, min(batch, count - first + 1), count, stage)


@pytest.mark.parametrize(
    ("job", "events"),
    [
        ([Share(3)], list(steps(3))),
        ([Share(5)], list(steps(5, batch=2))),
        ([Share(2), Share(2), Share(2)], list(steps(2, 3))),
        ([Share(1)] * 6, list(steps(1, 6, steps=1))),
        ([Share(2, 0.2)], list(steps(2, hires=True))),
    ],
)
def test_a_job_progresses_evenly_from_nothing_to_all(job: list[Share], events: list[Step]) -> None:
    progress, found = JobProgress(job, called="prompt"), [0.0]

    for number, event in enumerate(events):
        progress.advance(event, number * 0.5)
        found.append(progress.completed)

    assert found == sorted(found)
    assert len(set(found)) == len(found)
    assert found[-1] == pytest.approx(1.0)
    if job[0].first_pass == 1.0 and len({event.pictures for event in events}) == 1:
        assert found == pytest.approx([number / len(events) for number in range(len(events) + 1)])


def test_speed_counts_recent_steps_of_one_pass_only() -> None:
    progress = JobProgress([Share(2)], called="prompt")
    for number, event in enumerate(steps(2)):
        progress.advance(event, number * 0.25 + (60 if event.first == 2 else 0))  # a minute of decoding between them

    assert progress.speed_words == "4.00 it/s"
    assert progress.words == "image 2 of 2"
    progress.advance(Step("render", 1, 4, 1, 1, 2), 100.0)
    assert progress.speed_words == ""


@pytest.mark.parametrize("width", [60, 80, 200])
def test_the_bar_of_a_job_fits_and_shows_speed_and_time(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(1000))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(clock)))

    def run(output: Output) -> None:
        with progress_bars.drawing(output, [Share(8)] * 2, called="cell") as on_event:
            for event in steps(8, 2):
                on_event(event)

    lines = shown(width, monkeypatch, run)

    assert all(len(line) <= width for line in lines)
    assert "0/100" not in "".join(lines)
    assert any(re.search(r"image 8 of 8, cell 2 of 2.* 100% .*it.* \d:\d\d", line) for line in lines)


@pytest.mark.parametrize(
    ("seconds", "words"), [(None, "--:--"), (9.9, "0:09"), (750, "12:30"), (11100, "3:05:00"), (9e6, "104 d")]
)
def test_remaining_time(seconds: float | None, words: str) -> None:
    assert progress_bars.remaining(seconds) == words


def test_layouts_fit_every_width() -> None:
    for width in range(50, 300):
        for numbers in (4, 17):
            text, bar = progress_bars.layout(width, numbers)
            assert text >= 10
            assert text + bar + (bar > 0) + numbers + progress_bars._REST + 2 <= width
