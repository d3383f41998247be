"""Follows the links of ComfyUI graphs: values through primitive nodes, models and conditionings through their nodes.

If a graph contains something that civman cannot follow, reading stops with an error that names the node and its class.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any, Final

from civman.domain.recipes.freeu_settings import FreeU
from civman.domain.recipes.recipe import PromptPart
from civman.pictures.comfyui_graph import Graph, Link, Node
from civman.pictures.metadata import number, whole
from civman.planning.redraw_features import Drawable

_DEEPEST: Final = 200
_PASSING: Final = ("Reroute", "Reroute (rgthree)", "ReroutePrimitive|pysssss")
_VALUES: Final = re.compile(
    r"Primitive\w*|(Int|Float|String|Text|Seed|Number|Boolean)( .*|Literal|Constant|Value|Input)?|String.*|"
    r"Text Multiline|CR (Text|Prompt Text|Seed|Integer|Float)( .*)?|Seed \(rgthree\)|easy (seed|int|float|string)|"
    r"(INT|FLOAT|STRING)Constant"
)
"""Matches the classes of nodes that provide a single value."""
_VALUE_NAMES: Final = ("value", "string", "text", "Text", "prompt", "int", "float", "number", "seed", "Value")
_LOADERS: Final = ("CheckpointLoaderSimple", "CheckpointLoader", "CheckpointLoader|pysssss")
_SEPARATE: Final = re.compile(r"UNETLoader|Unet.*Loader|.*CLIPLoader.*|DiffusersLoader|Load Diffusion Model")


class Stopped(Exception):
    """Raised if a graph contains something that civman cannot follow, or needs an image that it does not contain."""

    def __init__(self, words: str, verdict: Drawable = Drawable.NO) -> None:
        """`words`: the reason, which names the node that civman cannot follow."""
        super().__init__(words)
        self.words, self.verdict = words, verdict


@dataclass(frozen=True, slots=True)
class Model:
    """A UNet and the changes that nodes made to it. `loras`: for each LoRA, its node, file and strength."""

    checkpoint: str
    loras: tuple[tuple[str, str, float], ...] = ()
    freeu: FreeU | None = None
    rescale: float = 0.0
    prediction: str = ""
    is_zero_snr: bool | None = None


@dataclass(frozen=True, slots=True)
class Clip:
    """Text encoders and their settings. `layer`: the last layer to use, counted from the end, such as -2."""

    checkpoint: str
    loras: tuple[tuple[str, str, float], ...] = ()
    layer: int | None = None


@dataclass(frozen=True, slots=True)
class Text:
    """A conditioning: its text, the texts combined with it, the text encoders, and SDXL's six size values (if any)."""

    text: str
    clip: Clip
    parts: tuple[PromptPart, ...] = ()
    sizes: tuple[int, ...] = ()


