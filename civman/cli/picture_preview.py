"""Small pictures in terminals that can show them: kitty's graphics protocol and iTerm2's inline images.

The protocol is chosen by environment variables alone. Querying the terminal would mean waiting for a reply that most
terminals never send.
"""

import base64
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Final

from civman.cli.output import Result
from civman.cli.session import Session

if TYPE_CHECKING:
    from rich.console import Console

_ROWS: Final = 12
"""The height of a preview in rows of text."""
_PIXELS: Final = (640, 320)
"""The maximum width and height of a preview in pixels, enough for its rows of text on most screens."""
_MOST: Final = 4
"""The maximum number of previews that one command prints."""
_CHUNK: Final = 4096
"""The maximum length of the data in one escape sequence of kitty's protocol."""
_KITTY_FROM_KONSOLE: Final = 220400


class Protocol(StrEnum):
    """The protocol by which an image is sent to a terminal."""

    KITTY = "kitty"
    ITERM = "iterm"


@dataclass(frozen=True, slots=True)
class Viewing:
    """Whether to open images in a viewer, and whether to show previews; None: as in the settings."""

    opens: bool | None = None
    previews: bool | None = None


AS_SET: Final = Viewing()


def viewed(session: Session, result: Result, paths: Sequence[Path], viewing: Viewing = AS_SET) -> Result:
    """If the settings or options request it, open the first image in the system's viewer and add previews to `result`.

    If the viewer cannot be started, a notice explains why, and the command still succeeds.
    """
    opens, previews = viewing.opens, viewing.previews
    settings, output = session.library.context.settings.render, session.output
    is_for_people = not output.as_json and not output.quiet
    if paths and ((settings.opens and is_for_people) if opens is None else opens):
        from civman.system.open_file import open_file

        problem = open_file(paths[0])
        if problem:
            output.notice(f"`{paths[0]}` was saved, but could not be opened: {problem}")
    if not (settings.previews if previews is None else previews):
        return result

    def human(console: "Console") -> None:
        result.human(console)
        for path in paths[:_MOST]:
            print_preview(console, path)

    return replace(result, human=human)


def protocol_of(environ: Mapping[str, str]) -> Protocol | None:
    """Return the protocol that the terminal with these environment variables understands; None if unknown."""
    term, program = environ.get("TERM", ""), environ.get("TERM_PROGRAM", "")
    if environ.get("TMUX") or term.startswith(("tmux", "screen", "dumb")) or not term:
        return None  # use no protocol: tmux and screen do not forward images to the terminal
    konsole = environ.get("KONSOLE_VERSION", "")
    if term in ("xterm-kitty", "xterm-ghostty") or environ.get("KITTY_WINDOW_ID") or program == "ghostty":
        return Protocol.KITTY
    if konsole.isascii() and konsole.isdigit() and int(konsole) >= _KITTY_FROM_KONSOLE:
        return Protocol.KITTY
    if program in ("iTerm.app", "WezTerm", "mintty") or environ.get("LC_TERMINAL") == "iTerm2":
        return Protocol.ITERM
    return None


def print_preview(console: "Console", path: Path, *, rows: int = _ROWS) -> bool:
    """Print a small copy of an image if the console is a terminal that can show one. Returns whether it was printed.

    A file that cannot be read is skipped: a preview never makes a command fail.
    """
    protocol = protocol_of(os.environ) if console.file.isatty() else None
    if protocol is None:
        return False
    try:
        data = small_png(path)
    except (OSError, ValueError, SyntaxError):  # the errors that Pillow raises for a damaged picture
        return False
    print_png(console, data, protocol, rows=rows)
    return True


def print_png(console: "Console", png: bytes, protocol: Protocol, *, rows: int) -> None:
    """Print an image with a protocol that the terminal understands."""
    sequence = kitty_sequence(png, rows) if protocol is Protocol.KITTY else iterm_sequence(png, rows)
    console.file.write(f"{sequence}\n")
    console.file.flush()


def half_blocks(console: "Console", png: bytes) -> None:
    """Print an image as coloured characters, two pixels in each, as wide as the terminal."""
    from PIL import Image  # the import takes 0.03 s, and only some terminals need it

    with Image.open(io.BytesIO(png)) as opened:
        image = opened.convert("RGB")
    width = max(1, min(console.width, image.width))
    height = max(2, round(image.height * width / image.width) // 2 * 2)
    image = image.resize((width, height), Image.Resampling.BOX)
    data = image.tobytes()

    def colour(x: int, y: int) -> str:
        place = 3 * (y * width + x)
        return ";".join(map(str, data[place : place + 3]))

    for y in range(0, height, 2):
        cells = (f"\x1b[38;2;{colour(x, y)};48;2;{colour(x, y + 1)}m▀" for x in range(width))
        console.file.write("".join(cells) + "\x1b[0m\n")
    console.file.flush()


def small_png(path: Path) -> bytes:
    """Reduce an image and encode it as PNG, without any metadata."""
    from PIL import Image  # the import takes 0.03 s, and only some terminals need it

    with Image.open(path) as picture:
        small = picture.convert("RGB")
    small.thumbnail(_PIXELS)
    small.info.clear()
    stream = io.BytesIO()
    small.save(stream, "PNG")
    return stream.getvalue()


def kitty_sequence(png: bytes, rows: int) -> str:
    """Build kitty's escape sequences that show a PNG in this many rows and request no reply from the terminal."""
    text = base64.b64encode(png).decode("ascii")
    pieces = [text[place : place + _CHUNK] for place in range(0, len(text), _CHUNK)]
    words = []
    for number, piece in enumerate(pieces):
        first = f"a=T,f=100,q=2,r={rows}," if number == 0 else ""
        words.append(f"\x1b_G{first}m={int(number < len(pieces) - 1)};{piece}\x1b\\")
    return "".join(words)


def iterm_sequence(png: bytes, rows: int) -> str:
    """Build iTerm2's escape sequence that shows a PNG in this many rows."""
    text = base64.b64encode(png).decode("ascii")
    return f"\x1b]1337;File=inline=1;size={len(png)};height={rows};preserveAspectRatio=1:{text}\a"
