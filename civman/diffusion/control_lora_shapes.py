"""Recognises ControlNets that are stored as changes to a UNet, and checks whether they fit a checkpoint.

There are two formats. A ControlLoRA (Stability AI) has two factors `up` and `down` for most weights; their product is
added to the UNet's weight. Its other tensors replace the UNet's. A ControlNet that was saved as a difference has a
tensor named `difference`; those of its weights that the UNet also has are added to the UNet's weights. This module does
not import torch.
"""

from collections.abc import Mapping
from math import prod
from typing import Final

from civman.diffusion.checkpoint_names import UNET, Shapes
from civman.errors import Cause, Incompatible

_LORA: Final = "lora_controlnet"
_DIFFERENCE: Final = "difference"
_HALF: Final = ("input_blocks.", "middle_block.", "time_embed.", "label_emb.")
"""Prefixes of the UNet tensors that a ControlNet copies: the encoder half, the middle block and the embeddings."""


def is_control_lora(shapes: Mapping[str, object]) -> bool:
    """Whether the tensors are those of a ControlLoRA."""
    return _LORA in shapes


def is_difference(shapes: Mapping[str, object]) -> bool:
    """Whether the tensors are those of a ControlNet that was saved as a difference from a UNet."""
    return _DIFFERENCE in shapes


def factors(name: str, names: Mapping[str, object]) -> tuple[str, str] | None:
    """Return the names of the factors (up, down) of a weight in a ControlLoRA; None if the weight has no factors."""
    module = name.removesuffix(".weight")
    for tail in ("", ".weight"):
        if f"{module}.up{tail}" in names and f"{module}.down{tail}" in names:
            return f"{module}.up{tail}", f"{module}.down{tail}"
    return None


def whole_shapes(checkpoint: Shapes, lora: Shapes) -> dict[str, tuple[int, ...]]:
    """Return the shapes, by original name, of the ControlNet built from a ControlLoRA and a checkpoint."""
    base = {name.removeprefix(UNET): shape for name, shape in checkpoint.items() if name.startswith(UNET)}
    half = {name: shape for name, shape in base.items() if name.startswith(_HALF)}
    return {**half, **{name: shape for name, shape in lora.items() if name.endswith((".weight", ".bias"))
                       and not name.endswith((".up.weight", ".down.weight"))}}  # fmt: skip


def require_lora_fits(checkpoint: Shapes, lora: Shapes, name: str) -> None:
    """Check that all changes in a ControlLoRA have the shapes of the checkpoint's weights.

    Raises: Incompatible (`cannot-work`): shapes differ, or the UNet lacks a weight that the ControlLoRA changes.
    """
    modules = {part.rpartition(".up")[0] for part in lora if part.endswith((".up", ".up.weight"))}
    odd = [module for module in sorted(modules) if not _fits(module, checkpoint, lora)]
    odd += [
        part
        for part, shape in lora.items()
        if part.startswith(_HALF) and part.endswith((".weight", ".bias")) and f"{UNET}{part}" in checkpoint
        and not part.endswith((".up.weight", ".down.weight")) and prod(checkpoint[f"{UNET}{part}"]) != prod(shape)
    ]  # fmt: skip
    if odd or not modules:
        example = f", such as `{odd[0]}`" if odd else ""
        raise Incompatible(
            f"the ControlLoRA `{name}` does not fit the checkpoint: {len(odd)} of its {len(modules)} changes have "
            f"other shapes than the checkpoint's UNet{example}",
            hint="choose a ControlLoRA made for the checkpoint's base model", code=Cause.CANNOT_WORK,
        )  # fmt: skip


def _fits(module: str, checkpoint: Shapes, lora: Shapes) -> bool:
    names, wanted = factors(module, lora), checkpoint.get(f"{UNET}{module}.weight")
    if names is None or wanted is None:
        return False
    up, down = lora[names[0]], lora[names[1]]
    return up[0] == wanted[0] and prod(up[1:]) == down[0] and prod(down[1:]) == prod(wanted[1:])
