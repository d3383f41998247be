"""Maps each parameter of a component in diffusers' layout to a tensor of a file in the original layout.

The mapping is computed from the component's config, so UNets, VAEs and text encoders of any depth and width are mapped
without a list of tensor names.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from civman.diffusion.checkpoint_names import UNET, VAE
from civman.errors import CannotRender, Cause


@dataclass(frozen=True, slots=True)
class Source:
    """Where a parameter's values are stored.

    `name`: the tensor's name; `third`: which third of its rows to take (query, key or value); `rows`: the first row and
    the number of rows to take; `swaps_halves`: the second half of the rows comes first.
    """

    name: str
    third: int | None = None
    is_transposed: bool = False
    rows: tuple[int, int] | None = None
    swaps_halves: bool = False


RES_PARTS = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0", "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
"""Maps each part of a residual block from diffusers' name to the original name."""
_OPEN_CLIP = {
    "self_attn.out_proj": "attn.out_proj", "layer_norm1": "ln_1", "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
}  # fmt: skip
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out": "proj_out"}


def unet_sources(parameters: Iterable[str], config: Mapping[str, Any]) -> dict[str, Source]:
    """Map each parameter of UNet2DConditionModel to its tensor in a checkpoint."""
    prefixes = unet_modules(config)
    result = {}
    for parameter in parameters:
        module, rest = parameter, ""
        while module not in prefixes:
            module, _, leaf = module.rpartition(".")
            rest = f"{leaf}.{rest}" if rest else leaf
        if ".resnets." in module:
            part, _, leaf = rest.partition(".")
            rest = f"{RES_PARTS[part]}.{leaf}"
        result[parameter] = Source(f"{UNET}{prefixes[module]}.{rest}")
    return result


def unet_modules(config: Mapping[str, Any]) -> dict[str, str]:
    """Map the names of UNet2DConditionModel's resnets, attentions and other modules to their original names."""
    levels = len(config["block_out_channels"])
    layers = config["layers_per_block"]
    per_level = [layers] * levels if isinstance(layers, int) else list(layers)
    found = {
        "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
        "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
        "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
        "mid_block.resnets.0": "middle_block.0",
    }  # fmt: skip
    if config.get("mid_block_type") == "UNetMidBlock2D":
        found["mid_block.resnets.1"] = "middle_block.1"
    else:
        found |= {"mid_block.attentions.0": "middle_block.1", "mid_block.resnets.1": "middle_block.2"}
    number = 1
    for level in range(levels):
        for layer in range(per_level[level]):
            found[f"down_blocks.{level}.resnets.{layer}"] = f"input_blocks.{number}.0"
            found[f"down_blocks.{level}.attentions.{layer}"] = f"input_blocks.{number}.1"
            number += 1
        if level < levels - 1:
            found[f"down_blocks.{level}.downsamplers.0.conv"] = f"input_blocks.{number}.0.op"
            number += 1
    number = 0
    for level in range(levels):
        attends = "CrossAttn" in config["up_block_types"][level]
        count = per_level[levels - 1 - level] + 1
        for layer in range(count):
            found[f"up_blocks.{level}.resnets.{layer}"] = f"output_blocks.{number}.0"
            found[f"up_blocks.{level}.attentions.{layer}"] = f"output_blocks.{number}.1"
            if layer == count - 1 and level < levels - 1:
                found[f"up_blocks.{level}.upsamplers.0.conv"] = f"output_blocks.{number}.{2 if attends else 1}.conv"
            number += 1
    return found


def vae_sources(parameters: Iterable[str], config: Mapping[str, Any], prefix: str) -> dict[str, Source]:
    """Map each parameter of AutoencoderKL to its tensor; `prefix` precedes the original names in the file."""
    levels = len(config["block_out_channels"])
    return {parameter: Source(prefix + _vae_name(parameter, levels)) for parameter in parameters}


