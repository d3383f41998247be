"""Reads the settings of the extension ADetailer, which redraws regions of the finished image.

civman repeats only passes for faces, with its own face detector; all other passes are left out.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from civman.diffusion import sampler_names
from civman.diffusion.noise_levels import Schedule
from civman.domain.recipes.details import WHOLE_PROMPT, DetailPass, texts_of
from civman.domain.recipes.recipe import Recipe
from civman.errors import UsageError
from civman.pictures.site_settings import Entries
from civman.planning import prompt_stages
from civman.planning.redraw_features import Drawable, Reason
from civman.planning.redraw_guidance import NOT_FROM_IMAGES
from civman.planning.redraw_prompts import negative_words
from civman.planning.redraw_result import stand_in

OWN_DETECTOR: Final = "retinaface"
"""The name of civman's face detector in the settings that civman writes."""
_FACES: Final = re.compile(r"(face|mediapipe_face(?!_mesh_eyes))", re.IGNORECASE)
_ANY: Final = re.compile("ADetailer ")
_LEFT_OUT: Final = {
    "model classes": "detected only some classes", "mask only top k": "rendered only the largest regions",
    "mask min ratio": "left out small regions", "mask max ratio": "left out large regions",
    "mask merge invert": "merged the regions", "use separate checkpoint": "used another checkpoint",
    "use separate VAE": "used another VAE", "use separate CLIP skip": "used another clip skip",
    "restore face": "restored the face afterwards", "ControlNet model": "followed a ControlNet",
}  # fmt: skip
_COMMON: Final = (
    "ADetailer rendered the faces again: civman's detector may find other faces or other edges of them, and civman "
    "encodes the image to the mean of the VAE's distribution, A1111 to a random sample"
)


def with_details(made: Recipe, entries: Entries, found: list[Reason]) -> Recipe:
    """Add ADetailer's passes to a recipe; `found` receives the reasons why they are not reproduced exactly."""
    passes = []
    for suffix in _suffixes(entries):
        name = entries.text(f"ADetailer model{suffix}")
        if not _FACES.match(name) and name != OWN_DETECTOR:
            found.append(Reason(
                Drawable.DIFFERS, f"ADetailer rendered again what the detector `{name[:40]}` found; civman does not "
                "support this detector and leaves these regions unchanged",
            ))  # fmt: skip
            continue
        try:
            one, words = _pass(made, entries, suffix)
            replace(made, details=(one,))
        except (UsageError, ValueError) as error:
            message = error.message if isinstance(error, UsageError) else "one of its settings is not a number"
            found.append(
                Reason(
                    Drawable.DIFFERS,
                    f"faces are not rendered again, because ADetailer's settings are invalid: {message}",
                )
            )
            continue
        passes.append(one)
        found += [Reason(Drawable.DIFFERS, each) for each in words]
        if name != OWN_DETECTOR:
            found.append(Reason(Drawable.DIFFERS, _COMMON))
    entries.take(_ANY)
    return replace(made, details=tuple(passes))


def _suffixes(entries: Entries) -> Iterator[str]:
    """For each of ADetailer's passes, yield the suffix of its metadata entries: "", " 2nd", " 3rd" and so on."""
    for number in range(1, 31):
        ending = {1: "", 2: " 2nd", 3: " 3rd"}.get(number, f" {number}th")
        if f"ADetailer model{ending}" in entries:
            yield ending


