"""The texts in an upscaled image: those of the source image, and the settings of A1111's Extras tab.

In a PNG, A1111 keeps the source's `parameters` and adds the settings of the upscale as `extras` and as
`postprocessing`. A JPEG or WebP can contain only one text, so the settings are appended to the source's text, as in
SD.Next.

Source: A1111 1.6 to 1.10 (its modules for postprocessing and its script for upscaling).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from civman.domain.file_suffixes import MODEL_SUFFIXES
from civman.domain.known_upscalers import upscaler_with
from civman.domain.recipes.enlargement import Enlargement, UpscaleRequest, factor_of
from civman.domain.recipes.recipe_limits import size_of
from civman.domain.recipes.upscale_recipe import UpscaleRecord
from civman.pictures import infotext
from civman.pictures.image_text import Carried, Format

_BY: Final = "Postprocess upscale by"
_TO: Final = "Postprocess upscale to"
_CROP: Final = "Postprocess crop to"
_UPSCALER: Final = "Postprocess upscaler"
_SECOND: Final = "Postprocess upscaler 2"
_MOST_SIDE: Final = "Max side length"
_OTHERS: Final = ("GFPGAN visibility", "CodeFormer visibility", "Caption", "Deepbooru", "Split", "Flip", "Focal crop")
"""A1111's keys for operations of its Extras tab other than upscaling."""
KEYS: Final = (_BY, _TO, _CROP, _UPSCALER, _SECOND, _MOST_SIDE)
"""A1111's keys for the settings of an upscale."""
CHUNKS: Final = ("postprocessing", "extras")
"""The names of the PNG text chunks in which A1111 writes the settings of its Extras tab."""


@dataclass(frozen=True, slots=True)
class ExtrasSettings:
    """The settings of A1111's Extras tab in an image. `scale` is 0 if the image was enlarged to `size`."""

    upscaler: str
    scale: float = 0.0
    size: str = ""
    is_cropped: bool = False
    most_side: int = 0
    others: tuple[str, ...] = ()
    """Other operations of the Extras tab that changed the image, as the image's settings list them."""


def settings_of(made: Enlargement, name: str, size: tuple[int, int] | None) -> dict[str, str]:
    """Build A1111's keys and values for an enlargement with the upscaler `name`.

    `size`: width and height of the image before the enlargement. If it is None, the final size is written instead of a
    factor.
    """
    if made.crop_width:
        to = "x".join(map(str, made.final_size))
        found = {_TO: to, _CROP: to}
    elif size is None:
        found = {_TO: "x".join(map(str, made.final_size))}
    else:
        found = {_BY: f"{factor_of(made, size):g}"}
    return found | {_UPSCALER: name}


def upscaler_title(name: str, made: Enlargement) -> str:
    """Return A1111's name for a published upscaler model; for other upscalers, the file name without extension."""
    known = upscaler_with(made.model) if made.model else None
    stem = next((name.removesuffix(end) for end in MODEL_SUFFIXES if name.endswith(end)), name)
    return known.names[0] if known else stem


def texts(record: UpscaleRecord, source: str | None, format: Format) -> tuple[str | None, dict[str, str]]:  # noqa: A002
    """Return the texts to write into an upscaled image: its `parameters` and, for a PNG, further text chunks by name.

    `source` is the `parameters` text of the image that was enlarged; it is preserved.
    """
    made = record.recipe.enlargement
    found = settings_of(made, upscaler_title(record.upscaler_name, made), record.picture_size)
    settings = ", ".join(f"{key}: {_quoted(value)}" for key, value in found.items())
    if format == "png":
        return source, dict.fromkeys(CHUNKS, settings)
    return f"{source}, {settings}" if source and infotext.is_infotext(source) else source or settings, {}


def extras_settings(carried: Carried) -> ExtrasSettings | None:
    """Parse the settings of A1111's Extras tab in an image; None if there are none."""
    for name in CHUNKS:
        if found := extras_in(dict(infotext.settings(carried.entries.get(name, "")))):
            return found
    if carried.parameters is None:
        return None
    details = infotext.read(carried.parameters).details
    return extras_in(details or dict(infotext.settings(carried.parameters)))


def extras_in(details: Mapping[str, str]) -> ExtrasSettings | None:
    """Convert the entries of A1111's Extras tab to settings; None if they contain no upscaler."""
    upscaler = details.get(_UPSCALER, "")
    scale, size = infotext.number(details.get(_BY, "")), details.get(_TO, "")
    if not upscaler or not (scale or size):
        return None
    others = tuple(f"{key}: {value}" for key, value in details.items() if key.startswith((*_OTHERS, _SECOND)))
    most = infotext.number(details.get(_MOST_SIDE, ""))
    return ExtrasSettings(upscaler, scale or 0.0, "" if scale else size, _CROP in details, int(most or 0), others)


def with_extras(carried: Carried, text: str | None) -> str | None:
    """Append the settings of A1111's Extras tab, which a PNG stores in a separate chunk, to the `parameters` text."""
    if text is None or not infotext.is_infotext(text) or _UPSCALER in infotext.read(text).details:
        return text
    added = next((found for name in CHUNKS if (found := carried.entries.get(name, "").strip())), "")
    return f"{text.rstrip()}, {added}" if _UPSCALER in added else text


def request_of(settings: ExtrasSettings, size: tuple[int, int]) -> UpscaleRequest:
    """Build the request that enlarges an image of this size according to `settings`, with A1111's rules for sizes."""
    (width, height), scale, to = size, settings.scale or None, settings.size or None
    if scale is not None and 0 < settings.most_side < max(width, height) * scale:
        scale = settings.most_side / max(width, height)
    elif to is not None and not settings.is_cropped:
        wanted = size_of(to)
        scale, to = max(wanted[0] / width, wanted[1] / height), None
    return UpscaleRequest(settings.upscaler, scale, to, multiple=8)


def _quoted(value: str) -> str:
    """Format a value as A1111 writes it: in quotes if it contains a comma, a colon or a line break."""
    if not any(sign in value for sign in ",:\n"):
        return value
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
