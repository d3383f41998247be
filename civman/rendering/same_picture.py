"""Compares an image with another program's original: the same picture, the same composition, or another picture.

The pixels of two programs or GPUs are never equal, and a website compresses and shrinks images. Therefore both images
are reduced to 64 pixels, and the changes of brightness from pixel to pixel (the gradients) are correlated.
"""

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

SIDE: Final = 64
"""The longer side of the reduced images, in pixels."""
NEARLY: Final = 0.90
NEARLY_DB: Final = 26.0
COMPOSITION: Final = 0.60
DOUBTFUL: Final = 0.35
_FLAT: Final = 1.0
"""The root mean square of the gradient, in steps of 0 to 255, below which an image shows too little to compare."""


class Likeness(StrEnum):
    """How an image compares with another program's original."""

    SAME = "the same picture"
    COMPOSITION = "the same composition"
    DOUBTFUL = "doubtful"
    ANOTHER = "another picture"
    UNKNOWN = "cannot tell"


@dataclass(frozen=True, slots=True)
class Likened:
    """The verdict with its numbers: `gradients`, a correlation from -1 to 1, and the reduced images' PSNR in dB.

    Both are None if the images cannot be compared; `psnr_db` also if the reduced images are equal.
    """

    likeness: Likeness
    gradients: float | None = None
    psnr_db: float | None = None

    def __str__(self) -> str:
        if self.gradients is None:
            return f"{self.likeness.value}: the images show too little, or have different shapes"
        equal = "equal pixels" if self.psnr_db is None else f"PSNR {self.psnr_db:.1f} dB"
        return f"{self.likeness.value} (correlation of gradients {self.gradients:.2f}, {equal} at {SIDE} pixels)"


def liken(one: Any, other: Any) -> Likened:
    """Compare two (H, W, 3) uint8 arrays, whose sizes may differ but whose shapes must agree to 2 %."""
    import numpy as np

    ratio = one.shape[0] * other.shape[1] / (one.shape[1] * other.shape[0])
    if not 0.98 <= ratio <= 1.02:
        return Likened(Likeness.UNKNOWN)
    longer = max(one.shape[:2])
    size = (max(3, round(one.shape[1] * SIDE / longer)), max(3, round(one.shape[0] * SIDE / longer)))
    small, small_other = _reduced(one, size), _reduced(other, size)
    first, second = _gradients(small), _gradients(small_other)
    powers = float((first**2).mean()), float((second**2).mean())
    if min(powers) < _FLAT**2:
        return Likened(Likeness.UNKNOWN)
    gradients = float((first * second).mean()) / math.sqrt(powers[0] * powers[1])
    error = float(np.mean((small - small_other) ** 2))
    psnr = None if error == 0 else 10 * math.log10(255**2 / error)
    return Likened(_judged(gradients, psnr), gradients, psnr)


def _judged(gradients: float, psnr_db: float | None) -> Likeness:
    if gradients >= NEARLY and (psnr_db is None or psnr_db >= NEARLY_DB):
        return Likeness.SAME
    if gradients >= COMPOSITION:
        return Likeness.COMPOSITION
    return Likeness.DOUBTFUL if gradients >= DOUBTFUL else Likeness.ANOTHER


def _reduced(pixels: Any, size: tuple[int, int]) -> Any:
    import numpy as np
    from PIL import Image

    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BOX), dtype=np.float64)


def _gradients(pixels: Any) -> Any:
    """Central differences of the luminance, both directions in one array.

    Luminance withstands JPEG better than red, green and blue: JPEG halves the resolution of colour.
    """
    import numpy as np

    grey = pixels @ np.array([0.299, 0.587, 0.114])
    across, down = (grey[1:-1, 2:] - grey[1:-1, :-2]) / 2, (grey[2:, 1:-1] - grey[:-2, 1:-1]) / 2
    return np.stack([across, down])
