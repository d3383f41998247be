"""Refs with scales, as typed on a command line: `REF`, `REF:0.8`, `REF:unet:te`."""

import re
from dataclasses import dataclass

from civman.domain.refs import NameRef, PathRef, parse_ref
from civman.errors import Cause, InvalidRef, UsageError

_NUMBER = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)")
_WITH_COMMA = re.compile(r"[+-]?\d*,\d+")
_MOST = 100.0


@dataclass(frozen=True, slots=True)
class Scaled:
    """A ref as typed, with the adapter's scales; a scale is None if it was not given."""

    ref: str
    unet: float | None = None
    text_encoder: float | None = None


def parse_scaled(text: str) -> Scaled:
    """Split up to two numbers off the end of `text`, if the rest is still a ref.

    `civitai:123` and `sha256:…` are refs, not scales. Raises: InvalidRef; UsageError: the scale is outside ±100.
    """
    head = text
    numbers: list[float] = []
    while len(numbers) < 2 and not _is_precise(head):
        left, colon, tail = head.rpartition(":")
        if colon and left and _WITH_COMMA.fullmatch(tail):
            fixed = re.sub(r"(?<=:)([+-]?\d*),(\d+)", r"\1.\2", text)
            raise UsageError(
                f"a scale needs a decimal point, not a comma: `{text}`", hint=f"write `{fixed}`", code=Cause.BAD_SCALE
            )
        if not colon or not left or not _NUMBER.fullmatch(tail):
            break
        head = left
        numbers.insert(0, float(tail))
    parse_ref(head)
    if any(abs(number) > _MOST for number in numbers):
        raise UsageError(f"a scale in `{text}` is outside ±{_MOST:.0f}", hint="usual scales are between 0 and 1.5")
    unet = numbers[0] if numbers else None
    return Scaled(head, unet, numbers[1] if len(numbers) == 2 else unet)


def parse_scale_pair(text: str) -> tuple[float, float]:
    """Parse the scales for UNet and text encoders: `0.8` (both) or `0.8:0.5`. Raises: ValueError."""
    unet, colon, encoder = text.strip().partition(":")
    for part in (unet, *([encoder] if colon else [])):
        if not _NUMBER.fullmatch(part):
            raise ValueError(f"not a scale: {part!r}")
    return float(unet), float(encoder) if colon else float(unet)


def _is_precise(text: str) -> bool:
    """Whether the whole text has the form of a ref."""
    try:
        return not isinstance(parse_ref(text), NameRef | PathRef)
    except InvalidRef:
        return False
