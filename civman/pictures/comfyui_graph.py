"""Reads ComfyUI graphs, in the API format or the editor's format, into a common form: nodes with named inputs.

The API format (`prompt`) names each input. The editor's format (`workflow`) lists the values of a node's widgets in an
order that depends on the node's class. `WIDGETS` contains this order for the classes that civman follows; other nodes
get no values. In the editor's format, nodes may also be muted or bypassed, and values may come from primitive nodes.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from civman.pictures.metadata import loads

_MOST_NODES: Final = 5000
_DEEPEST: Final = 20
"""The maximum length of a chain of bypassed nodes, which only pass a value on."""
_NOT_JSON: Final = re.compile(r"(?<=[:\[,\s])-?(?:NaN|Infinity|undefined)(?=[,\]}\s])")
_MUTED, _BYPASSED = 2, 4
_SEED: Final = ("", "control_after_generate")
WIDGETS: Final[dict[str, tuple[str, ...]]] = {
    "CheckpointLoaderSimple": ("ckpt_name",), "CheckpointLoader": ("config_name", "ckpt_name"),
    "VAELoader": ("vae_name",), "LoraLoader": ("lora_name", "strength_model", "strength_clip"),
    "LoraLoaderModelOnly": ("lora_name", "strength_model"), "UpscaleModelLoader": ("model_name",),
    "CLIPSetLastLayer": ("stop_at_clip_layer",), "CLIPTextEncode": ("text",),
    "CLIPTextEncodeSDXL": (
        "width", "height", "crop_w", "crop_h", "target_width", "target_height", "text_g", "text_l",
    ),
    "ConditioningAverage": ("conditioning_to_strength",), "EmptyLatentImage": ("width", "height", "batch_size"),
    "KSampler": ("seed", *_SEED[1:], "steps", "cfg", "sampler_name", "scheduler", "denoise"),
    "KSamplerAdvanced": (
        "add_noise", "noise_seed", *_SEED[1:], "steps", "cfg", "sampler_name", "scheduler", "start_at_step",
        "end_at_step", "return_with_leftover_noise",
    ),
    "SamplerCustom": ("add_noise", "noise_seed", *_SEED[1:], "cfg"), "RandomNoise": ("noise_seed", *_SEED[1:]),
    "KSamplerSelect": ("sampler_name",), "BasicScheduler": ("scheduler", "steps", "denoise"),
    "KarrasScheduler": ("steps", "sigma_max", "sigma_min", "rho"),
    "ExponentialScheduler": ("steps", "sigma_max", "sigma_min"),
    "PolyexponentialScheduler": ("steps", "sigma_max", "sigma_min", "rho"),
    "SDTurboScheduler": ("steps", "denoise"), "BetaSamplingScheduler": ("steps", "alpha", "beta"),
    "SplitSigmas": ("step",), "CFGGuider": ("cfg",), "SamplerEulerAncestral": ("eta", "s_noise"),
    "SamplerDPMPP_SDE": ("eta", "s_noise", "r", "noise_device"),
    "SamplerDPMPP_2M_SDE": ("solver_type", "eta", "s_noise", "noise_device"),
    "SamplerDPMPP_3M_SDE": ("eta", "s_noise", "noise_device"),
    "LatentUpscale": ("upscale_method", "width", "height", "crop"), "LatentUpscaleBy": ("upscale_method", "scale_by"),
    "LatentFromBatch": ("batch_index", "length"), "ImageScale": ("upscale_method", "width", "height", "crop"),
    "ImageScaleBy": ("upscale_method", "scale_by"), "VAEDecodeTiled": ("tile_size",), "FreeU": ("b1", "b2", "s1", "s2"),
    "FreeU_V2": ("b1", "b2", "s1", "s2"), "RescaleCFG": ("multiplier",), "ModelSamplingDiscrete": ("sampling", "zsnr"),
    "PrimitiveInt": ("value",), "PrimitiveFloat": ("value",), "PrimitiveString": ("value",),
    "PrimitiveStringMultiline": ("value",), "PrimitiveBoolean": ("value",), "PrimitiveNode": ("value",),
    "SaveImage": ("filename_prefix",), "LoadImage": ("image",), "LoadImageMask": ("image", "channel"),
    "VAEEncodeForInpaint": ("grow_mask_by",),
}  # fmt: skip
"""Maps each node class that civman follows to its widgets, in the order in which the editor saves their values."""


@dataclass(frozen=True, slots=True)
class Link:
    """A connection to an output of another node. `output` is the index of the output, from 0."""

    node: str
    output: int


@dataclass(frozen=True, slots=True)
class Node:
    """A node of a graph. `inputs` maps each input's name to a `Link` or a literal value."""

    id: str
    kind: str
    inputs: Mapping[str, Any]

    def __str__(self) -> str:
        return f"node {self.id} (`{self.kind[:60]}`)" if self.id else self.kind


