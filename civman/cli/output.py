"""The one place that writes: results to stdout, everything else to stderr.

Three modes. Human: rich tables, colours on a terminal only. `--json`: one object on stdout, `{"civman": 1, "kind": …}`,
failures too, and nothing else. `--quiet`: one id or path a line.
"""

import dataclasses
import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console

    from civman.errors import CivmanError

JSON_SHAPE = 1
"""Grows when a field changes its meaning or goes; new fields may come at any time."""


class Output:
    """Where one command's words go, in the mode its options chose."""

    def __init__(
        self, *, as_json: bool = False, quiet: bool = False, stdout: TextIO | None = None, stderr: TextIO | None = None
    ) -> None:
        self.as_json = as_json
        self.quiet = quiet and not as_json
        self._stdout = stdout or sys.stdout
        self._stderr = stderr or sys.stderr

    @property
    def is_live(self) -> bool:
        """Whether a person watches, so that bars make sense."""
        return not self.as_json and not self.quiet and self._stderr.isatty()

    def result(
        self,
        kind: str,
        value: object,
        *,
        human: "Callable[[Console], None]",
        ids: Iterable[object] = (),
        error: "CivmanError | None" = None,
    ) -> None:
        """Show what the command found: `value` under its `kind` as JSON, `ids` when quiet, else what `human` prints.

        Raises: `error`, where a part of it failed; with `--json` the value goes along with it, as one object.
        """
        if self.as_json and error is not None:
            error.result = {kind: plain(value)}
        elif self.as_json:
            document = {"civman": JSON_SHAPE, "kind": kind, kind: plain(value)}
            self._stdout.write(json.dumps(document, ensure_ascii=False, indent=1) + "\n")
        elif self.quiet:
            self._stdout.writelines(f"{line}\n" for line in ids)
        else:
            human(self.console())
        self._stdout.flush()
        if error is not None:
            raise error

    def notice(self, message: str) -> None:
        """Tell a person something that is no failure."""
        if not self.quiet:
            self._stderr.write(f"Note: {clean(message)}\n")
            self._stderr.flush()

    def failure(self, error: "CivmanError") -> None:
        """Tell what went wrong and what to do, as the mode wants it."""
        if self.as_json:
            document = {"civman": JSON_SHAPE, "kind": "error", "error": error_value(error), **error.result}
            self._stdout.write(json.dumps(document, ensure_ascii=False, indent=1) + "\n")
            self._stdout.flush()
            return
        self._stderr.write(f"Error [{error.code}]: {clean(error.message)}\n")
        if error.hint:
            self._stderr.write(f"Hint: {clean(error.hint)}\n")
        self._stderr.flush()

    def console(self, *, to_stderr: bool = False) -> "Console":
        """A rich console on stdout or stderr; without a terminal it neither colours nor cuts lines."""
        from rich.console import Console  # 0.03 s, which --json and --quiet need not wait for

        stream = self._stderr if to_stderr else self._stdout
        width = None if stream.isatty() or "COLUMNS" in os.environ else 200
        return Console(file=stream, width=width, highlight=False, soft_wrap=False, emoji=False, markup=False)

    def confirm(self, question: str) -> bool:
        """Whether a person says yes. Raises: UsageError: there is nobody to ask."""
        from civman.errors import UsageError

        if self.as_json or self.quiet or not sys.stdin.isatty():
            raise UsageError(f"{question} nobody is there to say", hint="add --yes if that is what you want")
        self._stderr.write(f"{question} [y/N] ")
        self._stderr.flush()
        return sys.stdin.readline().strip().lower() in ("y", "yes")


def plain(value: object) -> Any:  # JSON has no narrower type
    """`value` as JSON can hold it: facts become objects without what CivitAI sent verbatim, times ISO 8601."""
    match value:
        case None | bool() | int() | float():
            return value
        case Enum():
            return plain(value.value)
        case str():
            return str(value)
        case datetime():
            return value.isoformat()
        case Path():
            return str(value)
        case Mapping():
            return {str(key): plain(item) for key, item in value.items()}
        case _ if dataclasses.is_dataclass(value) and not isinstance(value, type):
            fields = (field.name for field in dataclasses.fields(value))
            return {name: plain(getattr(value, name)) for name in fields if name != "raw"}
        case Iterable():
            return [plain(item) for item in value]
    return str(value)


def error_value(error: "CivmanError") -> dict[str, Any]:
    """An error as JSON holds it."""
    return {
        "code": error.code,
        "exit_code": int(error.exit_code),
        "message": error.message,
        "hint": error.hint or None,
        "facts": plain(error.facts),
    }


def clean(text: str) -> str:
    """`text` without characters that steer a terminal: names and messages come from strangers."""
    return "".join(char if char.isprintable() or char in "\n\t" else "\N{REPLACEMENT CHARACTER}" for char in text)


def size(size_bytes: int | None) -> str:
    """Bytes for people: "6.46 GB" (thousands, as CivitAI counts)."""
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
