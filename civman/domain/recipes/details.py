"""Detail passes, as in ADetailer: redraw a region of the finished image by img2img at full resolution.

Source: Bing-su/adetailer (the rules, not the code). The seed of a region, such as a face, is the image's seed plus the
region's index, which counts from 0 in every pass.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

from civman.domain.digests import Sha256
from civman.domain.recipes.recipe_limits import MAX_SEED, MAX_SIDE, PROMPT_RULES, size_of
from civman.errors import Cause, UsageError

REGIONS: Final = ("faces", "mask", "box")
FACE: Final = "face"
"""The value of `DetailRequest.region` that means all faces."""
SEPARATOR: Final = "[SEP]"
"""Separates the prompts for the first, second … region of a pass; the last prompt is also for all further regions."""
WHOLE_PROMPT: Final = "[PROMPT]"
"""A placeholder in a region's prompt, which is replaced with the image's prompt."""
SKIP: Final = "[SKIP]"
"""The prompt of a region that is to be left unchanged."""
_MOST: Final = 1000
"""The largest blur, offset, padding and dilation in pixels."""
_MOST_PASSES: Final = 20
_BOX: Final = re.compile(r"(\d{1,5}),(\d{1,5}),(\d{1,5}),(\d{1,5})")
_SETTINGS: Final = re.compile(r":(?=(?:[a-z]+=|whole(?:,|$)))")
_WHOLE: Final = {"blur": "mask_blur", "dilate": "dilate", "x": "x_offset", "y": "y_offset", "padding": "padding",
                 "steps": "steps"}  # fmt: skip
_FRACTIONS: Final = {"strength": "strength", "cfg": "guidance_scale", "noise": "noise_multiplier"}
_TEXTS: Final = {"size": "size", "sampler": "sampler", "schedule": "schedule"}
_NAMES: Final = (*_WHOLE, *_FRACTIONS, *_TEXTS, "whole")


@dataclass(frozen=True, slots=True)
class DetailRequest:
    """A requested detail pass. `region`: "face", "X,Y,W,H" in pixels, or a mask's path (white is redrawn).

    None means ADetailer's default; for size, steps, guidance scale, sampler and schedule this is the image's own value.
    An empty prompt means the image's prompt.
    """

    region: str
    prompt: str = ""
    negative_prompt: str = ""
    strength: float | None = None
    mask_blur: int | None = None
    dilate: int | None = None
    x_offset: int | None = None
    y_offset: int | None = None
    only_masked: bool | None = None
    padding: int | None = None
    size: str | None = None
    steps: int | None = None
    guidance_scale: float | None = None
    sampler: str | None = None
    schedule: str | None = None
    noise_multiplier: float | None = None


@dataclass(frozen=True, slots=True)
class DetailPass:
    """A detail pass in a recipe.

    `region` is one of `REGIONS`. Depending on it, one of these fields is set: `detector`, the SHA-256 of the face
    detector; `mask`, the SHA-256 of the mask's file; `box`, the box "X,Y,W,H" in pixels of the finished image.
    """

    region: str
    sampler: str
    schedule: str
    steps: int
    guidance_scale: float
    width: int
    height: int
    """The size in pixels at which a region is redrawn; without `only_masked` it is ignored, and the image's size is
    used.
    """
    strength: float = 0.4
    mask: Sha256 | None = None
    box: str = ""
    detector: Sha256 | None = None
    prompts: tuple[str, ...] = ()
    """The prompts of the first, second … region; the last one is for all further regions. "" means the image's prompt.
    """
    negatives: tuple[str, ...] = ()
    prompt_rules: str = ""
    """The rules for reading prompts with editing or `AND`; see `Recipe.prompt_rules`."""
    dilate: int = 4
    """The side in pixels of the square by which the mask is dilated or, if negative, eroded."""
    x_offset: int = 0
    y_offset: int = 0
    """How far the mask is moved to the right (`x_offset`) and upwards (`y_offset`), in pixels."""
    mask_blur: int = 4
    only_masked: bool = True
    """Whether only the region and its surroundings are redrawn, at the size `width` x `height`, and pasted into the
    image.
    """
    padding: int = 32
    noise_multiplier: float = 1.0

    def texts(self, number: int, prompt: str, negative: str) -> tuple[str, str] | None:
        """Return both prompts of region `number`, given the image's prompts; None if the region is left unchanged."""
        mine, other = _text(self.prompts, number, prompt), _text(self.negatives, number, negative)
        return None if mine.strip() == SKIP else (mine, other)

    @property
    def different_texts(self) -> int:
        """The number of regions that may have different prompts; further regions have the prompts of the last one."""
        return max(len(self.prompts), len(self.negatives), 1)

    def seed_of(self, seed: int, number: int) -> int:
        """Return the seed of region `number` in an image whose own seed is `seed`."""
        return (seed + number) & MAX_SEED

    @property
    def corners(self) -> tuple[int, int, int, int]:
        """Left, top, right and bottom of the box; right and bottom are its last column and row.

        Raises: UsageError: not a box.
        """
        left, top, width, height = box_of(self.box) or (0, 0, 0, 0)
        return left, top, left + width - 1, top + height - 1

    def request(self, region: str) -> DetailRequest:
        """Convert the pass back to a request. `region`: the region in the form that `DetailRequest.region` expects."""
        return DetailRequest(
            region, f" {SEPARATOR} ".join(self.prompts), f" {SEPARATOR} ".join(self.negatives), self.strength,
            self.mask_blur, self.dilate, self.x_offset, self.y_offset, self.only_masked, self.padding,
            f"{self.width}x{self.height}", self.steps, self.guidance_scale, self.sampler, self.schedule,
            self.noise_multiplier,
        )  # fmt: skip


