"""Judges whether an image shows the same picture, or the same composition, as another program's original.

Two programs or GPUs never compute equal pixels, and websites compress and shrink images. Therefore, both images are
reduced to 64 pixels, and their brightness gradients (the changes from pixel to pixel) are correlated.

The thresholds come from 318 pairs of published images (the same recipe in other precisions, and other pictures) and
from `benchmarks/same_picture.py`; docs/redraw.md has the tables.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Final

SIDE: Final = 64
"""The longer side of the reduced images, in pixels."""
NEARLY: Final = 0.90
NEARLY_DB: Final = 26.0
COMPOSITION: Final = 0.60
DOUBTFUL: Final = 0.35
_FLAT: Final = 1.0
"""The root mean square of the gradient (in steps of 0 to 255) below which an image has too little detail to compare."""
_SAME_SHAPE: Final = 1.02
_MOST_CROPPED: Final = 2.0
"""The largest ratio between two images' aspect ratios at which civman still compares the part that both show."""
_DETAIL_SIDE: Final = 256
_DETAIL: Final = 0.60
_COLOUR, _BRIGHTNESS, _CONTRAST = 6.0, 6.0, 0.12
"""The thresholds above which differences are mentioned: colour and brightness from 0 to 255, contrast as a fraction."""
_PLACES: Final = (
    "upper left", "top", "upper right", "left", "middle", "right", "lower left", "bottom", "lower right",
)  # fmt: skip


class Likeness(StrEnum):
    """How similar an image is to another program's original."""

    SAME = "the same picture"
    COMPOSITION = "the same composition"
    DOUBTFUL = "doubtful"
    ANOTHER = "another picture"
    UNKNOWN = "cannot tell"


@dataclass(frozen=True, slots=True)
class Likened:
    """How similar two images are.

    `gradients`: the correlation of their gradients, from -1 to 1; `psnr_db`: the PSNR of the reduced images. Both are
    None if the images cannot be compared; `psnr_db` is also None if the reduced images are equal. `differs`:
    descriptions of how two pictures with the same composition differ. `is_cropped`: only the middle part that both
    images show was compared.
    """

    likeness: Likeness
    gradients: float | None = None
    psnr_db: float | None = None
    differs: tuple[str, ...] = ()
    is_cropped: bool = False

    def __str__(self) -> str:
        if self.gradients is None:
            return f"{self.likeness.value}: the images have too little detail or too different shapes to be compared"
        pixels = "equal pixels" if self.psnr_db is None else f"PSNR {self.psnr_db:.1f} dB"
        differing = f", differing in {', '.join(self.differs)}" if self.differs else ""
        cropped = ", comparing only the middle that both images show" if self.is_cropped else ""
        numbers = f"correlation of gradients {self.gradients:.2f}, {pixels} at {SIDE} pixels{cropped}"
        return f"{self.likeness.value}{differing} ({numbers})"


def liken(one: Any, other: Any) -> Likened:
    """Compare two (H, W, 3) uint8 arrays, whose sizes may differ.

    If the aspect ratios differ, one image may be a crop of the other. So the middle of each image is compared with the
    whole of the other, and the better result counts.
    """
    ratio = (one.shape[1] * other.shape[0]) / (one.shape[0] * other.shape[1])
    if max(ratio, 1 / ratio) > _MOST_CROPPED:
        return Likened(Likeness.UNKNOWN)
    if max(ratio, 1 / ratio) <= _SAME_SHAPE:
        return _likened(one, other)
    found = [_likened(_middle(one, other), other), _likened(one, _middle(other, one))]
    return replace(max(found, key=lambda each: -2.0 if each.gradients is None else each.gradients), is_cropped=True)


def _likened(one: Any, other: Any) -> Likened:
    """Compare two images of the same aspect ratio."""
    small, small_other = _pair(one, other, SIDE)
    first, second = _gradients(small), _gradients(small_other)
    if min(float((each**2).mean()) for each in (first, second)) < _FLAT**2:
        return Likened(Likeness.UNKNOWN)
    gradients, psnr = _correlation(first, second), _psnr(small, small_other)
    verdict = _judged(gradients, psnr)
    if verdict is Likeness.COMPOSITION:
        return Likened(verdict, gradients, psnr, tuple(_differences(one, other, small, small_other)))
    if verdict is not Likeness.SAME:
        mirrored = _correlation(_gradients(small[:, ::-1]), second)
        if mirrored >= NEARLY:
            words = f"left and right (correlation with the mirrored image: {mirrored:.2f})"
            return Likened(Likeness.COMPOSITION, gradients, psnr, (words,))
    return Likened(verdict, gradients, psnr)


def _judged(gradients: float, psnr_db: float | None) -> Likeness:
    if gradients >= NEARLY and (psnr_db is None or psnr_db >= NEARLY_DB):
        return Likeness.SAME
    if gradients >= COMPOSITION:
        return Likeness.COMPOSITION
    return Likeness.DOUBTFUL if gradients >= DOUBTFUL else Likeness.ANOTHER


