"""Finds out how an image file was changed after it was made: re-encoded, resized, cropped or retouched."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from civman.pictures.image_text import pixels
from civman.rendering.compare_pictures import distance

_RESIZED_DB: Final = 24.0
"""The PSNR in dB from which a file counts as a resized copy of the original.

The limit is low, because other programs resize with other filters than civman.
"""


_BLOCK: Final = 8
_BLOCK_GAP: Final = 6.0
_STRONG: Final = 50
"""The JPEG quality of strong compression, with which civman measures how much compression can change a block of pixels.

A block that differs by more than twice as much was retouched.
"""
_MOST_RETOUCHED: Final = 0.6
"""The fraction of changed blocks below which the file counts as the original image, retouched in places."""
_FEW: Final = 0.02
"""If a smaller fraction of the pixels than this changed, a small spot was retouched: re-encoding changes more."""


class ChangeKind(StrEnum):
    """How a file was changed after its image was made."""

    RE_ENCODED = "re-encoded"
    RESIZED = "resized"
    CROPPED = "cropped"
    RETOUCHED = "retouched"
    REPLACED = "replaced"
    """The file shows another image, or was changed beyond recognition."""


@dataclass(frozen=True, slots=True)
class FileChange:
    """How a file differs from the image as it was made.

    `words`: the end of a sentence whose subject is the file, such as "was resized from 64x64 to 32x32".
    """

    kind: ChangeKind
    words: str


def change_of(made: Any, path: Path, *, is_lossless: bool) -> FileChange | None:
    """Compare `made`, the pixels of an image as it was made, with the file at `path`; None if the file is unchanged.

    `made` is (H, W, 3) uint8. A lossy file counts as unchanged if saving `made` with the file's own settings gives the
    file's pixels.
    """
    found = pixels(path)
    if found.shape != made.shape:
        return _other_size(made, found)
    apart = distance(made, found)
    if apart is None or apart.psnr_db is None or (not is_lossless and _is_written_so(made, found, path)):
        return None
    quality = f"(PSNR {apart.psnr_db:.1f} dB)"
    changed = _changed_blocks(made, found)
    if 0 < changed.mean() < _MOST_RETOUCHED:
        return FileChange(ChangeKind.RETOUCHED, f"was retouched {_region(changed)}")
    if changed.any():
        return FileChange(ChangeKind.REPLACED, f"shows another image, or was changed all over {quality}")
    if apart.share < _FEW:
        return FileChange(ChangeKind.RETOUCHED, f"was retouched: {apart.share:.2%} of the pixels differ slightly")
    return FileChange(ChangeKind.RE_ENCODED, f"was re-encoded with loss of detail, or adjusted slightly {quality}")


def _is_written_so(made: Any, found: Any, path: Path) -> bool:
    """Whether `found` results from saving `made` as JPEG with the file's quantization tables.

    False if the file is not a JPEG.
    """
    import io

    import numpy as np
    from PIL import Image

    stream = io.BytesIO()
    with Image.open(path) as opened:
        if opened.format != "JPEG":
            return False
        tables = getattr(opened, "quantization", None)
    Image.fromarray(made).save(stream, "JPEG", qtables=tables, subsampling=0)
    return bool(np.array_equal(pixels(stream.getvalue()), found))


def _other_size(made: Any, found: Any) -> FileChange:
    (height, width), (new_height, new_width) = made.shape[:2], found.shape[:2]
    sizes = f"from {width}x{height} to {new_width}x{new_height}"
    if (corner := _place_in(made, found)) is not None:
        return FileChange(ChangeKind.CROPPED, f"was cropped {sizes}, from position {corner[0]},{corner[1]}")
    if _is_resized(made, found):
        return FileChange(ChangeKind.RESIZED, f"was resized {sizes}")
    return FileChange(ChangeKind.REPLACED, f"has another size ({sizes}) and shows something else")


def _place_in(made: Any, found: Any) -> tuple[int, int] | None:
    """Return the pixel position (x, y) at which `found` occurs unchanged in `made`, or None."""
    import numpy as np

    (height, width), (low, short) = made.shape[:2], found.shape[:2]
    if low > height or short > width:
        return None
    first = found[0].tobytes()
    for y in range(height - low + 1):
        row, at = made[y].tobytes(), -1
        while (at := row.find(first, at + 1)) >= 0:
            if at % 3 == 0 and np.array_equal(made[y : y + low, at // 3 : at // 3 + short], found):
                return at // 3, y
    return None


def _is_resized(made: Any, found: Any) -> bool:
    import numpy as np
    from PIL import Image

    size = (found.shape[1], found.shape[0])
    filters = (Image.Resampling.LANCZOS, Image.Resampling.BICUBIC, Image.Resampling.BOX, Image.Resampling.NEAREST)
    for each in filters:
        apart = distance(np.asarray(Image.fromarray(made).resize(size, each)), found)
        if apart is not None and (apart.psnr_db is None or apart.psnr_db >= _RESIZED_DB):
            return True
    return False


def _changed_blocks(made: Any, found: Any) -> Any:
    """Return which blocks of 8x8 pixels differ by much more than strong JPEG compression causes, as (H/8, W/8) bool."""
    import io

    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(made).save(stream, "JPEG", quality=_STRONG)
    return _block_gaps(made, found) > _BLOCK_GAP + 2 * _block_gaps(made, pixels(stream.getvalue()))


def _block_gaps(made: Any, found: Any) -> Any:
    """Return the mean absolute difference (0 to 255) of each block of 8x8 pixels."""
    import numpy as np

    gap = np.abs(made.astype(np.int16) - found.astype(np.int16)).mean(axis=2)
    height, width = gap.shape[0] // _BLOCK * _BLOCK, gap.shape[1] // _BLOCK * _BLOCK
    blocks = gap[:height, :width].reshape(height // _BLOCK, _BLOCK, width // _BLOCK, _BLOCK)
    return blocks.mean(axis=(1, 3))


def _region(changed: Any) -> str:
    """Describe the size and position of the changed area, such as "within 64x32 pixels at position 8,16"."""
    import numpy as np

    rows, columns = (np.flatnonzero(changed.any(axis=axis)) * _BLOCK for axis in (1, 0))
    left, top = columns[0], rows[0]
    return f"within {columns[-1] + _BLOCK - left}x{rows[-1] + _BLOCK - top} pixels at position {left},{top}"
