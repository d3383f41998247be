"""Hands a command over to the library's running server, which already has models loaded."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from civman.cli import completion

if TYPE_CHECKING:
    from civman.serve.server_file import ServerFile

_HANDED_OVER = ("render", "replay")
_STAYS_HERE = ("--here", "--help", "-h", "--on", "--resume", "--images")
"""Options with which a command runs in its own process instead of the server's.

With them, the command starts workers, reads stdin or only prints help.
"""

HereOpt = Annotated[
    bool, typer.Option("--here", help="Render in this process, even if `civman serve` is running for the library.")
]


def handed_over(arguments: Sequence[str]) -> int | None:
    """Run a command in the library's server. Returns the exit code; None if the command must run in this process."""
    if not arguments or arguments[0] not in _HANDED_OVER or completion.words_before_cursor() is not None:
        return None
    if any(word.partition("=")[0] in _STAYS_HERE for word in arguments):
        return None
    folder = _library_of(arguments)
    if not (folder / "serve.json").is_file() or _would_ask(folder, arguments):
        return None
    from civman.serve.hand_over import hand_over

    return hand_over(folder, arguments)


def _would_ask(folder: Path, arguments: Sequence[str]) -> bool:
    """Whether a replay in a terminal would ask about missing files, which the server cannot do."""
    if arguments[0] != "replay" or {"--fetch", "--json", "--quiet", "-q"} & set(arguments):
        return False
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    from civman.errors import CivmanError
    from civman.library import Library  # the import takes 0.1 s, and only a replay in a terminal needs it

    with Library.open(folder, offline=True) as library:
        for word in arguments[1:]:
            try:
                if not word.startswith("-") and library.pictures.missing_files(library.pictures.find_recipe(word)):
                    return True
            except CivmanError:
                continue
    return False


def running_server(folder: Path) -> "ServerFile":
    """Find the library's server. Raises: NotFound: none is running."""
    from civman.errors import NotFound
    from civman.serve.hand_over import answers
    from civman.serve.server_file import read_server_file

    found = read_server_file(folder)
    if found is None or not answers(found):
        raise NotFound(f"no server is running for the library in `{folder}`", hint="start a server with `civman serve`")
    return found


def _library_of(arguments: Sequence[str]) -> Path:
    from civman.settings import load_settings  # the import takes 0.02 s, which other commands can skip

    named: str | None = None
    for position, word in enumerate(arguments):
        if word == "--library" and position + 1 < len(arguments):
            named = arguments[position + 1]
        elif word.startswith("--library="):
            named = word.partition("=")[2]
    return load_settings(library=named).library