def own_vae_names(names: Iterable[str], file: str) -> dict[str, str]:
    """Map the original tensor names of a VAE to the names in a separate VAE file, which may be in either layout.

    Raises: CannotRender (`missing-part`): the file is not a Stable Diffusion VAE.
    """
    found = {name.removeprefix(VAE).removeprefix("vae."): name for name in names}
    if any(name.startswith("decoder.up_blocks.") for name in found):
        levels = len({name.split(".")[2] for name in found if name.startswith("decoder.up_blocks.")})
        modern = {_modern_attention(name): actual for name, actual in found.items()}
        sources = vae_sources(modern, {"block_out_channels": [0] * levels}, "")
        found = {source.name: modern[name] for name, source in sources.items()}
    if "decoder.conv_in.weight" not in found:
        raise CannotRender(f"`{file}` is not a VAE of Stable Diffusion", code=Cause.MISSING_PART, part="vae")
    return found


def _modern_attention(name: str) -> str:
    for old, new in ((".query.", ".to_q."), (".key.", ".to_k."), (".value.", ".to_v."), (".proj_attn.", ".to_out.0.")):
        name = name.replace(old, new)
    return name


def _vae_name(parameter: str, levels: int) -> str:
    part, *rest = parameter.split(".")
    if part not in ("encoder", "decoder") or rest[0] not in ("down_blocks", "up_blocks", "mid_block"):
        return parameter.replace("conv_norm_out", "norm_out")
    if rest[0] == "mid_block":
        if rest[1] == "resnets":
            return ".".join([part, "mid", f"block_{int(rest[2]) + 1}", *rest[3:]]).replace(
                "conv_shortcut", "nin_shortcut"
            )
        return f"{part}.mid.attn_1.{_VAE_ATTENTION[rest[3]]}.{rest[-1]}"
    side = rest[0].removesuffix("_blocks")
    level = int(rest[1]) if side == "down" else levels - 1 - int(rest[1])
    if rest[2] == "resnets":
        tail = ".".join(["block", *rest[3:]]).replace("conv_shortcut", "nin_shortcut")
    else:
        tail = f"{side}sample.conv.{rest[-1]}"
    return f"{part}.{side}.{level}.{tail}"


def text_sources(parameters: Iterable[str], layout: str, prefix: str, names: Mapping[str, object]) -> dict[str, Source]:
    """Map parameters of CLIPTextModel[WithProjection] to tensors; `layout` is "transformers" or "open_clip"."""
    result = {}
    for parameter in parameters:
        # remove the prefix `text_model.`, which since transformers 5.6 only one of the two CLIP text classes has
        plain = parameter.removeprefix("text_model.")
        result[parameter] = Source(prefix + plain) if layout == "transformers" else _open_clip(plain, prefix, names)
    return result


def _open_clip(plain: str, prefix: str, names: Mapping[str, object]) -> Source:
    if plain == "text_projection.weight":
        if f"{prefix}text_projection" in names:
            return Source(f"{prefix}text_projection", is_transposed=True)
        return Source(f"{prefix}text_projection.weight")
    if not plain.startswith("encoder.layers."):
        plain = plain.replace("embeddings.token_embedding", "token_embedding")
        plain = plain.replace("embeddings.position_embedding.weight", "positional_embedding")
        return Source(prefix + plain.replace("final_layer_norm", "ln_final"))
    return open_clip_layer(plain, prefix)


def open_clip_layer(plain: str, prefix: str) -> Source:
    """Map a parameter of a layer of transformers' CLIP ("encoder.layers.0.mlp.fc1.weight") to OpenCLIP's tensor."""
    _, _, number, *rest = plain.split(".")
    block = f"{prefix}transformer.resblocks.{number}."
    if rest[0] == "self_attn" and rest[1] != "out_proj":
        return Source(f"{block}attn.in_proj_{rest[2]}", third="qkv".index(rest[1][0]))
    module, leaf = ".".join(rest[:-1]), rest[-1]
    return Source(f"{block}{_OPEN_CLIP[module]}.{leaf}")
