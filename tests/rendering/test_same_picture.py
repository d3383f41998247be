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
    assert liken(pixels[:256], pixels).likeness is Likeness.UNKNOWN
    assert liken(pixels, pixels[:, ::-1].copy()).likeness is not Likeness.SAME or (pixels == pixels[:, ::-1]).all()
