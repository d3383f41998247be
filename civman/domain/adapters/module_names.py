"""Find the weight that a module's name refers to: an index of a model's weights under all names that trainers use.

diffusers' names of UNet modules are mapped to the original names by walking the block structure in the tensor list
itself, so UNets with other widths, other depths or missing blocks need no table. The names in adapter files are parsed
by `civman.domain.adapters.spellings`, and compatibility is decided in `civman.domain.compatibility`.

Source: the two public UNet layouts (latent-diffusion and diffusers), OpenCLIP's and transformers' CLIP layouts.
"""

import json
import re
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.resources import files
from typing import NamedTuple

from civman.domain.adapters.spellings import ONLY_ENCODERS
from civman.domain.files.header import Header

Shape = tuple[int, ...]
_WITH_PROJECTION = "joint_blocks."
"""A prefix of tensor names by which to recognise Stable Diffusion 3, the only model that uses CLIP-L's projection."""


class Piece(NamedTuple):
    """A module of the loaded model that contains some of the rows of a fused layer in the file.

    `rows` are ranges of the fused layer as (first, count), in the order of the module's own rows.
    """

    name: str
    rows: tuple[tuple[int, int], ...]


class Weight(NamedTuple):
    """A weight of the model. `slice` names a slice of a fused layer; "" means the whole layer."""

    part: str
    name: str
    shape: Shape
    """The shape of the weight: (out, in, *kernel), or (width,) for a norm."""
    bias: Shape | None = None
    slice: str = ""
    component: str = ""
    """The component of a loaded model that the module belongs to; "" if the part has only one."""
    pieces: tuple[Piece, ...] = ()
    """The modules among which the layer's rows are divided, if the loaded model has no single module for the layer."""


class ModuleIndex:
    """All weights of one model under all their names. `weight(part, path)` looks up a weight."""

    def __init__(
        self,
        parts: Mapping[str, Mapping[str, Shape]],
        unused: Iterable[tuple[str, str]] = (),
        *,
        projects: bool = False,
    ) -> None:
        """Index the weights of a model's parts ("unet", "te1" to "te4"); each part maps tensor names to shapes.

        `unused`: (part, path prefix) of layers that a file may contain but the model does not use. `projects`: the
        model uses CLIP-L's projection.
        """
        self._weights: dict[str, dict[str, Weight]] = {}
        # many files contain CLIP-L's projection, but only Stable Diffusion 3 uses it
        projects = projects or any(name.startswith(_WITH_PROJECTION) for name in parts.get("unet", ()))
        self._unused = (*(() if projects else (("te1", "text_projection"),)), *unused)
        for part, tensors in parts.items():
            if part == "unet":
                self._weights[part] = _backbone_weights(tensors)
                continue
            self._weights[part] = _text_weights(part, tensors)
            if (last := last_open_clip_layer(part, tensors)) is not None:
                self._unused += ((part, f"encoder_layers_{last}_"),)
        for part, beginning in self._unused:
            weights = self._weights.get(part, {})
            for path in [path for path in weights if path.startswith(beginning)]:
                del weights[path]
        self.parts = frozenset(part for part, weights in self._weights.items() if weights)

    @classmethod
    def of_transformer(
        cls,
        weights: Mapping[str, Weight],
        texts: Mapping[str, Mapping[str, Shape]],
        unused: Iterable[tuple[str, str]] = (),
    ) -> "ModuleIndex":
        """Index a loaded transformer's weights (from `split_modules.transformer_weights`) and its text encoders."""
        index = cls(texts, unused, projects="text_projection.weight" in texts.get("te1", {}))
        index._weights["unet"] = {name.replace(".", "_"): weight for name, weight in weights.items()}
        index.parts |= {"unet"}
        return index

    @classmethod
    def of_header(cls, header: Header) -> "ModuleIndex":
        """Index the weights that a checkpoint's header lists. The result is computed once per header."""
        found: ModuleIndex | None = header.notes.get("modules")
        if found is None:
            backbone, texts = parts_of(header)
            found = header.notes["modules"] = cls({"unet": backbone, **texts})
        return found

    def name_components(self, components: Mapping[str, str]) -> None:
        """Set the `component` of each weight; `components` maps parts ("te1") to components of the loaded model."""
        for part, component in components.items():
            weights = self._weights.get(part, {})
            for path, weight in weights.items():
                weights[path] = weight._replace(component=component)

    def weight(self, part: str, path: str) -> Weight | None:
        """Look up the weight at this path; None if the model has no weight of this name."""
        if part not in self.parts:
            # the SDXL refiner has only a second text encoder; diffusers calls Flux.1's T5 the second text encoder
            part = {"te1": "te2", "te2": "te3"}.get(part, part)
        weights = self._weights.get(part, {})
        found = weights.get(path)
        if found is None and path.endswith("_to_out"):
            # in diffusers, `to_out` is a list whose item 0 is the linear layer; elsewhere it is the linear layer itself
            return weights.get(f"{path}_0")
        return found

    def find(self, part: str, path: str) -> Shape | None:
        """Return the weight's shape: (out, in, *kernel), or (width,) for a norm. None if there is no such weight."""
        found = self.weight(part, path)
        return None if found is None else found.shape

    def is_unused(self, part: str, path: str) -> bool:
        """Whether this layer never affects an image, so that a model without it is still complete."""
        return any(part == where and path.startswith(beginning) for where, beginning in self._unused)

    def __len__(self) -> int:
        return sum(map(len, self._weights.values()))


