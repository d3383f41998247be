"""Converts JSON that programs other than A1111 embed in images to recipes, or explains why that is impossible.

ComfyUI's graphs and SwarmUI's settings are converted. All other programs sample, guide or read prompts by rules that
civman does not support; an error names these rules.
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Final

from civman.pictures import a1111
from civman.pictures.comfyui_graph import Node, graph_of
from civman.pictures.metadata import Loose, loads, number
from civman.planning.graph_passes import SCHEDULES, Passes, Sampled
from civman.planning.graph_values import Clip, Model, Stopped, Text, stem
from civman.planning.redraw_features import Drawable, Reason
from civman.planning.redraw_graph import redraw_graph, redraw_passes
from civman.planning.redraw_result import Redraw
from civman.planning.redraw_tiles import SourceImage

_TEXTS: Final = ("prompt", "workflow", "invokeai_metadata", "sd-metadata", "Comment", "parameters")
_INVOKE: Final = (
    "InvokeAI samples with diffusers' schedulers, whose noise levels differ from those of A1111 and ComfyUI, and "
    "weights prompts with compel; civman supports neither"
)
_REFUSED: Final = {
    "InvokeAI": _INVOKE,
    "Fooocus": "Fooocus changes the guidance in each step (sharpness, adaptive CFG), gives SDXL other sizes than the "
    "image's, and may switch models during the steps; civman supports none of this",
    "RuinedFooocus": "RuinedFooocus adds its styles to the prompt and does not save the resulting prompt in the image",
    "NovelAI": "NovelAI renders with models of its own, which cannot be downloaded",
}
_SWARM_READ: Final = {
    "prompt", "negativeprompt", "model", "seed", "steps", "cfgscale", "width", "height", "sampler", "scheduler",
    "loras", "loraweights", "loratencweights", "vae", "clipstopatlayer",
}  # fmt: skip
_SWARM_IDLE: Final = {
    "images", "aspectratio", "imageformat", "automaticvae", "swarm_version", "personalnote", "sidelength",
    "previewmode", "colordepth", "donotsave", "preset", "presets", "internalbackendtype", "exactbackendid",
    "nopreviews", "saveintermediateimages", "donotsaveintermediates", "backendtype",
}  # fmt: skip
_SWARM_NEEDS: Final = re.compile("initimage|maskimage|controlnet|promptimages")
_SWARM_TAG: Final = re.compile(r"<(\w+)[:\[>]")


def texts_in(entries: Mapping[str, str]) -> Iterator[str]:
    """Yield the texts in image metadata that may be another program's JSON, in the order in which to try them."""
    for name in _TEXTS:
        if entries.get(name, "").lstrip().startswith("{"):
            yield entries[name]
    for name in ("Model", "Make", "ImageDescription"):
        text = entries.get(name, "")
        if text.startswith(("prompt:", "workflow:")):
            yield text.partition(":")[2]
    if "Dream" in entries:
        yield json.dumps({"Dream": entries["Dream"]})


def is_known(text: str) -> bool:
    """Whether a text is JSON of a program that civman recognises."""
    return text.lstrip().startswith("{") and (bool(_program(text)) or graph_of(text) is not None)


def redraw_program(text: str, name: object = None, source: SourceImage | None = None) -> Redraw:
    """Convert the JSON that another program stored in an image to a recipe.

    The model files that it names are assumed to be present.

    `source`: for a ComfyUI graph that loads images, the first of the images that the user passed; its `others` contains
    the rest.
    """
    program = _program(text)
    if program == "SwarmUI":
        return _swarm(Loose(loads(text)), name)
    if program:
        return Redraw(name, Drawable.NO, (_REFUSED[program],))
    graph = graph_of(text)
    if graph is None:
        return Redraw(name, Drawable.NO, ("the image's metadata was written by a program that civman does not know",))
    return redraw_graph(graph, name, source)


def _program(text: str) -> str:
    """Return the name of the program that wrote a JSON text; "" for ComfyUI and unknown programs."""
    value = Loose(loads(text))
    if "sui_image_params" in value:
        return "SwarmUI"
    if value.text("software").startswith("RuinedFooocus"):
        return "RuinedFooocus"
    if "base_model" in value and ("guidance_scale" in value or "metadata_scheme" in value):
        return "Fooocus"
    if "uc" in value and "scale" in value:
        return "NovelAI"
    is_invoke = ("Dream" in value and len(value.value) == 1) or ("image" in value and "app_id" in value)
    if is_invoke or ("positive_prompt" in value and ("generation_mode" in value or "scheduler" in value)):
        return "InvokeAI"
    return ""


