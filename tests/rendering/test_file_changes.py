"""What happened to an image file since it was made, on files that Pillow changed in each way."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter

from civman.pictures import image_text
from civman.rendering.file_changes import ChangeKind, change_of


def scene(seed: int, side: int = 128) -> Image.Image:
    """A picture with soft and hard edges, some texture, and no repetition."""
    random = np.random.default_rng(seed)
    soft = random.integers(0, 255, (6, 6, 3), dtype=np.uint8)
    image = Image.fromarray(soft).resize((side, side), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(image)
    for _ in range(5):
        x, y, size = random.integers(0, side, 3)
        draw.ellipse(
            [int(x), int(y), int(x + size // 3 + 4), int(y + size // 3 + 4)],
            fill=tuple(random.integers(0, 255, 3).tolist()),
        )
    noise = random.normal(0, 3, (side, side, 3))
    return Image.fromarray((np.asarray(image) + noise).clip(0, 255).astype(np.uint8))


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return Image.open(io.BytesIO(stream.getvalue())).convert("RGB")


def dark(image: Image.Image) -> Image.Image:
    return ImageEnhance.Brightness(image).enhance(0.5)


def painted(image: Image.Image) -> Image.Image:
    copy = image.copy()
    ImageDraw.Draw(copy).rectangle([40, 50, 63, 73], fill=(255, 0, 255))
    return copy


CHANGES = {
    "resized": (lambda image: image.resize((64, 64), Image.Resampling.LANCZOS), ChangeKind.RESIZED),
    "enlarged": (lambda image: image.resize((200, 200), Image.Resampling.BICUBIC), ChangeKind.RESIZED),
    "thumbnail, bilinear": (lambda image: image.resize((90, 90), Image.Resampling.BILINEAR), ChangeKind.RESIZED),
    "cropped": (lambda image: image.crop((16, 24, 100, 90)), ChangeKind.CROPPED),
    "cropped at the edge": (lambda image: image.crop((0, 0, 128, 100)), ChangeKind.CROPPED),
    "retouched": (painted, ChangeKind.RETOUCHED),
    "one pixel": (lambda image: (image.putpixel((5, 5), (1, 2, 3)), image)[1], ChangeKind.RETOUCHED),
    "through JPEG": (lambda image: jpeg(image, 90), ChangeKind.RE_ENCODED),
    "through bad JPEG": (lambda image: jpeg(image, 60), ChangeKind.RE_ENCODED),
    "retouched and through JPEG": (lambda image: jpeg(painted(image), 90), ChangeKind.RETOUCHED),
    "another": (lambda image: scene(99), ChangeKind.REPLACED),
    "of another size": (lambda image: scene(99, 96), ChangeKind.REPLACED),
    "inverted": (lambda image: Image.eval(image, lambda value: 255 - value), ChangeKind.REPLACED),
    "blurred a lot": (lambda image: dark(image.filter(ImageFilter.GaussianBlur(12))), ChangeKind.REPLACED),
}  # fmt: skip


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", CHANGES)
def test_each_change_is_named(name: str, seed: int, tmp_path: Path) -> None:
    change, kind = CHANGES[name]
    change(scene(seed)).save(tmp_path / "found.png")

    found = change_of(np.asarray(scene(seed)), tmp_path / "found.png", is_lossless=True)

    assert found is not None
    assert found.kind is kind, found


def test_the_place_of_a_crop_and_of_a_touch_are_told(tmp_path: Path) -> None:
    scene(1).crop((16, 24, 100, 90)).save(tmp_path / "crop.png")
    painted(scene(1)).save(tmp_path / "touch.png")

    crop, touch = (
        change_of(np.asarray(scene(1)), tmp_path / f"{name}.png", is_lossless=True) for name in ("crop", "touch")
    )

    assert crop is not None
    assert crop.words == "was cropped from 128x128 to 84x66, from position 16,24"
    assert touch is not None
    assert touch.words == "was retouched within 24x32 pixels at position 40,48"


@pytest.mark.parametrize("quality", [70, 95, 100])
def test_a_jpeg_as_civman_writes_it_is_unchanged_and_one_written_again_is_not(quality: int, tmp_path: Path) -> None:
    made = np.asarray(scene(2))
    own, again = tmp_path / "own.jpg", tmp_path / "again.jpg"
    own.write_bytes(image_text.write(made, record=None, parameters=None, format="jpeg", quality=quality))
    with Image.open(own) as opened:
        opened.save(again, "JPEG", quality=60)

    assert change_of(made, own, is_lossless=False) is None
    changed = change_of(made, again, is_lossless=False)
    assert changed is not None
    assert changed.kind is ChangeKind.RE_ENCODED


def test_an_unchanged_file_is_unchanged(tmp_path: Path) -> None:
    scene(3).save(tmp_path / "same.png")

    assert change_of(np.asarray(scene(3)), tmp_path / "same.png", is_lossless=True) is None
