"""Remove A1111's tags from a prompt and read them, by the rules of the version that made the image."""

import re
from dataclasses import dataclass
from typing import Final

from civman.domain.adapters.block_weights import blocks_of
from civman.errors import UsageError
from civman.pictures.metadata import number
from civman.planning.redraw_features import Drawable, Reason

_TAG: Final = re.compile(r"<(\w+):([^>]+)>")
_NAMED: Final = re.compile(r"\s*(te|unet|dyn|\w+)\s*=\s*(.*)")


@dataclass(frozen=True, slots=True)
class TaggedLora:
    """A LoRA that a prompt names, and its scales for the UNet and for the text encoders."""

    name: str
    unet: float
    text: float
    blocks: str = ""


@dataclass(frozen=True, slots=True)
class Tags:
    """A prompt without its tags, the LoRAs that they name, and why the tags cannot be expressed."""

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
        kind, parts = tag[1].casefold(), tag[2].split(":")
        if kind == "hypernet":
            strength = number(parts[1].strip()) if len(parts) > 1 else 1.0
            if strength is None:
                reasons.append(Reason(Drawable.NO, f"the tag `{tag[0][:60]}` has no number for its strength"))
            else:
                networks.append((parts[0].strip(), strength))
            continue
        if kind not in ("lora", "lyco"):
            words = f"the tag `{tag[0][:60]}` names nothing that civman or A1111 knows"
            reasons.append(Reason(Drawable.EXACT, words))
            continue
        blocks, unknown = "", ""
        for each in parts[1:] if len(parts) > 2 else ():
            words = each.strip().removeprefix("lbw=")
            if words != each.strip() or (each is parts[2] and number(words) is None and "=" not in words):
                parts.remove(each)
                blocks, unknown = _blocks(words)
                break
        if "," in unknown:
            reasons.append(
                Reason(Drawable.NO, f"the tag `{tag[0][:60]}` has a list of block weights of unknown length")
            )
        elif unknown:
            reasons.append(Reason(Drawable.DIFFERS, f"the block weights `{unknown}` are a preset of the author's own, "
                                  f"so `{parts[0].strip()[:40]}` is applied to all blocks equally"))  # fmt: skip
        found = _scales(parts[1:], takes_both=kind == "lyco" or version >= (1, 5))
        if isinstance(found, str):
            reasons.append(Reason(Drawable.NO, f"the tag `{tag[0][:60]}` {found}"))
        else:
            loras.append(TaggedLora(parts[0].strip(), *found, blocks))
    return Tags(_TAG.sub("", prompt), tuple(loras), tuple(networks), tuple(reasons))


def _blocks(words: str) -> tuple[str, str]:
    """Block weights in canonical form, and the name of a preset that civman does not know."""
    try:
        return blocks_of(words), ""
    except UsageError:
        return "", words[:40]


def _scales(arguments: list[str], *, takes_both: bool) -> tuple[float, float] | str:
    """The scales for the UNet and for the text encoders, or why they cannot be expressed."""
    named = {match[1]: match[2] for each in arguments if (match := _NAMED.fullmatch(each))}
    positional = [each.strip() for each in arguments if not _NAMED.fullmatch(each)]
    if "dyn" in named or len(positional) > 2:
        return "has a dynamic rank or more numbers, which civman does not support"
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
    return unet, text
