"""Options that several commands share, and functions that interpret their values."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from civman.cli import completion

if TYPE_CHECKING:
    from civman.rendering.save_pictures import OutputOptions


YesOpt = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")]
RefArg = Annotated[
    str,
    typer.Argument(
        autocompletion=completion.refs,
        metavar="REF",
        help="Model or version id, model@version+file, AIR, URL, hash, file path or name.",
        show_default=False,
    ),
]
RefsArg = Annotated[
    list[str] | None,
    typer.Argument(
        autocompletion=completion.refs,
        metavar="[REF]...",
        help="One or more refs; `-` reads them from stdin, one per line.",
        show_default=False,
    ),
]
FileOpt = Annotated[
    str | None,
    typer.Option(
        "--file", "-f", metavar="FILE", help='Which file of a version: its id, its name, or words like "fp16 pruned".'
    ),
]


def given_refs(refs: list[str] | None, from_file: Path | None = None) -> list[str]:
    """The refs given on the command line and in the file `from_file`; `-` stands for the lines of stdin.

    Empty lines and text after `#` are ignored. Raises: UsageError: there are no refs, or the file cannot be read.
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
        raise UsageError("no REF was given", hint="give at least one REF, for example `civman show 4384`")
    return found


def _lines(text: str) -> list[str]:
    stripped = (line.split(" #", 1)[0].strip() for line in text.splitlines())
    return [line for line in stripped if line and not line.startswith("#")]


FormatOpt = Annotated[
    str | None,
    typer.Option(
        "--format", help="Image format: png, jpeg or webp.", show_default="from the extension of --output, else png"
    ),
]
QualityOpt = Annotated[
    int | None, typer.Option("--quality", help="Quality of JPEG and WebP, 1 to 100.", show_default="95, WebP lossless")
]
NoMetadataOpt = Annotated[bool, typer.Option("--no-metadata", help="Write no metadata into the image.")]
StripPromptOpt = Annotated[
    bool, typer.Option("--strip-prompt", help="Write settings and models into the image, but no prompt and no recipe.")
]
DeviceOpt = Annotated[
    str | None, typer.Option("--device", help="Device to compute on: cpu, cuda, cuda:1, mps.", show_default="the best")
]
LowVramOpt = Annotated[bool, typer.Option("--low-vram", help="Use as little device memory as possible; slower.")]


def output_options(
    format: str | None,  # noqa: A002
    quality: int | None,
    *,
    no_metadata: bool,
    strip_prompt: bool,
) -> "OutputOptions":
    """The format in which images are written. Raises: UsageError: two options exclude each other."""
    from civman.errors import UsageError
    from civman.rendering.save_pictures import EmbeddedMetadata, OutputOptions

    if no_metadata and strip_prompt:
        raise UsageError(
            "--no-metadata already leaves out the prompt; --strip-prompt is for keeping the other metadata"
        )
    metadata = EmbeddedMetadata.NO_PROMPTS if strip_prompt else EmbeddedMetadata.ALL
    return OutputOptions(format, quality, EmbeddedMetadata.NOTHING if no_metadata else metadata)