def _text(texts: tuple[str, ...], number: int, usual: str) -> str:
    mine = texts[min(number, len(texts) - 1)] if texts else ""
    return mine.replace(WHOLE_PROMPT, usual) if mine.strip() else usual


def texts_of(typed: str) -> tuple[str, ...]:
    """Split a typed prompt into the prompts of the regions; empty if all regions have the image's prompt."""
    parts = tuple(part.strip() for part in typed.split(SEPARATOR))
    return parts if any(parts) else ()


def box_of(text: str) -> tuple[int, int, int, int] | None:
    """Parse a box "X,Y,W,H" in pixels; None if `text` is not a box, or is empty."""
    found = _BOX.fullmatch(text.replace(" ", ""))
    if found is None:
        return None
    left, top, width, height = map(int, found.groups())
    return (left, top, width, height) if width and height else None


def detail_from(text: str, prompt: str = "", negative: str = "") -> DetailRequest:
    """Parse "REGION" or "REGION:NAME=VALUE,…", such as "face:strength=0.3,steps=30".

    Raises: UsageError (`bad-value`): a setting is unknown or has an invalid value.
    """
    region, *rest = _SETTINGS.split(text.strip(), maxsplit=1)
    asked = DetailRequest(region, prompt, negative)
    if not region:
        raise _wrong(text, "the region is missing")
    for word in rest[0].split(",") if rest else ():
        name, sign, value = (each.strip() for each in word.partition("="))
        asked = replace(asked, **_setting(text, name, value, has_value=bool(sign)))
    return asked


def _setting(text: str, name: str, value: str, *, has_value: bool) -> dict[str, Any]:
    if name == "whole" and not has_value:
        return {"only_masked": False}
    if name not in _NAMES or not value:
        raise _wrong(text, f"`{name}` is not a known setting, or has no value")
    if name in _TEXTS:
        if name == "size":
            size_of(value)
        return {_TEXTS[name]: value}
    try:
        return {_WHOLE[name]: int(value)} if name in _WHOLE else {_FRACTIONS[name]: float(value)}
    except (ValueError, KeyError) as error:
        raise _wrong(text, f"`{value}` is not a valid value of the setting `{name}`") from error


def _wrong(text: str, why: str) -> UsageError:
    return UsageError(
        f"`{text[:80]}` is not a detail pass: {why}",
        hint="write face, a box X,Y,W,H or the path of a mask, and after a colon settings with commas: "
        f"{', '.join(_NAMES)}", code=Cause.BAD_VALUE,
    )  # fmt: skip


def detail_problems(recipe: Any) -> Iterator[str]:
    """Explain why the detail passes of a recipe cannot be computed, with one clause for each problem."""
    if not recipe.details:
        return
    if recipe.enlarged_input is not None or recipe.rules == 1 or (recipe.start and recipe.start.mask_sha256):
        yield "detail passes cannot be combined with a mask of the input image, a redraw in tiles, or recipe rules 1"
    if len(recipe.details) > _MOST_PASSES:
        yield f"an image can have at most {_MOST_PASSES} detail passes"
    width, height = recipe.drawn_size
    for made in recipe.details:
        yield from _problems(made)
        if made.region == "box" and box_of(made.box) and (made.corners[0] >= width or made.corners[1] >= height):
            yield f"the box {made.box} lies outside the image, which has {width}x{height} pixels"


def _problems(made: DetailPass) -> Iterator[str]:
    wanted = {"faces": made.detector, "mask": made.mask, "box": box_of(made.box)}
    others = [made.detector, made.mask, made.box or None]
    if wanted.get(made.region) is None or sum(each is not None for each in others) != 1:
        yield "a detail pass must have either a face detector, a mask or a box, depending on its region"
    if not 0 < made.strength <= 1:
        yield "the strength of a detail pass must be above 0 and at most 1"
    if made.mask_blur < 0 or made.padding < 0:
        yield "the mask blur and padding of a detail pass cannot be negative"
    if max(map(abs, (made.dilate, made.x_offset, made.y_offset, made.mask_blur))) > _MOST:
        yield f"the mask of a detail pass can be moved, blurred and enlarged by at most {_MOST} pixels"
    if any(side < 8 or side % 8 or side > MAX_SIDE for side in (made.width, made.height)):
        yield f"a detail pass cannot have the size {made.width}x{made.height}: both sides must be multiples of 8"
    if made.steps < 1 or not 0 <= made.guidance_scale <= _MOST:
        yield f"a detail pass needs at least one step and a guidance of 0 to {_MOST}"
    if not 0.5 <= made.noise_multiplier <= 1.5:
        yield "the noise multiplier of a detail pass must be between 0.5 and 1.5"
    if made.prompt_rules not in PROMPT_RULES:
        yield f"prompt rules `{made.prompt_rules}` are not one of {', '.join(filter(None, PROMPT_RULES))}"
