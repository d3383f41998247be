"""Write and read the `parameters` text in an image, which A1111 introduced and CivitAI reads.

The text follows every rule of CivitAI's reader, which discards the whole text because of one bad number or bracket.
What the format cannot express is written differently: `,` `:` `"` and brackets in names become `_`, and `Steps:` or
`Negative prompt:` in a prompt gets a space before its colon (which gives the text encoder the same tokens). civman's
own record contains the exact prompts.

Sources: CivitAI's reader and schema (run, August 2026); AUTOMATIC1111's own reader (1.10).
"""

import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from importlib import resources
from typing import Any, Final

from civman.errors import Cause, UsageError
from civman.pictures.infotext import Parsed, read

__all__ = ["Part", "SecondPass", "Generation", "text", "Parsed", "read"]

_NOT_IN_NAMES: Final = re.compile(r'[,:"{}\[\]<>\x00-\x1f\x7f-\x9f\u2028\u2029]+')
_ENDS_THAT_CUT: Final = ("resources", "hashed prompt", "hashed negative prompt", "negative prompt")
"""If an entry's name ends like this and a colon follows, readers end the text or start the negative prompt there."""
_KEYS: Final = frozenset({
    "steps", "sampler", "schedule type", "cfg scale", "seed", "size", "model", "model hash", "vae", "vae hash",
    "clip skip", "denoising strength", "rng", "ensd", "version", "hashes", "lora hashes", "civitai resources",
    "civitai metadata", "template", "negative template", "hires resize", "hires steps", "hires upscaler",
    "eta", "eta ddim", "sigma churn", "sigma tmin", "sigma tmax", "sigma noise", "mask blur", "masked content",
    "inpaint area", "masked area padding", "conditional mask weight", "noise multiplier", "pad conds", "variation seed",
    "variation seed strength", "seed resize from", "old prompt editing timelines", "discard penultimate sigma",
    "downcast alphas_cumprod", "cfg rescale phi", "first pass size", "emphasis", "pad conds v0",
    "token merging ratio", "token merging ratio hr", "ngms", "ngms all steps",
    "skip early cfg", "dynamic thresholding enabled", "mimic scale", "mimic mode", "mimic scale minimum", "cfg mode",
    "cfg scale minimum", "separate feature channels", "scaling startpoint", "variability measure", "interpolate phi",
    "threshold percentile", "scheduler value", "hires sampler",
    "hires schedule type", "hires cfg scale", "hires checkpoint", "hires prompt", "hires negative prompt", "refiner",
    "refiner switch at", "refiner switch by sampling steps", "hires refiner",
})  # fmt: skip
"""The names of settings. A model with such a name is renamed, because simple readers would take it for the setting."""
_ENDS_IN_QUOTES: Final = re.compile(r"(?i)(resources|prompt|hashes|template|steps|metadata):")
"""Matches words after which, with a colon, other programs end the settings, even inside quotes."""
_SPLITTER: Final = re.compile(r"((?:^|\n)[^\S\n]*(?:Steps|Template|Negative Template)|Negative prompt)(?=:)")
_TAG: Final = re.compile(r"<lora:([^:>]+)")
_SITE_TAG: Final = re.compile(r"<lora:([a-zA-Z0-9_.\-]+):[0-9.]+>")
"""Matches the LoRA tags whose strength CivitAI reads: those with a plain name and one strength without a sign."""
_HASH: Final = re.compile(r"[0-9a-f]{8,64}")
_AIR: Final = re.compile(r"urn:air:[a-z0-9_-]+:(?P<kind>[a-z0-9_-]+):civitai:[0-9]+@(?P<version>[0-9]+)")


@dataclass(frozen=True, slots=True)
class Part:
    """A model used for the image; unknown values are None.

    `name` is the file name without extension or, for an embedding, its word in the prompt. Hashes are lower-case hex.
    CivitAI identifies a model most reliably by `version_id`, which is also part of `air`.
    """

    name: str
    autov2: str | None = None
    autov3: str | None = None
    version_id: int | None = None
    air: str | None = None
    scale: float = 1.0
    """The scale of a LoRA for the UNet."""
    text_scale: float | None = None
    """The scale of a LoRA for the text encoders; None means the same as `scale`."""
    blocks: str = ""
    """The block weights of a LoRA."""
    keyframes: str = ""
    hires_keyframes: str = ""
    """The keyframes of a LoRA's UNet scale in the first pass (`keyframes`) and in the second pass.

    "" means that the scale is constant or, in the second pass, that it is the same as in the first pass.
    """


class Words(str):
    """A setting whose value is a text, such as a prompt. It is quoted, as in A1111, so no characters are replaced."""


