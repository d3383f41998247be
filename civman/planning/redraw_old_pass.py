"""Computes the second pass of A1111 before 2023 from the entry `First pass size` in the settings."""

import math


def old_first_pass(first: tuple[int, int], final: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the size of the first pass, and how many pixels of its width and height were cut off.

    `first`: the size in the settings; 0x0 means an area of 512 x 512 pixels, rounded up to multiples of 64. `final`:
    the size of the finished image.
    """
    (width, height), (across, down) = first, final
    if width == 0 or height == 0:
        scale = math.sqrt(512 * 512 / (across * down))
        width, height = math.ceil(scale * across / 64) * 64, math.ceil(scale * down / 64) * 64
        kept: tuple[float, float] = int(scale * across), int(scale * down)
    elif across * height > down * width:
        kept = width, width * down / across
    else:
        kept = height * across / down, height
    return (width // 8 * 8, height // 8 * 8), (int(width - kept[0]), int(height - kept[1]))
