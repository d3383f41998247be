"""Reads the LoRAs and hypernetworks that are named in separate entries of the settings instead of in the prompt."""

import re
from collections.abc import Iterator, Sequence

from civman.pictures.site_settings import Entries, NamedFile
from civman.planning.redraw_features import Drawable, Reason
from civman.planning.redraw_prompts import TaggedLora


def old_hypernetworks(entries: Entries) -> Iterator[tuple[str, float]]:
    """Yield the hypernetwork that A1111 wrote as a separate entry until February 2023, with its strength."""
    name, strength = entries.text("Hypernet"), entries.number("Hypernet strength")
    if name.casefold() not in ("", "none"):
        yield re.sub(r"\([0-9a-fA-F]{8}\)$", "", name).strip(), 1.0 if strength is None else strength

    name, strength = entries.text("Hypernetworks"), entries.number("Hypernetworks Strengths")
    # an extension wrote this entry; with a single hypernetwork, it means the same as A1111's entry
    if name and "," not in name:
        yield name, 1.0 if strength is None else strength


def network_hash(entries: Entries, name: str) -> str:
    """Return the hash of a hypernetwork from an old or new entry of the settings; "" if they contain none."""
    digest = entries.text("Hypernet hash")
    found = digest.casefold() if name == entries.text("Hypernet") else ""
    if re.fullmatch("[0-9a-f]{8,64}", found):
        return found
    listed = (each.hash for each in entries.listed("hypernet") if each.name == name)
    return entries.listed_hash(f"hypernet:{name}") or next(listed, "")


def additional_networks(entries: Entries) -> tuple[list[TaggedLora], list[NamedFile], list[Reason]]:
    """Return the LoRAs of the extension Additional Networks, their files, and why some are not supported."""
    loras: list[TaggedLora] = []
    files: list[NamedFile] = []
    reasons: list[Reason] = []
    keys = entries.take(re.compile(r"AddNet Model \d+$"))
    in_order = _listed_in_order(entries, len(keys))
    for place, key in enumerate(keys):
        number = key.rpartition(" ")[2]
        kind = entries.text(f"AddNet Module {number}")
        both = entries.number(f"AddNet Weight {number}")
        unet, text = (entries.number(f"AddNet Weight {side} {number}") for side in "AB")
        unet = both if unet is None else unet
        if not entries.is_on("AddNet Enabled") or unet is None:
            continue
        if kind.casefold() not in ("lora", ""):
            reasons.append(
                Reason(Drawable.NO, f"the extension Additional Networks used a {kind}, which civman does not support")
            )
        found = re.fullmatch(r"(.*?)\s*\(([0-9a-fA-F]{8,12})\)", entries.text(key))
        name, digest = (found[1], found[2].casefold()) if found else (entries.text(key), "")
        if name.casefold() in ("none", ""):
            continue
        if not digest:
            name, digest = _listed_with(entries, unet, name, in_order[place] if in_order else None)
        files.append(NamedFile("lora", name, digest, unet))
        loras.append(TaggedLora(name, unet, unet if text is None else text))
    entries.take(re.compile("AddNet "))
    return loras, files, reasons


def _listed_in_order(entries: Entries, number: int) -> list[NamedFile]:
    """Return the LoRAs that the API lists for Additional Networks, if it lists `number` of them; else an empty list.

    CivitAI's reader lists these LoRAs in order, without weights and with the extension's hash of twelve digits.
    """
    found = [each for each in entries.listed("lora") if each.weight is None and len(each.hash) == 12]
    return found if len(found) == number else []


def _listed_with(entries: Entries, weight: float, name: str, at_place: NamedFile | None) -> tuple[str, str]:
    """Return the name and hash of the only LoRA that the API lists with this weight, or else those of `at_place`.

    `at_place`: the LoRA that the list contains at this place without a weight, or None. If several LoRAs have the
    weight, or if none has it and `at_place` is None, return `name` and "".
    """
    found = [each for each in entries.listed("lora") if each.weight == weight]
    if not found and at_place is not None:
        return at_place.name, at_place.hash
    return (found[0].name, found[0].hash) if len(found) == 1 else (name, "")


def listed_without_tags(
    entries: Entries, named: Sequence[TaggedLora], negative: str
) -> tuple[list[TaggedLora], list[NamedFile], list[Reason]]:
    """Return the LoRAs that CivitAI lists with a weight, but that the prompt no longer contains.

    CivitAI lists a LoRA with a weight if the prompt contained its tag when the image was uploaded; users can edit the
    prompt afterwards. Also returns the hashes of LoRAs that have another name in the list than in their tag; they are
    recognised by their weight. `named`: the LoRAs in the prompts. Tags in the prompt `negative` have no effect.
    """
    listed = [each for each in entries.listed("lora") if each.weight is not None]
    spelled = {each.name for each in listed}
    free = [each for each in named if each.name not in spelled]
    names = {each.name for each in named}
    loras: list[TaggedLora] = []
    files: list[NamedFile] = []
    for each in listed:
        if each.name in names or each.weight is None or f":{each.name}:" in negative:
            continue
        same = next((tag for tag in free if each.weight in (tag.unet, tag.text)), None)
        files.append(NamedFile("lora", same.name if same else each.name, each.hash, each.weight))
        if same is None:
            loras.append(TaggedLora(each.name, each.weight, each.weight))
        else:
            free.remove(same)
    reasons = [
        Reason(
            Drawable.DIFFERS, f"the prompt does not contain the LoRA `{each.name}`, but CivitAI lists it with the "
            f"weight {each.unet:g}, which is used",
        )
        for each in loras
    ]  # fmt: skip
    return loras, files, reasons