@dataclass(frozen=True, slots=True)
class SecondPass:
    """The hires pass: final size in pixels, steps, denoising strength, and civman's or A1111's name of the upscaler."""

    width: int
    height: int
    steps: int
    denoising: float
    upscaler: str
    prompt: str | None = None
    negative: str | None = None
    """The negative prompt of the second pass; None means that of the first pass."""
    loras: tuple[Part, ...] | None = None
    """The LoRAs of the second pass, whose tags are added to its prompt; None means those of the first pass."""
    checkpoint: Part | None = None


@dataclass(frozen=True, slots=True)
class ControlUnit:
    """A unit of A1111's ControlNet extension: its model, and its settings in the extension's own terms."""

    model: Part
    weight: float
    start: float
    end: float
    control_mode: str
    resize_mode: str
    union_type: str = ""
    """The type of the control image, for a union ControlNet; "" for other models."""
    module: str = "none"


@dataclass(frozen=True, slots=True)
class Generation:
    """Everything about one image that the `parameters` text can express.

    `version` is the program with its version, such as "civman 0.3". `sampler` is A1111's name, with or without the
    schedule; `schedule` is A1111's name ("Karras"), or "". `prompt` may contain LoRA tags; missing tags are added.
    """

    prompt: str
    negative: str
    steps: int
    sampler: str
    cfg: float
    seed: int
    width: int
    height: int
    version: str
    schedule: str = ""
    clip_skip: int | None = None
    model: Part | None = None
    loras: tuple[Part, ...] = ()
    embeddings: tuple[Part, ...] = ()
    hypernetworks: tuple[Part, ...] = ()
    """The hypernetworks whose tags are in the prompt."""
    controls: tuple[ControlUnit, ...] = ()
    vae: Part | None = None
    hires: SecondPass | None = None
    refiner: Part | None = None
    denoising: float | None = None
    """The denoising strength if the image was made from another image, else None."""
    rng: str = ""
    """A1111's "CPU" or "NV"; "" means A1111's default."""
    ensd: int | None = None
    others: tuple[tuple[str, str | float], ...] = ()
    """Other settings of A1111 by A1111's keys, such as ("Mask blur", 4)."""


def text(generation: Generation) -> str:
    """Write the `parameters` text: prompt, negative prompt and one line of settings, as CivitAI and A1111 read it.

    Raises: UsageError (`bad-parameters`): a number is infinite or NaN.
    """
    hires = generation.hires
    loras = _named(_distinct((*generation.loras, *((hires and hires.loras) or ()))))
    prompt = _with_tags(_harmless(generation.prompt), generation.loras, loras)
    lines = [prompt]
    if generation.negative.strip():
        lines.append(f"Negative prompt: {_harmless(generation.negative)}")
    details = [f"{key}: {value}" for key, value in (*_details(generation), *_of_stages(generation, loras)) if value]
    if listed := ", ".join(f"{name}: {_hash(lora)}" for name, lora in _listed_by_hash(prompt, loras)):
        details.append(f'Lora hashes: "{listed}"')
    details.append(f"Version: {_plain(generation.version)}")
    if hashes := dict(_hashes(generation, loras)):
        details.append(f"Hashes: {_json(hashes)}")
    if known := list(_resources(generation)):
        details.append(f"Civitai resources: {_json(known)}")
    lines.append(", ".join(details))
    return "\n".join(lines)


def sampler_name(sampler: str, schedule: str) -> str:
    """Return CivitAI's combined name for sampler and schedule if it has one, else the sampler's name."""
    both = f"{sampler} {schedule}"
    return both if both in _names()["site_samplers"] else sampler


@cache
def _names() -> dict[str, Any]:
    """Load other programs' names for samplers and upscalers from parameter_names.json."""
    data: dict[str, Any] = json.loads(resources.files(__package__).joinpath("parameter_names.json").read_text("utf-8"))
    return data


def _details(generation: Generation) -> Iterator[tuple[str, str]]:
    model, vae, hires = generation.model, generation.vae, generation.hires
    yield "Steps", str(generation.steps)
    yield "Sampler", _plain(sampler_name(generation.sampler, generation.schedule))
    yield "Schedule type", _plain(generation.schedule) if generation.schedule else ""
    yield "CFG scale", _number(generation.cfg)
    yield "Seed", str(generation.seed)
    yield "Size", f"{generation.width}x{generation.height}"
    # units are written before the model, because readers that split units at commas would take a unit's model for the
    # checkpoint
    for number, (name, unit) in enumerate(_control_units(generation)):
        yield f"ControlNet {number}", _unit_text(name, unit)
    if model is not None:
        # always write a name, because CivitAI ignores a hash without one
        yield "Model hash", _short(model.autov2)
        yield "Model", _plain(model.name, _short(model.autov2) or "model")
    if vae is not None:
        yield "VAE hash", _short(vae.autov2)
        yield "VAE", _plain(vae.name, "vae")
    denoising = generation.denoising if generation.denoising is not None or hires is None else hires.denoising
    yield "Denoising strength", "" if denoising is None else _number(denoising)
    yield "Clip skip", "" if generation.clip_skip is None else str(generation.clip_skip)
    if hires is not None:
        yield "Hires resize", f"{hires.width}x{hires.height}"
        yield "Hires steps", str(hires.steps)
        yield "Hires upscaler", _plain(_names()["upscalers"].get(hires.upscaler, hires.upscaler), "Latent")
    yield "RNG", _plain(generation.rng) if generation.rng else ""
    yield "ENSD", str(generation.ensd) if generation.ensd else ""
    for key, value in generation.others:
        if isinstance(value, Words):
            whole = _harmless(value)
            yield key, json.dumps(whole, ensure_ascii=False) if set(whole) & set(',:"\n') else whole
        else:
            yield key, _plain(value) if isinstance(value, str) else _number(value)