def last_open_clip_layer(part: str, tensors: Iterable[str]) -> int | None:
    """Return the index of the last layer of SD 2's text encoder, which SD 2 does not use; None for other encoders.

    SD 2 uses the output of the second-to-last layer. If the file has only 23 layers, the last one has been removed, and
    the result is the index that it would have.
    """
    if part != "te1":
        return None
    layers = {int(found[1]) for name in tensors if (found := _RESBLOCK.match(name))}
    if not layers:
        return None
    return 23 if len(layers) == 23 else max(layers)


_RESBLOCK = re.compile(r"(?:transformer\.)?resblocks\.(\d{1,4})\.")


def _backbone_weights(tensors: Mapping[str, Shape]) -> dict[str, Weight]:
    weights = {
        name[:-7]: Weight("unet", name[:-7], shape, tensors.get(f"{name[:-6]}bias"))
        for name, shape in tensors.items() if name.endswith(".weight")
    }  # fmt: skip
    found = {name.replace(".", "_"): weight for name, weight in weights.items()}
    renames = unet_names(tensors)
    names = sorted(weights) if renames else []
    for block, other in renames.items():
        inner_names = _RES_TO_DIFFUSERS if block.startswith(_LDM_BLOCKS) else _RES_TO_LDM
        stem = other.replace(".", "_")
        if block in weights:
            found[stem] = weights[block]
        # the names with this prefix end before "/", which sorts directly after "."
        for name in names[bisect_left(names, f"{block}.") : bisect_left(names, f"{block}/")]:
            inner = name[len(block) + 1 :]
            found[f"{stem}_{inner_names.get(inner, inner).replace('.', '_')}"] = weights[name]
    if not renames:
        rules = _rules_for(weights)
        for name, weight in weights.items() if rules else ():
            for alias, part_shape, which in _translations(name, weight.shape, rules):
                found[alias.replace(".", "_")] = Weight("unet", name, part_shape, weight.bias, which)
    return found


