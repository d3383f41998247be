"""Canny edge detection, as ControlNets for edges expect it: white lines on black.

The arithmetic is OpenCV's, in integers. Each pixel uses the 3x3 Sobel derivatives of the channel with the strongest
gradient, whose strength is the sum of the absolute derivatives. Borders repeat the edge pixels. Source: Canny 1986, and
OpenCV's documentation of `Canny`.
"""

from typing import Any, Final

LOW: Final = 100
HIGH: Final = 200
"""A1111's gradient thresholds: an edge has a pixel above `HIGH` and extends over connected pixels above `LOW`."""


def edges(pixels: Any, low: int = LOW, high: int = HIGH) -> Any:
    """Find the edges in (H, W, 3) uint8 pixels; returns (H, W, 3) uint8 with values 0 and 255."""
    import numpy as np

    across, down = _gradient(pixels.astype(np.int32))
    sums = np.abs(across) + np.abs(down)
    strength, channel = sums.max(axis=-1), sums.argmax(axis=-1)[..., None]
    across = np.take_along_axis(across, channel, axis=-1)[..., 0]
    down = np.take_along_axis(down, channel, axis=-1)[..., 0]
    thin = _thinned(strength, across, down) & (strength > low)
    found = _connected(thin, thin & (strength > high))
    return np.repeat(np.where(found, 255, 0).astype(np.uint8)[..., None], 3, axis=-1)


def _gradient(pixels: Any) -> tuple[Any, Any]:
    """Compute horizontal and vertical Sobel derivatives, each (H, W, C). Borders repeat the edge pixels."""
    import numpy as np

    whole = np.pad(pixels, ((1, 1), (1, 1), (0, 0)), mode="edge")
    rows = whole[:-2] + 2 * whole[1:-1] + whole[2:]
    columns = whole[:, :-2] + 2 * whole[:, 1:-1] + whole[:, 2:]
    return rows[:, 2:] - rows[:, :-2], columns[2:] - columns[:-2]


def _thinned(strength: Any, across: Any, down: Any) -> Any:
    """Non-maximum suppression: mark the pixels that are stronger than both their neighbours along the gradient."""
    import numpy as np

    whole = np.pad(strength, 1)
    height, width = strength.shape

    def shifted(rows: int, columns: int) -> Any:
        return whole[1 + rows : 1 + rows + height, 1 + columns : 1 + columns + width]

    size_x, size_y = np.abs(across).astype(np.int64), np.abs(down).astype(np.int64) << 15
    tan_22, tan_67 = size_x * 13573, size_x * 13573 + (size_x << 16)
    is_flat, is_steep = size_y < tan_22, size_y > tan_67
    sideways = (strength > shifted(0, -1)) & (strength >= shifted(0, 1))
    upright = (strength > shifted(-1, 0)) & (strength >= shifted(1, 0))
    same_sign = (across ^ down) >= 0
    falling = (strength > shifted(-1, -1)) & (strength > shifted(1, 1))
    rising = (strength > shifted(-1, 1)) & (strength > shifted(1, -1))
    return np.where(is_flat, sideways, np.where(is_steep, upright, np.where(same_sign, falling, rising)))


def _connected(candidates: Any, seeds: Any) -> Any:
    """Extend `seeds` to all candidates that are connected to them, including diagonally."""
    import numpy as np

    found = seeds.copy()
    height, width = found.shape
    waiting = list(zip(*np.nonzero(seeds), strict=True))
    while waiting:
        row, column = waiting.pop()
        for y in range(max(row - 1, 0), min(row + 2, height)):
            for x in range(max(column - 1, 0), min(column + 2, width)):
                if candidates[y, x] and not found[y, x]:
                    found[y, x] = True
                    waiting.append((y, x))
    return found
