"""Edges for ControlNets: the pixels of OpenCV's `Canny`, recorded with opencv-python-headless 4.12.0."""

import hashlib
from typing import Any

import numpy as np
import pytest

from civman.pictures.edges import edges

# (seed, size, low, high) → the start of the SHA-256 of OpenCV's edges
RECORDED: dict[tuple[int, tuple[int, int], int, int], str] = {
    (0, (64, 64), 100, 200): "14e0fcfbecd60c4d",
    (0, (64, 64), 20, 60): "adefe66f974ea9dc",
    (1, (31, 17), 100, 200): "b85b8433645508a4",
    (1, (31, 17), 20, 60): "0fbbd9344ba88c12",
    (2, (5, 90), 100, 200): "3f2d7808304e6f18",
    (2, (5, 90), 20, 60): "265882fd48b37120",
    (3, (96, 40), 100, 200): "a14070066ccc4d1c",
    (3, (96, 40), 20, 60): "a67c512c5e6691fb",
    (4, (1, 1), 100, 200): "6e340b9cffb37a98",
    (4, (1, 1), 20, 60): "6e340b9cffb37a98",
    (5, (2, 7), 100, 200): "e7ecebbc590bc88b",
    (5, (2, 7), 20, 60): "05743be050a4ae49",
    (6, (128, 96), 100, 200): "b2b4b027a5b47f1c",
    (6, (128, 96), 20, 60): "c99070deea045932",
    (7, (50, 50), 100, 200): "15f674fb2d807738",
    (7, (50, 50), 20, 60): "8214e73da1fa8a24",
}


def drawn(seed: int, size: tuple[int, int]) -> Any:
    """Smooth shapes with noise, (H, W, 3) uint8, from whole numbers only, so that they are the same everywhere."""
    generator = np.random.default_rng(seed)
    width, height = size
    rows, columns = np.mgrid[:height, :width]
    picture = np.zeros((height, width, 3), np.int64) + generator.integers(0, 256, 3)
    for _ in range(6):
        x, y, radius = generator.integers(0, width), generator.integers(0, height), generator.integers(2, 30)
        inside = (rows - y) ** 2 + (columns - x) ** 2 < radius**2
        picture[inside] = generator.integers(0, 256, 3)
    picture += generator.integers(-12, 13, picture.shape)
    return np.clip(picture, 0, 255).astype(np.uint8)


CASES = [
    (seed, size, low, high)
    for seed, size in enumerate([(64, 64), (31, 17), (5, 90), (96, 40), (1, 1), (2, 7), (128, 96), (50, 50)])
    for low, high in ((100, 200), (20, 60))
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_edges_are_those_of_opencv(case: tuple[int, tuple[int, int], int, int]) -> None:
    seed, size, low, high = case

    found = edges(drawn(seed, size), low, high)

    assert found.dtype == np.uint8
    assert (found[..., 0] == found[..., 1]).all()
    assert hashlib.sha256(np.ascontiguousarray(found[..., 0]).tobytes()).hexdigest()[:16] == RECORDED[case]