def _text_weights(part: str, tensors: Mapping[str, Shape]) -> dict[str, Weight]:
    found: dict[str, Weight] = {}
    for name, shape in tensors.items():
        if name.endswith("in_proj_weight") and len(shape) == 2:
            stem = name.removesuffix(".in_proj_weight")
            bias = tensors.get(f"{stem}.in_proj_bias")
            third = (bias[0] // 3,) if bias else None
            for which in "qkv":
                found[f"{_open_clip(stem)}_{which}_proj"] = Weight(part, stem, (shape[0] // 3, shape[1]), third, which)
        elif name.endswith(".weight"):
            stem = name.removesuffix(".weight")
            found[_open_clip(stem)] = Weight(part, stem, shape, tensors.get(f"{stem}.bias"))
        # OpenCLIP's projection is a matrix that is multiplied from the right, so its shape is transposed
        elif name.endswith("text_projection"):
            found[_open_clip(name)] = Weight(part, name, shape[::-1])
        elif name.endswith("positional_embedding"):
            found[_open_clip(name)] = Weight(part, name, shape)
    return found


_BACKBONE_PREFIXES = ("model.diffusion_model.", "diffusion_model.", "unet.", "transformer.", "net.")
_TEXT_PREFIXES = (
    ("cond_stage_model.transformer.", "te1"), ("cond_stage_model.model.", "te1"),
    ("conditioner.embedders.0.transformer.", "te1"), ("conditioner.embedders.1.model.", "te2"),
    ("conditioner.embedders.0.model.", "te2"),
    ("text_encoders.clip_l.transformer.", "te1"), ("text_encoders.clip_l.", "te1"),
    ("text_encoders.clip_g.transformer.", "te2"), ("text_encoders.clip_g.", "te2"),
    ("text_encoders.t5xxl.transformer.", "te3"), ("text_encoders.t5xxl.", "te3"),
    ("text_encoders.llama.transformer.model.", "te4"), ("text_encoders.llama.transformer.", "te4"),
    ("text_encoders.llama.", "te4"),
    *((f"text_encoders.{name}.{inner}", "te1")
      for name in ONLY_ENCODERS for inner in ("transformer.model.", "transformer.", "")),
    ("text_encoder_4.", "te4"), ("text_encoder_3.", "te3"), ("text_encoder_2.", "te2"), ("text_encoder.", "te1"),
)  # fmt: skip
_OTHER_PREFIXES = ("first_stage_model.", "vae.", "model_ema.", "text_encoders.", "cond_stage_model.", "conditioner.")


_PART_OF = {
    **dict.fromkeys(_BACKBONE_PREFIXES, "unet"), **dict(_TEXT_PREFIXES), **dict.fromkeys(_OTHER_PREFIXES, ""),
}  # fmt: skip
_PART = re.compile("|".join(map(re.escape, _PART_OF)))


def parts_of(header: Header) -> tuple[dict[str, Shape], dict[str, dict[str, Shape]]]:
    """Return the tensors of the diffusion model, and those of the text encoders by part, without their prefixes.

    The result is computed once per header.
    """
    found: tuple[dict[str, Shape], dict[str, dict[str, Shape]]] | None = header.notes.get("parts")
    if found is None:
        found = header.notes["parts"] = _split_parts(header.shapes)
    return found


def _split_parts(shapes: Mapping[str, Shape]) -> tuple[dict[str, Shape], dict[str, dict[str, Shape]]]:
    bare: dict[str, Shape] = {}
    parts: dict[str, dict[str, Shape]] = {part: {} for part in ("unet", "te1", "te2", "te3", "te4", "")}
    for name, shape in shapes.items():
        if prefix := _PART.match(name):
            parts[_PART_OF[prefix[0]]][name[prefix.end() :]] = shape
        else:
            bare[name] = shape
    backbone = parts["unet"]
    if not backbone and bare and all(name.startswith("model.") for name in bare):
        # AuraFlow's original layout has the prefix "model.", which is six characters long
        bare = {name[6:]: shape for name, shape in bare.items()}
    return backbone or bare, {part: found for part, found in parts.items() if found and part.startswith("te")}


def unet_names(tensors: Iterable[str]) -> dict[str, str]:
    """Map a UNet's module names to the other layout: original names to diffusers' names, or the reverse.

    The result covers modules down to the level of blocks; it is empty if this is not a Stable Diffusion UNet.
    """
    heads = _Heads(tensors)
    if "input_blocks.0" in heads and "input_blocks.0.0" in heads:
        return _from_ldm(heads)
    if "conv_in" in heads and "down_blocks.0.resnets.0" in heads:
        return {theirs: ours for ours, theirs in _from_diffusers(heads).items()}
    return {}


class _Heads:
    """The prefixes of tensor names, up to four components long, and the number of numbered children of each prefix."""

    def __init__(self, names: Iterable[str]) -> None:
        self._heads: set[str] = set()
        self._counts: dict[str, int] = {}
        for lead in {found[0] for name in names if (found := _LEAD.match(name))}:
            parts = lead.split(".")[:-1]
            for count in range(1, len(parts) + 1):
                head = ".".join(parts[:count])
                if head not in self._heads:
                    self._heads.add(head)
                    if count > 1 and parts[count - 1].isdecimal():
                        block = ".".join(parts[: count - 1])
                        number = int(parts[count - 1][:6])
                        self._counts[block] = min(max(self._counts.get(block, 0), number + 1), _MAX_BLOCKS)

    def __contains__(self, head: str) -> bool:
        return head in self._heads

    def count(self, block: str) -> int:
        """Return the number of a block's children: the highest child index plus one."""
        return self._counts.get(block, 0)


_LEAD = re.compile(r"(?:[^.]*+\.){1,4}+")
_MAX_BLOCKS = 64
"""The maximum number of blocks. It exceeds that of any UNet, and keeps a malicious name from causing a loop over a
million blocks.
"""
_LDM_BLOCKS = ("input_blocks.", "output_blocks.", "middle_block.", "time_embed.", "label_emb.", "out.")
_ENDS = {
    "input_blocks.0.0": "conv_in", "time_embed.0": "time_embedding.linear_1", "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1", "label_emb.0.2": "add_embedding.linear_2",
    "out.0": "conv_norm_out", "out.2": "conv_out",
}  # fmt: skip
_RES_TO_DIFFUSERS = {
    "in_layers.0": "norm1", "in_layers.2": "conv1", "emb_layers.1": "time_emb_proj", "out_layers.0": "norm2",
    "out_layers.3": "conv2", "skip_connection": "conv_shortcut",
}  # fmt: skip
_RES_TO_LDM = {theirs: ours for ours, theirs in _RES_TO_DIFFUSERS.items()}


def _from_ldm(heads: _Heads) -> dict[str, str]:
    """Map original names to diffusers' names for a UNet whose tensors have original names."""
    names = {ours: theirs for ours, theirs in _ENDS.items() if ours in heads}
    level = index = 0
    for number in range(1, heads.count("input_blocks")):
        block = f"input_blocks.{number}"
        if f"{block}.0.op" in heads:
            names[f"{block}.0.op"] = f"down_blocks.{level}.downsamplers.0.conv"
            level, index = level + 1, 0
            continue
        names[f"{block}.0"] = f"down_blocks.{level}.resnets.{index}"
        names[f"{block}.1"] = f"down_blocks.{level}.attentions.{index}"
        index += 1
    resnets = 0
    for number in range(heads.count("middle_block")):
        block = f"middle_block.{number}"
        if f"{block}.in_layers" in heads:
            names[block], resnets = f"mid_block.resnets.{resnets}", resnets + 1
        else:
            names[block] = "mid_block.attentions.0"
    level = index = 0
    for number in range(heads.count("output_blocks")):
        block = f"output_blocks.{number}"
        names[f"{block}.0"] = f"up_blocks.{level}.resnets.{index}"
        ends = False
        for inner in (1, 2):
            if f"{block}.{inner}.conv" in heads:
                names[f"{block}.{inner}.conv"] = f"up_blocks.{level}.upsamplers.0.conv"
                ends = True
            elif f"{block}.{inner}" in heads:
                names[f"{block}.{inner}"] = f"up_blocks.{level}.attentions.{index}"
        level, index = (level + 1, 0) if ends else (level, index + 1)
    return names


def _from_diffusers(heads: _Heads) -> dict[str, str]:
    """Map original names to diffusers' names for a UNet whose tensors have diffusers' names."""
    names = {ours: theirs for ours, theirs in _ENDS.items() if theirs in heads}
    number = 1
    for level in range(heads.count("down_blocks")):
        block = f"down_blocks.{level}"
        for index in range(heads.count(f"{block}.resnets")):
            names[f"input_blocks.{number}.0"] = f"{block}.resnets.{index}"
            names[f"input_blocks.{number}.1"] = f"{block}.attentions.{index}"
            number += 1
        if f"{block}.downsamplers" in heads:
            names[f"input_blocks.{number}.0.op"] = f"{block}.downsamplers.0.conv"
            number += 1
    has_attention = "mid_block.attentions" in heads
    names["middle_block.0"] = "mid_block.resnets.0"
    if has_attention:
        names["middle_block.1"] = "mid_block.attentions.0"
    names["middle_block.2" if has_attention else "middle_block.1"] = "mid_block.resnets.1"
    number = 0
    for level in range(heads.count("up_blocks")):
        block = f"up_blocks.{level}"
        count = heads.count(f"{block}.resnets")
        for index in range(count):
            names[f"output_blocks.{number}.0"] = f"{block}.resnets.{index}"
            attends = f"{block}.attentions.{index}" in heads
            if attends:
                names[f"output_blocks.{number}.1"] = f"{block}.attentions.{index}"
            if index == count - 1 and f"{block}.upsamplers" in heads:
                names[f"output_blocks.{number}.{2 if attends else 1}.conv"] = f"{block}.upsamplers.0.conv"
            number += 1
    return names


_OPEN_CLIP = (
    (re.compile(r"^(?:transformer\.)?resblocks\.(\d+)\."), r"encoder.layers.\1."),
    (re.compile(r"\.ln_([12])$"), r".layer_norm\1"), (re.compile(r"\.attn(\.|$)"), r".self_attn\1"),
    (re.compile(r"\.mlp\.c_fc$"), ".mlp.fc1"), (re.compile(r"\.mlp\.c_proj$"), ".mlp.fc2"),
    (re.compile(r"^token_embedding$"), "embeddings.token_embedding"), (re.compile(r"^ln_final$"), "final_layer_norm"),
    (re.compile(r"^positional_embedding$"), "embeddings.position_embedding"),
)  # fmt: skip


def _open_clip(name: str) -> str:
    """Translate a text encoder module's name from OpenCLIP's to transformers' layout.

    The result is joined with underscores and has no `text_model` prefix.
    """
    if not name.startswith("text_model."):
        for pattern, instead in _OPEN_CLIP:
            name = pattern.sub(instead, name)
    return name.removeprefix("text_model.").replace(".", "_")


_Rules = dict[str, list[tuple[str, str]]]
"""Maps a pattern of original names to pairs: a name in diffusers, and the slice of the original layer that it means."""


@cache
def _translation_tables() -> list[tuple[str, _Rules]]:
    """Load each family's renaming rules, together with the name of a module that all models of the family have."""
    text = files("civman.domain.adapters").joinpath("data/module_names.json").read_text(encoding="utf-8")
    found = []
    for pairs in json.loads(text)["pairs"].values():
        rules: _Rules = {}
        for original, theirs, part in pairs:
            rules.setdefault(original, []).append((theirs, part))
        found.append((next(iter(rules)), rules))
    return found


def _rules_for(weights: Mapping[str, Weight]) -> _Rules:
    """Combine the rules of all families whose characteristic module is in `weights`.

    The names of different families do not collide.
    """
    chosen: _Rules = {}
    for probe, rules in _translation_tables():
        if probe.replace("#", "0") in weights:
            for original, names in rules.items():
                chosen.setdefault(original, []).extend(names)
    return chosen


_BLOCK_NUMBER = re.compile(r"(?<=blocks\.)\d+|(?<=layers\.)\d+|(?<=refiner\.)\d+")


def _translations(name: str, shape: Shape, rules: _Rules) -> Iterable[tuple[str, Shape, str]]:
    """Translate the name of a transformer's weight, or of its slices, to diffusers' names.

    Yields each name with its shape and the name of the slice.
    """
    number = _BLOCK_NUMBER.search(name)
    pattern = f"{name[: number.start()]}#{name[number.end() :]}" if number else name
    for theirs, part in rules.get(pattern, ()):
        which = "" if part == "whole" else theirs  # key and value share the part "kv", so use their names
        yield theirs.replace("#", number[0] if number else "", 1), _slice(shape, part), which


def _slice(shape: Shape, part: str) -> Shape:
    """Return the shape of a slice of a fused layer. A query is as wide as the input; key and value share the rest."""
    if part == "whole" or len(shape) < 2:
        return shape
    width = shape[1]
    match part:
        case "q" | "width":
            return (width, width)
        case "kv":
            return ((shape[0] - width) // 2, width)
        case _:  # "rest" means the rows that follow those of query, key and value
            return (shape[0] - 3 * width, width)