def _control_units(generation: Generation) -> list[tuple[str, ControlUnit]]:
    """Return each unit with the name of its model in the text; units with the same model have the same name."""
    models = list(dict.fromkeys(unit.model for unit in generation.controls))
    named = {part: name for name, part in _named(models)}
    return [(named[unit.model], unit) for unit in generation.controls]


def _unit_text(name: str, unit: ControlUnit) -> str:
    """Write a unit as the extension does, but without the hash in brackets, on which CivitAI's reader fails."""
    fields = {
        "Module": unit.module, "Model": name, "Weight": float(_finite(unit.weight)), "Resize Mode": unit.resize_mode,
        "Processor Res": -1, "Threshold A": -1, "Threshold B": -1, "Guidance Start": float(unit.start),
        "Guidance End": float(unit.end), "Pixel Perfect": False, "Control Mode": unit.control_mode,
    }  # fmt: skip
    fields |= {"Union Control Type": unit.union_type} if unit.union_type else {}
    return f'"{", ".join(f"{key}: {value}" for key, value in fields.items())}"'


def _of_stages(generation: Generation, loras: Sequence[tuple[str, Part]]) -> Iterator[tuple[str, str]]:
    """Yield the settings for the prompts and the checkpoint of the second pass, and for the refiner."""
    hires = generation.hires
    if hires is not None:
        yield "Hires checkpoint", _titled(hires.checkpoint) if hires.checkpoint is not None else ""
        if hires.prompt is not None:
            parts = generation.loras if hires.loras is None else hires.loras
            yield "Hires prompt", _quoted(_with_tags(_whole(hires.prompt), parts, loras))
        if hires.negative is not None:
            yield "Hires negative prompt", _quoted(_whole(hires.negative))
    yield "Refiner", _titled(generation.refiner) if generation.refiner is not None else ""


def _titled(checkpoint: Part) -> str:
    """Format a checkpoint's name and hash as a single value, as A1111 does."""
    digest = _short(checkpoint.autov2)
    return _plain(checkpoint.name, digest or "model") + (f" [{digest}]" if digest else "")


def _quoted(prompt: str) -> str:
    """Format a prompt as a JSON string, as A1111 does. An empty prompt becomes a space, so that it counts as a value.

    Characters that CivitAI's reader would take for the end of the value or for other settings are escaped.
    """
    text = json.dumps(prompt or " ", ensure_ascii=False)[1:-1]
    for sign in ('\\"', "[", "{"):
        text = text.replace(sign, f"\\u{ord(sign[-1]):04x}")
    return '"' + _ENDS_IN_QUOTES.sub(r"\1\\u003a", text) + '"'


def _listed_by_hash(prompt: str, loras: Iterable[tuple[str, Part]]) -> Iterator[tuple[str, Part]]:
    """Select the LoRAs to list in `Lora hashes`.

    CivitAI matches an entry of `Lora hashes` with the tag of the same name. If CivitAI cannot read the tag, it stores
    strength 1, even if `Civitai resources` contains the strength. A LoRA with such a tag is therefore listed only in
    `Hashes`.
    """
    read_by_site = set(_SITE_TAG.findall(prompt))
    return ((name, lora) for name, lora in loras if name in read_by_site and _hash(lora))


def _hashes(generation: Generation, loras: Iterable[tuple[str, Part]]) -> Iterator[tuple[str, str]]:
    if generation.model is not None and (digest := _short(generation.model.autov2)):
        yield "model", digest
    if generation.vae is not None and (digest := _short(generation.vae.autov2)):
        yield "vae", digest
    controls = {name: unit.model for name, unit in _control_units(generation)}.items()
    for kind, parts in (
        ("lora", loras), ("embed", _named(generation.embeddings)), ("hypernet", _named(generation.hypernetworks)),
        ("controlnet", controls),
    ):  # fmt: skip
        for name, part in parts:
            if digest := _hash(part):
                yield f"{kind}:{name}", digest


