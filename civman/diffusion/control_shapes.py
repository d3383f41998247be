"""Derives from a ControlNet's header its original tensor names, its config, and whether it fits a checkpoint.

Does not import torch.
"""

from collections.abc import Mapping
from typing import Any

from civman.diffusion.checkpoint_names import UNET, Config, Shapes
from civman.diffusion.component_layouts import RES_PARTS, unet_modules
from civman.diffusion.unet_configs import encoder_layout
from civman.errors import CannotRender, Cause, Incompatible

_PREFIX = "control_model."
_KINDS = "task_embedding"
_HINT = "controlnet_cond_embedding."


def original_names(shapes: Mapping[str, object]) -> dict[str, str]:
    """Map the original names of a ControlNet's tensors, without prefix, to the names in the file.

    Raises: CannotRender (`unknown-family`): civman does not support this kind of ControlNet.
    """
    names = [name for name in shapes if name.startswith(_PREFIX)] or list(shapes)
    plain = {name.removeprefix(_PREFIX): name for name in names}
    if "input_hint_block.0.weight" in plain:
        return plain
    if f"{_HINT}conv_in.weight" in plain:
        return _from_diffusers(plain)
    raise _unknown("civman finds no layers that read a control image in the file")


def union_size(shapes: Shapes) -> int:
    """Return how many kinds of control image a union ControlNet supports; 0 if the ControlNet is not a union.

    `shapes` maps the original tensor names (without prefix) to shapes.
    """
    return shapes[_KINDS][0] if _KINDS in shapes else 0


def _unknown(why: str) -> CannotRender:
    return CannotRender(
        f"civman cannot use this ControlNet: {why}",
        hint="choose a ControlNet of SD 1, SD 2 or SDXL for a single kind of control image", code=Cause.UNKNOWN_FAMILY,
    )  # fmt: skip


def _from_diffusers(plain: Mapping[str, str]) -> dict[str, str]:
    levels = 1 + max((int(name.split(".")[1]) for name in plain if name.startswith("down_blocks.")), default=0)
    layers = 1 + max(
        (int(name.split(".")[3]) for name in plain if name.startswith("down_blocks.0.resnets.")), default=0
    )
    attends = any(name.startswith("mid_block.attentions.") for name in plain)
    modules = unet_modules({
        "block_out_channels": [0] * levels, "layers_per_block": layers, "up_block_types": ["CrossAttn"] * levels,
        "mid_block_type": "UNetMidBlock2DCrossAttn" if attends else "UNetMidBlock2D",
    })  # fmt: skip
    last = max((int(name.split(".")[2]) for name in plain if name.startswith(f"{_HINT}blocks.")), default=-1)
    return {original_name(name, modules, last): actual for name, actual in plain.items()}


def original_name(name: str, modules: Mapping[str, str], last_hint: int) -> str:
    """Translate a parameter of diffusers' ControlNetModel to its original name, without prefix.

    `modules` is the result of `unet_modules`; `last_hint` is the index of the last block in the network that embeds the
    control image.
    """
    if name.startswith(_HINT):
        module, _, leaf = name.removeprefix(_HINT).rpartition(".")
        number = {"conv_in": 0, "conv_out": last_hint + 2}.get(module)
        if number is None:
            number = int(module.removeprefix("blocks.")) + 1
        return f"input_hint_block.{2 * number}.{leaf}"
    if name.startswith("controlnet_down_blocks."):
        _, number_text, leaf = name.split(".")
        return f"zero_convs.{number_text}.0.{leaf}"
    if name.startswith("controlnet_mid_block."):
        return f"middle_block_out.0.{name.rpartition('.')[2]}"
    return _encoder_name(name, modules)


def _encoder_name(parameter: str, modules: Mapping[str, str]) -> str:
    module, rest = parameter, ""
    while module not in modules:
        module, _, leaf = module.rpartition(".")
        if not module:
            return parameter
        rest = f"{leaf}.{rest}" if rest else leaf
    if ".resnets." in module:
        part, _, leaf = rest.partition(".")
        rest = f"{RES_PARTS.get(part, part)}.{leaf}"
    return f"{modules[module]}.{rest}"


_SHARED = (
    "flip_sin_to_cos", "freq_shift", "only_cross_attention", "block_out_channels", "layers_per_block",
    "downsample_padding", "mid_block_scale_factor", "act_fn", "norm_num_groups", "norm_eps", "cross_attention_dim",
    "attention_head_dim", "use_linear_projection", "addition_embed_type", "addition_time_embed_dim", "upcast_attention",
    "resnet_time_scale_shift", "projection_class_embeddings_input_dim",
)  # fmt: skip
"""The config arguments whose values a ControlNet shares with the UNet that it was made for."""


