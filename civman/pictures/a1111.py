"""Read the metadata of A1111, Forge, SD.Next, CivitAI's generator and other programs that write A1111's text.

Meaningless settings that CivitAI's generator writes (`Sampler: Undefined`, a clip skip for Flux) are left out, which
`PictureMetadata.notes` reports.
"""

import re
from collections.abc import Iterator
from typing import Final

from civman.pictures import infotext
from civman.pictures.metadata import Generator, PictureMetadata, Resource, Settings

_FORGE: Final = re.compile(r"f[0-9]|forge|neo", re.IGNORECASE)
_FORGE_KEYS: Final = ("Module 1", "Distilled CFG Scale", "Diffusion in Low Bits")
_NO_NAMES: Final = ("", "None", "Automatic", "undefined", "Undefined")
_KINDS: Final = {
    "embed": "embedding",
    "hypernet": "hypernetwork",
    "textualinversion": "embedding",
    "model": "checkpoint",
}
_HEX: Final = re.compile(r"(?:0x)?([0-9a-fA-F]{6,64})")


def read(text: str) -> PictureMetadata | None:
    """Read the metadata in a text in A1111's format; None if it contains no line of settings."""
    if not infotext.is_infotext(text):
        return None
    parsed = infotext.read(text)
    generator = _generator(parsed)
    settings, notes = _settings(parsed, generator)
    if distilled := parsed.number("Distilled CFG Scale"):
        notes.append(f"distilled guidance {distilled:g}")
    if upscaler := parsed.details.get("Hires upscaler"):
        scale = parsed.details.get("Hires upscale") or parsed.details.get("Hires resize", "")
        notes.append(f"second pass: {upscaler} {scale}".strip())
    return PictureMetadata(
        generator, parsed.prompt, parsed.negative, settings, tuple(dict.fromkeys(_resources(parsed))), tuple(notes)
    )


def _generator(parsed: infotext.Parsed) -> Generator:
    version, app = parsed.details.get("Version", ""), parsed.details.get("App", "")
    for sign, generator in (
        ("civman", Generator.CIVMAN), ("SD.Next", Generator.SDNEXT), ("RuinedFooocus", Generator.RUINED_FOOOCUS),
        ("Fooocus", Generator.FOOOCUS), ("ComfyUI", Generator.COMFYUI),
    ):  # fmt: skip
        if version.startswith(sign) or app.startswith(sign):
            return generator
    if _FORGE.match(version) or any(key in parsed.details for key in _FORGE_KEYS):
        return Generator.FORGE
    if not version and ("Civitai resources" in parsed.details or "Civitai metadata" in parsed.details):
        return Generator.CIVITAI
    return Generator.A1111


def _settings(parsed: infotext.Parsed, generator: Generator) -> tuple[Settings, list[str]]:
    details, notes = parsed.details, []
    sampler: str | None = details.get("Sampler") or None
    if sampler in _NO_NAMES:
        sampler = None
        notes.append("the settings contain no sampler")
    clip_skip = parsed.whole("Clip skip")
    if clip_skip is not None and generator is Generator.CIVITAI and "flux" in details.get("Model", "").casefold():
        clip_skip = None
        notes.append("the settings contain a clip skip, which has no effect on Flux")
    size = parsed.size or (None, None)
    return Settings(
        steps=parsed.whole("Steps"), sampler=sampler, schedule=details.get("Schedule type") or details.get("Scheduler"),
        cfg=parsed.number("CFG scale"), seed=parsed.whole("Seed"), width=size[0], height=size[1], clip_skip=clip_skip,
        denoising=parsed.number("Denoising strength"),
    ), notes  # fmt: skip


def _resources(parsed: infotext.Parsed) -> Iterator[Resource]:
    """The models that the text lists, the checkpoint first.

    A LoRA may be listed twice, by name and by version id, if nothing shows that both entries are the same LoRA.
    """
    details, entries = parsed.details, list(parsed.civitai)
    yield from _checkpoint(parsed, entries)
    yield from _loras(parsed, entries)
    for name, value in infotext.pairs(details.get("TI hashes", "")):
        yield Resource("embedding", name, hex_of(value))
    for key, value in parsed.hashes.items():
        kind, colon, name = key.partition(":")
        if colon and kind != "lora":
            yield Resource(_KINDS.get(kind, kind), name, hex_of(value))
    if (vae := details.get("VAE", "")) not in _NO_NAMES or "VAE hash" in details:
        yield Resource("vae", vae, hex_of(details.get("VAE hash", "")))
    if (refiner := details.get("Refiner", "")) not in _NO_NAMES:
        name, digest = _name_and_hash(refiner)
        yield Resource("refiner", name, digest or hex_of(details.get("Refiner hash", "")))
    if (second := details.get("Hires checkpoint", "")) not in _NO_NAMES and not second.startswith("Use same"):
        yield Resource("hires-checkpoint", *_name_and_hash(second))
    for number in range(1, 10):
        if module := details.get(f"Module {number}"):
            yield Resource("module", module)
    for entry in entries:
        name = " ".join(filter(None, (entry.model_name, entry.version_name)))
        kind = _KINDS.get(entry.kind.casefold(), entry.kind.casefold())
        yield Resource(kind or "model", name, None, entry.version_id, entry.air, entry.weight)


def _checkpoint(parsed: infotext.Parsed, entries: list[infotext.CivitaiEntry]) -> Iterator[Resource]:
    digest = hex_of(parsed.details.get("Model hash", "") or parsed.hashes.get("model", ""))
    name = parsed.details.get("Model", "")
    same = [entry for entry in entries if entry.kind.casefold() in ("checkpoint", "model")]
    if name or digest:
        if len(same) == 1:  # merge both entries, because a text contains only one checkpoint
            entries.remove(same[0])
            yield Resource("checkpoint", name, digest, same[0].version_id, same[0].air)
        else:
            yield Resource("checkpoint", name, digest)


def _loras(parsed: infotext.Parsed, entries: list[infotext.CivitaiEntry]) -> Iterator[Resource]:
    weights: dict[str, float | None] = {}
    digests = dict(parsed.lora_hashes)
    for key, value in parsed.hashes.items():
        if key.startswith("lora:"):
            digests.setdefault(key.removeprefix("lora:"), value)
    for tag in parsed.tags:
        if tag.kind == "hypernet":
            yield Resource("hypernetwork", tag.name, weight=tag.scale)
        else:
            weights[tag.name] = tag.scale
    for name, value in infotext.pairs(parsed.details.get("Lora weights", "")):
        weights[name] = infotext.number(value)
    for name in dict.fromkeys([*weights, *digests]):
        same = [entry for entry in entries if entry.model_name and entry.model_name == name]
        if same:
            entries.remove(same[0])
        yield Resource(
            "lora", name, hex_of(digests.get(name, "")), same[0].version_id if same else None,
            same[0].air if same else None, weights.get(name),
        )  # fmt: skip


def _name_and_hash(text: str) -> tuple[str, str | None]:
    name, _, digest = text.removesuffix("]").rpartition(" [")
    return (name.strip(), hex_of(digest)) if name and hex_of(digest) else (text, None)


def hex_of(text: str) -> str | None:
    """A hash in lower case without `0x`; None if the text is not a hash."""
    match = _HEX.fullmatch(text.strip())
    return match[1].lower() if match else None