def _differences(one: Any, other: Any, small: Any, small_other: Any) -> Iterator[str]:
    """Yield a phrase for each way in which two pictures with the same composition differ."""
    import numpy as np

    chroma, chroma_other = _chroma(small), _chroma(small_other)
    colour = float(np.abs(chroma - chroma_other).mean())
    if colour > _COLOUR:
        yield f"colours (by {colour:.0f} of 255)"
    grey, grey_other = _grey(small), _grey(small_other)
    lighter = float(grey.mean() - grey_other.mean())
    if abs(lighter) > _BRIGHTNESS:
        yield f"brightness ({abs(lighter):.0f} of 255 {'lighter' if lighter > 0 else 'darker'})"
    ratio = float(grey.std()) / max(float(grey_other.std()), 1e-6)
    if abs(ratio - 1) > _CONTRAST:
        yield f"contrast ({ratio:.0%} of the original's)"
    if places := list(_places(small, small_other)):
        yield f"parts of the picture ({', '.join(places)})"
    if min(*one.shape[:2], *other.shape[:2]) >= _DETAIL_SIDE:
        detail = _correlation(*map(_gradients, _pair(one, other, _DETAIL_SIDE)))
        if detail < _DETAIL:
            yield f"fine detail (correlation {detail:.2f} at {_DETAIL_SIDE} pixels)"


def _places(small: Any, small_other: Any) -> Iterator[str]:
    """Divide both pictures into 3 x 3 parts; yield the names of parts that differ visibly, such as "upper left"."""
    first, second = _gradients(small), _gradients(small_other)
    _, height, width = first.shape
    whole = float((first**2).sum() + (second**2).sum())
    for place, name in enumerate(_PLACES):
        row, column = divmod(place, 3)
        part = (
            slice(None), slice(row * height // 3, (row + 1) * height // 3),
            slice(column * width // 3, (column + 1) * width // 3),
        )  # fmt: skip
        energy = float((first[part] ** 2).sum() + (second[part] ** 2).sum())
        if energy > whole / 30 and _correlation(first[part], second[part]) < DOUBTFUL:
            yield name


def _middle(pixels: Any, like: Any) -> Any:
    """Return the largest centre crop of an image that has the other image's aspect ratio."""
    height, width = pixels.shape[:2]
    across = min(width, max(1, round(height * like.shape[1] / like.shape[0])))
    down = min(height, max(1, round(width * like.shape[0] / like.shape[1])))
    left, top = (width - across) // 2, (height - down) // 2
    return pixels[top : top + down, left : left + across]


def _pair(one: Any, other: Any, side: int) -> tuple[Any, Any]:
    """Resize both images to the same small size, whose longer side is `side` pixels, as float64."""
    import numpy as np
    from PIL import Image

    longer = max(one.shape[:2])
    size = (max(3, round(one.shape[1] * side / longer)), max(3, round(one.shape[0] * side / longer)))
    reduced = [Image.fromarray(np.ascontiguousarray(each)).resize(size, Image.Resampling.BOX) for each in (one, other)]
    return np.asarray(reduced[0], dtype=np.float64), np.asarray(reduced[1], dtype=np.float64)


def _psnr(small: Any, small_other: Any) -> float | None:
    error = float(((small - small_other) ** 2).mean())
    return None if error == 0 else 10 * math.log10(255**2 / error)


def _correlation(first: Any, second: Any) -> float:
    powers = float((first**2).mean()) * float((second**2).mean())
    return float((first * second).mean()) / math.sqrt(powers) if powers > 0 else 0.0


def _grey(pixels: Any) -> Any:
    """Return the luminance, which JPEG preserves better than the colours, whose resolution it halves."""
    import numpy as np

    return pixels @ np.array([0.299, 0.587, 0.114])


def _chroma(pixels: Any) -> Any:
    """Return the blue and red channels minus the luminance, averaged over blocks of up to 8 x 8 pixels."""
    import numpy as np

    grey = _grey(pixels)
    both = np.stack([pixels[..., 2] - grey, pixels[..., 0] - grey])
    rows, columns = (np.arange(0, size, 8) for size in grey.shape)
    sums = np.add.reduceat(np.add.reduceat(both, rows, axis=1), columns, axis=2)
    counts = np.diff([*rows, grey.shape[0]])[:, None] * np.diff([*columns, grey.shape[1]])[None, :]
    return sums / counts


def _gradients(pixels: Any) -> Any:
    """Return the central differences of the luminance in both directions, in one array."""
    import numpy as np

    grey = _grey(pixels)
    across, down = (grey[1:-1, 2:] - grey[1:-1, :-2]) / 2, (grey[2:, 1:-1] - grey[:-2, 1:-1]) / 2
    return np.stack([across, down])
