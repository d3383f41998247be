"""Features in other programs' settings beyond a plain render: unsupported ones, and ones without effect.

Each row of `_FEATURES` has a pattern for names of entries, the condition under which they count, and the consequence
for rendering the image.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from civman.domain.recipes.faces import METHODS as FACE_METHODS
from civman.pictures.site_settings import Entries


class Drawable(StrEnum):
    """Whether an image with these settings can be rendered.

    `EXACT`: every setting is expressed exactly. `DIFFERS`: the image can be rendered, with differences that the reasons
    name. `NEEDS_INPUT`: an image is needed that no metadata contains. `NO`: civman cannot render it.
    """

    EXACT = "exact"
    DIFFERS = "differs"
    NEEDS_INPUT = "needs-input"
    NO = "no"


RANK: Final = (Drawable.EXACT, Drawable.DIFFERS, Drawable.NEEDS_INPUT, Drawable.NO)
"""All verdicts, from the best to the worst."""


@dataclass(frozen=True, slots=True)
class Reason:
    """Why an image cannot be rendered exactly; with the verdict `EXACT`, a remark about something without effect."""

    verdict: Drawable
    words: str


@dataclass(frozen=True, slots=True)
class _Feature:
    entries: re.Pattern[str]
    verdict: Drawable
    words: str
    counts: Callable[[Entries], bool] = lambda _: True


def _feature(
    pattern: str, verdict: Drawable, words: str, counts: Callable[[Entries], bool] = lambda _: True
) -> _Feature:
    return _Feature(re.compile(pattern), verdict, words, counts)


def face_method(entries: Entries) -> str | None:
    """Return the method of face restoration; None if there was no restoration or civman does not support the method."""
    name = entries.text("Face restoration").casefold()
    return name if name in FACE_METHODS else None


NO, FINE = Drawable.NO, Drawable.EXACT
_GRID: Final = "a script made several images in one"
_GRID_SCRIPT: Final = re.compile(r"plot|grid|matri(x|ces)|X/Y|prompts? from (text )?file", re.IGNORECASE)
"""A regular expression for the titles of scripts that make several images."""
_DETECTORS: Final = "(DDetailer|YOLO) "
"""A regular expression for the entries of the script DDetailer and of its successors."""
_FEATURES: Final = (
    _feature(
        "Face restoration$",
        Drawable.DIFFERS,
        "faces were restored by a model that civman does not know; they are left as they were drawn",
        lambda entries: entries.is_on("Face restoration") and face_method(entries) is None,
    ),
    _feature(
        _DETECTORS,
        Drawable.DIFFERS,
        "a detector found faces or hands, which were then drawn again (DDetailer and others); civman leaves "
        "them as they are before that",
    ),
    _feature(
        "Hypernetworks",
        NO,
        "an extension combined several hypernetworks, which civman does not support",
        lambda entries: "," in entries.text("Hypernetworks"),
    ),
    _feature(
        "(Ultimate )?SD upscale ",
        FINE,
        "",
    ),
    _feature("SAG ", NO, "self-attention guidance changed the image, which civman does not support"),
    _feature(
        "Cutoff ",
        NO,
        "the extension Cutoff changed the prompt, which civman does not support",
        lambda entries: entries.is_on("Cutoff enabled"),
    ),
    _feature(
        "AntiBurn|LLuL|Latent Couple|Composable", NO, "an extension changed the sampling, which civman does not support"
    ),
    _feature(
        r"RP |\"?(divisions=|mode$|Use (base|common|N-common)|Base ratio|divide ratio)|[0-9]+ positions=",
        NO,
        "a regional prompt divided the image, which civman does not support",
    ),
    _feature(
        "Aesthetic ",
        NO,
        "an aesthetic embedding changed the prompt, which civman does not support",
        lambda entries: bool(entries.number("Aesthetic weight")),
    ),
    _feature("NPW_", NO, "an extension weighted the negative prompt, which civman does not support"),
    _feature(
        "Hires (Distilled CFG|Module)",
        NO,
        "the second pass used other modules or a guidance that civman does not support",
        lambda entries: any(
            entries.text(name).casefold() not in ("", "use same choices", "built in", "0", "0.0")
            for name in entries.names()
            if name.startswith(("Hires Distilled CFG", "Hires Module"))
        ),
    ),
    _feature("FreeU|HyperTile|Kohya|PAG ", NO, "an extension changed the model, which civman does not support"),
    _feature("Extras|Postprocess (?!upscale|crop to)", NO, "A1111's Extras tab changed the finished image"),
    _feature(
        "(GFPGAN|CodeFormer) (visibility|weight)",
        Drawable.DIFFERS,
        "faces were restored afterwards in A1111's Extras tab; civman leaves them as they were drawn",
    ),
    _feature(
        "Version$",
        Drawable.DIFFERS,
        "the image was made by stable-diffusion.cpp; civman renders it by A1111's rules, which differ in details",
        lambda entries: entries.text("Version").startswith("stable-diffusion.cpp"),
    ),
    _feature(
        "RNG$",
        NO,
        "the noise came from a generator of the C++ library, which civman does not have",
        lambda entries: entries.text("RNG") == "std_default",
    ),
    _feature(
        "Version$",
        NO,
        "the image was made by Fooocus, which changes the guidance in each step; civman does not support this",
        lambda entries: "fooocus" in entries.text("Version").casefold(),
    ),
    _feature(
        "Parser$",
        Drawable.DIFFERS,
        "the image was made by SD.Next, a fork of A1111; civman draws it by A1111's rules",
        lambda entries: entries.text("Parser") in ("Full parser", "A1111 parser"),
    ),
    _feature(
        "Parser$",
        NO,
        "the image was made by SD.Next with another rule for emphasis, which civman does not follow",
        lambda entries: entries.text("Parser") not in ("Full parser", "A1111 parser"),
    ),
    _feature("[XYZ] (Type|Values)|Fixed [XYZ] Values", NO, _GRID),
    _feature("Script$", NO, _GRID, lambda entries: _GRID_SCRIPT.search(entries.text("Script")) is not None),
    _feature(
        "Extra noise|SGM noise multiplier|Schedule (max|min) sigma|Schedule rho|Mask (mode|source)",
        NO,
        "a setting of A1111 that civman does not support",
    ),
    _feature(
        r"Wildcard|Template|Negative Template|Unprompted|\[?__|Dynamic [Pp]rompts",
        FINE,
        "the prompt was made from a template; the settings contain the resulting prompt",
    ),
    _feature(
        "Score|aesthetic_score|needsReview|modelVersionId|Batch (size|pos)|Lora hashes|TI hashes|VAE hash|"
        "First pass size$|CFG Rescale phi$|Hashes$|Civitai resources$|Model( hash)?$|"
        "hashes|resources|civitaiResources|Version|Hires (upscaler|upscale|resize|steps|sampler|schedule type)|User|"
        "Hires CFG Scale$|Size|"
        "Created Date|Time|Steps$|Sampler$|Seed$|CFG scale$|Clip skip$|Negative prompt$|prompt$|"
        "Denoising strength$|Schedule type$",
        FINE,
        "",
    ),
)


def reasons(entries: Entries) -> Iterator[Reason]:
    """Return the reasons for features in the settings beyond a plain render, and mark their entries as used."""
    for feature in _FEATURES:
        if entries.take(feature.entries) and feature.words and feature.counts(entries):
            yield Reason(feature.verdict, feature.words)
    name = entries.text("Script")
    if entries.is_on("Script") and not _GRID_SCRIPT.search(name) and not entries.take(re.compile(_DETECTORS)):
        yield Reason(Drawable.DIFFERS, f"the script `{name[:40]}` may have changed the image; civman leaves it out")
