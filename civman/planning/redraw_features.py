"""Lists features in other programs' settings that affect whether civman can reproduce the image.

Each row of `_FEATURES` has a pattern for entry names, a condition on the entries, and what the feature means for
rendering the image again.
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
    name. `NEEDS_INPUT`: an input image is needed, which no metadata contains. `NO`: civman cannot render it.
    """

    EXACT = "exact"
    DIFFERS = "differs"
    NEEDS_INPUT = "needs-input"
    NO = "no"


RANK: Final = (Drawable.EXACT, Drawable.DIFFERS, Drawable.NEEDS_INPUT, Drawable.NO)
"""All verdicts, from the best to the worst."""


@dataclass(frozen=True, slots=True)
class Reason:
    """Why an image cannot be reproduced exactly or, with the verdict `EXACT`, a remark on a setting without effect."""

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


def _is_switched_on(entries: Entries, pattern: re.Pattern[str]) -> bool:
    """Whether an extension was enabled: true if one of its `…_enabled` entries is on, or if it has no such entry."""
    switches = [name for name in entries.names() if pattern.match(name) and name.endswith("_enabled")]
    return any(map(entries.is_on, switches)) if switches else True


NO, FINE = Drawable.NO, Drawable.EXACT
_SD_NEXT: Final = "the image was made by SD.Next, a fork of A1111; civman renders it by A1111's rules"
_GRID: Final = "a script combined several images into one"
_GRID_SCRIPT: Final = re.compile(r"plot|grid|matri(x|ces)|X/Y|prompts? from (text )?file", re.IGNORECASE)
"""Matches the titles of scripts that make several images."""
_DETECTORS: Final = "(DDetailer|YOLO) "
"""Matches the metadata entries of the script DDetailer and of its successors."""
_OWN_VALUES: Final = "Extra noise|SGM noise multiplier|Schedule (max|min) sigma|Schedule rho|Mask (mode|source)"
"""Matches settings of A1111 that civman does not support; with the value 0 or False, they had no effect."""
_CHANGES_MODEL: Final = (
    "(?i:FreeU|HyperTile|Kohya|PAG |pagi_|sag_|dynthres_|latent_modifier_|multidiffusion_|stylealign_)"
)
"""Matches metadata entries of Forge and of extensions that change the model or the sampling."""
_CODERS: Final = ("Decoder", "Encoder")
_FULL_PRECISION: Final = re.compile("$|disable|false|none|automatic|b?float(16|32)", re.IGNORECASE)
"""Matches the precision settings of A1111 and Forge that do not round the weights to 8 bits or fewer."""
_STATED: Final = re.compile(
    r"(f[0-9.]*)?v?[0-9]+\.[0-9]|[0-9a-f]{7,40}$|(classic|neo)\b|civman|comfyui|swarmui|stable-diffusion\.cpp|.*fooocus",
    re.IGNORECASE,
)
"""Matches the value of `Version` in images of all programs that civman knows."""
_FEATURES: Final = (
    _feature(
        "Face restoration$",
        Drawable.DIFFERS,
        "faces were restored by a model that civman does not support; civman leaves the faces unchanged",
        lambda entries: entries.is_on("Face restoration") and face_method(entries) is None,
    ),
    _feature(
        _DETECTORS,
        Drawable.DIFFERS,
        "DDetailer or a similar script rendered faces or hands again; civman leaves them unchanged",
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
        "the second pass used additional modules or a distilled guidance, which civman does not support",
        lambda entries: any(
            entries.text(name).casefold() not in ("", "use same choices", "built in", "0", "0.0")
            for name in entries.names()
            if name.startswith(("Hires Distilled CFG", "Hires Module"))
        ),
    ),
    _feature(
        _CHANGES_MODEL,
        NO,
        "an extension changed the model or the sampling, which civman does not support",
        lambda entries: _is_switched_on(entries, re.compile(_CHANGES_MODEL)),
    ),
    _feature(
        "Tiling$",
        NO,
        "the image was made seamless for tiling, which civman does not support",
        lambda entries: entries.is_on("Tiling"),
    ),
    _feature(
        "Noise Schedule$",
        NO,
        "A1111 rescaled the noise levels of the checkpoint, which civman does not support",
        lambda entries: entries.text("Noise Schedule").casefold() not in ("", "default"),
    ),
    _feature(
        "VAE (Decoder|Encoder)$",
        Drawable.DIFFERS,
        "an approximate VAE such as TAESD decoded or encoded the image; civman uses the full VAE",
        lambda entries: any(entries.text(f"VAE {name}").casefold() not in ("", "full") for name in _CODERS),
    ),
    _feature(
        "FP8 weight$|Cache FP16 weight for LoRA$|Diffusion in Low Bits$",
        Drawable.DIFFERS,
        "the model's weights were rounded to 8 bits or fewer; civman uses the file's own precision",
        lambda entries: (
            not _FULL_PRECISION.match(entries.text("FP8 weight"))
            or not _FULL_PRECISION.match(entries.text("Diffusion in Low Bits"))
        ),
    ),
    _feature("Extras|Postprocess (?!upscale|crop to)", NO, "A1111's Extras tab changed the finished image"),
    _feature(
        "(GFPGAN|CodeFormer) (visibility|weight)",
        Drawable.DIFFERS,
        "faces were restored afterwards in A1111's Extras tab; civman leaves the faces unchanged",
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
        "the noise came from the random number generator of C++, which civman does not support",
        lambda entries: entries.text("RNG") == "std_default",
    ),
    _feature(
        "Version$",
        NO,
        "the image was made by Fooocus, which changes the guidance in each step; civman does not support this",
        lambda entries: "fooocus" in entries.text("Version").casefold(),
    ),
    _feature(
        "Version$",
        Drawable.DIFFERS,
        "`Version` names a program that civman does not know; civman uses the rules of A1111 1.2",
        lambda entries: bool(entries.text("Version")) and not _STATED.match(entries.text("Version")),
    ),
    _feature(
        "Backend$|Pipeline$",
        NO,
        "the image was made by SD.Next with diffusers, whose noise levels differ from those of A1111; civman supports "
        "only A1111's",
        lambda entries: entries.text("Backend").casefold() == "diffusers" or "Pipeline" in entries,
    ),
    _feature(
        "App$|Backend$|Operations$",
        Drawable.DIFFERS,
        _SD_NEXT,
        lambda entries: entries.text("App") in ("SD.Next", "SDNext") or "Backend" in entries,
    ),
    _feature(
        "Parser$",
        Drawable.DIFFERS,
        _SD_NEXT,
        lambda entries: entries.text("Parser") in ("Full parser", "A1111 parser"),
    ),
    _feature(
        "Parser$",
        NO,
        "the image was made by SD.Next with another rule for emphasis, which civman does not support",
        lambda entries: entries.text("Parser") not in ("Full parser", "A1111 parser"),
    ),
    _feature("[XYZ] (Type|Values)|Fixed [XYZ] Values", NO, _GRID),
    _feature("Script$", NO, _GRID, lambda entries: _GRID_SCRIPT.search(entries.text("Script")) is not None),
    _feature(
        _OWN_VALUES,
        NO,
        "the image was made with a setting of A1111 that civman does not support",
        lambda entries: any(entries.is_on(name) for name in entries.take(re.compile(_OWN_VALUES))),
    ),
    _feature(
        "Beta schedule (alpha|beta)$",
        NO,
        "the schedule Beta had other parameters than civman's",
        lambda entries: any(entries.number(f"Beta schedule {name}") not in (None, 0.6) for name in ("alpha", "beta")),
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
    """Return the reasons that follow from the features in `_FEATURES`, and mark their entries as used."""
    for feature in _FEATURES:
        if entries.take(feature.entries) and feature.words and feature.counts(entries):
            yield Reason(feature.verdict, feature.words)
    name = entries.text("Script")
    if entries.is_on("Script") and not _GRID_SCRIPT.search(name) and not entries.take(re.compile(_DETECTORS)):
        yield Reason(Drawable.DIFFERS, f"the script `{name[:40]}` may have changed the image; civman does not run it")
