"""Refs with scales, as typed on a command line: `REF`, `REF:0.8`, `REF:unet:te`, `REF:0@0,1@0.5`."""

import re
from dataclasses import dataclass

from civman.domain.adapters.scale_keyframes import is_changing, read_scale
from civman.domain.refs import NameRef, PathRef, parse_ref
from civman.errors import Cause, InvalidRef, UsageError

_NUMBER = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)")
_KEYFRAMES = re.compile(r"[-+.,;\d]*\d[@~][-+.,;@~\d]+")
_WITH_COMMA = re.compile(r"[+-]?\d*,\d+")
_MOST = 100.0


@dataclass(frozen=True, slots=True)
class Scaled:
    """A ref as typed, with the adapter's scales; a scale is None if it was not given."""

    ref: str
    unet: float | None = None
    text_encoder: float | None = None
    keyframes: str = ""
    """How the UNet's scale changes over the steps; its first value is `unet`. "" if it does not change."""

    @property
    def acts(self) -> bool:
        """Whether at least one of the scales is not 0."""
        return bool(self.unet or self.text_encoder or self.keyframes)


def parse_scaled(text: str) -> Scaled:
    """Split up to two scales off the end of `text`, if the rest is a ref; the first scale may be keyframes.

    `civitai:123` and `sha256:…` are refs, not scales. Raises: InvalidRef; UsageError: a scale is invalid.
    """
    head = text
    numbers: list[float] = []
    keyframes = ""
    while len(numbers) < 2 and not _is_precise(head):
        left, colon, tail = head.rpartition(":")
        if colon and left and _WITH_COMMA.fullmatch(tail):
            fixed = re.sub(r"(?<=:)([+-]?\d*),(\d+)", r"\1.\2", text)
            raise UsageError(
                f"a scale needs a decimal point, not a comma: `{text}`", hint=f"write `{fixed}`", code=Cause.BAD_SCALE
            )
        if colon and left and _KEYFRAMES.fullmatch(tail):
            if not numbers and not _is_precise(left) and _NUMBER.fullmatch(left.rpartition(":")[2]):
                raise UsageError(
                    f"the scale of the text encoders cannot change over the steps: `{text}`",
                    hint="only the first scale, which is for the UNet, can change", code=Cause.BAD_SCALE,
                )  # fmt: skip
            first, keyframes = read_scale(tail)
            head = left
            numbers.insert(0, first)
            break
        if not colon or not left or not _NUMBER.fullmatch(tail):
            break
        head = left
        numbers.insert(0, float(tail))
    parse_ref(head)
    if any(abs(number) > _MOST for number in numbers):
        raise UsageError(f"a scale in `{text}` is outside ±{_MOST:.0f}", hint="usual scales are between 0 and 1.5")
    unet = numbers[0] if numbers else None
    return Scaled(head, unet, numbers[1] if len(numbers) == 2 else unet, keyframes)


def parse_scale_pair(text: str) -> Scaled:
    """Parse the scales for UNet and text encoders, without a ref: `0.8` (both), `0.8:0.5` or `0@0,1@0.5:0.5`.

    Raises: ValueError; UsageError: invalid keyframes.
    """
    unet, colon, encoder = text.strip().partition(":")
    for part in (*([] if is_changing(unet) else [unet]), *([encoder] if colon else [])):
        if not _NUMBER.fullmatch(part):
            raise ValueError(f"not a scale: {part!r}")
    scale, keyframes = read_scale(unet) if is_changing(unet) else (float(unet), "")
    return Scaled("", scale, float(encoder) if colon else scale, keyframes)


def _is_precise(text: str) -> bool:
    """Whether the whole text has the form of a ref."""
    try:
        return not isinstance(parse_ref(text), NameRef | PathRef)
    except InvalidRef:
        return False