def _pass(made: Recipe, entries: Entries, suffix: str) -> tuple[DetailPass, list[str]]:
    """Return the pass whose entries have this suffix, and why it cannot be reproduced exactly.

    Raises: UsageError, ValueError: a setting is invalid.
    """

    def text(name: str) -> str:
        return _unquoted(str(entries.value(f"ADetailer {name}{suffix}") or "").strip())

    def number(name: str, usual: float) -> float:
        stated = entries.number(f"ADetailer {name}{suffix}")
        return usual if stated is None else stated

    def is_on(name: str, *, usual: bool = False) -> bool:
        return entries.is_on(f"ADetailer {name}{suffix}") if f"ADetailer {name}{suffix}" in entries else usual

    if f"ADetailer prompt{suffix}" not in entries and entries.ending('>"'):
        raise UsageError("the settings contain only the end of an ADetailer prompt")
    words = [
        f"ADetailer {action}, which civman does not do" for name, action in _LEFT_OUT.items()
        if text(name).casefold() not in ("", "false", "none", "0", "0.0", "1.0")
    ]  # fmt: skip
    prompts, negatives = texts_of(text("prompt")), texts_of(text("negative prompt"))
    kept = [negative_words(each, made.emphasis) for each in negatives]
    negatives = tuple(each for each, _ in kept)
    words += [reason.words for _, found in kept for reason in found]
    tags = re.compile(r"<\w+:[^>]*>")
    if any(tags.search(each) for each in prompts):
        words.append(
            "ADetailer's prompt contains adapter tags; civman renders the regions with the image's adapters instead"
        )
        prompts = tuple(tags.sub("", each).strip() for each in prompts)
    elif made.loras and any(each and WHOLE_PROMPT not in each for each in prompts):
        words.append("A1111 rendered the regions without LoRAs; civman renders them with the image's LoRAs")
    sampler, schedule = made.sampler, made.schedule
    if is_on("use separate sampler") and text("sampler").casefold() not in ("", "use same sampler"):
        given, kind = sampler_names.parse(text("sampler"), text("scheduler") or None)
        if kind is Schedule.AUTOMATIC and not text("scheduler") and "Schedule type" in entries:
            # ADetailer does not write "Use same scheduler", so a missing scheduler means the one of the image
            given, kind = sampler_names.parse(text("sampler"), made.schedule)
        kind = given.automatic if kind is Schedule.AUTOMATIC and not given.own_table else kind
        sampler, schedule = given.name, kind.value
    elif sampler in NOT_FROM_IMAGES and _replaces_samplers(entries):
        sampler, schedule = "Euler", Schedule.NORMAL.value
    width, height = made.width, made.height
    if is_on("use inpaint width height"):
        width, height = int(number("inpaint width", 512)) // 8 * 8, int(number("inpaint height", 512)) // 8 * 8
    whole = next((key for key in ("inpaint only masked", "inpaint full") if f"ADetailer {key}{suffix}" in entries), "")
    dilate = number("dilate erode", number("dilate/erode", 4))
    rules = prompt_stages.rules_for(" ".join(prompts), " ".join(negatives), made.prompt_rules or None)
    if made.prompt_rules and not all(prompts):
        rules = made.prompt_rules
    return DetailPass(
        "faces", sampler, schedule, int(number("steps", made.steps)) if is_on("use separate steps") else made.steps,
        number("CFG scale", made.guidance_scale) if is_on("use separate CFG scale") else made.guidance_scale,
        width, height, number("denoising strength", 0.4), detector=stand_in(OWN_DETECTOR), prompts=prompts,
        negatives=negatives, prompt_rules=rules if prompts or negatives else made.prompt_rules, dilate=int(dilate),
        x_offset=int(number("x offset", 0)), y_offset=int(number("y offset", 0)),
        mask_blur=int(number("mask blur", 4)), only_masked=not whole or is_on(whole),
        padding=int(number("inpaint padding", 32)),
        noise_multiplier=number("noise multiplier", 1.0) if is_on("use separate noise multiplier") else 1.0,
    ), words  # fmt: skip


def _replaces_samplers(entries: Entries) -> bool:
    """Whether ADetailer used Euler instead of the image's sampler PLMS or UniPC, as it did before version 23.9.

    ADetailer 23.9 was released with A1111 1.6, so A1111's version decides if the settings do not contain ADetailer's.
    """
    found = re.match(r"v?([0-9]+)\.([0-9]+)", entries.text("ADetailer version"))
    return (int(found[1]), int(found[2])) < (23, 9) if found else entries.is_before((1, 6))


def _unquoted(text: str) -> str:
    """Remove A1111's quotes from a text. Raises: UsageError: the closing quote is missing."""
    if not text.startswith('"'):
        return text
    try:
        found = json.loads(text)
    except ValueError as error:
        raise UsageError("the settings contain only the beginning of an ADetailer prompt") from error
    return str(found)
