"""Converts the guidance and attention settings in other programs' images to values of a recipe."""

import re
from typing import Any, Final

from civman.diffusion import sampler_names
from civman.diffusion.noise_levels import Schedule
from civman.domain.recipes.thresholding import MODES, Thresholding
from civman.pictures.site_settings import Entries

_THRESHOLDING = re.compile(
    "Mimic |Threshold percentile|Dynamic thresholding|CFG mode|CFG scale minimum|Separate Feature Channels|"
    "Scaling Startpoint|Variability Measure|Interpolate Phi|Scheduler value"
)

NOT_FROM_IMAGES: Final = ("PLMS", "UniPC")
"""The samplers that A1111 before 1.6 did not use for img2img: it replaced them with another sampler."""


def guidance(entries: Entries, version: tuple[int, int]) -> dict[str, Any]:
    """Return the recipe's fields for dynamic thresholding, token merging and steps without the negative prompt.

    Raises: ValueError: a mode or number of dynamic thresholding is unknown.
    """
    entries.take(re.compile("Token merging|tome_|NGMS|Skip Early CFG"))
    return {
        "token_merging": entries.number("Token merging ratio") or entries.number("tome_ratio") or 0.0,
        "thresholding": _thresholding(entries, version),
        "skip_negative_below": entries.number("NGMS") or 0.0,
        "skip_negative_always": bool(entries.number("NGMS")) and entries.is_on("NGMS all steps"),
        "skip_early_guidance": entries.number("Skip Early CFG") or 0.0,
    }


def second_sampling(entries: Entries, first: str) -> dict[str, Any]:
    """Return the recipe's fields for a sampler, schedule or CFG scale that only the second pass uses.

    `first`: the sampler of the first pass. A second pass without a schedule of its own uses the first pass's. If the
    first pass's sampler was PLMS or UniPC, A1111 before 1.6 ran the second pass with DDIM without recording that.

    Raises: UsageError: the sampler or the schedule is unknown.
    """
    own, schedule = entries.text("Hires sampler"), entries.text("Hires schedule type")
    own, schedule = ("" if name.casefold().startswith("use same") else name for name in (own, schedule))
    scale = entries.number("Hires CFG Scale")
    found: dict[str, Any] = {} if scale is None else {"guidance_scale": scale}
    if own or schedule:
        named = schedule or entries.text("Schedule type") or None
        sampler, chosen = sampler_names.parse(own or first, named)
        if chosen is Schedule.AUTOMATIC and not sampler.own_table:
            chosen = sampler.automatic
        found |= {"sampler": sampler.name, "schedule": chosen.value}
    elif first in NOT_FROM_IMAGES and entries.is_before((1, 6)):
        found |= {"sampler": "DDIM", "schedule": Schedule.AUTOMATIC.value}
    return found


def second_ratio(entries: Entries) -> float:
    """Return the token merging ratio of the second pass; if the settings contain none, that of the first pass."""
    return entries.number("Token merging ratio hr") or entries.number("Token merging ratio") or 0.0


def _thresholding(entries: Entries, version: tuple[int, int]) -> Thresholding | None:
    entries.take(_THRESHOLDING)
    if not entries.is_on("Dynamic thresholding enabled"):
        return None
    mimic = entries.number("Mimic scale")
    if mimic is None:
        raise ValueError("the settings contain dynamic thresholding without its scale")

    def number(name: str, usual: float) -> float:
        found = entries.number(name)
        return usual if found is None else found

    return Thresholding(
        mimic, number("Threshold percentile", 100.0), _mode(entries.text("Mimic mode")),
        number("Mimic scale minimum", 0.0), _mode(entries.text("CFG mode")), number("CFG scale minimum", 0.0),
        number("Scheduler value", 4.0), entries.text("Separate Feature Channels").casefold() != "false",
        entries.text("Scaling Startpoint").upper() != "ZERO", entries.text("Variability Measure").upper() == "STD",
        number("Interpolate Phi", 1.0), counts_calls=version >= (1, 6),
    )  # fmt: skip


def _mode(name: str) -> str:
    return next((mode for mode in MODES if mode.casefold() == name.casefold()), name or "Constant")
