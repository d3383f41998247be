"""Parses the values of `civman render`'s options into parts of a render request."""

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from civman.domain.recipes.details import DetailRequest
    from civman.domain.recipes.recipe import HiresRequest, LoraRequest
    from civman.planning.plan import Conditions

_HIRES_OPTIONS = {
    "upscaler": "--upscaler", "guidance_scale": "--hires-cfg", "negative_prompt": "--hires-negative",
    "loras": "--hires-lora",
}  # fmt: skip
_LORA_SETTING = re.compile(":(lbw|hr)=")
_SIZE = re.compile(r"(\d+)[x×](\d+)")


def conditions_from(
    device: str | None, trigger: str, require: str | None, *, force: bool, allow_partial: bool
) -> "Conditions":
    """Return the conditions for planning a request. Raises: UsageError: an unknown value of --trigger."""
    from civman.errors import UsageError
    from civman.planning.plan import Conditions

    if trigger not in ("auto", "off"):
        raise UsageError(f"--trigger must be auto or off, not `{trigger}`")
    return Conditions(device, force, allow_partial, trigger == "auto", require)


def loras_from(texts: list[str]) -> "tuple[LoraRequest, ...]":
    """Parse the values of --lora into adapters with their scales."""
    from civman.domain.recipes.recipe import LoraRequest
    from civman.domain.scales import parse_scaled

    made = []
    for text in texts:
        scaled, *rest = _LORA_SETTING.split(text)
        named, each = dict(zip(rest[::2], rest[1::2], strict=True)), parse_scaled(scaled)
        made.append(LoraRequest(
            each.ref, 1.0 if each.unet is None else each.unet, each.text_encoder, named.get("lbw", ""), each.keyframes,
            named.get("hr", ""),
        ))  # fmt: skip
    return tuple(made)


def details_from(
    regions: list[str], prompts: list[str], negatives: list[str], strength: float | None
) -> "tuple[DetailRequest, ...]":
    """Combine the values of --detail and its companion options into detail passes. Raises: UsageError."""
    from civman.domain.recipes.details import detail_from
    from civman.errors import UsageError

    for option, texts in (("--detail-prompt", prompts), ("--detail-negative", negatives)):
        if len(texts) > len(regions):
            raise UsageError(
                f"{option} is used more often than --detail",
                hint="use the option at most once for each --detail, in the same order",
            )
    if strength is not None and not regions:
        raise UsageError("--detail-strength requires --detail", hint="`--detail face` redraws faces, for example")
    more = [""] * len(regions)
    words = zip(regions, [*prompts, *more], [*negatives, *more], strict=False)
    asked = [detail_from(region, prompt, negative) for region, prompt, negative in words]
    return tuple(replace(each, strength=strength) if each.strength is None else each for each in asked)


def size_from(text: str) -> tuple[int, int]:
    """Parse a size such as "832x1216" into width and height. Raises: UsageError (`bad-size`)."""
    from civman.errors import Cause, UsageError

    found = _SIZE.fullmatch(text.strip().lower())
    if found is None:
        raise UsageError(
            f"not a size: `{text}`", hint="expected width x height in pixels, such as 832x1216", code=Cause.BAD_SIZE
        )
    return int(found[1]), int(found[2])


def precision_from(text: str | None, *, is_fast: bool) -> str | None:
    """Return the precision that --precision or --fast requests. Raises: UsageError: both options are used."""
    from civman.errors import UsageError
    from civman.planning.fast_precision import FAST

    if not is_fast:
        return text
    if text is not None:
        raise UsageError(f"--fast chooses the precision, so it cannot be combined with --precision {text}")
    return FAST


def hires_from(text: str | None, **asked: Any) -> "HiresRequest | None":
    """Combine the values of --hires and its companion options into a second pass, or None. Raises: UsageError.

    `asked`: the fields of a `HiresRequest`; None for an option that was not used.
    """
    from civman.domain.recipes.recipe import HiresRequest
    from civman.errors import Cause, UsageError

    if text is None:
        if alone := [name for name, value in asked.items() if value is not None]:
            option = _HIRES_OPTIONS.get(alone[0], f"--hires-{alone[0].replace('_', '-')}")
            raise UsageError(f"{option} requires a second pass", hint="`--hires 2` adds a second pass")
        return None
    request = HiresRequest(**asked | {"upscaler": asked["upscaler"] or "latent"})
    try:
        scale = float(text)
    except ValueError:
        width, height = size_from(text)
        return replace(request, width=width, height=height)
    if not 1 <= scale <= 8:
        raise UsageError(f"--hires {text}: expected a factor from 1 to 8, or a size", code=Cause.BAD_SIZE)
    return replace(request, scale=scale)