def control_config(unet: Config, shapes: Shapes) -> Config:
    """Build the arguments of diffusers' ControlNetModel, or ControlNetUnionModel, for a UNet with the arguments `unet`.

    `shapes` maps the original names (without prefix) of the ControlNet's tensors to their shapes. A ControlNet's
    attention may have fewer layers than the UNet's.

    Raises: CannotRender (`missing-tensor`): a tensor that determines the structure is missing.
    """
    try:
        hint = [shapes[f"input_hint_block.{number}.weight"] for number in _hint_numbers(shapes)]
        inputs = shapes["input_blocks.0.0.weight"][1]
        union = _union_config(unet, shapes) if union_size(shapes) else {}
    except (KeyError, IndexError, ValueError) as missing:
        raise CannotRender(
            "the structure of the ControlNet is unknown, because tensors are missing",
            hint="the file is incomplete; another file of this version may be complete", code=Cause.MISSING_TENSOR,
        ) from missing  # fmt: skip
    layout = encoder_layout({f"{UNET}{name}": shape for name, shape in shapes.items()})
    if union:
        layout = {key: value for key, value in layout.items() if key != "mid_block_type"} | union
    return {key: unet[key] for key in _SHARED if key in unet} | layout | {
        "in_channels": inputs,
        "conditioning_channels": hint[0][1],
        "conditioning_embedding_out_channels": [hint[0][0], *(shape[0] for shape in hint[2:-1:2])],
    }  # fmt: skip


_UNION_HEADS = 8
"""The number of attention heads in a union ControlNet's additional layers, which no tensor shape shows."""


def _union_config(unet: Config, shapes: Shapes) -> Config:
    kinds, width = shapes[_KINDS]
    layers = {name.split(".")[1] for name in shapes if name.startswith("transformer_layes.")}
    told = shapes.get("control_add_embedding.linear_1.weight", (0, 0))[1]
    if told != kinds * unet.get("addition_time_embed_dim", 0) or width % _UNION_HEADS:
        raise _unknown("its input for the kind of control image has a width that no known union ControlNet has")
    return {
        "num_control_type": kinds, "num_trans_channel": width, "num_trans_head": _UNION_HEADS,
        "num_trans_layer": len(layers), "num_proj_channel": shapes["spatial_ch_projs.weight"][0],
    }  # fmt: skip


def _hint_numbers(shapes: Shapes) -> list[int]:
    start = "input_hint_block."
    return sorted({int(name[len(start) :].split(".")[0]) for name in shapes if name.startswith(start)})


def skip_channels(shapes: Shapes, prefix: str = UNET) -> list[int]:
    """List the channels of each skip connection of a UNet or ControlNet in the original layout, in order."""
    found, number = [], 0
    while True:
        block = f"{prefix}input_blocks.{number}.0."
        for tail in ("weight", "op.weight", "out_layers.3.weight"):
            if f"{block}{tail}" in shapes:
                found.append(shapes[f"{block}{tail}"][0])
                break
        else:
            return found
        number += 1


def require_control_fits(checkpoint: Shapes, control: Mapping[str, Any], name: str) -> None:
    """Check that a ControlNet's inputs and outputs have the widths of a checkpoint's UNet.

    `control` maps the original names (without prefix) of the ControlNet's tensors to their shapes.

    Raises: Incompatible (`cannot-work`): the widths differ.
    """
    ours, theirs = skip_channels(checkpoint), skip_channels(control, "")
    widths = [_context(checkpoint, UNET), _context(control, "")]
    pooled = [checkpoint.get(f"{UNET}label_emb.0.0.weight"), control.get("label_emb.0.0.weight")]
    problems = []
    if ours != theirs:
        problems.append(f"the ControlNet's UNet has {_channels(theirs)}, but the checkpoint's has {_channels(ours)}")
    if widths[0] != widths[1]:
        problems.append(
            f"the ControlNet was made for text embeddings of width {widths[1]}, but the checkpoint's have width "
            f"{widths[0]}"
        )
    if (pooled[0] is None) != (pooled[1] is None) or (pooled[0] and pooled[1] and pooled[0][1] != pooled[1][1]):
        problems.append("the ControlNet and the checkpoint differ in SDXL's input for sizes and pooled text")
    if problems:
        raise Incompatible(
            f"the ControlNet `{name}` does not fit the checkpoint: {'; '.join(problems)}",
            hint="choose a ControlNet made for the checkpoint's base model", code=Cause.CANNOT_WORK,
        )  # fmt: skip


def _channels(widths: list[int]) -> str:
    return f"{len(widths)} skip connections of {'/'.join(str(width) for width in dict.fromkeys(widths))} channels"


def _context(shapes: Mapping[str, Any], prefix: str) -> int:
    return next(
        (shape[1] for name, shape in shapes.items() if name.startswith(prefix) and name.endswith("attn2.to_k.weight")),
        0,
    )
