"""The verdict of two images: robust to JPEG, to shrinking and to noise, and not fooled by other images."""

import io
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import numpy as np
from PIL import Image

import civman.demo
from civman.rendering.same_picture import Likeness, liken

ALL = sorted((Path(civman.demo.__file__).parent / "previews").glob("*.png"))
FLAT = ("tiny-shapes-1", "tiny-no-blue-1")
"""Previews that show two colours of equal brightness, so their gradients are noise."""
PREVIEWS = [path for path in ALL if path.stem not in FLAT]


def enlarged(path: Path) -> Any:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB").resize((512, 512), Image.Resampling.BICUBIC))


def jpeg(pixels: Any, quality: int, side: int) -> Any:
    file = io.BytesIO()
    Image.fromarray(pixels).resize((side, side), Image.Resampling.LANCZOS).save(file, "jpeg", quality=quality)
    with Image.open(file) as image:
        return np.asarray(image)


def noisy(pixels: Any, strength: float) -> Any:
    noise = np.random.default_rng(5).normal(0, strength, pixels.shape)
    return np.clip(pixels + noise, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("path", PREVIEWS, ids=lambda path: path.stem)
def test_compression_shrinking_and_noise_leave_it_the_same_picture(path: Path) -> None:
    pixels = enlarged(path)

    changed = [jpeg(pixels, quality, side) for quality in (50, 75, 90) for side in (450, 512)]
    for other in [pixels, *changed, noisy(pixels, 4)]:
        assert liken(pixels, other).likeness is Likeness.SAME


def test_other_images_are_not_the_same_picture() -> None:
    images = [enlarged(path) for path in PREVIEWS]
    pairs = [(one, other) for number, one in enumerate(images) for other in images[:number]]
    assert len(pairs) > 50

    found = [liken(one, other).likeness for one, other in pairs]

    assert Likeness.SAME not in found


def test_flat_images_and_other_shapes_cannot_be_compared() -> None:
    pixels = enlarged(PREVIEWS[0])
    assert liken(np.zeros_like(pixels), pixels).likeness is Likeness.UNKNOWN
    for path in ALL:
        if path.stem in FLAT:
            assert liken(enlarged(path), jpeg(enlarged(path), 50, 450)).likeness is Likeness.UNKNOWN
    assert liken(pixels[:100], pixels).likeness is Likeness.UNKNOWN
    assert liken(pixels, pixels[:, ::-1].copy()).likeness is not Likeness.SAME or (pixels == pixels[:, ::-1]).all()


BUSY = [path for path in PREVIEWS if path.stem in ("tiny-outline-1", "tiny-stripes-2", "tiny-shapes-2")]


@pytest.mark.parametrize("path", BUSY, ids=lambda path: path.stem)
def test_of_images_with_other_shapes_the_shared_middle_is_compared(path: Path) -> None:
    pixels = enlarged(path)
    for cropped in (pixels[64:-64], pixels[:, 100:-100]):
        found = liken(pixels, cropped)

        assert (found.likeness, found.is_cropped) == (Likeness.SAME, True)
        assert "comparing only the middle that both images show" in str(found)


@pytest.mark.parametrize("path", BUSY, ids=lambda path: path.stem)
def test_a_mirror_image_is_the_same_composition(path: Path) -> None:
    pixels = enlarged(path)
    found = liken(pixels, pixels[:, ::-1])

    if found.likeness is not Likeness.SAME:  # some are symmetrical
        assert found.likeness is Likeness.COMPOSITION
        assert "left and right" in str(found)


def test_it_is_said_in_what_the_same_composition_differs() -> None:
    pixels = enlarged(BUSY[1]).astype(np.float64)  # yellow on purple
    changes = {
        "colours": pixels * [0.6, 1.0, 1.2],
        "brightness": pixels * 0.6 + 90,
        "contrast": (pixels - pixels.mean()) * 0.5 + pixels.mean(),
    }
    for word, changed in changes.items():
        found = liken(np.clip(changed, 0, 255).astype(np.uint8), pixels.astype(np.uint8))

        assert found.likeness is Likeness.COMPOSITION, word
        assert any(each.startswith(word) for each in found.differs), found


NINTHS = [
    "upper left", "top", "upper right", "left", "middle", "right", "lower left", "bottom", "lower right",
]  # fmt: skip


@pytest.mark.parametrize("place", range(9))
def test_the_part_that_differs_is_named_and_no_other(place: int) -> None:
    generator = np.random.default_rng(place)
    squares = generator.integers(0, 256, (24, 24, 3), dtype=np.uint8)
    row, column = divmod(place, 3)
    changed = squares.copy()
    changed[8 * row : 8 * row + 8, 8 * column : 8 * column + 8] = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)

    found = liken(*(np.repeat(np.repeat(each, 16, 0), 16, 1) for each in (changed, squares)))

    assert found.likeness is Likeness.COMPOSITION
    (parts,) = [words for words in found.differs if words.startswith("parts of the picture")]
    assert parts == f"parts of the picture ({NINTHS[place]})"


@pytest.mark.parametrize("level", [-3, -1, 1, 3])
def test_numbers_do_not_depend_on_a_common_shift(level: int) -> None:
    pixels = enlarged(BUSY[1])
    shifted = np.clip(pixels.astype(np.int16) + level, 0, 255).astype(np.uint8)

    assert liken(shifted, pixels).likeness is Likeness.SAME
