"""Preprocessors for control images: the pixels of A1111's extension, recorded with opencv-python-headless 4.12.0."""

import hashlib
from typing import Any

import numpy as np
import pytest
from test_edges import drawn

from civman.domain.recipes.control import MAPS, control_type, map_named, map_of
from civman.errors import UsageError
from civman.pictures.control_maps import control_map, shrunk

# (seed, size, preprocessor, number) → the start of the SHA-256 of the pixels that A1111's rule gives with OpenCV
RECORDED: dict[tuple[int, tuple[int, int], str, float], str] = {
    (0, (64, 64), "blur", 9.0): "5e9849b2c29debd7",
    (0, (64, 64), "blur", 1.3): "e738e4cc7efcd03b",
    (0, (64, 64), "tile", 2.0): "d0df2222c13d6928",
    (0, (64, 64), "tile", 4.0): "e72dcb18e105e036",
    (0, (64, 64), "gray", 1.0): "b0c3bacf1d9e946a",
    (0, (64, 64), "gray", 0.5): "9dc342850c6d443c",
    (0, (64, 64), "xdog", 32.0): "7234ad172dd0716a",
    (0, (64, 64), "xdog", 10.0): "3de62406da21633a",
    (1, (31, 17), "blur", 9.0): "582f803f793adfce",
    (1, (31, 17), "blur", 1.3): "9dd5b526f733bc87",
    (1, (31, 17), "tile", 2.0): "353a3d6335fa23e1",
    (1, (31, 17), "tile", 4.0): "c97c32685781f7ec",
    (1, (31, 17), "gray", 1.0): "b19b8021a62207e7",
    (1, (31, 17), "gray", 0.5): "806f2acf9fb2df01",
    (1, (31, 17), "xdog", 32.0): "2b304a3dd66a20ad",
    (1, (31, 17), "xdog", 10.0): "ef6e5966ada710b8",
    (2, (90, 12), "blur", 9.0): "85b81725548e3611",
    (2, (90, 12), "blur", 1.3): "4374a53a5624daca",
    (2, (90, 12), "tile", 2.0): "3a16c0e17a74677e",
    (2, (90, 12), "tile", 4.0): "4c1155ec63960012",
    (2, (90, 12), "gray", 1.0): "6c33bf15ee078767",
    (2, (90, 12), "gray", 0.5): "7ed42710e3017e26",
    (2, (90, 12), "xdog", 32.0): "9a2d713bdd4163f6",
    (2, (90, 12), "xdog", 10.0): "a2db389287095fe7",
    (3, (128, 96), "blur", 9.0): "e5590ab8fd444752",
    (3, (128, 96), "blur", 1.3): "4b92ffd28a2fce91",
    (3, (128, 96), "tile", 2.0): "1d76986efcf86552",
    (3, (128, 96), "tile", 4.0): "7c9a4bb11838f131",
    (3, (128, 96), "gray", 1.0): "0c4db8736b9e7b89",
    (3, (128, 96), "gray", 0.5): "cfe504e11681bda1",
    (3, (128, 96), "xdog", 32.0): "c73f71ee0bc3e1d5",
    (3, (128, 96), "xdog", 10.0): "3f1fd9886a86c0fd",
}


@pytest.mark.parametrize("case", RECORDED, ids=str)
def test_a_control_image_is_that_of_a1111(case: tuple[int, tuple[int, int], str, float]) -> None:
    seed, size, name, number = case

    found = control_map(drawn(seed, size), name, (number,))

    assert found.dtype == np.uint8
    assert hashlib.sha256(np.ascontiguousarray(found).tobytes()).hexdigest()[:16] == RECORDED[case]


def area(pixels: Any, height: int, width: int) -> Any:
    """The mean of each area, summed pixel by pixel."""
    found = np.zeros((height, width, 3))
    down, across = pixels.shape[0] / height, pixels.shape[1] / width
    for y in range(height):
        for x in range(width):
            total, weight = np.zeros(3), 0.0
            for row in range(int(y * down), min(int(np.ceil((y + 1) * down)), pixels.shape[0])):
                for column in range(int(x * across), min(int(np.ceil((x + 1) * across)), pixels.shape[1])):
                    high = min(row + 1, (y + 1) * down) - max(row, y * down)
                    share = high * (min(column + 1, (x + 1) * across) - max(column, x * across))
                    total, weight = total + pixels[row, column] * share, weight + share
            found[y, x] = total / weight
    return found


@pytest.mark.parametrize(("size", "rate"), [((20, 15), 1.5), ((33, 18), 2.7), ((16, 16), 1.1)])
def test_a_picture_is_shrunk_by_areas_at_any_rate(size: tuple[int, int], rate: float) -> None:
    pixels = drawn(1, size)

    found = shrunk(pixels, rate)

    assert found.shape == (int(size[1] / rate), int(size[0] / rate), 3)
    assert np.abs(found - area(pixels, *found.shape[:2])).max() <= 0.5 + 1e-6


def test_tile_leaves_the_picture_as_it_is_by_default() -> None:
    pixels = drawn(0, (20, 30))

    assert (control_map(pixels, *map_of("tile")) == pixels).all()


def test_preprocessors_have_the_numbers_and_names_of_a1111() -> None:
    assert map_of("canny") == ("canny", (100.0, 200.0))
    assert map_of("canny:50") == ("canny", (50.0, 200.0))
    assert map_of("blur:3.5") == ("blur", (3.5,))
    assert [map_named(name) for name in (
        "None", "invert (from white bg & black line)", "tile_resample", "blur_gaussian", "recolor_luminance",
        "scribble_xdog", "Canny", "openpose_full",
    )] == ["none", "invert", "tile", "blur", "gray", "xdog", "canny", None]  # fmt: skip
    assert all(map_of(name)[0] == name for name in MAPS)
    assert control_type("xdog") is None


@pytest.mark.parametrize(
    ("text", "says"),
    [("depth", "not a preprocessor"), ("canny:0", "has the parameters 1 to 255"), ("canny:1:2:3", "has the parameters"),
     ("blur:much", "has the parameters"), ("invert:1", "has no parameters"), ("blur:nan", "has the parameters"),
     ("", "not a preprocessor")],
)  # fmt: skip
def test_what_is_no_preprocessor_is_refused(text: str, says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        map_of(text)

    assert caught.value.hint
