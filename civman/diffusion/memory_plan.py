"""How much memory a rendering will take, from the file's header, and what to do where there is less."""

import importlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from civman.diffusion.families import UNET, VAE, Shapes
from civman.errors import CannotRender, Cause
from civman.system.system_facts import available_memory_bytes

if TYPE_CHECKING:  # the estimate is asked for before torch is there
    import torch

    from civman.diffusion.loader import LoadedModel


class MemoryPlan(StrEnum):
    """Ways to render, from the fastest to the one that needs the least memory on the device."""

    RESIDENT = "resident"
    """Everything on the device."""
    TILED = "tiled"
    """Everything on the device, the VAE works in tiles (seams are blended; pixels differ slightly)."""
    ONE_AT_A_TIME = "one-at-a-time"
    """Each component is on the device only while it works; the VAE works in tiles."""
    LAYER_BY_LAYER = "layer-by-layer"
    """Weights stay in the file, each layer's are made when it works; slower on a GPU. The VAE works in tiles there."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """Bytes on the device. Weights are exact; `unet_work` and `vae_work` (activations) are rules of thumb."""

    unet: int
    vae: int
    text: int
    unet_work: int
    vae_work: int

    def needed(self, plan: MemoryPlan) -> int:
        """Peak bytes under a plan."""
        tile = min(self.vae_work, _TILE_WORK)
        if plan is MemoryPlan.RESIDENT:
            return self.unet + self.vae + self.text + max(self.unet_work, self.vae_work)
        if plan is MemoryPlan.TILED:
            return self.unet + self.vae + self.text + max(self.unet_work, tile)
        if plan is MemoryPlan.ONE_AT_A_TIME:
            return max(self.unet + self.unet_work, self.vae + tile, self.text)
        return max(self.unet_work, tile) + _LAYER

    def plan(self, available: int) -> MemoryPlan:
        """The fastest plan that fits, with a tenth to spare. Raises: CannotRender: none does."""
        for plan in MemoryPlan:
            if self.needed(plan) * 1.1 <= available:
                return plan
        least = self.needed(MemoryPlan.LAYER_BY_LAYER)
        raise CannotRender(
            f"the picture needs {least / 2**30:.1f} GiB at the least, {available / 2**30:.1f} are there",
            hint="make the picture or the batch smaller", code=Cause.OUT_OF_MEMORY, needed=least, available=available,
        )  # fmt: skip


# activations in multiples of one value per latent (UNet, first width) and per pixel (VAE, first width): measured as the
# growth of resident memory for SD 1 at 512 px (43) and the VAE at 512 and 256 px (8, 10), float32 on the CPU
_UNET_FACTOR, _VAE_FACTOR = 44, 10
_TILE_WORK, _LAYER = 2**30, 2**28


def estimate(
    shapes: Shapes, *, width: int, height: int, batch: int = 1, is_guided: bool = True, dtype_bytes: int = 2,
    vae_bytes: int | None = None,
) -> Estimate:  # fmt: skip
    """What a checkpoint with these shapes (`Weights.shapes`) needs for pictures of this size."""
    parts = {"unet": 0, "vae": 0, "text": 0}
    for name, shape in shapes.items():
        if not name.startswith("model_ema."):
            parts[_part(name)] += math.prod(shape)
    vae_bytes = vae_bytes or dtype_bytes
    first = shapes.get(f"{UNET}input_blocks.0.0.weight", (320,))[0]
    last = shapes.get(f"{VAE}decoder.conv_out.weight", (3, 128))[1]
    pictures = batch * (2 if is_guided else 1)
    return Estimate(
        unet=parts["unet"] * dtype_bytes, vae=parts["vae"] * vae_bytes, text=parts["text"] * dtype_bytes,
        unet_work=pictures * (width // 8) * (height // 8) * first * _UNET_FACTOR * dtype_bytes,
        vae_work=width * height * last * _VAE_FACTOR * vae_bytes,
    )  # fmt: skip


def available_bytes(device: "torch.device") -> int | None:
    """Free memory on the device in bytes; None for the CPU where the system does not report it."""
    if device.type == "cpu":
        return available_memory_bytes()
    import torch  # see above

    if device.type == "mps":
        return max(int(torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()), 0)
    return int(torch.cuda.mem_get_info(device)[0])


def apply(plan: MemoryPlan, model: "LoadedModel", device: "torch.device") -> None:
    """Makes a model work on `device` under a plan.

    It was loaded on the CPU or (first two plans) on `device`; for layer by layer it was loaded and streamed there.
    """
    if plan is MemoryPlan.TILED or (plan is not MemoryPlan.RESIDENT and device.type != "cpu"):
        model.vae.enable_tiling()
    if plan in (MemoryPlan.RESIDENT, MemoryPlan.TILED):
        for module in model.components.values():
            module.to(device)
    elif plan is MemoryPlan.ONE_AT_A_TIME:
        take_turns(list(model.components.values()), device)
    model.device = device


def take_turns(modules: "Sequence[torch.nn.Module]", device: "torch.device") -> None:
    """Lets each module come to `device` when it is called, and sends the one that was there back to the CPU first.

    accelerate's own chain (`cpu_offload_with_hook`) knows one order; here the VAE may come before the UNet (picture to
    picture), after it, and before it again (the second pass).
    """
    hooks: Any = importlib.import_module("accelerate.hooks")
    operations: Any = importlib.import_module("accelerate.utils.operations")
    clear: Any = importlib.import_module("accelerate.utils.memory").clear_device_cache
    here: list[torch.nn.Module] = []

    class Turn(hooks.ModelHook):  # type: ignore[misc]  # a class of accelerate's, which is imported when it is needed
        execution_device = device  # where diffusers' pipelines put what they make themselves

        def pre_forward(self, module: "torch.nn.Module", *arguments: Any, **named: Any) -> tuple[Any, Any]:
            if here != [module]:
                while here:
                    here.pop().to("cpu")
                    clear()
                module.to(device)
                here.append(module)
            return operations.send_to_device(arguments, device), operations.send_to_device(named, device)

    for module in modules:
        hooks.add_hook_to_module(module.to("cpu"), Turn())


def _part(name: str) -> str:
    return "unet" if name.startswith(UNET) else "vae" if name.startswith(VAE) else "text"
