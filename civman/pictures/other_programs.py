"""Read the metadata of images from other programs: which program, prompts, settings and models.

A1111's text and ComfyUI's graphs are read by `a1111` and `comfyui`; this module reads all other formats. It tries the
formats in CivitAI's order: text first. InvokeAI's two old formats are read with the library sd-parsers. That library is
not used for the other formats, because it returns nothing (SwarmUI, RuinedFooocus, CivitAI) or wrong values (ComfyUI's
models and white space, NovelAI's steps, A1111's quoted hashes, Fooocus' sizes, InvokeAI's models since version 4).
"""

import re
from collections.abc import Iterator, Mapping
from typing import Final

from civman.pictures import a1111, comfyui
from civman.pictures.image_text import Carried
from civman.pictures.metadata import Generator, Loose, PictureMetadata, Resource, Settings, loads, number, whole

__all__ = ["Generator", "Settings", "Resource", "PictureMetadata", "read", "read_text"]

_MOST_LEGACY: Final = {"sd-metadata": 100_000, "Dream": 10_000}
"""The maximum length in characters of InvokeAI's old formats. Parsing `Dream` takes quadratic time."""
_SIZE: Final = re.compile(r"\(?\s*([0-9]{1,6})\s*[,x×*]\s*([0-9]{1,6})\s*\)?")
_RUINED_LORA: Final = re.compile(r"\s*([+-]?[0-9.]{1,20}) - (.+)", re.DOTALL)


def read(carried: Carried) -> PictureMetadata | None:
    """Read the metadata of an image; None if it has none in a known format. Malformed text never raises an error."""
    entries = carried.entries
    for text in (carried.parameters or "", *_legacy_exif(entries)):
        if told := read_text(text):
            return told
    readers = (_comfy, _invoke, _invoke_old, _novelai)
    for reader in readers:
        if told := reader(entries):
            return told
    if any(key in entries for key in ("prompt", "workflow")) or "workflow:" in entries.get("ImageDescription", ""):
        return PictureMetadata(
            Generator.COMFYUI,
            notes=("the image contains only ComfyUI's editor workflow, or a graph that cannot be read",),
        )
    return None


def read_text(text: str) -> PictureMetadata | None:
    """Read the metadata in a `parameters` text, in any of the formats that programs write under that name."""
    if not text.lstrip().startswith("{"):
        return a1111.read(text)
    value = Loose(loads(text))
    if "sui_image_params" in value:
        return _swarm(value)
    if value.text("software").startswith("RuinedFooocus"):
        return _ruined(value)
    if "base_model" in value and ("guidance_scale" in value or "metadata_scheme" in value):
        return _fooocus(value)
    return comfyui.read(text) or a1111.read(text)


def _legacy_exif(entries: Mapping[str, str]) -> Iterator[str]:
    """Yield the EXIF texts in which ComfyUI's WebP files and old SwarmUI versions store their metadata."""
    for name in ("Model", "Make", "ImageDescription"):
        text = entries.get(name, "")
        if text.startswith(("prompt:", "{")):
            yield text.removeprefix("prompt:")


def _comfy(entries: Mapping[str, str]) -> PictureMetadata | None:
    return comfyui.read(entries.get("prompt", ""))


def _swarm(value: Loose) -> PictureMetadata:
    params, weights = value.inner("sui_image_params"), {}
    # a single LoRA is written as a plain value instead of a list
    names, scales = (params.items(key) or params.text(key).split(",") for key in ("loras", "loraweights"))
    for name, scale in zip(names, scales, strict=False):
        weights[_stem(str(name))] = number(scale)
    digests = {_stem(entry.text("name")): a1111.hex_of(entry.text("hash"))
               for entry in map(Loose, value.items("sui_models"))}  # fmt: skip

    def part(kind: str, name: str, weight: float | None = None) -> Resource:
        digest = digests.get(_stem(name))
        # SwarmUI hashes a file without its header, so the first 12 digits are AutoV3
        return Resource(kind, name, digest[:12] if digest else None, weight=weight)

    parts = [part("checkpoint", params.text("model"))] if params.text("model") else []
    parts += [part("lora", name, weight) for name, weight in weights.items() if name]
    if (vae := params.text("vae")) and vae not in ("Automatic", "None"):
        parts.append(part("vae", vae))
    return PictureMetadata(
        Generator.SWARMUI, params.text("prompt"), params.text("negativeprompt"),
        Settings(
            params.whole("steps"), params.text("sampler") or None, params.text("scheduler") or None,
            params.number("cfgscale"), params.whole("seed"), params.whole("width"), params.whole("height"),
            -stop if (stop := params.whole("clipstopatlayer")) is not None and stop < 0 else None,
            params.number("initimagecreativity"),
        ), tuple(parts),
    )  # fmt: skip


def _stem(name: str) -> str:
    return name.removesuffix(".safetensors").strip()


def _fooocus(value: Loose) -> PictureMetadata:
    size = _SIZE.fullmatch(value.text("resolution").replace("'", ""))
    parts = [Resource("checkpoint", value.text("base_model"), a1111.hex_of(value.text("base_model_hash")))]
    if (refiner := value.text("refiner_model")) not in ("", "None"):
        parts.append(Resource("refiner", refiner, a1111.hex_of(value.text("refiner_model_hash"))))
    for item in value.items("loras"):
        if isinstance(item, list) and len(item) >= 2:
            digest = a1111.hex_of(str(item[2])) if len(item) > 2 else None
            parts.append(Resource("lora", str(item[0]), digest, weight=number(item[1])))
    if (vae := value.text("vae")) and not vae.startswith("Default"):
        parts.append(Resource("vae", vae))
    notes = [f"{name}: {text}" for name in ("styles", "performance") if (text := value.text(name))]
    return PictureMetadata(
        Generator.FOOOCUS, value.text("prompt"), value.text("negative_prompt"),
        Settings(
            value.whole("steps"), value.text("sampler") or None, value.text("scheduler") or None,
            value.number("guidance_scale"), value.whole("seed"), int(size[1]) if size else None,
            int(size[2]) if size else None, value.whole("clip_skip"),
        ), tuple(parts), tuple(notes),
    )  # fmt: skip


