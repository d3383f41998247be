"""Computes the configs of the components of a checkpoint with a UNet from tensor names and shapes.

Does not import torch.

Values that the shapes reveal take precedence over the family's defaults, so that slim, pruned and tiny variants can
also be loaded. Three values are not visible in any shape: the numbers of attention heads and norm groups, and the VAE's
scaling factor. They are the family's, unless the file's metadata contains others in the entry `civman.config` (JSON:
{component: {option: value}}).
"""

from collections.abc import Iterable, Mapping
from typing import Any

from civman.diffusion.checkpoint_names import TITLES, UNET, Config, Shapes, stated_in
from civman.diffusion.clip_and_vae_configs import count, divisor, groups, projection_width, text_config, vae_config
from civman.diffusion.families.registry import context_width
from civman.diffusion.families.unet_family import UNetFamily
from civman.errors import CannotRender, Cause, InvalidModelFile


def require_known_rules(names: Iterable[str], file: str) -> None:
    """Refuse a checkpoint whose tensors show that it would load but give wrong images.

    Raises: CannotRender (`unknown-prediction`): the model was trained for noise levels that civman does not support.
    """
    held = set(names)
    for tensors, model in _EDM:
        if tensors <= held:
            raise CannotRender(
                f"`{file}` was trained with EDM noise levels, like {model}; civman does not support them yet, and "
                "other noise levels would spoil the image",
                hint="choose another SDXL checkpoint",
                code=Cause.UNKNOWN_PREDICTION,
                file=file,
            )


_EDM = (
    (frozenset({"edm_mean"}), "Playground 2.5"),
    (frozenset({"edm_std"}), "Playground 2.5"),
    (frozenset({"edm_vpred.sigma_max"}), "CosXL"),
    (frozenset({"edm_vpred.sigma_min"}), "CosXL"),
)
"""Tensors that only checkpoints trained on EDM noise levels have, each with the best-known model that has them."""


def component_configs(
    family: UNetFamily, shapes: Shapes, vae: Shapes, metadata: Mapping[str, str], stated: Mapping[str, Config]
) -> dict[str, Config]:
    """Build the constructor arguments of the family's components, by component.

    `shapes` are the checkpoint's tensor shapes, `vae` those of the VAE in use (names without prefix). In order of
    precedence, the values come from `stated` (a config folder), the file's metadata, the shapes, and the family's
    defaults.
    """
    try:
        return _component_configs(family, shapes, vae, metadata, stated)
    except KeyError as missing:
        raise CannotRender(
            f"the file lacks the tensor `{missing.args[0]}`, so its structure is unknown",
            hint="the file is incomplete; another file of this version may be complete",
            code=Cause.MISSING_TENSOR, missing=[str(missing.args[0])],
        ) from missing  # fmt: skip
    except (IndexError, StopIteration, ZeroDivisionError, ValueError) as odd:
        raise InvalidModelFile("the shapes of the file's tensors do not match any model of its family") from odd


def _component_configs(
    family: UNetFamily, shapes: Shapes, vae: Shapes, metadata: Mapping[str, str], stated: Mapping[str, Config]
) -> dict[str, Config]:
    own = stated_in(metadata)
    result = {"unet": unet_config(family.unet, shapes, _pooled_width(family, shapes))}
    if vae:
        result["vae"] = vae_config(family.vae, vae)
    for name, usual in family.text_encoders.items():
        prefix = text_prefix(usual, shapes)
        if prefix is not None:
            result[name] = text_config(usual, shapes, prefix)
    for component, config in result.items():
        config.update(own.get(component, {}))
        config.update(stated.get(component, {}))
    return result


def require_parts(family: UNetFamily, parts: Iterable[str], name: str) -> None:
    """Check that the file `name`, which contains the components `parts`, has all components that its family needs.

    Raises: CannotRender (`missing-part`).
    """
    held = set(parts)
    for part in ("vae", *family.text_encoders):
        if part not in held:
            hint = (
                "pass a VAE file (--vae)"
                if part == "vae"
                else "use a file of this model that contains its text encoders"
            )
            raise CannotRender(
                f"`{name}` contains no {TITLES[part]}", hint=hint, code=Cause.MISSING_PART, part=part, file=name
            )


def text_prefix(usual: Config, names: Shapes) -> str | None:
    """Return the prefix of this text encoder's tensors in the file, or None if the file does not contain it."""
    probe = "embeddings.token_embedding.weight" if usual["layout"] == "transformers" else "token_embedding.weight"
    return next((p for p in usual["prefixes"] if p + probe in names), None)


