"""Reads and removes A1111's tags in a prompt, by the rules of the version that made the image."""

import re
from dataclasses import dataclass
from typing import Final

from civman.domain.adapters.block_weights import blocks_of
from civman.domain.adapters.scale_keyframes import is_changing, read_scale
from civman.domain.digests import Sha256
from civman.domain.recipes.recipe import LoraUse
from civman.errors import UsageError
from civman.pictures.metadata import number
from civman.pictures.site_settings import Entries
from civman.planning.redraw_features import Drawable, Reason
from civman.prompts.emphasis import tags_as_words

_TAG: Final = re.compile(r"<(\w+):([^>]+)>")
_SPACED: Final = re.compile(r":(?:\s+[+-]?[.0-9]+\s*\)|[+-]?[.0-9]+\s+\)|\s*[+-]?[.0-9]+(?:[eE][+-]?[0-9]+)?\s+\])")
"""Matches a colon and a number at the end of a bracketed part of a prompt, with white space before or after the number.
"""
_AND: Final = re.compile(r"(\bAND\b)")
_PART_WEIGHT: Final = re.compile(r"\s*:\s*[-+]?(?:[0-9]+\.?|[0-9]*\.[0-9]+)\s*$")
"""Matches the weight at the end of one of the prompts that `AND` combines."""
_LAST_DIGIT: Final = re.compile(r"[.0-9](?=\s*[\])]?$)")
_NAMED: Final = re.compile(r"\s*(te|unet|dyn|\w+)\s*=\s*(.*)")


@dataclass(frozen=True, slots=True)
class TaggedLora:
    """A LoRA with its scales for the UNet and for the text encoders, as a tag in a prompt specifies them."""

    name: str
    unet: float
    text: float
    blocks: str = ""
    keyframes: str = ""
    hires_keyframes: str = ""
    """The scale for the UNet over the steps of the second pass, in canonical form; "" if the same as in the first pass.
    """

    def use(self, sha256: Sha256, *, has_hires: bool) -> LoraUse:
        """Return the LoRA as a recipe lists it, with the digest of its file."""
        second = self.hires_keyframes if has_hires else ""
        return LoraUse(sha256, self.unet, self.text, self.blocks, self.keyframes, second)


@dataclass(frozen=True, slots=True)
class _Scales:
    unet: float
    text: float
    keyframes: str = ""
    hires_keyframes: str = ""
    text_changes: bool = False


@dataclass(frozen=True, slots=True)
class Tags:
    """A prompt without its tags, the LoRAs and hypernetworks in the tags, and why some tags are not supported."""

    text: str
    loras: tuple[TaggedLora, ...]
    hypernetworks: tuple[tuple[str, float], ...]
    reasons: tuple[Reason, ...]


def read_tags(prompt: str, version: tuple[int, int]) -> Tags:
    """Read the tags of a prompt. Before A1111 1.5, only the first number of a `lora` tag had an effect."""
    loras: list[TaggedLora] = []
    reasons: list[Reason] = []
    networks: list[tuple[str, float]] = []
    for tag in _TAG.finditer(prompt):
        kind, parts = tag[1], tag[2].split(":")
        if kind == "hypernet":
            strength = number(parts[1].strip()) if len(parts) > 1 else 1.0
            if strength is None:
                reasons.append(Reason(Drawable.NO, f"the tag `{tag[0][:60]}` has no number for its strength"))
            else:
                networks.append((parts[0].strip(), strength))
            continue
        if kind not in ("lora", "lyco", "loractl"):
            words = f"the tag `{tag[0][:60]}` is of a kind that neither civman nor A1111 knows"
            reasons.append(Reason(Drawable.EXACT, words))
            continue
        blocks, unknown = "", ""
        for each in parts[1:] if len(parts) > 2 else ():
            words = each.strip().removeprefix("lbw=")
            is_list = each is parts[2] and number(words) is None and "=" not in words and not is_changing(words)
            if words != each.strip() or is_list:
                parts.remove(each)
                blocks, unknown = _blocks(words)
                break
        if "," in unknown:
            reasons.append(
                Reason(
                    Drawable.NO,
                    f"the tag `{tag[0][:60]}` has a list of block weights whose length civman does not support",
                )
            )
        elif unknown:
            reasons.append(Reason(Drawable.DIFFERS, f"the block weights `{unknown}` are a preset that civman does not "
                                  f"know, so `{parts[0].strip()[:40]}` is applied to all blocks equally"))  # fmt: skip
        found = _scales(parts[1:], takes_both=kind == "lyco" or version >= (1, 5))
        if isinstance(found, str):
            problem = found
            reasons.append(Reason(Drawable.NO, f"the tag `{tag[0][:60]}` {problem}"))
        else:
            loras.append(TaggedLora(
                parts[0].strip(), found.unet, found.text, blocks, found.keyframes, found.hires_keyframes
            ))  # fmt: skip
            if found.text_changes:
                reasons.append(Reason(
                    Drawable.DIFFERS, f"the text encoders' scale of `{parts[0].strip()[:40]}` changes over the steps; "
                    "the scale that A1111 used depends on earlier images, so civman uses the first scale",
                ))  # fmt: skip
    return Tags(_TAG.sub("", prompt), tuple(loras), tuple(networks), tuple(reasons))