@dataclass(slots=True)
class Reader:
    """Reads values, models, text encoders, VAEs and conditionings of one graph.

    Raises: Stopped: civman cannot follow the graph.
    """

    graph: Graph
    seen: set[str] = field(default_factory=set)
    """The ids of the nodes that were read so far."""

    def node(self, link: object, wanted: str) -> Node:
        """Return the node at the other end of a link, skipping reroute nodes. `wanted`: what it should provide."""
        for _ in range(_DEEPEST):
            if not isinstance(link, Link) or link.node not in self.graph:
                raise Stopped(f"no node of the graph provides {wanted}")
            found = self.graph[link.node]
            self.seen.add(found.id)
            if found.kind not in _PASSING:
                return found
            link = next((item for item in found.inputs.values() if isinstance(item, Link)), None)
        raise Stopped(f"the links to {wanted} form a circle in the graph")

    def value(self, node: Node, name: str) -> Any:
        """Return the value of a node's input, read through primitive nodes; None if the input is missing."""
        item = node.inputs.get(name)
        for _ in range(_DEEPEST):
            if not isinstance(item, Link):
                return item
            source = self.node(item, f"the input `{name}` of {node}")
            if not _VALUES.fullmatch(source.kind):
                raise Stopped(f"{source} computes the input `{name}` of {node} in a way that civman does not support")
            names = [each for each in _VALUE_NAMES if each in source.inputs]
            if len(names) != 1:
                raise Stopped(f"{source} provides no value, or several, for the input `{name}` of {node}")
            item = source.inputs[names[0]]
        raise Stopped(f"the links to the input `{name}` of {node} form a circle in the graph")

    def text(self, node: Node, name: str) -> str:
        """Return the string in a node's input."""
        found = self.value(node, name)
        if not isinstance(found, str):
            raise Stopped(f"{node} has no text in its input `{name}`")
        return found

    def whole(self, node: Node, name: str) -> int:
        """Return the integer in a node's input."""
        found = whole(self.value(node, name))
        if found is None:
            raise Stopped(f"{node} has no integer in its input `{name}`")
        return found

    def number(self, node: Node, name: str, usual: float | None = None) -> float:
        """Return the number in a node's input, or `usual` if that input is missing."""
        found = number(self.value(node, name)) if name in node.inputs or usual is None else usual
        if found is None:
            raise Stopped(f"{node} has no number in its input `{name}`")
        return found

    def model(self, link: object, depth: int = 0) -> Model:
        """Return the UNet to which a link leads."""
        node = self.node(link, "a model")
        self._require_shallow(depth, node)
        if node.kind in _LOADERS:
            return Model(self.text(node, "ckpt_name"))
        if _SEPARATE.fullmatch(node.kind):
            raise Stopped(f"{node} loads a UNet from a separate file; civman supports only whole checkpoints")
        read = _MODEL_NODES.get(node.kind)
        if read is None:
            raise self.unknown(node, "the model")
        return read(self, node, self.model(node.inputs.get("model"), depth + 1))

    def clip(self, link: object, depth: int = 0) -> Clip:
        """Return the text encoders to which a link leads."""
        node = self.node(link, "a text encoder")
        self._require_shallow(depth, node)
        if node.kind in _LOADERS:
            return Clip(self.text(node, "ckpt_name"))
        if _SEPARATE.fullmatch(node.kind):
            raise Stopped(f"{node} loads text encoders from separate files; civman supports only whole checkpoints")
        if node.kind not in ("LoraLoader", "CLIPSetLastLayer"):
            raise self.unknown(node, "the text encoder")
        inner = self.clip(node.inputs.get("clip"), depth + 1)
        if node.kind == "CLIPSetLastLayer":
            return replace(inner, layer=self.whole(node, "stop_at_clip_layer"))
        lora = (node.id, self.text(node, "lora_name"), self.number(node, "strength_clip", 1.0))
        return replace(inner, loras=(*inner.loras, lora))

    def vae(self, link: object) -> tuple[str, str]:
        """Return the names of the checkpoint that contains the VAE and of the separate VAE file; one is empty."""
        node = self.node(link, "a VAE")
        if node.kind in _LOADERS:
            return self.text(node, "ckpt_name"), ""
        if node.kind != "VAELoader":
            raise self.unknown(node, "the VAE")
        name = self.text(node, "vae_name")
        if name.startswith(("taesd", "pixel_space")):
            raise Stopped(f"{node} loads `{name}`, an approximate VAE that civman does not support")
        return "", name

    def conditioning(self, link: object, depth: int = 0) -> Text:
        """Return the conditioning to which a link leads."""
        node = self.node(link, "a prompt")
        self._require_shallow(depth, node)
        if node.kind == "CLIPTextEncode":
            return Text(self.text(node, "text"), self.clip(node.inputs.get("clip")))
        if node.kind == "CLIPTextEncodeSDXL":
            return self._of_sdxl(node)
        names = _JOINED.get(node.kind)
        if names is None:
            if "ControlNet" in node.kind or "control_net" in node.inputs:
                words = f"{node} uses a control image that the graph does not contain"
                raise Stopped(words, Drawable.NEEDS_INPUT)
            raise self.unknown(node, "the prompt")
        how, first, second = names
        base, other = (self.conditioning(node.inputs.get(name), depth + 1) for name in (first, second))
        if other.parts:
            raise Stopped(f"{node} combines a prompt with one that is itself combined, which civman does not support")
        if base.clip != other.clip or base.sizes != other.sizes:
            raise Stopped(
                f"{node} combines prompts with different text encoders or sizes, which civman does not support"
            )
        kept = self.number(node, "conditioning_to_strength", 1.0) if how == "average" else 1.0
        return replace(base, parts=(*base.parts, PromptPart(how, other.text, kept)))

    def _of_sdxl(self, node: Node) -> Text:
        first, second = self.text(node, "text_l"), self.text(node, "text_g")
        if first != second:
            raise Stopped(f"{node} gives SDXL's two text encoders different texts, which civman does not support")
        names = ("height", "width", "crop_h", "crop_w", "target_height", "target_width")
        return Text(first, self.clip(node.inputs.get("clip")), sizes=tuple(self.whole(node, name) for name in names))

    def unknown(self, node: Node, result: str) -> Stopped:
        """Return the error for a node that civman does not support. `result`: what the node determines."""
        return Stopped(f"{node} determines {result} in a way that civman does not support")

    def _require_shallow(self, depth: int, node: Node) -> None:
        if depth > _DEEPEST:
            raise Stopped(f"the links to {node} form a circle in the graph")

    def lora(self, node: Node, model: Model) -> Model:
        """Return the model with the file of a LoRA node added."""
        lora = (node.id, self.text(node, "lora_name"), self.number(node, "strength_model", 1.0))
        return replace(model, loras=(*model.loras, lora))

    def freeu(self, node: Node, model: Model) -> Model:
        """Return the model with a FreeU node applied."""
        if model.freeu is not None:
            raise Stopped(f"{node} applies FreeU a second time, which civman does not support")
        factors = [self.number(node, name) for name in ("b1", "b2", "s1", "s2")]
        version = "v2" if node.kind.endswith("V2") else "v1"
        return replace(model, freeu=FreeU(version, factors[0], factors[1], factors[2], factors[3]))

    def rescale(self, node: Node, model: Model) -> Model:
        """Return the model with a RescaleCFG node applied."""
        return replace(model, rescale=self.number(node, "multiplier", 0.7))

    def sampling(self, node: Node, model: Model) -> Model:
        """Return the model with a ModelSamplingDiscrete node applied."""
        kind = self.text(node, "sampling")
        named = {"eps": "epsilon", "v_prediction": "v_prediction"}
        if kind not in named:
            raise Stopped(f"{node} selects the sampling type `{kind}`, which civman does not support")
        return replace(model, prediction=named[kind], is_zero_snr=bool(self.value(node, "zsnr")))


_MODEL_NODES: Final[Mapping[str, Callable[[Reader, Node, Model], Model]]] = {
    "LoraLoader": Reader.lora, "LoraLoaderModelOnly": Reader.lora, "FreeU": Reader.freeu, "FreeU_V2": Reader.freeu,
    "RescaleCFG": Reader.rescale, "ModelSamplingDiscrete": Reader.sampling,
}  # fmt: skip
_JOINED: Final = {
    "ConditioningCombine": ("combine", "conditioning_1", "conditioning_2"),
    "ConditioningConcat": ("concat", "conditioning_to", "conditioning_from"),
    "ConditioningAverage": ("average", "conditioning_to", "conditioning_from"),
}  # fmt: skip


def stem(name: str) -> str:
    """Return the name of a model file without folders and suffix."""
    file = PurePosixPath(name.replace("\\", "/")).name
    start, dot, suffix = file.rpartition(".")
    return start if dot and suffix.casefold() in ("safetensors", "ckpt", "pt", "pth", "bin", "sft", "gguf") else file
