"""Preprocessors that compute a control image from an image without a model.

They follow A1111's ControlNet extension, which uses OpenCV, and reproduce OpenCV's arithmetic. Input and output are (H,
W, 3) uint8 pixels.
"""

from typing import Any, Final

from civman.pictures.edges import edges

_LUMINANCE: Final = (0.072169, 0.715160, 0.212671)
"""The weights of red, green and blue in the luminance. The weights of red and blue are swapped, as in A1111."""
_FINE, _COARSE = 0.5, 5.0
"""The standard deviations in pixels of the two Gaussian blurs whose difference "xdog" computes."""


def control_map(pixels: Any, name: str, numbers: tuple[float, ...]) -> Any:
    """Compute a control image with the preprocessor `name` (see `domain.recipes.control.MAPS`) and its parameters."""
    match name:
        case "canny":
            return edges(pixels, int(numbers[0]), int(numbers[1]))
        case "invert":
            return 255 - pixels
        case "blur":
            return blurred(pixels, numbers[0])
        case "tile":
            return shrunk(pixels, numbers[0])
        case "gray":
            return lightness(pixels, numbers[0])
        case "xdog":
            return sketch(pixels, numbers[0])
    raise ValueError(f"`{name}` is not a preprocessor")


def blurred(pixels: Any, sigma: float) -> Any:
    """Blur with a Gaussian whose weights are integers with the sum 256, as in OpenCV for 8-bit pixels."""
    import numpy as np

    exact = _gaussian(sigma, reach=3)
    weights, rest = np.zeros(len(exact), np.int64), 0.0
    middle = len(exact) // 2
    for place in range(middle):  # carry the rounding error over to the next weight
        wanted = exact[place] * 256 + rest
        weights[place] = weights[-1 - place] = whole = round(wanted)
        rest = wanted - whole
    weights[middle] = 256 - weights.sum()
    summed = _weighted(pixels.astype(np.int64), weights)
    return ((summed + (1 << 15)) >> 16).clip(0, 255).astype(np.uint8)


def _gaussian(sigma: float, *, reach: int) -> Any:
    """Return the normalised weights of a Gaussian that extends about `reach` standard deviations to each side."""
    import numpy as np

    places = round(sigma * reach * 2 + 1) | 1
    weights = np.exp(-((np.arange(places) - places // 2) ** 2) / (2 * sigma * sigma))
    return weights / weights.sum()


def _weighted(values: Any, weights: Any) -> Any:
    """Convolve along rows, then along columns. Borders are reflected without repeating the edge pixel."""
    import numpy as np

    reach = len(weights) // 2
    for axis in (1, 0):
        wide, size = [(0, 0)] * 3, values.shape[axis]
        wide[axis] = (reach, reach)
        whole = np.pad(values, wide, mode="reflect")
        values = sum(
            weight * (whole[:, place : place + size] if axis else whole[place : place + size])
            for place, weight in enumerate(weights)
        )
    return values


def shrunk(pixels: Any, rate: float) -> Any:
    """Shrink both sides by `rate`, averaging areas; a rate below 1.1 leaves the image unchanged, as in A1111."""
    import numpy as np

    if rate < 1.1:
        return pixels
    height, width = (max(1, int(side / rate)) for side in pixels.shape[:2])
    rows, columns = _shares(pixels.shape[0], height), _shares(pixels.shape[1], width)
    lower = np.tensordot(rows, pixels.astype(np.float64), axes=1)
    means = np.tensordot(lower, columns, axes=(1, 1)).transpose(0, 2, 1)
    # OpenCV rounds .5 up if the size is halved, and to the even number otherwise
    is_half = pixels.shape[0] == 2 * height and pixels.shape[1] == 2 * width
    return (np.floor(means + 0.5) if is_half else np.rint(means)).astype(np.uint8)


def _shares(size: int, target: int) -> Any:
    """The (target, size) matrix of averaging weights for shrinking a side from `size` to `target` pixels."""
    import numpy as np

    starts, scale = np.arange(target)[:, None] * (size / target), size / target
    begins = np.maximum(starts, np.arange(size))
    ends = np.minimum(np.minimum(starts + scale, size), np.arange(size) + 1)
    shares = np.maximum(ends - begins, 0)
    return shares / shares.sum(axis=1, keepdims=True)


def lightness(pixels: Any, gamma: float) -> Any:
    """Convert to a grey image of the CIELAB lightness to the power of `gamma` (A1111's "recolor_luminance").

    Like OpenCV, this uses integers: luminance in 2040 levels, cube roots and sums in 15-bit fixed point.
    """
    import numpy as np

    levels = np.arange(256) / 255
    linear = np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)
    table = np.rint(linear * 2040).astype(np.int64)
    places = np.arange(2041) / 2040
    roots = np.rint(32768 * np.where(places < 0.008856, places * 7.787 + 0.13793, np.cbrt(places))).astype(np.int64)
    light = (table[pixels] @ np.rint(np.array(_LUMINANCE) * 4096).astype(np.int64) + 2048) >> 12
    whole = (296 * roots[light] - 1_336_934 + 16384) >> 15
    parts = (whole.clip(0, 255).astype(np.float32) / np.float32(255)) ** np.float32(gamma)
    grey = (parts * np.float32(255)).clip(0, 255).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=-1)


def sketch(pixels: Any, threshold: float) -> Any:
    """Draw white lines where the image is darker than its surroundings (A1111's "scribble_xdog")."""
    import numpy as np

    values = pixels.astype(np.float64)
    apart = _weighted(values, _gaussian(_COARSE, reach=4)) - _weighted(values, _gaussian(_FINE, reach=4))
    dark = (255 - apart.min(axis=2)).clip(0, 255).astype(np.uint8)
    strength = (2 * (255 - dark.astype(np.int64))) % 256  # as in A1111, the 8-bit arithmetic wraps around
    return np.repeat(np.where(strength > threshold, 255, 0).astype(np.uint8)[..., None], 3, axis=-1)
