"""Reads the LoRAs and hypernetworks that are named in separate entries of the settings instead of in the prompt."""

import re
from collections.abc import Iterator

from civman.pictures.site_settings import Entries, NamedFile
from civman.planning.redraw_features import Drawable, Reason
from civman.planning.redraw_prompts import TaggedLora


def old_hypernetworks(entries: Entries) -> Iterator[tuple[str, float]]:
    """Yield the hypernetwork that A1111 wrote as a separate entry until February 2023, with its strength."""
    name, strength = entries.text("Hypernet"), entries.number("Hypernet strength")
    if name.casefold() not in ("", "none"):
        yield re.sub(r"\([0-9a-fA-F]{8}\)$", "", name).strip(), 1.0 if strength is None else strength

    name, strength = entries.text("Hypernetworks"), entries.number("Hypernetworks Strengths")
    # read the entry of an extension: with a single hypernetwork, it means the same as A1111's own entry
    if name and "," not in name:
        yield name, 1.0 if strength is None else strength


def network_hash(entries: Entries, name: str) -> str:
    """Return the hash of a hypernetwork from the entry that old versions of A1111 wrote; "" if there is none."""
    digest = entries.text("Hypernet hash")
    found = digest.casefold() if name == entries.text("Hypernet") else ""
    return found if re.fullmatch("[0-9a-f]{8,64}", found) else ""


def additional_networks(entries: Entries) -> tuple[list[TaggedLora], list[NamedFile], list[Reason]]:
    """Read the LoRAs of the extension Additional Networks, their files, and why they cannot be expressed."""
    loras: list[TaggedLora] = []
    files: list[NamedFile] = []
    reasons: list[Reason] = []
    keys = entries.take(re.compile(r"AddNet Model \d+$"))
    for key in keys:
        number = key.rpartition(" ")[2]
        kind = entries.text(f"AddNet Module {number}")
        both = entries.number(f"AddNet Weight {number}")
        unet, text = (entries.number(f"AddNet Weight {side} {number}") for side in "AB")
        unet = both if unet is None else unet
        if not entries.is_on("AddNet Enabled") or unet is None:
            continue
        if kind.casefold() not in ("lora", ""):
            reasons.append(Reason(Drawable.NO, f"additional networks of the kind {kind} are not supported"))
        found = re.fullmatch(r"(.*?)\s*\(([0-9a-fA-F]{8,12})\)", entries.text(key))
        name, digest = (found[1], found[2].casefold()) if found else (entries.text(key), "")
        if name.casefold() in ("none", ""):
            continue
        if not digest:
            name, digest = _listed_with(entries, unet, name, alone=len(keys) == 1)
        files.append(NamedFile("lora", name, digest, unet))
        loras.append(TaggedLora(name, unet, unet if text is None else text))
    entries.take(re.compile("AddNet "))
    return loras, files, reasons


def _listed_with(entries: Entries, weight: float, name: str, *, alone: bool) -> tuple[str, str]:
    """Return the name and hash of the only LoRA in the API's list with this weight; otherwise `name` and "".

    `alone`: the settings name no other LoRA, so the only listed LoRA without a weight is accepted, too.
    """
    listed = entries.listed_loras()
    found = [each for each in listed if each.weight == weight]
    if not found and alone:
        found = [each for each in listed if each.weight is None and len(each.hash) == 12]
    return (found[0].name, found[0].hash) if len(found) == 1 else (name, "")
