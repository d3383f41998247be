"""LoRA scales that change during sampling, as keyframes such as "0@0,1@0.5" with linear interpolation between them.

A keyframe is SCALE@POSITION. If no position is above 1, positions are fractions of the pass: the first two steps are at
0 and the last step is at 1. Otherwise positions count steps: the first two are at 0, the third is at 1. Before the
first keyframe and after the last one, the scale is constant. A keyframe without a position is at 1. `SCALE@START-END`
applies this scale from START up to, but not including, END, and 0 in all other steps; an END of 1 or a missing END
includes the last step.

Source: cheald/sd-webui-loractl with A1111 1.5 to 1.10 (the rules, not the code). A1111 reports a step to extensions
only after the first evaluation of that step, so the first two steps have the same position.
"""

import math
import re
from typing import Final

from civman.errors import Cause, UsageError

_MOST: Final = 100.0
_LAST: Final = 10000.0
_COUNT: Final = 200
_SIGNS: Final = re.compile("[@~]")
_RANGE: Final = re.compile(r"([^@~,;]+)[@~]\s*([0-9.]+)\s*-\s*([0-9.]*)\s*")


def is_changing(text: str) -> bool:
    """Whether `text` is written as keyframes instead of a single number."""
    return _SIGNS.search(text) is not None


def read_scale(text: str) -> tuple[float, str]:
    """Parse a number or keyframes. Returns the scale of the first step, and the keyframes in canonical form.

    The keyframes are "" if the scale is constant. Raises: UsageError (`bad-scale`).
    """
    try:
        frames = _frames(text)
    except ValueError:
        frames = []
    if not 0 < len(frames) <= _COUNT or not all(_is_valid(*frame) for frame in frames):
        raise UsageError(
            f"`{text[:60]}` is neither a scale nor keyframes of a scale",
            hint="write SCALE@POSITION with commas, such as 0@0,1@0.5, or a range such as 0.8@0.2-0.6; positions up to "
            f"1 are fractions of the steps, and scales are at most ±{_MOST:.0f}", code=Cause.BAD_SCALE,
        )  # fmt: skip
    if len({scale for scale, _ in frames}) == 1:
        return frames[0][0], ""
    keyframes = _written(frames)
    return scale_at(keyframes, 0, 0), keyframes


def are_keyframes(text: str) -> bool:
    """Whether `text` consists of one or more keyframes in canonical form."""
    try:
        frames = _frames(text)
    except ValueError:
        return False
    return 0 < len(frames) <= _COUNT and _written(frames) == text and all(_is_valid(*frame) for frame in frames)


def scale_at(keyframes: str, step: int, steps: int) -> float:
    """Return the adapter's scale in step `step` of a pass of `steps` steps, counted from 0 as A1111 does."""
    frames = _frames(keyframes)
    position = float(step)
    if frames[-1][1] <= 1:
        position = step / (steps - 2) if steps > 2 else 0.0
    before = [number for number, (_, place) in enumerate(frames) if place <= position]
    if not before:
        return frames[0][0]
    scale, place = frames[before[-1]]
    if before[-1] == len(frames) - 1:
        return scale
    after, end = frames[before[-1] + 1]
    return (after - scale) / (end - place) * (position - place) + scale


def largest(keyframes: str) -> float:
    """Return the scale with the largest absolute value."""
    return max((scale for scale, _ in _frames(keyframes)), key=abs)


def step_reported(call: int, calls: int, steps: int) -> int:
    """Return the step that A1111 reports during evaluation `call` of the model; both are counted from 0.

    `calls` is the number of evaluations in the pass.
    """
    step = call * steps // calls
    is_first = call == 0 or (call - 1) * steps // calls != step
    return max(step - 1, 0) if is_first else step


def _written(frames: list[tuple[float, float]]) -> str:
    return ",".join(f"{scale:g}@{place:g}" for scale, place in frames)


def _frames(text: str) -> list[tuple[float, float]]:
    """Parse keyframes into (scale, position), sorted by position. Raises: ValueError."""
    if (found := _RANGE.fullmatch(text)) is not None:
        return _range(float(found[1]), float(found[2]), float(found[3]) if found[3] else None)
    parts = [[float(number) for number in _SIGNS.split(frame)] for frame in re.split("[,;]", text)]
    if len(parts[0]) == 1:  # like the extension, ignore anything after a plain number
        return [(parts[0][0], 0.0)]
    if any(len(part) > 2 for part in parts):
        raise ValueError
    frames = [(part[0], part[1] if len(part) == 2 else 1.0) for part in parts]
    return sorted(frames, key=lambda frame: frame[1])


def _range(scale: float, start: float, end: float | None) -> list[tuple[float, float]]:
    if end is not None and end <= start:
        raise ValueError
    before = [(0.0, 0.0), (0.0, start)] if start > 0 else []
    ends = end is not None and end != 1
    after = [(scale, end), (0.0, end)] if ends and end is not None else []
    return [*before, (scale, start), *after]


def _is_valid(scale: float, position: float) -> bool:
    return abs(scale) <= _MOST and 0 <= position <= _LAST and math.isfinite(position)