def _resources(generation: Generation) -> Iterator[dict[str, object]]:
    """Yield an entry for each model with an id on CivitAI, which discards all entries if one of them has no id.

    CivitAI takes an entry's kind from its AIR if it has one, else from its type, and does not link an entry of the kind
    "vae". A VAE therefore gets the type "VAE" and no AIR.
    """
    parts = [("checkpoint", generation.model), ("VAE", generation.vae)]
    parts += [("lora", part) for part in generation.loras] + [("embedding", part) for part in generation.embeddings]
    for kind, part in parts:
        if part is None:
            continue
        match = _AIR.fullmatch(part.air.lower()) if part.air else None
        version = part.version_id if part.version_id is not None else int(match["version"]) if match else None
        if version is None:
            continue
        entry: dict[str, object] = {"type": kind}
        if kind == "lora":
            entry["weight"] = _finite(part.scale)
        entry["modelVersionId"] = version
        if match and int(match["version"]) == version and kind != "VAE":
            entry["air"] = match[0]
        yield entry


def _with_tags(prompt: str, parts: Sequence[Part], loras: Sequence[tuple[str, Part]]) -> str:
    """Append a tag for each LoRA that has none in the prompt. `loras`: all LoRAs of the image with their names."""
    names = {_key(part): name for name, part in loras}
    missing = list(_missing_tags(prompt, [(names[_key(part)], part) for part in parts]))
    return " ".join([prompt, *missing] if prompt else missing)


def _key(part: Part) -> tuple[str, str | None, str | None]:
    """Return a key that is the same for all entries of one file."""
    return part.name, part.autov2, part.autov3


def _distinct(parts: Sequence[Part]) -> list[Part]:
    """Remove repeated entries of the same file."""
    return [*{_key(part): part for part in reversed(parts)}.values()][::-1]


def _missing_tags(prompt: str, loras: Iterable[tuple[str, Part]]) -> Iterator[str]:
    """Yield a tag for each LoRA that has none in the prompt, because A1111 reads scales only from tags."""
    there = {_plain(name) for name in _TAG.findall(prompt)}
    for name, lora in loras:
        if name not in there:
            text_scale = lora.scale if lora.text_scale is None else lora.text_scale
            scales = [lora.scale] if text_scale == lora.scale else [text_scale, lora.scale]
            words = [*map(_number, scales), *([f"lbw={lora.blocks}"] if lora.blocks else [])]
            if lora.keyframes:
                words[: len(scales)] = [f"te={_number(text_scale)}", f"unet={lora.keyframes}"]
            if lora.hires_keyframes:
                words.append(f"hrunet={lora.hires_keyframes}")
            yield f"<lora:{name}:{':'.join(words)}>"


def _named(parts: Sequence[Part]) -> list[tuple[str, Part]]:
    """Give each model a unique name that the text can express."""
    named: dict[str, Part] = {}
    for part in parts:
        name = first = _plain(part.name, _hash(part) or "unnamed")
        number = 2
        while name in named:
            name, number = f"{first}_{number}", number + 1
        named[name] = part
    return list(named.items())


def _plain(name: str, otherwise: str = "unnamed") -> str:
    text = _NOT_IN_NAMES.sub("_", _whole(name)).strip()
    if text.casefold() in _KEYS or text.casefold().endswith(_ENDS_THAT_CUT):
        text += "_"
    return text or otherwise


def _harmless(prompt: str) -> str:
    return _SPLITTER.sub(r"\1 ", _whole(prompt).strip())


def _whole(words: str) -> str:
    """Remove characters that a file cannot contain (lone surrogates, NUL), and convert line breaks to LF."""
    whole = words.encode("utf-16", "surrogatepass").decode("utf-16", "replace").replace("\0", "")
    return whole.replace("\r\n", "\n").replace("\r", "\n")


def _short(digest: str | None) -> str:
    """Return a checkpoint's hash as CivitAI and A1111 write it (AutoV2); "" if there is none."""
    return _checked(digest)[:10]


def _hash(part: Part) -> str:
    """Return a LoRA's hash: AutoV3, as in A1111, or AutoV2 if AutoV3 is unknown."""
    return _checked(part.autov3)[:12] or _short(part.autov2)


def _checked(digest: str | None) -> str:
    lowered = (digest or "").lower()
    return lowered if _HASH.fullmatch(lowered) else ""


def _number(value: float) -> str:
    """Format a number without an exponent, so that every reader understands it."""
    written = format(Decimal(repr(float(_finite(value)))), "f")
    return written.rstrip("0").rstrip(".") if "." in written else written


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise UsageError(f"{value} cannot be written into an image as a number", code=Cause.BAD_PARAMETERS)
    return value


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
