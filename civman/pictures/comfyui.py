"""Read prompt, settings and models from ComfyUI graphs by following the links between nodes.

Graphs have no schema and custom nodes extend them freely, so nodes are recognised by their input names rather than by
type where possible. Links are followed backwards: from the nodes that save images to the samplers, and from the
samplers to their inputs.

Source: ComfyUI's API format (`prompt`), which maps a node id to {class_type, inputs}; a link is [node id, output].
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from civman.pictures.metadata import Generator, Loose, PictureMetadata, Resource, Settings, loads, number, whole

_MOST_NODES: Final = 5000
_MOST_STEPS: Final = 200
"""The maximum number of nodes followed to find one value, because graphs may contain cycles."""
_OUTPUT: Final = re.compile(r"save|preview|output", re.IGNORECASE)
_MODELS: Final = {
    "ckpt_name": "checkpoint", "unet_name": "checkpoint", "model_name": "checkpoint", "vae_name": "vae",
    "control_net_name": "controlnet", "clip_name": "text-encoder", "clip_name1": "text-encoder",
    "clip_name2": "text-encoder", "clip_name3": "text-encoder", "hypernetwork_name": "hypernetwork",
}  # fmt: skip
_TEXTS: Final = ("text", "text_g", "text_l", "t5xxl", "clip_l", "prompt", "string", "value", "populated_text")
_LATENTS: Final = ("latent_image", "samples", "latent", "latents")
_AROUND: Final = ("guider", "sigmas", "sampler", "noise")
"""The inputs of a sampler node that may link to separate nodes: guider, noise levels, sampling method and noise."""
_AIR: Final = re.compile(r"urn:air:[^:]+:(?P<kind>[^:]+):civitai:[0-9]+@(?P<version>[0-9]{1,18})")
_EMBEDDING: Final = re.compile(r"embedding:([^\s,:()\[\]{}]{1,200})")


def read(text: str) -> PictureMetadata | None:
    """Read the metadata in a ComfyUI graph in API format; None if the text is not such a graph."""
    value = loads(text.removeprefix("prompt:").strip())
    if not isinstance(value, dict):
        return None
    nodes = {key: node for key, node in value.items() if isinstance(node, dict) and "class_type" in node}
    if not nodes or len(nodes) > _MOST_NODES:
        return None
    graph = _Graph(nodes)
    told = graph.told()
    extra = Loose(loads(value["extraMetadata"])) if isinstance(value.get("extraMetadata"), str) else None
    if extra is None and not any(part.version_id for part in told.resources):
        return told
    return _by_civitai(told, extra or Loose(None))


def _by_civitai(told: PictureMetadata, extra: Loose) -> PictureMetadata:
    """Add what CivitAI's generator writes next to its ComfyUI graph: models by AIR, and the requested settings."""
    was, listed = told.settings, {part.version_id for part in told.resources if part.version_id}
    more = [
        Resource("model", version_id=entry.whole("modelVersionId"), weight=entry.number("strength", "weight"))
        for entry in map(Loose, extra.items("resources"))
        if entry.whole("modelVersionId") not in (None, *listed)
    ]
    return PictureMetadata(
        Generator.CIVITAI, extra.text("prompt") or told.prompt, extra.text("negativePrompt") or told.negative,
        Settings(
            extra.whole("steps") or was.steps, extra.text("sampler") or was.sampler, was.schedule,
            extra.number("cfgScale") or was.cfg, extra.whole("seed") or was.seed, extra.whole("width") or was.width,
            extra.whole("height") or was.height, extra.whole("clipSkip") or was.clip_skip, was.denoising,
        ),
        (*told.resources, *more), told.notes,
    )  # fmt: skip


