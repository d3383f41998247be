"""Read the settings of the extension Tiled Diffusion from an image's metadata, in all formats of the extension.

The first versions wrote separate entries ("Tiled Diffusion method"), later versions an object in a single entry.
CivitAI's reader splits that object at commas, so the resulting names and values contain its quotes and brackets.
"""

import ast
import re
from typing import Final

from civman.pictures.metadata import loads
from civman.pictures.site_settings import Entries

_NAMES: Final = {
    "method": "method", "tile tile width": "width", "latent tile width": "width", "tile width": "width",
    "tile tile height": "height", "latent tile height": "height", "tile height": "height",
    "tile overlap": "overlap", "overlap": "overlap", "upscaler": "upscaler", "upscale factor": "factor",
    "scale factor": "factor", "keep input size": "keeps size", "noiseinv": "inverts noise",
    "region control": "has regions",
}  # fmt: skip
"""Maps the extension's names of settings, in lower case, to civman's names."""
_TORN: Final = (
    r"[\"{]*'?\"?(Method|Upscaler|Keep input size|Tile batch size|Tile Overlap|Overlap|Upscale factor|Scale factor|"
    r"Tile tile (width|height)|Latent tile (width|height)|NoiseInv( .*)?|Region control)['\"]"
)
PATTERN: Final = re.compile(f"Tiled Diffusion|{_TORN}")
"""Matches the names of all entries that the extension writes."""
_MOST_TEXT: Final = 20_000
_PREFIX: Final = "Tiled Diffusion"


def tiled_diffusion_in(entries: Entries) -> dict[str, str]:
    """Return the settings by civman's names: "method", "width", "height", "overlap", "upscaler", "factor" and others.

    The result is empty if the extension was not used.
    """
    found: dict[str, str] = {}
    for name in entries.take(PATTERN):
        value = entries.value(name)
        if name == _PREFIX:
            found |= _of_object(value)
            continue
        plain = name.removeprefix(_PREFIX).strip(" '\"{").casefold()
        if meaning := _NAMES.get(plain):
            found.setdefault(meaning, str(value).strip(" '\"{}"))
    return found


def _of_object(value: object) -> dict[str, str]:
    """Read the settings from an entry that contains an object, written as JSON or as a Python literal."""
    if isinstance(value, str) and len(value) <= _MOST_TEXT:
        value = loads(value) or _literal(value)
    items = value.items() if isinstance(value, dict) else ()
    return {_NAMES[name]: str(item) for key, item in items if (name := str(key).casefold()) in _NAMES}


def _literal(text: str) -> object:
    """Evaluate a Python literal without running code; None if the text is not a literal."""
    try:
        found: object = ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return None
    return found
