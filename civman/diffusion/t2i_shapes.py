"""Computes a T2I-Adapter's config from its header, and checks whether the adapter fits a checkpoint.

Three structures exist: the full adapter and the light adapter of SD 1, and the full adapter of SDXL. TencentARC's files
number all blocks of a full adapter consecutively; diffusers groups them by level. Does not import torch.

Source: Mou et al. 2023, "T2I-Adapter", and the layouts of TencentARC's and diffusers' files.
"""

from collections.abc import Mapping
from typing import Final

from civman.diffusion.checkpoint_names import Config, Shapes
from civman.diffusion.unet_configs import encoder_layout, level_widths
from civman.errors import CannotRender, Cause, Incompatible

_LEVELS: Final = 4
_FOLDS: Final = {64: (1, 8), 192: (3, 8), 256: (1, 16), 768: (3, 16)}
"""Maps the number of input channels of the first layer to (channels of the picture, side of a square in pixels).

An adapter folds each square of this size into a single pixel with more channels.
"""


def is_adapter(shapes: Mapping[str, object]) -> bool:
    """Whether the tensors are those of a T2I-Adapter."""
    plain = {name.removeprefix("adapter.") for name in shapes}
    inner = ("body.0.block1.weight", "body.0.body.0.block1.weight", "body.0.resnets.0.block1.weight")
    return any(name in plain for name in inner)


def adapter_names(shapes: Shapes) -> dict[str, str]:
    """Map the parameters of diffusers' T2IAdapter to the names in the file.

    Raises: CannotRender (`unknown-family`): the file has layers that no known T2I-Adapter has.
    """
    plain = {name.removeprefix("adapter."): name for name in shapes}
    if "body.0.block1.weight" not in plain:
        found = {name.replace(".body.", ".resnets."): actual for name, actual in plain.items()}
    else:
        blocks = {int(name.split(".")[1]) for name in plain if name.startswith("body.")}
        each = max(1, len(blocks) // _LEVELS)
        found = {_grouped(name, each): actual for name, actual in plain.items()}
    _require_known(found, shapes)
    return {f"adapter.{name}": actual for name, actual in found.items()}


def _grouped(name: str, each: int) -> str:
    """Translate a tensor name of TencentARC's full adapter to diffusers' name; each level has `each` blocks."""
    if not name.startswith("body."):
        return name
    _, number, *rest = name.split(".")
    level, block = divmod(int(number), each)
    middle = [] if rest[0] == "in_conv" else ["resnets", str(block)]
    return ".".join(["body", str(level), *middle, *rest])


def _require_known(names: Mapping[str, str], shapes: Shapes) -> None:
    is_light = "conv_in.weight" not in names
    for name, actual in names.items():
        module, _, leaf = name.rpartition(".")
        part = module.rpartition(".")[2]
        side = 3 if part in ("block1", "conv_in") or (part == "block2" and is_light) else 1
        known = part in ("block1", "block2", "conv_in", "in_conv", "out_conv")
        if not known or (leaf == "weight" and tuple(shapes[actual][2:]) != (side, side)):
            raise CannotRender(
                f"civman cannot use this T2I-Adapter: its layer `{actual}` belongs to no known structure",
                hint="choose a T2I-Adapter by TencentARC for SD 1 or SDXL", code=Cause.UNKNOWN_FAMILY,
            )  # fmt: skip


def adapter_config(shapes: Shapes) -> Config:
    """Build the arguments of diffusers' T2IAdapter for a file with these tensors.

    Raises: CannotRender: a tensor that determines the structure is missing (`missing-tensor`), or the file has layers
    that no known T2I-Adapter has (`unknown-family`).
    """
    names = adapter_names(shapes)
    plain = {name.removeprefix("adapter."): shapes[actual] for name, actual in names.items()}
    levels = 1 + max(int(name.split(".")[1]) for name in plain if name.startswith("body."))
    blocks = 1 + max(int(name.split(".")[3]) for name in plain if name.startswith("body.0.resnets."))
    is_light = "conv_in.weight" not in plain
    try:
        widths = [plain[f"body.{level}.{'out_conv' if is_light else 'resnets.0.block1'}.weight"][0]
                  for level in range(levels)]  # fmt: skip
        channels, fold = _FOLDS[plain["body.0.in_conv.weight" if is_light else "conv_in.weight"][1]]
    except (KeyError, IndexError) as missing:
        raise CannotRender(
            "the structure of the T2I-Adapter is unknown: tensors are missing or have unexpected shapes",
            hint="the file is incomplete; another file of this version may be complete", code=Cause.MISSING_TENSOR,
        ) from missing  # fmt: skip
    kind = "light_adapter" if is_light else "full_adapter" if fold == 8 else "full_adapter_xl"
    return {
        "in_channels": channels, "channels": widths[:-1] if is_light else widths, "num_res_blocks": blocks,
        "downscale_factor": fold, "adapter_type": kind,
    }  # fmt: skip


def require_adapter_fits(checkpoint: Shapes, adapter: Shapes, name: str) -> None:
    """Check that a T2I-Adapter's features have the sizes that a checkpoint's UNet needs.

    The UNet adds one feature map per level, after the level's last block. SDXL differs: the map of its first level,
    which has no attention, is added after the size is halved, and a fourth map is added to its middle block.

    Raises: Incompatible (`cannot-work`): the sizes differ. CannotRender: see `adapter_config`.
    """
    config = adapter_config(adapter)
    is_xl = config["adapter_type"] == "full_adapter_xl"
    widths = [*config["channels"], *(config["channels"][-1:] if config["adapter_type"] == "light_adapter" else ())]
    ours = level_widths(checkpoint)
    starts_plain = bool(ours) and not encoder_layout(checkpoint)["down_block_types"][0].startswith("CrossAttn")
    wanted = [*ours, *ours[-1:]] if starts_plain else ours
    if is_xl != starts_plain or widths != wanted:
        made = "SDXL" if is_xl else "SD 1 or SD 2"
        lacking = " (the first level has no attention)" if starts_plain else ""
        raise Incompatible(
            f"the T2I-Adapter `{name}` does not fit the checkpoint: it was made for a UNet of {made} with levels of "
            f"{_listed(widths)} channels, but the checkpoint's has levels of {_listed(ours)} channels{lacking}",
            hint="choose a T2I-Adapter made for the checkpoint's base model", code=Cause.CANNOT_WORK,
        )  # fmt: skip


def _listed(widths: list[int]) -> str:
    return "/".join(map(str, widths)) or "no"
