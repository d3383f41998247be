"""What the output sink does on a terminal and elsewhere."""

import io

import pytest

from civman.cli.output import Output
from civman.errors import UsageError

MESSAGE = "`a/very/long/path/that/has/no/spaces/in/it/model.safetensors` is not a safetensors file: it looks like HTML"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def failed(stream: io.StringIO) -> list[str]:
    Output(stderr=stream).failure(UsageError(MESSAGE, hint="download it again with `civman download 4384@128713`"))
    return stream.getvalue().splitlines()


@pytest.mark.parametrize("width", [20, 60, 80, 100, 200])
def test_messages_on_a_terminal_break_between_words(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))

    lines = failed(Terminal())

    whole = [*f"Error [usage]: {MESSAGE}".split(), "Hint:"]
    assert " ".join(lines).split()[: len(whole)] == whole
    assert all(len(line) <= width or " " not in line for line in lines)


def test_messages_elsewhere_stay_on_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")

    assert failed(io.StringIO())[0] == f"Error [usage]: {MESSAGE}"
