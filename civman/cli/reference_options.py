"""The options of `civman render` for reference images."""

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from civman.domain.recipes.reference import ReferenceRequest

ReferenceOpt = Annotated[
    list[str] | None,
    typer.Option(
        "--reference",
        metavar="FILE[:REF[:WEIGHT][:START-END]]",
        help="A reference image and the IP-Adapter to use with it; WEIGHT is 1 by default, START and END are fractions "
        "of the steps, by default 0 and 1. For Flux.1 Kontext and Flux.2: only the image to edit (repeatable).",
    ),
]
ReferenceCropOpt = Annotated[
    list[str] | None,
    typer.Option(
        "--reference-crop",
        metavar="X,Y,W,H|none",
        help="The part of a --reference image to use, such as a face, in pixels. Pass one for all images, or one for "
        "each, in order.",
    ),
]

ReferenceSizeOpt = Annotated[
    list[str] | None,
    typer.Option(
        "--reference-size",
        metavar="auto|own|WIDTHxHEIGHT",
        help="The size to which a --reference image is scaled for Kontext or Flux.2. Pass one for all images, or one "
        "for each, in order. [default: auto, by the model's rule]",
    ),
]


def references_from(
    texts: list[str] | None, crops: list[str] | None, sizes: list[str] | None = None
) -> "tuple[ReferenceRequest, ...]":
    """Parse the values of --reference, --reference-crop and --reference-size.

    Raises: UsageError (`bad-value`): a value names no existing file, a crop is invalid, or --reference-crop or
        --reference-size was given more or less often than --reference.
    """
    texts, crops, sizes = texts or [], crops or [], sizes or []
    if not texts and not crops and not sizes:
        return ()
    from pathlib import Path

    from civman.cli.picture_values import chosen, picture_value, require_counts
    from civman.domain.recipes.reference import ReferenceRequest
    from civman.errors import Cause, UsageError

    require_counts("--reference-crop", crops, "--reference", texts, "a reference picture")
    require_counts("--reference-size", sizes, "--reference", texts, "a reference picture")
    found = []
    for number, text in enumerate(texts):
        crop, size = _crop(chosen(crops, number, "none")), chosen(sizes, number, "auto").strip().casefold()
        size = "" if size == "auto" else size
        if Path(text).expanduser().is_file():
            found.append(ReferenceRequest(text, crop=crop, size=size))
            continue
        if ":" not in text:
            raise UsageError(
                f"--reference {text}: the image file does not exist",
                hint="write the path of an image, with an IP-Adapter after a colon if the model needs one",
                code=Cause.BAD_VALUE,
            )  # fmt: skip
        value = picture_value(
            text, option="--reference", model="an IP-Adapter", example="style.png:ip-adapter-plus_sd15:0.8"
        )
        found.append(ReferenceRequest(value.picture, value.ref, value.weight, value.start, value.end, crop, size))
    return tuple(found)


def _crop(text: str) -> tuple[int, ...]:
    from civman.errors import Cause, UsageError

    if text.strip().casefold() == "none":
        return ()
    parts = text.split(",")
    if len(parts) != 4 or not all(part.strip().isdecimal() for part in parts):
        raise UsageError(
            f"--reference-crop {text}: `{text}` is not a valid crop of an image",
            hint="write the crop as left edge, top edge, width and height in pixels, such as 100,40,256,256",
            code=Cause.BAD_VALUE,
        )  # fmt: skip
    return tuple(int(part) for part in parts)
