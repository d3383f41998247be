"""Options that commands share, and what one run of a command is given: `Session`."""

from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Protocol

import typer

from civman.cli.output import Output

if TYPE_CHECKING:
    from collections.abc import Callable

    from civman.library import Library
    from civman.rendering.save_pictures import Manner
    from civman.settings import Settings


class MakeLibrary(Protocol):
    """What opens a library: `Library` itself, or it with arguments of its own (another patience)."""

    def __call__(self, settings: "Settings", *, on_notice: "Callable[[str], None]") -> "Library":
        """The library that `settings` describe."""
        ...


MAKE_LIBRARY: ContextVar[MakeLibrary | None] = ContextVar("make_library", default=None)
"""Set by `main` for the time of one command: typer hands its commands nothing but options."""

LibraryOpt = Annotated[
    Path | None,
    typer.Option("--library", help="The library's folder.", show_default="settings", rich_help_panel="Common options"),
]
OfflineOpt = Annotated[
    bool | None, typer.Option("--offline", help="Never use the network.", rich_help_panel="Common options")
]
JsonOpt = Annotated[
    bool,
    typer.Option("--json", help="One JSON object on stdout, failures too.", rich_help_panel="Common options"),
]
QuietOpt = Annotated[
    bool,
    typer.Option("--quiet", "-q", help="Only ids or paths, one a line.", rich_help_panel="Common options"),
]
YesOpt = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
RefArg = Annotated[
    str,
    typer.Argument(
        metavar="REF",
        help="Model or version id, model@version, AIR, address, hash, file path or name.",
        show_default=False,
    ),
]
RefsArg = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[REF]...", help="As many refs as you like; `-` reads them from stdin, one a line.", show_default=False
    ),
]


def open_library(library: Path | None, offline: bool | None, output: Output) -> "Library":
    """The library that the options mean; its notices go to `output`. `main` may have been told how to make one."""
    from civman.library import Library  # 0.1 s and more, which --help need not wait for
    from civman.settings import load_settings

    settings = load_settings(library=library, offline=offline or None)
    make = MAKE_LIBRARY.get() or Library
    return make(settings, on_notice=output.notice)


def given_refs(refs: list[str] | None, from_file: Path | None = None) -> list[str]:
    """The refs of the command line, with `-` replaced by stdin's lines and a file's lines added.

    Empty lines and what follows `#` are left out. Raises: UsageError: nothing is left, or the file cannot be read.
    """
    import sys

    from civman.errors import UsageError

    found: list[str] = []
    for ref in refs or []:
        found += _lines(sys.stdin.read()) if ref == "-" else [ref]
    if from_file is not None:
        try:
            found += _lines(from_file.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"cannot read `{from_file}`: {error}") from error
    if not found:
        raise UsageError("nothing was named", hint="give at least one REF, for example `civman show 4384`")
    return found


def _lines(text: str) -> list[str]:
    stripped = (line.split(" #", 1)[0].strip() for line in text.splitlines())
    return [line for line in stripped if line and not line.startswith("#")]


FormatOpt = Annotated[
    str | None, typer.Option("--format", help="png, jpeg or webp.", show_default="as --output's name says, else png")
]
QualityOpt = Annotated[
    int | None, typer.Option("--quality", help="Of JPEG and WebP, 1 to 100.", show_default="95, WebP lossless")
]
NoMetadataOpt = Annotated[bool, typer.Option("--no-metadata", help="The picture tells nothing of its making.")]
StripPromptOpt = Annotated[
    bool, typer.Option("--strip-prompt", help="It tells settings and models, but no prompt and no recipe.")
]
DeviceOpt = Annotated[str | None, typer.Option("--device", help="cpu, cuda, cuda:1, mps.", show_default="the best")]
LowVramOpt = Annotated[bool, typer.Option("--low-vram", help="Hold in memory only what works; slower.")]


def manner_of(format: str | None, quality: int | None, *, no_metadata: bool, strip_prompt: bool) -> "Manner":  # noqa: A002
    """How pictures are to be written. Raises: UsageError: two options that exclude each other."""
    from civman.errors import UsageError
    from civman.rendering.save_pictures import Manner, Telling

    if no_metadata and strip_prompt:
        raise UsageError("--no-metadata already leaves the prompt out: --strip-prompt is for keeping the rest")
    telling = Telling.NOTHING if no_metadata else Telling.NO_WORDS if strip_prompt else Telling.ALL
    return Manner(format, quality, telling)
