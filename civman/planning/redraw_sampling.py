"""Reads the sampler, the schedule, the noise and their settings from other programs' settings.

Source: A1111's rules of 1.2 to 1.10; until January 2023, A1111 wrote DDIM's eta under the name `Eta`.
"""

import re
from typing import Any, Final

from civman.diffusion import sampler_names, samplers
from civman.diffusion.noise_levels import Schedule
from civman.domain.recipes.recipe import Sampling
from civman.pictures.site_settings import Entries
from civman.planning.redraw_features import Drawable, Reason

SIZE: Final = re.compile(r"(-?[0-9]{1,5})\s*[xX×]\s*(-?[0-9]{1,5})")
"""Matches a width and a height in pixels, such as 512x768."""
_PRIVATE: Final = re.compile(r"[ ,]+(alt|MOD|Test|Sharp|New|v2)\b(?=[ ,]*( Karras)?$)", re.IGNORECASE)
"""Matches endings of sampler names that come from users' modified copies of A1111."""
_AFTER_SCHEDULE: Final = re.compile(r"(.*\b(?:Karras|Exponential))\b(?! (?:Exponential|Dynamic)$).+", re.IGNORECASE)
"""Matches sampler names with additional words after the schedule, which come from users' modified copies of A1111."""
_UNIPC: Final = {
    "UniPC variant": "bh1", "UniPC order": "3", "UniPC skip type": "time_uniform", "UniPC lower order final": "true",
}  # fmt: skip
"""A1111's settings for UniPC, with the only values that civman supports."""
_NAMES: Final = {
    "eta": "Eta", "eta_ddim": "Eta DDIM", "s_churn": "Sigma churn", "s_tmin": "Sigma tmin", "s_tmax": "Sigma tmax",
    "noise_scale": "Sigma noise",
}  # fmt: skip


def sampler_named(
    entries: Entries, name: str, version: tuple[int, int]
) -> tuple[samplers.Sampler, Schedule, list[Reason]]:
    """Return the sampler `name` and its schedule in this version of A1111, and the reasons why the result may differ.

    Raises: UsageError: the sampler or the schedule is unknown.
    """
    reasons = []
    plain = _without_additions(name)
    if plain != name:
        reasons.append(Reason(
            Drawable.DIFFERS, f"`{name}` is a sampler of a modified A1111; civman uses `{plain}`, with which at best "
            "the composition is the same",
        ))  # fmt: skip
    named = entries.text("Schedule type") or None
    sampler, schedule = sampler_names.parse(plain, named)
    if schedule is Schedule.AUTOMATIC and not sampler.own_table:
        is_old = named is None and version < (1, 9) and sampler.name != "Restart"
        schedule = Schedule.NORMAL if is_old else sampler.automatic
    stated = {key: entries.text(key).casefold() for key in _UNIPC}
    if any(value not in ("", _UNIPC[key]) for key, value in stated.items()):
        reasons.append(Reason(Drawable.NO, "UniPC ran with another variant, order or spacing of steps than civman's"))
    return sampler, schedule, reasons


def _without_additions(name: str) -> str:
    """Return a sampler's name without the words that users added to it in their own copies of A1111."""
    plain = ""
    while plain != name:
        plain, name = name, _PRIVATE.sub("", name)
    found = _AFTER_SCHEDULE.fullmatch(plain)
    return found[1] if found else plain


def sampling_of(entries: Entries, sampler: samplers.Sampler) -> Sampling:
    """Return the sampler settings, such as eta and s_churn, that the entries contain."""
    stated: dict[str, Any] = {name: value for name, key in _NAMES.items() if (value := entries.number(key)) is not None}
    if sampler.name == "DDIM" and "eta" in stated:
        stated.setdefault("eta_ddim", stated.pop("eta"))
    return Sampling(
        **stated, drop_penultimate=entries.is_on("Discard penultimate sigma"),
        half_levels=entries.is_on("Downcast alphas_cumprod") or entries.is_before((1, 7), 225),
    )  # fmt: skip


def noise_of(entries: Entries, version: tuple[int, int]) -> dict[str, Any]:
    """Return the recipe's fields for the source of the noise, ENSD, the variation seed and seed resize."""
    source, delta = entries.text("RNG").casefold(), entries.whole("ENSD") or 0
    strength = entries.number("Variation seed strength") or 0.0
    seed = entries.whole("Variation seed")
    found = SIZE.fullmatch(entries.text("Seed resize from"))
    width, height = (int(found[1]), int(found[2])) if found else (0, 0)
    is_on = width > 0 and height > 0
    return {
        "rng": source if source in ("cpu", "nv") else "nv",
        "eta_seed_delta": 0 if delta < 0 and version < (1, 6) else delta,
        "variation_seed": (seed or 0) if strength else 0, "variation_strength": strength,
        "seed_resize_width": width if is_on else 0, "seed_resize_height": height if is_on else 0,
    }  # fmt: skip