Graph = Mapping[str, Node]


def graph_of(text: str) -> Graph | None:
    """Parse a graph in API format, the editor's format, or CivitAI's object with both; None if there is no graph.

    `NaN` and other values that are not valid JSON are read as 0, as on CivitAI.
    """
    plain = text.strip().removeprefix("prompt:").removeprefix("workflow:").strip()
    value = loads(plain)
    if value is None:
        value = loads(_NOT_JSON.sub("0", plain))
    return _of_value(value)


def _of_value(value: object) -> Graph | None:
    if not isinstance(value, dict) or len(value) > _MOST_NODES:
        return None
    for key in ("prompt", "workflow"):
        inner = value.get(key)
        inner = loads(inner) if isinstance(inner, str) else inner
        if isinstance(inner, dict) and (found := _of_value(inner)):
            return found
    if isinstance(value.get("nodes"), list):
        return _of_workflow(value)
    nodes = {
        str(key): Node(str(key), str(node["class_type"]), dict(_api_inputs(node.get("inputs"))))
        for key, node in value.items()
        if isinstance(node, dict) and "class_type" in node
    }
    return nodes or None


def _api_inputs(inputs: object) -> Iterator[tuple[str, Any]]:
    for name, value in inputs.items() if isinstance(inputs, dict) else ():
        if isinstance(value, list) and len(value) == 2 and isinstance(value[1], int) and not isinstance(value[1], bool):
            yield str(name), Link(str(value[0]), value[1])
        else:
            yield str(name), 0.0 if isinstance(value, float) and not math.isfinite(value) else value


def _of_workflow(value: Mapping[str, Any]) -> Graph | None:
    listed = [node for node in value["nodes"] if isinstance(node, dict) and "id" in node and "type" in node]
    if not listed or len(listed) > _MOST_NODES:
        return None
    links = {
        link[0]: Link(str(link[1]), int(link[2]))
        for link in value.get("links") or []
        if isinstance(link, list) and len(link) >= 5 and isinstance(link[2], int)
    }
    nodes = {}
    for node in listed:
        if node.get("mode") != _MUTED:
            kind = str(node["type"])
            inputs = dict(_workflow_inputs(node, links))
            nodes[str(node["id"])] = Node(str(node["id"]), kind, inputs)
    bypassed = {str(node["id"]): node for node in listed if node.get("mode") == _BYPASSED}
    passing = {(key, place): link for key, node in bypassed.items() for place, link in _passed_on(node, links)}
    return {
        key: Node(key, node.kind, {name: _followed(item, passing) for name, item in node.inputs.items()})
        for key, node in nodes.items()
        if key not in bypassed
    }


def _workflow_inputs(node: Mapping[str, Any], links: Mapping[Any, Link]) -> Iterator[tuple[str, Any]]:
    values = node.get("widgets_values")
    names = WIDGETS.get(str(node["type"]), ())
    if isinstance(values, dict):
        yield from values.items()
    elif isinstance(values, list):
        yield from zip(names, values, strict=False)
    for item in node.get("inputs") or []:
        if isinstance(item, dict) and (link := links.get(item.get("link"))) is not None:
            yield str(item.get("name")), link


def _passed_on(node: Mapping[str, Any], links: Mapping[Any, Link]) -> Iterator[tuple[int, Link | None]]:
    """Yield the index of each output of a bypassed node, and the link of the node's first input of the same type."""
    inputs = [item for item in node.get("inputs") or [] if isinstance(item, dict)]
    for place, output in enumerate(node.get("outputs") or []):
        kind = output.get("type") if isinstance(output, dict) else None
        found = next((links.get(item.get("link")) for item in inputs if item.get("type") == kind), None)
        yield place, found


def _followed(item: Any, passing: Mapping[tuple[str, int], Link | None]) -> Any:
    for _ in range(_DEEPEST):
        if not isinstance(item, Link) or (item.node, item.output) not in passing:
            return item
        item = passing[item.node, item.output]
    return item