def as_in_version(prompt: str, entries: Entries, emphasis: str) -> str:
    r"""Change a prompt so that A1111's newest rules read it as the version that made the image did.

    Before 1.6, a number next to a space was plain text: no weight in `(x: 1.5)`, and no time in `[x:y: 0.5 ]`. Up to
    1.5.0, a number at the end of a part with several lines was not the weight of that part. A backslash before its
    last digit turns a number into plain text, as in `(x: 1.\5)`; every version removes the backslash. `emphasis`: the
    recipe's rule for emphasis; the prompt is changed only for "original", the rule that A1111 had at that time.
    """
    if emphasis != "original":
        return prompt
    if entries.is_before((1, 6)):
        prompt = _SPACED.sub(_as_text, prompt)
    if entries.is_before((1, 5, 1)):
        prompt = "".join(_without_weight(each) for each in _AND.split(prompt))
    return prompt


def _without_weight(part: str) -> str:
    found = _PART_WEIGHT.search(part)
    return f"{part[: found.start()]}{_as_text(found)}" if found and "\n" in part[: found.start()] else part


def _as_text(found: re.Match[str]) -> str:
    return _LAST_DIGIT.sub(r"\\\g<0>", found[0])


def negative_words(prompt: str, emphasis: str) -> tuple[str, tuple[Reason, ...]]:
    """Return a negative prompt with its tags escaped as plain text, and a reason if this changes its meaning.

    A1111 and ComfyUI read tags in negative prompts as plain text: A1111 removes them only from the (positive) prompts
    of the first and the second pass. `emphasis`: the recipe's rule for emphasis.
    """
    words = prompt if emphasis == "comfyui" else tags_as_words(prompt)
    if words == prompt or emphasis != "none":
        return words, ()
    reason = (
        "the tags in the negative prompt are escaped with a backslash, which is part of the text with `Emphasis: None`"
    )
    return words, (Reason(Drawable.DIFFERS, reason),)


def _blocks(words: str) -> tuple[str, str]:
    """Return (block weights in canonical form, ""), or ("", the preset's name) if civman does not know the preset."""
    try:
        return blocks_of(words), ""
    except UsageError:
        return "", words[:40]


def _scales(arguments: list[str], *, takes_both: bool) -> _Scales | str:
    """Return the scales of a tag for UNet and text encoders, or the reason why civman does not support them."""
    if any(is_changing(each) or each.strip().startswith("hr") for each in arguments):
        return _changing_scales(arguments)
    named = {match[1]: match[2] for each in arguments if (match := _NAMED.fullmatch(each))}
    positional = [each.strip() for each in arguments if not _NAMED.fullmatch(each)]
    if "dyn" in named or len(positional) > 2:
        return "has a dynamic rank or more than two numbers, which civman does not support"
    values = [number(each) for each in positional]
    first = values[0] if values else 1.0
    if first is None:
        return "has no number for its strength"
    second = values[1] if len(values) > 1 else first
    if second is None:
        return "has a strength that is not a number"
    if others := set(named) - {"te", "unet"}:
        return f"has the setting `{min(others)}`, which civman does not support"
    if len(values) > 1 and not takes_both:
        second = first
    text = number(named.get("te", str(first)))
    unet = number(named.get("unet", str(second if "te" not in named or len(values) > 1 else text)))
    if text is None or unet is None:
        return "has a strength that is not a number"
    return _Scales(unet, text)


def _changing_scales(arguments: list[str]) -> _Scales | str:
    """Read the scales of a tag for the extension sd-webui-loractl, or return why civman does not support them."""
    named = {match[1]: match[2].strip() for each in arguments if (match := _NAMED.fullmatch(each))}
    positional = [each.strip() for each in arguments if not _NAMED.fullmatch(each)]
    text_words = named.get("te", positional[0] if positional else "1")
    unet_words = named.get("unet", positional[1] if len(positional) > 1 else text_words)
    second_words = named.get("hrunet", named.get("hr", ""))
    try:
        (text, changing), (unet, keyframes) = read_scale(text_words), read_scale(unet_words)
        second = read_scale(second_words) if second_words else (0.0, "")
    except UsageError:
        return "has keyframes that cannot be read"
    hires = (second[1] or f"{second[0]:g}@0") if second_words else ""
    return _Scales(unet, text, keyframes, "" if hires == (keyframes or f"{unet:g}@0") else hires, bool(changing))