def _ruined(value: Loose) -> PictureMetadata:
    parts = []
    if name := value.text("base_model_name"):
        parts.append(Resource("checkpoint", name, a1111.hex_of(value.text("base_model_hash"))))
    for item in value.items("loras"):
        match = _RUINED_LORA.fullmatch(str(item[1])) if isinstance(item, list) and len(item) == 2 else None
        if match:
            parts.append(Resource("lora", match[2], a1111.hex_of(str(item[0])), weight=number(match[1])))
    return PictureMetadata(
        Generator.RUINED_FOOOCUS, value.text("Prompt", "prompt"), value.text("Negative"),
        Settings(
            value.whole("steps"), value.text("sampler_name") or None, value.text("scheduler") or None,
            value.number("cfg"), value.whole("seed"), value.whole("width"), value.whole("height"),
            value.whole("clip_skip"), value.number("denoise"),
        ), tuple(parts),
    )  # fmt: skip


def _invoke(entries: Mapping[str, str]) -> PictureMetadata | None:
    """Parse the metadata of InvokeAI 3 and later, a single JSON object."""
    if "invokeai_metadata" not in entries:
        return None
    value = Loose(loads(entries["invokeai_metadata"]))
    parts = [_invoke_model("checkpoint", value.inner("model"), None)] if value.inner("model").value else []
    for entry in map(Loose, value.items("loras")):
        model = entry.inner("model") if entry.inner("model").value else entry.inner("lora")
        parts.append(_invoke_model("lora", model, entry.number("weight")))
    if value.inner("vae").value:
        parts.append(_invoke_model("vae", value.inner("vae"), None))
    skipped = value.whole("clip_skip")
    return PictureMetadata(
        Generator.INVOKEAI, value.text("positive_prompt"), value.text("negative_prompt"),
        Settings(
            value.whole("steps"), value.text("scheduler") or None, None, value.number("cfg_scale"),
            value.whole("seed"), value.whole("width"), value.whole("height"),
            # InvokeAI counts the skipped layers, whereas A1111's 1 means that none is skipped
            None if skipped is None else skipped + 1,
            value.number("strength"),
        ), tuple(parts),
    )  # fmt: skip


def _invoke_model(kind: str, model: Loose, weight: float | None) -> Resource:
    """Convert a model entry of InvokeAI. Its hash is a BLAKE3 hash, unless the entry names another algorithm."""
    algorithm, colon, digest = model.text("hash").partition(":")
    known = a1111.hex_of(digest if colon else algorithm)
    return Resource(kind, model.text("name", "model_name"), known, weight=weight)


def _invoke_old(entries: Mapping[str, str]) -> PictureMetadata | None:
    """Parse the metadata of InvokeAI 1 and 2: a command line or an older JSON format."""
    data: dict[str, object] = {
        name: entries[name] for name, most in _MOST_LEGACY.items() if 0 < len(entries.get(name, "")) <= most
    }
    if not data:
        return None
    from sd_parsers.exceptions import ParserError  # importing sd-parsers takes 50 ms, and few images need it
    from sd_parsers.parsers import InvokeAIParser

    try:
        info = InvokeAIParser().parse(data)
        words = (str(info.full_prompt), str(info.full_negative_prompt))
    # besides its own ParserError, sd-parsers raises these exceptions for unexpected JSON
    except (ParserError, LookupError, TypeError, ValueError, AttributeError, RecursionError):
        return None
    sampler, found, more = info.samplers[0], Loose(info.samplers[0].parameters), Loose(info.metadata)
    model = sampler.model
    return PictureMetadata(
        Generator.INVOKEAI, *words,
        Settings(
            found.whole("steps"), str(sampler.name), None, found.number("cfg_scale"), found.whole("seed"),
            more.whole("width"), more.whole("height"),
        ), (Resource("checkpoint", str(model.name or ""), a1111.hex_of(str(model.hash or ""))),) if model else (),
    )  # fmt: skip


def _novelai(entries: Mapping[str, str]) -> PictureMetadata | None:
    value = Loose(loads(entries.get("Comment", "")))
    if entries.get("Software") != "NovelAI" and not ("uc" in value and "scale" in value):
        return None
    notes = []
    characters = value.inner("v4_prompt").inner("caption").items("char_captions")
    texts = [text for item in characters if (text := Loose(item).text("char_caption"))]
    if texts:
        notes.append(f"prompts for {len(texts)} characters: {' | '.join(texts)}")
    name, _, last = entries.get("Source", "").rpartition(" ")
    digest = a1111.hex_of(last) if len(last) == 8 else None
    name = name if digest else entries.get("Source", "")
    return PictureMetadata(
        Generator.NOVELAI, value.text("prompt") or entries.get("Description", ""), value.text("uc"),
        Settings(
            whole(value.value.get("steps")), value.text("sampler") or None, value.text("noise_schedule") or None,
            value.number("scale"), value.whole("seed"), value.whole("width"), value.whole("height"), None,
            value.number("strength"),
        ), (Resource("checkpoint", name, digest),) if name else (), tuple(notes),
    )  # fmt: skip