def unet_config(usual: Config, shapes: Shapes, pooled_width: int | None) -> Config:
    """Build the arguments of diffusers' UNet2DConditionModel from tensor shapes (names with the UNet's prefix)."""
    down = _levels(shapes, "input_blocks", start=1)
    up = _levels(shapes, "output_blocks", start=0)
    if not down or len(up) != len(down):
        raise InvalidModelFile("the UNet's down and up blocks do not match", levels_down=len(down), levels_up=len(up))
    channels = [level[-1].channels for level in down]
    middle = _depth(shapes, "middle_block.1.")
    depths = _depths_per_level(down, middle)
    config = {k: v for k, v in usual.items() if k not in ("heads", "addition_time_ids")}
    heads = [_heads(usual["heads"], width) for width in channels]
    config |= {
        "in_channels": shapes[f"{UNET}input_blocks.0.0.weight"][1],
        "out_channels": shapes[f"{UNET}out.2.weight"][0],
        "block_out_channels": channels,
        "down_block_types": ["CrossAttnDownBlock2D" if _attends(level) else "DownBlock2D" for level in down],
        "up_block_types": ["CrossAttnUpBlock2D" if _attends(level) else "UpBlock2D" for level in up],
        "layers_per_block": _one_or_all([len(level) for level in down]),
        "attention_head_dim": _one_or_all(heads),
        "cross_attention_dim": context_width(shapes),
        "use_linear_projection": _projects_linearly(shapes),
        "transformer_layers_per_block": _one_or_all(depths),
        "norm_num_groups": groups(usual["norm_num_groups"], channels),
    }
    climbing = _depths_per_level(up, middle)
    if climbing != depths[::-1] and any(isinstance(d, list) for d in [*depths, *climbing]):
        config["reverse_transformer_layers_per_block"] = climbing
    # distilled models such as KOALA-700M have no middle block
    if f"{UNET}middle_block.0.in_layers.2.weight" not in shapes:
        config["mid_block_type"] = None
    elif middle == 0:
        config["mid_block_type"] = "UNetMidBlock2D"
    label = shapes.get(f"{UNET}label_emb.0.0.weight")
    if "addition_embed_type" in usual and pooled_width is not None:
        if label is None:
            raise KeyError(f"{UNET}label_emb.0.0.weight")
        config["projection_class_embeddings_input_dim"] = label[1]
        config["addition_time_embed_dim"] = (label[1] - pooled_width) // int(usual["addition_time_ids"])
    return config


def encoder_layout(shapes: Shapes) -> Config:
    """Return the types and depths of the down blocks and the middle block, as arguments for diffusers' models.

    `shapes` are those of a UNet or of its first half, by original name with the UNet's prefix.
    """
    down, middle = _levels(shapes, "input_blocks", start=1), _depth(shapes, "middle_block.1.")
    return {
        "down_block_types": ["CrossAttnDownBlock2D" if _attends(level) else "DownBlock2D" for level in down],
        "transformer_layers_per_block": _one_or_all(_depths_per_level(down, middle)),
        "mid_block_type": "UNetMidBlock2DCrossAttn" if middle else "UNetMidBlock2D",
    }


def level_widths(shapes: Shapes) -> list[int]:
    """Return the number of channels at each level of a UNet (original names with the UNet's prefix)."""
    return [level[-1].channels for level in _levels(shapes, "input_blocks", start=1)]


class _Layer:
    """One numbered block of the UNet: its channels and its number of transformer blocks (0: no attention)."""

    __slots__ = ("channels", "depth")

    def __init__(self, channels: int, depth: int) -> None:
        self.channels = channels
        self.depth = depth


def _levels(shapes: Shapes, side: str, *, start: int) -> list[list[_Layer]]:
    levels: list[list[_Layer]] = [[]]
    index = start
    while True:
        block = f"{UNET}{side}.{index}."
        if f"{block}0.op.weight" in shapes:
            levels.append([])
        elif (shape := shapes.get(f"{block}0.in_layers.2.weight")) is not None:
            levels[-1].append(_Layer(shape[0], _depth(shapes, f"{side}.{index}.1.")))
            if f"{block}1.conv.weight" in shapes or f"{block}2.conv.weight" in shapes:
                levels.append([])
        else:
            return [level for level in levels if level]
        index += 1


def _depth(shapes: Shapes, block: str) -> int:
    return count(shapes, f"{UNET}{block}transformer_blocks.")


def _attends(level: Iterable[_Layer]) -> bool:
    return any(layer.depth for layer in level)


def _depths_per_level(levels: list[list[_Layer]], middle: int) -> list[Any]:
    """Return the number of transformer blocks per attention layer at each level.

    If the last level has no attention, the middle block's number is used for it.
    """
    depths: list[Any] = []
    for number, level in enumerate(levels):
        if not _attends(level):
            depths.append((middle or 1) if number == len(levels) - 1 else 1)
        else:
            depths.append(_one_or_all([layer.depth for layer in level]))
    return depths


def _one_or_all(values: list[Any]) -> Any:
    return values[0] if all(value == values[0] for value in values) else values


def _projects_linearly(shapes: Shapes) -> bool:
    return any(name.endswith(".proj_in.weight") and len(s) == 2 for name, s in shapes.items() if name.startswith(UNET))


def _heads(rule: Mapping[str, int], width: int) -> int:
    if "count" in rule:
        return divisor(rule["count"], width)
    return width // rule["width"] if width % rule["width"] == 0 else max(1, width // 8)


def _pooled_width(family: UNetFamily, shapes: Shapes) -> int | None:
    if not family.is_xl:
        return None
    usual = family.text_encoders["text_encoder_2"]
    prefix = text_prefix(usual, shapes)
    if prefix is None:
        return 1280
    width = projection_width(shapes, prefix)
    if width is None:
        raise KeyError(f"{prefix}text_projection")
    return width
