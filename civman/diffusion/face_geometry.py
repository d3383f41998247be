"""Aligns faces: computes how a face maps onto a template, cuts it out, and puts it back, exactly as OpenCV does.

Sources: OpenCV 4 (its robust estimation of a similarity transform, its Lanczos resize over 8 x 8 pixels, its warp),
facexlib (the template). Images are (H, W, C) arrays; a matrix is (2, 3) and maps (x, y, 1) of one image to (x, y) of
another.
"""

from collections.abc import Iterator
from typing import Any, Final

import numpy as np

SIDE: Final = 512
"""The width and height of an aligned face in pixels."""
_TEMPLATE: Final = np.array([
    [192.98138, 239.94708], [318.90277, 240.1936], [256.63416, 314.01935], [201.26117, 371.41043],
    [313.08905, 371.15118],
])  # fmt: skip
"""The positions of the eyes, the nose and the corners of the mouth in an aligned face."""
_TRIES: Final = 13
"""How many random pairs of points OpenCV tries, so that with 99 % probability at least one pair has no outlier."""
_RANDOM: Final = 4164903690
_BITS: Final = 2**32


def alignment(landmarks: Any) -> Any:
    """Find the similarity transform, as (2, 3), that maps (5, 2) landmarks onto the template's landmarks.

    As in OpenCV, random pairs of points each propose a transform, the one with the least median error wins, and the
    final transform is fitted by least squares to all points that agree with the winner.
    """
    points, wanted = np.asarray(landmarks, dtype=np.float64), _TEMPLATE
    best, least = None, np.inf
    for first, second in _pairs(len(points)):
        proposed = _similarity(points[[first, second]], wanted[[first, second]])
        error = float(np.sort(_errors(proposed, points, wanted))[len(points) // 2])
        if error < least:
            best, least = proposed, error
    spread = max(2.5 * 1.4826 * (1 + 5 / (len(points) - 2)) * np.sqrt(least), 0.001)
    fitting = _errors(best, points, wanted) <= spread**2
    return _similarity(points[fitting], wanted[fitting])


def _pairs(count: int) -> Iterator[tuple[int, int]]:
    """Yield the indices of the same pairs of points that OpenCV's random generator would choose."""
    state = 2**64 - 1

    def drawn() -> int:
        nonlocal state
        state = (state % _BITS) * _RANDOM + (state >> 32)
        return state % _BITS % count

    for _ in range(_TRIES):
        first = second = drawn()
        while second == first:
            second = drawn()
        yield first, second


def _similarity(points: Any, wanted: Any) -> Any:
    """Fit a similarity transform that maps `points` onto `wanted`, both (N, 2), by least squares."""
    ones, zeros = np.ones(len(points)), np.zeros(len(points))
    x, y = points[:, 0], points[:, 1]
    rows = np.concatenate([np.stack([x, -y, ones, zeros], 1), np.stack([y, x, zeros, ones], 1)])
    cosine, sine, right, down = np.linalg.lstsq(rows, np.concatenate([wanted[:, 0], wanted[:, 1]]), rcond=None)[0]
    return np.array([[cosine, -sine, right], [sine, cosine, down]])


def _errors(matrix: Any, points: Any, wanted: Any) -> Any:
    return ((points @ matrix[:, :2].T + matrix[:, 2] - wanted) ** 2).sum(1)


def inverted(matrix: Any) -> Any:
    """Invert an affine map, given as (2, 3)."""
    inverse = np.linalg.inv(matrix[:, :2])
    return np.concatenate([inverse, -inverse @ matrix[:, 2:]], 1)


def warped(image: Any, matrix: Any, size: tuple[int, int], border: Any = 0.0) -> Any:
    """Warp an image by an affine matrix onto a new image of this size (width, height), interpolating linearly.

    `border`: the value of pixels outside the image. The result is float64 and has as many channels as the image.
    """
    back = inverted(matrix)
    down, across = np.mgrid[: size[1], : size[0]]
    x = back[0, 0] * across + back[0, 1] * down + back[0, 2]
    y = back[1, 0] * across + back[1, 1] * down + back[1, 2]
    left, top = np.floor(x).astype(int), np.floor(y).astype(int)
    values = np.asarray(image, dtype=np.float64)
    flat = values.ndim == 2
    values = values[..., None] if flat else values
    framed = np.empty((values.shape[0] + 2, values.shape[1] + 2, values.shape[2]))
    framed[:] = border
    framed[1:-1, 1:-1] = values
    right, below = (x - left)[..., None], (y - top)[..., None]
    rows = [np.clip(top + 1 + step, 0, framed.shape[0] - 1) for step in (0, 1)]
    columns = [np.clip(left + 1 + step, 0, framed.shape[1] - 1) for step in (0, 1)]
    upper = framed[rows[0], columns[0]] * (1 - right) + framed[rows[0], columns[1]] * right
    lower = framed[rows[1], columns[0]] * (1 - right) + framed[rows[1], columns[1]] * right
    result = upper * (1 - below) + lower * below
    return result[..., 0] if flat else result


def resized(image: Any, size: tuple[int, int]) -> Any:
    """Resize a (H, W, C) uint8 image to (width, height) with an 8 x 8 Lanczos kernel, without antialiasing."""
    if (image.shape[1], image.shape[0]) == size:
        return image
    values = image.astype(np.float64)
    for axis, length in ((0, size[1]), (1, size[0])):
        places, weights = _kernel(image.shape[axis], length)
        taken = np.take(values, places.reshape(-1), axis)
        shape = (*values.shape[:axis], length, 8, *values.shape[axis + 1 :])
        around = [1] * len(shape)
        around[axis], around[axis + 1] = length, 8
        values = (taken.reshape(shape) * weights.reshape(around)).sum(axis + 1)
    return values.round().clip(0, 255).astype(np.uint8)


def _kernel(before: int, after: int) -> tuple[Any, Any]:
    """Return the indices and weights of the eight source pixels for each pixel of a resized row or column."""
    centre = (np.arange(after) + 0.5) * (before / after) - 0.5
    first = np.floor(centre).astype(int) - 3
    places = first[:, None] + np.arange(8)
    distance = centre[:, None] - places
    weights = np.sinc(distance) * np.sinc(distance / 4)
    return np.clip(places, 0, before - 1), weights / weights.sum(1, keepdims=True)


def blurred(mask: Any, radius: int = 50, deviation: float = 11.0) -> Any:
    """Blur a (H, W) mask with a Gaussian over 2 · radius + 1 pixels; the mask is mirrored at its edges."""
    weights = np.exp(-(np.arange(-radius, radius + 1) ** 2) / (2 * deviation**2))
    weights /= weights.sum()
    result = np.asarray(mask, dtype=np.float64)
    for _ in range(2):  # blur the rows, then the columns
        padded = np.pad(result, ((0, 0), (radius, radius)), mode="reflect")
        windows = np.lib.stride_tricks.sliding_window_view(padded, len(weights), axis=1)
        result = (windows @ weights).T
    return result
