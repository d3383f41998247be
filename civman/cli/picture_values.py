"""Parses option values that consist of an image file, a model, a weight and an interval of the steps."""

import re
from dataclasses import dataclass
from typing import Final

_NUMBER: Final = r"\d+(?:\.\d+)?"
_SHARE: Final = re.compile(rf"(.+):({_NUMBER})-({_NUMBER})")


@dataclass(frozen=True, slots=True)
class PictureValue:
    """A parsed value such as `edges.png:canny:0.8:0-0.5`; `start` and `end` are fractions of the steps."""

    picture: str
    ref: str
    weight: float
    start: float
    end: float


def picture_value(text: str, *, option: str, model: str, example: str) -> PictureValue:
    """Parse a value of `option`; `model` names the kind of model in messages, such as "a ControlNet".

    Raises: UsageError (`bad-value`): the value names no existing file or has two weights.
    """
    from civman.domain.scales import parse_scaled
    from civman.errors import Cause, UsageError

    share = _SHARE.fullmatch(text)
    before, start, end = share.groups() if share else (text, "0", "1")
    picture, named = _parted(before, option, model, example)
    scaled = parse_scaled(named)
    if scaled.text_encoder != scaled.unet:
        raise UsageError(
            f"{option} {text}: {model} takes one weight, not two",
            hint=f"write a single weight, such as {example}",
            code=Cause.BAD_VALUE,
        )
    return PictureValue(picture, scaled.ref, 1.0 if scaled.unet is None else scaled.unet, float(start), float(end))


def require_counts(option: str, values: list[str], given: str, texts: list[str], model: str) -> None:
    """Check that `option` was used not at all, once, or as often as the option `given`. Raises: UsageError."""
    from civman.errors import Cause, UsageError

    if len(values) > 1 and len(values) != len(texts):
        raise UsageError(
            f"{option} is used {len(values)} times, but {given} {len(texts)} times",
            hint=f"pass {option} once for all, or once for each {given}", code=Cause.BAD_VALUE,
        )  # fmt: skip
    if values and not texts:
        raise UsageError(f"{option} requires {model}", hint=f"add {model} with {given}", code=Cause.BAD_VALUE)


def chosen(values: list[str], number: int, usual: str) -> str:
    """Return the option's value for image `number`: a single value applies to all images, no value means `usual`."""
    return usual if not values else values[number if len(values) > 1 else 0]


def _parted(text: str, option: str, model: str, example: str) -> tuple[str, str]:
    """Split FILE:REF at the first colon that follows the path of an existing file."""
    from pathlib import Path

    from civman.errors import Cause, UsageError

    kind = model.partition(" ")[2]
    places = [place for place, sign in enumerate(text) if sign == ":"]
    for place in places:
        if text[place + 1 :] and Path(text[:place]).expanduser().is_file():
            return text[:place], text[place + 1 :]
    raise UsageError(
        f"{option} {text}: the image file does not exist, or the {kind} is missing",
        hint=f"write the image file, a colon and the {kind}, such as {example}", code=Cause.BAD_VALUE,
    )  # fmt: skip
