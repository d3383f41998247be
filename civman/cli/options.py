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
    """Return the refs given on the command line and in the file `from_file`; the ref `-` reads more refs from stdin.

    Empty lines and text after `#` are ignored. Raises: UsageError: there are no refs, or the file cannot be read.
    """
    # imported here, because --help does not need these modules
    from civman.domain.pasted_lists import decoded, listed_refs, split_refs
    from civman.errors import UsageError

    found: list[str] = []
    for ref in refs or []:
        found += listed_refs(_stdin()) if ref == "-" else split_refs(ref)
    if from_file is not None:
        try:
            found += listed_refs(decoded(from_file.read_bytes()))
        except OSError as error:
            raise UsageError(f"cannot read `{from_file}`: {error.strerror or error}") from error
        except UnicodeDecodeError as error:
            hint = "save the file as UTF-8 text with one ref on each line"
            raise UsageError(f"`{from_file}` is not a text file in UTF-8 or UTF-16", hint=hint) from error
    if not found:
        raise UsageError("no REF was given", hint="pass at least one REF, for example `civman show 4384`")
    return found


def _stdin() -> str:
    import sys

    from civman.domain.pasted_lists import decoded
    from civman.errors import UsageError

    buffer = getattr(sys.stdin, "buffer", None)
    try:
        return sys.stdin.read() if buffer is None else decoded(buffer.read())
    except UnicodeDecodeError as error:
        raise UsageError("stdin is not text in UTF-8 or UTF-16", hint="write one ref on each line") from error


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
ThreadsOpt = Annotated[
    int | None,
    typer.Option(
        "--threads",
        min=1,
        max=1024,
        help="Number of CPU threads; a different number may change the last bits of the result.",
        show_default="torch's",
    ),
]
PrecisionOpt = Annotated[
    str | None,
    typer.Option(
        "--precision",
        help="Precision of the computation: float32, float16 or bfloat16.",
        show_default="half precision on a GPU",
    ),
]
OnOpt = Annotated[
    str | None,
    typer.Option(
        "--on", metavar="WHERE",
        help="Distribute the work over workers: auto (one for each GPU), a number of processes, ray or "
                "ray://HOST:PORT.",
        show_default="this process",
    ),
]  # fmt: skip
ResumeOpt = Annotated[
    bool, typer.Option("--resume", help="Skip images that were already made from the same recipe in the same folder.")
]
FastOpt = Annotated[
    bool,
    typer.Option(
        "--fast",
        help="Compute in the device's fastest precision: bfloat16 if it saves time. A message after the "
        "render explains how this changes images.",
    ),
]
CompileOpt = Annotated[
    bool | None,
    typer.Option(
        "--compile/--no-compile",
        help="Compile the model's blocks before the first step; this changes the last bits of the result. "
        "Meant for GPUs.",
        show_default="no, except to replay an image that was made with --compile",
    ),
]
LowVramOpt = Annotated[bool, typer.Option("--low-vram", help="Use as little device memory as possible; slower.")]


def output_options(
    format: str | None,  # noqa: A002
    quality: int | None,
    *,
    no_metadata: bool,
    strip_prompt: bool,
) -> "OutputOptions":
    """Return the images' file format and the metadata to write into them. Raises: UsageError: options conflict."""
    from civman.errors import UsageError
    from civman.rendering.save_pictures import EmbeddedMetadata, OutputOptions

    if no_metadata and strip_prompt:
        raise UsageError(
            "--no-metadata and --strip-prompt cannot be combined: --no-metadata already leaves out the prompt"
        )
    metadata = EmbeddedMetadata.NO_PROMPTS if strip_prompt else EmbeddedMetadata.ALL
    return OutputOptions(format, quality, EmbeddedMetadata.NOTHING if no_metadata else metadata)
