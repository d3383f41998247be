"""Which weight of the model a name in an adapter file means.

Trainers spell one module in many ways, and the spelling that joins with `_` cannot be parsed back. So nothing is
parsed: every spelling of every module the model really has is written into one dict, and file names are looked up.
Needs no torch.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

UNET = "unet"
TEXT_ENCODERS = ("text_encoder", "text_encoder_2")

_UNET_FLAT = ("lora_unet_", "oft_unet_", "lycoris_", "lycoris_unet_")
_UNET_DOTTED = (
    "unet.",
    "",
    "diffusion_model.",
    "model.diffusion_model.",
    "base_model.model.",
    "base_model.model.unet.",
)
_TEXT_FLAT = {
    "text_encoder": ("lora_te_", "lora_te1_", "oft_te_", "oft_te1_", "lycoris_", "lycoris_text_encoder_"),
    "text_encoder_2": ("lora_te2_", "oft_te2_", "lycoris_", "lycoris_text_encoder_2_"),
}
_RESNET_PARTS = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_OUTER_PARTS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}
# diffusers up to 0.20 hung its LoRA beside the projections, under names of their own
_OLD_PROJECTIONS = {
    "to_q": "processor.to_q_lora",
    "to_k": "processor.to_k_lora",
    "to_v": "processor.to_v_lora",
    "to_out.0": "processor.to_out_lora",
    "q_proj": "to_q_lora",
    "k_proj": "to_k_lora",
    "v_proj": "to_v_lora",
    "out_proj": "to_out_lora",
}


@dataclass(frozen=True, slots=True, order=True)
class Target:
    """A module with weights: which component, and its dotted name in there."""

    component: str
    module: str

    def __str__(self) -> str:
        return f"{self.component}.{self.module}"


def spellings(parameters: Mapping[str, Collection[str]]) -> dict[str, Target]:
    """Every name an adapter file may use → the module it means, from the parameters the components really have.

    Args:
        parameters: component (`unet`, `text_encoder`, `text_encoder_2`) → names of its parameters.

    A spelling that fits two modules (LyCORIS does not say which of two text encoders it means) is left out.
    """
    found: dict[str, Target] = {}
    ambiguous: set[str] = set()
    for component, names in parameters.items():
        modules = {name.rpartition(".")[0] for name in names} - {""}
        pairs = _unet(modules) if component == UNET else _text_encoder(component, modules)
        for spelling, module in pairs:
            target = Target(component, module)
            if found.setdefault(spelling, target) != target:
                ambiguous.add(spelling)
    for spelling in ambiguous:
        del found[spelling]
    return found


def ldm_names(modules: Collection[str]) -> dict[str, str]:
    """The original (LDM) name of each module of an SD 1.x, 2.x or XL UNet that has one, by its diffusers name.

    Source: block order of Rombach et al.'s `openaimodel.py`: each level's blocks, then its down- or upsampler.
    """
    starts = {module[:cut] for module in modules for cut in _dots(module)}
    prefixes = {**_OUTER_PARTS, **_down_blocks(starts), **_up_blocks(starts)}
    named: dict[str, str] = {}
    for module in modules:
        for cut in reversed(_dots(module)):
            if (ldm := prefixes.get(module[:cut])) is not None:
                rest = module[cut + 1 :]
                if ".resnets." in f".{module[:cut]}":
                    rest = _RESNET_PARTS.get(rest, rest)
                named[module] = f"{ldm}.{rest}" if rest else ldm
                break
    return named


def _dots(name: str) -> list[int]:
    return [place for place, letter in enumerate(name) if letter == "."] + [len(name)]


def _down_blocks(starts: set[str]) -> dict[str, str]:
    prefixes: dict[str, str] = {}
    number, level = 1, 0
    while (block := f"down_blocks.{level}") in starts:
        layer = 0
        while (resnet := f"{block}.resnets.{layer}") in starts:
            prefixes[resnet] = f"input_blocks.{number}.0"
            prefixes[f"{block}.attentions.{layer}"] = f"input_blocks.{number}.1"
            number, layer = number + 1, layer + 1
        if (sampler := f"{block}.downsamplers.0.conv") in starts:
            prefixes[sampler] = f"input_blocks.{number}.0.op"
            number += 1
        level += 1
    return prefixes


def _up_blocks(starts: set[str]) -> dict[str, str]:
    prefixes: dict[str, str] = {}
    number, level = 0, 0
    while (block := f"up_blocks.{level}") in starts:
        layer = 0
        while (resnet := f"{block}.resnets.{layer}") in starts:
            prefixes[resnet] = f"output_blocks.{number}.0"
            prefixes[f"{block}.attentions.{layer}"] = f"output_blocks.{number}.1"
            number, layer = number + 1, layer + 1
        place = 2 if f"{block}.attentions.0" in starts else 1
        prefixes[f"{block}.upsamplers.0.conv"] = f"output_blocks.{number - 1}.{place}.conv"
        level += 1
    return prefixes


def _unet(modules: Collection[str]) -> Iterator[tuple[str, str]]:
    ldm = ldm_names(modules)
    for module in modules:
        forms = {module, ldm.get(module, module)}
        for form in forms:
            flat = form.replace(".", "_")
            yield from ((prefix + flat, module) for prefix in _UNET_FLAT)
            yield from ((prefix + form, module) for prefix in _UNET_DOTTED)
        if (old := _old_name(module)) is not None:
            yield from ((prefix + old, module) for prefix in ("unet.", ""))


def _text_encoder(component: str, modules: Collection[str]) -> Iterator[tuple[str, str]]:
    for module in modules:
        # transformers 5.6 took this level away from CLIPTextModel and left it in CLIPTextModelWithProjection
        inner = module.removeprefix("text_model.")
        for form in (inner, f"text_model.{inner}"):
            flat = form.replace(".", "_")
            yield from ((prefix + flat, module) for prefix in _TEXT_FLAT.get(component, ()))
            yield f"{component}.{form}", module
            if (old := _old_name(form)) is not None:
                yield f"{component}.{old}", module


def _old_name(module: str) -> str | None:
    for projection, old in _OLD_PROJECTIONS.items():
        if module.endswith(f".{projection}"):
            return module[: -len(projection)] + old
    return None
