"""The options of `civman render` for reference pictures."""

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from civman.domain.recipes.reference import ReferenceRequest

ReferenceOpt = Annotated[
    list[str] | None,
    typer.Option(
        "--reference",
        metavar="FILE:REF[:WEIGHT][:START-END]",
        help="A picture to imitate and the IP-Adapter that reads it, with its weight and the share of the "
        "steps in which it acts (repeatable).",
    ),
]
ReferenceCropOpt = Annotated[
    list[str] | None,
    typer.Option(
        "--reference-crop",
        metavar="X,Y,W,H|none",
        help="The part of each --reference picture to use, such as a face, in pixels, in order; one value "
        "applies to all.",
    ),
]


def references_from(texts: list[str] | None, crops: list[str] | None) -> "tuple[ReferenceRequest, ...]":
    """Parse the values of --reference and --reference-crop.

    Raises: UsageError (`bad-value`): a value names no existing file, a crop is invalid, or --reference-crop was given
        more or less often than --reference.
    """
    texts, crops = texts or [], crops or []
    if not texts and not crops:
        return ()
    from civman.cli.picture_values import chosen, picture_value, require_counts
    from civman.domain.recipes.reference import ReferenceRequest

    require_counts("--reference-crop", crops, "--reference", texts, "an IP-Adapter")
    found = []
    for number, text in enumerate(texts):
        value = picture_value(
            text, option="--reference", model="an IP-Adapter", example="style.png:ip-adapter-plus_sd15:0.8"
        )
        crop = _crop(chosen(crops, number, "none"))
        found.append(ReferenceRequest(value.picture, value.ref, value.weight, value.start, value.end, crop))
    return tuple(found)


def _crop(text: str) -> tuple[int, ...]:
    from civman.errors import Cause, UsageError

    if text.strip().casefold() == "none":
        return ()
    parts = text.split(",")
    if len(parts) != 4 or not all(part.strip().isdecimal() for part in parts):
        raise UsageError(
            f"--reference-crop {text}: `{text}` is not a valid crop of a picture",
            hint="write the crop as left edge, top edge, width and height in pixels, such as 100,40,256,256",
            code=Cause.BAD_VALUE,
        )  # fmt: skip
    return tuple(int(part) for part in parts)
