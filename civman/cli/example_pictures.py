"""`civman show --pictures`: a contact sheet of a version's example images on CivitAI, with explicit ones blurred."""

import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from civman.cli.output import Result
from civman.cli.picture_preview import half_blocks, print_png, protocol_of
from civman.cli.session import Session

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from civman.domain.catalog import ModelVersion, Preview
    from civman.library import Library

_RATINGS = {1: "PG", 2: "PG-13", 4: "R", 8: "X", 16: "XXX", 32: "blocked"}
_CLEAR = 2
"""The highest rating that is shown without blurring: PG-13."""
_MOST = 12
_CELL = 320
"""The longest side in pixels of a cell of the contact sheet."""
_ROWS = 24


@dataclass(frozen=True, slots=True)
class Example:
    """An example image: CivitAI's entry, its rating in words, whether it is blurred, and its (H, W, 3) uint8 pixels."""

    preview: "Preview"
    rating: str
    is_blurred: bool
    pixels: Any


def with_examples(
    session: Session, result: Result, version: "ModelVersion", *, shows_all: bool, output: Path | None
) -> Result:
    """Add the version's example images to a result, as a contact sheet in the terminal or in the file `output`.

    Raises: UsageError: the terminal cannot show images, and `output` is not set. StoreError: the file cannot be
    written.
    """
    from dataclasses import replace

    from civman.pictures import contact_sheet

    stream = session.output
    can_show = stream.is_for_people_on_a_terminal and not os.environ.get("NO_COLOR")
    if output is None and not can_show and not stream.as_json:
        from civman.errors import UsageError

        raise UsageError(
            "example images can only be shown in a terminal with colours",
            hint="save the images as a contact sheet: --output sheet.png",
        )
    found = _examples(session.library, version, shows_all=shows_all)
    sheet = None
    if found:
        labels = tuple(f"{number} {each.rating}" for number, each in enumerate(found, 1))
        across = contact_sheet.Labels(f"{version.model.name} {version.name}".strip(), labels)
        sheet = contact_sheet.as_png(contact_sheet.drawn([[each.pixels for each in found]], across), None)
    if output is not None and sheet is not None:
        _save(output, sheet)
    value = result.value if isinstance(result.value, dict) else {}
    listed = [
        {"url": each.preview.url, "rating": each.rating, "nsfw_level": each.preview.nsfw_level,
         "is_blurred": each.is_blurred} for each in found
    ]  # fmt: skip

    def human(console: "Console") -> None:
        result.human(console)
        console.print()
        _show(console, found, sheet, output)

    return replace(result, value={**value, "examples": listed, "sheet": output if sheet else None}, human=human)


def _examples(library: "Library", version: "ModelVersion", *, shows_all: bool) -> "Sequence[Example]":
    """Download a version's still images from CivitAI, and print a notice for each image that cannot be shown."""
    import numpy as np
    from PIL import Image, ImageFilter

    from civman.errors import CivmanError

    found = []
    stills = [each for each in version.previews if each.media == "image"]
    for preview in stills[:_MOST]:
        rating = rating_of(preview.nsfw_level)
        is_blurred = not shows_all and not 0 < preview.nsfw_level < 2 * _CLEAR
        try:
            data = library.downloads.preview_bytes(preview)
            with Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP")) as opened:
                opened.draft("RGB", (_CELL, _CELL))
                image = opened.convert("RGB")
        except (CivmanError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            library.context.on_notice(f"an example image rated {rating} cannot be shown: {error}")
            continue
        image.thumbnail((_CELL, _CELL))
        if is_blurred:
            image = image.filter(ImageFilter.GaussianBlur(max(image.size) / 7))
        found.append(Example(preview, f"{rating}, blurred" if is_blurred else rating, is_blurred, np.asarray(image)))
    return found


def rating_of(level: int) -> str:
    """Convert the bits of CivitAI's rating of an image to a name such as "PG-13"."""
    return next((words for bit, words in reversed(_RATINGS.items()) if level & bit), "unrated")


def _show(console: "Console", found: "Sequence[Example]", sheet: bytes | None, output: Path | None) -> None:
    if sheet is None:
        console.print("CivitAI shows no images of this version")
        return
    if output is not None:
        console.print(f"{len(found)} example images saved in {output}", soft_wrap=True)
        return
    protocol = protocol_of(os.environ)
    if protocol is not None:
        print_png(console, sheet, protocol, rows=_ROWS)
    else:
        half_blocks(console, sheet)
    console.print("; ".join(f"{number}: {each.rating}" for number, each in enumerate(found, 1)), soft_wrap=True)
    if any(each.is_blurred for each in found):
        console.print("images rated above PG-13 are blurred; --unblurred shows them", style="dim")


def _save(path: Path, data: bytes) -> None:
    from civman.store.partial import store_error

    try:
        path.write_bytes(data)
    except OSError as error:
        raise store_error(error, path) from error