def _swarm(value: Loose, name: object) -> Redraw:
    """Convert SwarmUI's settings to a recipe by ComfyUI's rules, because SwarmUI samples with ComfyUI."""
    params = value.inner("sui_image_params")
    reasons = [
        Reason(
            Drawable.DIFFERS,
            "images made with SwarmUI are rendered by ComfyUI's rules, because SwarmUI samples with ComfyUI",
        )
    ]
    reasons += _swarm_reasons(params)
    digests = {
        stem(entry.text("name")): (a1111.hex_of(entry.text("hash")) or "")[:12]
        for entry in map(Loose, value.items("sui_models"))
    }
    try:
        found = _swarm_passes(params, reasons)
    except Stopped as stopped:
        return Redraw(name, stopped.verdict, (stopped.words, *(each.words for each in reasons)))
    return redraw_passes(found, name, reasons=reasons, digests=digests)


def _swarm_reasons(params: Loose) -> Iterator[Reason]:
    for key in params.value:
        if key in _SWARM_READ | _SWARM_IDLE:
            continue
        if _SWARM_NEEDS.match(key):
            yield Reason(Drawable.NEEDS_INPUT, f"the setting `{key}` uses an image that the metadata does not contain")
        else:
            yield Reason(Drawable.NO, f"civman does not support SwarmUI's setting `{key[:40]}`")
    if "sampler" not in params:
        yield Reason(Drawable.DIFFERS, "the settings contain no sampler; SwarmUI's default, Euler, is used")


def _swarm_passes(params: Loose, reasons: list[Reason]) -> Passes:
    node = Node("", "SwarmUI", {})
    prompt, negative = params.text("prompt"), params.text("negativeprompt")
    if found := _SWARM_TAG.search(f"{prompt} {negative}"):
        raise Stopped(f"civman does not support SwarmUI's tag `<{found[1]}>` in prompts")
    numbers = {key: params.whole(key) for key in ("seed", "steps", "width", "height")}
    checkpoint = params.text("model")
    missing = [key for key, number in numbers.items() if number is None] + ([] if checkpoint else ["model"])
    if missing:
        raise Stopped(f"the settings contain no {missing[0]}")
    schedule = params.text("scheduler") or "normal"
    if schedule not in SCHEDULES:
        raise Stopped(f"SwarmUI used the scheduler `{schedule}`, which civman does not support")
    cfg = params.number("cfgscale")
    unet, text = _swarm_loras(params)
    layer = params.whole("clipstopatlayer")
    clip = Clip(checkpoint, text, layer if layer is not None and layer < 0 else None)
    cfg = 7.0 if cfg is None else cfg
    sampled = Sampled(
        node, Model(checkpoint, unet), Text(prompt, clip), None if cfg == 1 else Text(negative, clip),
        numbers["seed"] or 0, numbers["steps"] or 0, cfg, params.text("sampler") or "euler", SCHEDULES[schedule],
    )  # fmt: skip
    vae = params.text("vae")
    own = (checkpoint, "") if vae in ("", "Automatic", "None") else ("", vae)
    return Passes((numbers["width"] or 0) // 8 * 8, (numbers["height"] or 0) // 8 * 8, passes=[(None, sampled)],
                  vaes=[own], reasons=reasons)  # fmt: skip


Loras = tuple[tuple[str, str, float], ...]


def _swarm_loras(params: Loose) -> tuple[Loras, Loras]:
    """Return SwarmUI's LoRAs with their weights, first for the UNet, then for the text encoders.

    SwarmUI writes a single LoRA as a text instead of a list.
    """
    lists = [params.items(key) or list(filter(None, params.text(key).split(",")))
             for key in ("loras", "loraweights", "loratencweights")]  # fmt: skip
    names, weights, encoders = lists
    unet, text = [], []
    for place, name in enumerate(names):
        weight = number(weights[place]) if place < len(weights) else 1.0
        encoder = number(encoders[place]) if place < len(encoders) else weight
        if weight is None or encoder is None:
            raise Stopped(f"the LoRA `{name}` has a weight that is not a number")
        unet.append((str(place), str(name), weight))
        text.append((str(place), str(name), encoder))
    return tuple(unet), tuple(text)
