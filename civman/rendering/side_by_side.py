"""Writes a PNG that shows an original image, the same image rendered again, and the difference between the two."""

from pathlib import Path
from typing import Any, Final

from civman.errors import StoreError
from civman.pictures import contact_sheet

_AMPLIFIED: Final = 4
"""The factor by which differences are multiplied, so that small ones are visible."""


def write_side_by_side(path: Path, original: Any, drawn: Any) -> None:
    """Write a PNG that shows two (H, W, 3) uint8 images at the original's height, and their difference.

    Raises: StoreError: the file cannot be written.
    """
    import numpy as np
    from PIL import Image

    height = original.shape[0]
    width = max(1, round(drawn.shape[1] * height / drawn.shape[0]))
    resized = np.asarray(Image.fromarray(drawn).resize((width, height), Image.Resampling.LANCZOS))
    cells, labels = [original, resized], ["original", "drawn again"]
    if resized.shape == original.shape:
        apart = np.abs(original.astype(np.int16) - resized.astype(np.int16)) * _AMPLIFIED
        cells.append(np.clip(apart, 0, 255).astype(np.uint8))
        labels.append(f"difference x {_AMPLIFIED}")
    sheet = contact_sheet.drawn([cells], contact_sheet.Labels("", tuple(labels)))
    data = contact_sheet.as_png(sheet, None)
    try:
        path.expanduser().write_bytes(data)
    except OSError as error:
        raise StoreError(f"`{path}` cannot be written: {error.strerror or error}") from error