class _Graph:
    def __init__(self, nodes: Mapping[str, Mapping[str, Any]]) -> None:
        self._nodes = nodes

    def told(self) -> PictureMetadata:
        used = self._upwards(self._outputs())
        samplers = [key for key in used if self._is_sampler(key)]
        notes = []
        if len(samplers) > 1:
            notes.append(
                f"the graph has {len(samplers)} sampling passes; only the settings of the first one are listed"
            )
        models = tuple(dict.fromkeys(part for key in used for part in self._models(key)))
        if not samplers:
            return PictureMetadata(
                Generator.COMFYUI,
                resources=models,
                notes=(*notes, "the graph contains no sampler that civman recognises"),
            )
        first = self._first_pass(samplers[0])
        prompt, negative = self._prompts(first)
        embeddings = [Resource("embedding", name) for name in _EMBEDDING.findall(f"{prompt} {negative}")]
        order = {"checkpoint": 0, "lora": 1, "vae": 2}
        parts = sorted((*models, *dict.fromkeys(embeddings)), key=lambda part: order.get(part.kind, 3))
        return PictureMetadata(
            Generator.COMFYUI, prompt, negative, self._settings(first, used), tuple(parts), tuple(notes)
        )

    def _inputs(self, key: str) -> Mapping[str, Any]:
        inputs = self._nodes[key].get("inputs")
        return inputs if isinstance(inputs, dict) else {}

    def _target(self, value: object) -> str | None:
        """The node that a link refers to, or None."""
        if isinstance(value, list) and len(value) == 2 and str(value[0]) in self._nodes:
            return str(value[0])
        return None

    def _outputs(self) -> list[str]:
        """The nodes that save images; if there are none, the nodes whose outputs are not used."""
        saving = [key for key, node in self._nodes.items() if _OUTPUT.search(str(node["class_type"]))
                  and any(self._target(value) for value in self._inputs(key).values())]  # fmt: skip
        fed = {self._target(value) for key in self._nodes for value in self._inputs(key).values()}
        return saving or [key for key in self._nodes if key not in fed]

    def _upwards(self, starts: list[str]) -> list[str]:
        """All nodes that the given nodes depend on, nearest first."""
        found = dict.fromkeys(starts)
        queue = list(starts)
        for key in queue:  # the loop appends to this list, and then visits the appended nodes too
            for value in self._inputs(key).values():
                target = self._target(value)
                if target is not None and target not in found:
                    found[target] = None
                    queue.append(target)
        return list(found)

    def _before(self, key: str) -> list[str]:
        """The nodes that a sampler's input latents depend on."""
        starts = [target for name in _LATENTS if (target := self._target(self._inputs(key).get(name)))]
        return self._upwards(starts)

    def _first_pass(self, key: str) -> str:
        """Return the first sampler of a chain in which each sampler continues from the previous one's result."""
        seen: set[str] = set()
        while key not in seen:
            seen.add(key)
            earlier = [other for other in self._before(key) if self._is_sampler(other)]
            key = next((other for other in reversed(earlier) if other not in seen), key)
        return key

    def _is_sampler(self, key: str) -> bool:
        inputs = self._inputs(key)
        has_latent = any(name in inputs for name in _LATENTS)
        return has_latent and (("steps" in inputs and "positive" in inputs) or ("sigmas" in inputs))

    def _around(self, key: str, *names: str) -> object:
        """Return a literal input of the sampler node, or of a node that provides a part of it, such as the guider."""
        nodes = [key, *filter(None, (self._target(self._inputs(key).get(name)) for name in _AROUND))]
        for node in nodes:
            for name in names:
                value = self._literal(self._inputs(node).get(name))
                if value is not None:
                    return value
        return None

    def _literal(self, value: object, seen: set[str] | None = None) -> object:
        """Return a literal value unchanged; for a link, return the literal value in the node that it refers to."""
        target = self._target(value)
        if target is None:
            return value if isinstance(value, str | int | float) else None
        seen = set() if seen is None else seen
        if target in seen or len(seen) > _MOST_STEPS:
            return None
        seen.add(target)
        inputs = self._inputs(target)
        for name in ("value", "seed", "noise_seed", "int", "float", "number", *inputs):
            if name in inputs and (found := self._literal(inputs[name], seen)) is not None:
                return found
        return None

    def _settings(self, key: str, used: list[str]) -> Settings:
        width, height = self._size(key)
        sampler, schedule = self._around(key, "sampler_name"), self._around(key, "scheduler")
        stops = [whole(self._literal(self._inputs(other).get("stop_at_clip_layer"))) for other in used]
        clip_skip = next((-stop for stop in stops if stop is not None and stop < 0), None)
        return Settings(
            whole(self._around(key, "steps")), sampler if isinstance(sampler, str) else None,
            schedule if isinstance(schedule, str) else None, number(self._around(key, "cfg")),
            whole(self._around(key, "seed", "noise_seed")), width, height, clip_skip,
            number(self._around(key, "denoise")),
        )  # fmt: skip

    def _size(self, key: str) -> tuple[int | None, int | None]:
        """Return the size of the empty latents from which the sampler starts."""
        for other in self._before(key):
            inputs = self._inputs(other)
            width, height = (whole(self._literal(inputs.get(name))) for name in ("width", "height"))
            if width and height:
                return width, height
        return None, None

    def _prompts(self, key: str) -> tuple[str, str]:
        inputs = self._inputs(key)
        guider = self._target(inputs.get("guider"))
        if guider is not None:
            inputs = self._inputs(guider)
        positive = inputs.get("positive", inputs.get("conditioning"))
        return self._text(positive, set()), self._text(inputs.get("negative"), set())

    def _text(self, link: object, seen: set[str]) -> str:
        """Follow a conditioning's link to the prompt text, unchanged. Several texts are joined with line breaks."""
        key = self._target(link)
        if key is None or key in seen or len(seen) > _MOST_STEPS or self._is_zero(key):
            return ""
        seen.add(key)
        inputs = self._inputs(key)
        words = [found for name in _TEXTS if name in inputs and (found := self._words(inputs[name], seen)) is not None]
        if words:
            return "\n".join(dict.fromkeys(words))
        if "positive" in inputs and "negative" in inputs and isinstance(link, list):
            return self._text(inputs["negative" if link[1] == 1 else "positive"], seen)
        texts = [self._text(value, seen) for name, value in inputs.items() if name.startswith("conditioning")]
        return "\n".join(dict.fromkeys(filter(None, texts)))

    def _is_zero(self, key: str) -> bool:
        return "ZeroOut" in str(self._nodes[key]["class_type"])

    def _words(self, value: object, seen: set[str]) -> str | None:
        if isinstance(value, str):
            return value
        key = self._target(value)
        if key is None or key in seen or len(seen) > _MOST_STEPS:
            return None
        seen.add(key)
        inputs = self._inputs(key)
        named = [name for name in inputs if name in _TEXTS or name.startswith(("text", "string", "prompt"))]
        parts = [found for name in named if (found := self._words(inputs[name], seen))]
        return " ".join(parts) if parts else None

    def _models(self, key: str) -> Iterator[Resource]:
        inputs = self._inputs(key)
        for name, kind in _MODELS.items():
            file = self._literal(inputs.get(name))
            if isinstance(file, str) and file:
                yield _model(kind, file, None)
        file = self._literal(inputs.get("lora_name"))
        if isinstance(file, str) and file not in ("", "None"):
            yield _model("lora", file, number(self._literal(inputs.get("strength_model", inputs.get("strength")))))
        for value in inputs.values():
            for entry in map(Loose, value if isinstance(value, list) else [value]):
                # nodes with a list of LoRAs as their input: rgthree's and LoRA Manager's
                name, is_on = entry.text("lora", "name"), entry.value.get("on", entry.value.get("active", False))
                if name and is_on is True and entry.number("strength") is not None:
                    yield _model("lora", name, entry.number("strength"))


def _model(kind: str, file: str, weight: float | None) -> Resource:
    match = _AIR.search(file)
    if match is None:
        return Resource(kind, file, weight=weight)
    return Resource(kind, "", None, int(match["version"]), match[0], weight)
