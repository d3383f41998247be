"""The only module that writes output: results go to stdout, everything else to stderr.

There are three modes. The default is text for people, with colours on a terminal. `--json` writes a single object to
stdout, `{"civman": 1, "kind": …}`, also for errors; a few commands write one object per line instead. `--quiet`
writes one id or path per line.
"""

import dataclasses
import json
import os
import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, TextIO

from civman.domain.json_values import error_value as error_value  # re-exported for the commands
from civman.domain.json_values import plain as plain
from civman.domain.plurals import counted as counted

if TYPE_CHECKING:
    from rich.console import Console

    from civman.errors import CivmanError

JSON_SHAPE = 1
"""The version of the JSON output. It increases when a field is removed or changes its meaning, not for new fields."""


@dataclasses.dataclass(frozen=True, slots=True)
class Result:
    """The result of a command, in each output mode.

    `error` is raised after the result is shown, if a part of the command failed.
    """

    kind: str
    value: object
    human: "Callable[[Console], None]"
    ids: Iterable[object] = ()
    lines: Iterable[object] | None = None
    """If set, --json prints these values instead of `value`, one per line as soon as each is available."""
    error: "CivmanError | None" = None


class Output:
    """Writes the output of one command, in the mode (text, JSON or quiet) that its options select."""

    def __init__(
        self, *, as_json: bool = False, quiet: bool = False, stdout: TextIO | None = None, stderr: TextIO | None = None
    ) -> None:
        self.as_json = as_json
        self.quiet = quiet and not as_json
        self._stdout = stdout or sys.stdout
        self._stderr = stderr or sys.stderr

    @property
    def is_live(self) -> bool:
        """Whether to show progress bars: stderr is a terminal, and neither --json nor --quiet is used."""
        return not self.as_json and not self.quiet and self._stderr.isatty()

    @property
    def is_for_people_on_a_terminal(self) -> bool:
        """Whether stdout is a terminal, and neither --json nor --quiet is used."""
        return not self.as_json and not self.quiet and self._stdout.isatty()

    def show(self, result: Result) -> None:
        """Show the result: its `value` as JSON with --json, its `ids` with --quiet, else what `human` prints.

        Raises: the result's `error`, if a part of the command failed. With `--json`, the error and the value are
        printed as one object when the error is shown.
        """
        kind, error = result.kind, result.error
        if self.as_json and error is not None:
            error.result = {kind: plain(result.value)}
        elif self.as_json and result.lines is not None:
            is_ascii = not _holds_all(self._stdout)
            self._stdout.writelines(json.dumps(plain(line), ensure_ascii=is_ascii) + "\n" for line in result.lines)
        elif self.as_json:
            document = {"civman": JSON_SHAPE, "kind": kind, kind: plain(result.value)}
            self._stdout.write(json.dumps(document, ensure_ascii=not _holds_all(self._stdout), indent=1) + "\n")
        elif self.quiet:
            self._stdout.writelines(f"{line}\n" for line in result.ids)
        else:
            result.human(self.console())
        self._stdout.flush()
        if error is not None:
            raise error

    def list_item(self, kind: str, value: object, position: int) -> None:
        """With --json: write one entry of a growing list. The finished list looks as if `show` had printed it."""
        begin = f'{{\n "civman": {JSON_SHAPE},\n "kind": "{kind}",\n "{kind}": [' if position == 0 else ","
        text = json.dumps(plain(value), ensure_ascii=not _holds_all(self._stdout), indent=1)
        self._stdout.write(begin + "\n" + "  " + text.replace("\n", "\n  "))

    def end_list(self, kind: str, count: int, error: "CivmanError | None" = None) -> None:
        """With --json: end the list that `list_item` began; an error is added to the same JSON object."""
        if not count:
            self._stdout.write(json.dumps({"civman": JSON_SHAPE, "kind": kind, kind: []}, indent=1) + "\n")
        elif error is None:
            self._stdout.write("\n ]\n}\n")
        else:
            text = json.dumps(error_value(error), ensure_ascii=not _holds_all(self._stdout), indent=1)
            self._stdout.write('\n ],\n "error": ' + text.replace("\n", "\n ") + "\n}\n")
            error.is_in_result = True
        self._stdout.flush()

    def line(self, text: object) -> None:
        """With --quiet: write one id or path on a line of its own."""
        self._stdout.write(f"{text}\n")

    def flush(self) -> None:
        """Flush stdout, so that its reader receives everything written so far."""
        self._stdout.flush()

    def notice(self, message: str) -> None:
        """Show a message that is not an error."""
        if not self.quiet:
            self._say(f"Note: {message}")

    def failure(self, error: "CivmanError") -> None:
        """Show an error and its hint in the current output mode."""
        if self.as_json and error.is_in_result:
            return
        if self.as_json:
            document = {"civman": JSON_SHAPE, "kind": "error", "error": error_value(error), **error.result}
            self._stdout.write(json.dumps(document, ensure_ascii=not _holds_all(self._stdout), indent=1) + "\n")
            self._stdout.flush()
            return
        self._say(f"Error [{error.code}]: {error.message}")
        if error.hint:
            self._say(f"Hint: {error.hint}")

    def _say(self, message: str) -> None:
        """Write a message to stderr; on a terminal, wrap it between words."""
        lines = clean(message).split("\n")
        if self._stderr.isatty():
            import shutil  # these two imports take 0.01 s, and only messages on a terminal need them
            import textwrap

            width = max(shutil.get_terminal_size().columns, 20)
            lines = [
                part
                for line in lines
                for part in textwrap.wrap(line, width, break_long_words=False, break_on_hyphens=False) or [""]
            ]
        self._stderr.write("".join(f"{line}\n" for line in lines))
        self._stderr.flush()

    def console(self, *, to_stderr: bool = False) -> "Console":
        """Create a rich console for stdout or stderr.

        If the stream is not a terminal, nothing is coloured or shortened.
        """
        from rich.console import Console  # the import takes 0.03 s, which --json and --quiet can skip

        stream = self._stderr if to_stderr else self._stdout
        width = None if stream.isatty() or "COLUMNS" in os.environ else 200
        return Console(file=stream, width=width, highlight=False, soft_wrap=False, emoji=False, markup=False)

    def confirm(self, question: str) -> bool:
        """Ask a yes/no question. Raises: UsageError: the command does not run in a terminal."""
        from civman.errors import UsageError

        if self.as_json or self.quiet or not sys.stdin.isatty():
            raise UsageError(f"{question} civman can only ask in a terminal", hint="add --yes to confirm")
        self._stderr.write(f"{question} [y/N] ")
        self._stderr.flush()
        return sys.stdin.readline().strip().lower() in ("y", "yes")


def _holds_all(stream: TextIO) -> bool:
    """Whether the stream's encoding can represent every character: UTF-8 can, a pipe on Windows often cannot."""
    return (getattr(stream, "encoding", None) or "utf-8").lower().startswith("utf")


def clean(text: str) -> str:
    """Remove terminal control characters from `text`, since names and messages may come from untrusted sources."""
    return "".join(char if char.isprintable() or char in "\n\t" else "\N{REPLACEMENT CHARACTER}" for char in text)


def size(size_bytes: int | None) -> str:
    """Format a size for people, such as "6.46 GB" (in powers of 1000, as on CivitAI)."""
    if size_bytes is None:
        return "?"
    value = float(size_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 999.5 or unit == "GB":
            return (
                f"{value:.0f} B" if unit == "B" else f"{value:.3g} {unit}" if value < 999.5 else f"{value:,.0f} {unit}"
            )
        value /= 1000
    return f"{value:,.0f} GB"
