"""Convert a creator's HTML description to plain text."""

import html
import re

_TAG = re.compile(r"<[^>]*>")
_BLOCK = re.compile(r"<(?:/p|/li|/h\d|br)\b[^>]*>", re.IGNORECASE)
_LINE = 160


def plain_text(description: str | None) -> str:
    """Extract the text of an HTML description, with one line per paragraph."""
    text = html.unescape(_TAG.sub("", _BLOCK.sub("\n", description or "")))
    lines = (" ".join(line.split()) for line in text.splitlines())
    return "\n".join(line for line in lines if line)


def first_line(description: str | None) -> str:
    """Return the first line of an HTML description as plain text, shortened with "…" if it is too long."""
    line = plain_text(description).partition("\n")[0]
    return line if len(line) <= _LINE else line[: _LINE - 1].rstrip() + "…"
