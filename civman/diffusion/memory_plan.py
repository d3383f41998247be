"""Estimates from a checkpoint's header how much memory a render needs, and chooses a plan that fits in free memory."""

import importlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from civman.diffusion.checkpoint_names import UNET, VAE, Shapes
from civman.domain.files.header import Tensor
from civman.errors import CannotRender, Cause
from civman.system.system_facts import available_memory_bytes

if TYPE_CHECKING:  # not imported at run time, because planning uses this module without torch
    import torch

    from civman.diffusion.loader import LoadedModel


class MemoryPlan(StrEnum):
    """Ways to keep a model in memory, from the fastest to the one that needs the least memory on the device."""

    RESIDENT = "resident"
    """All components stay on the device."""
    TILED = "tiled"
    """All components stay on the device, and the VAE works in tiles (seams are blended; pixels differ slightly)."""
    ONE_AT_A_TIME = "one-at-a-time"
    """Each component is moved to the device only while it runs; the VAE works in tiles."""
    LAYER_BY_LAYER = "layer-by-layer"
    """Each layer's weights are read from the file whenever the layer is called, which is slower. On a GPU, the VAE
    works in tiles.
    """


@dataclass(frozen=True, slots=True)
class Estimate:
    """The memory in bytes that the parts of a render need on the device.

    The sizes of weights are exact; those of activations (`unet_work`, `vae_work`) are rough.
    """

    unet: int
    vae: int
    text: int
    unet_work: int
    vae_work: int
    layer: int = 2**28
    """The memory that one layer needs while its weights are read, unpacked and converted (`layer_bytes`)."""
    attached: int = 0
    """The weights of control models and IP-Adapters, which stay on the device under every plan."""

    @property
    def weights(self) -> int:
        """The size in bytes of all weights."""
        return self.unet + self.vae + self.text + self.attached

    def needed(self, plan: MemoryPlan) -> int:
        """Return the peak memory in bytes that a plan needs."""
        return self.attached + self._without_attached(plan)

    def _without_attached(self, plan: MemoryPlan) -> int:
        tile = min(self.vae_work, _TILE_WORK)
        if plan is MemoryPlan.RESIDENT:
            return self.unet + self.vae + self.text + max(self.unet_work, self.vae_work)
        if plan is MemoryPlan.TILED:
            return self.unet + self.vae + self.text + max(self.unet_work, tile)
        if plan is MemoryPlan.ONE_AT_A_TIME:
            return max(self.unet + self.unet_work, self.vae + tile, self.text)
        return max(self.unet_work, tile) + self.layer

    def plan(self, available: int) -> MemoryPlan:
        """Choose the fastest plan that fits with 10 % to spare. Raises: CannotRender: no plan fits."""
        for plan in MemoryPlan:
            if self.needed(plan) * 1.1 <= available:
                return plan
        least = self.needed(MemoryPlan.LAYER_BY_LAYER)
        raise CannotRender(
            f"rendering needs at least {least / 2**30:.1f} GiB of memory, but only {available / 2**30:.1f} GiB "
            "is available",
            hint="use a smaller image (--size) or batch (--batch-size)",
            code=Cause.OUT_OF_MEMORY,
            needed=least,
            available=available,
        )


# Activation memory divided by the size of one feature map at full resolution: for the UNet, a feature map with the
# channels of its first layer; for the VAE, one with the input channels of its last convolution. Measured on the CPU in
# float32 as the growth of resident memory: 43 for SD 1 at 512 px; 8 and 10 for the VAE at 512 and 256 px.
_UNET_FACTOR, _VAE_FACTOR = 44, 10
# how much each ControlNet adds to `_UNET_FACTOR`, because of its 13 outputs and their weighted copies
_CONTROLNET_FACTOR = 11
_TILE_WORK, _LEAST_LAYER = 2**30, 2**28


def layer_bytes(tensors: Iterable[Tensor], dtype_bytes: int) -> int:
    """Return the memory that the largest of these layers needs in layer-by-layer rendering.

    This is the size of the layer's weights in the compute dtype plus, if they are packed or stored in another dtype,
    the size of the float32 values from which they are converted.
    """
    most = 0
    for tensor in tensors:
        is_plain = tensor.dtype in ("F32", "F16", "BF16")
        most = max(most, math.prod(tensor.shape) * (dtype_bytes + (0 if is_plain else 4)))
    return max(most + _LEAST_LAYER // 2, _LEAST_LAYER)


def estimate(
    shapes: Shapes, *, width: int, height: int, batch: int = 1, is_guided: bool = True, dtype_bytes: int = 2,
    vae_bytes: int | None = None, layer: int = _LEAST_LAYER, unet_pixels: int | None = None,
    controlnets: int = 0, attached: int = 0,
) -> Estimate:  # fmt: skip
    """Estimate the memory that a checkpoint with these shapes (`Weights.shapes`) needs for images of this size.

    `layer`: the memory for the largest layer (`layer_bytes`). `unet_pixels`: the maximum number of pixels that the UNet
    processes at once, if fewer than the image has. `controlnets`: the number of active ControlNets. `attached`: see
    `Estimate`.
    """
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
        unet_work=pictures * ((unet_pixels or width * height) // 64) * first * dtype_bytes
        * (_UNET_FACTOR + controlnets * _CONTROLNET_FACTOR),
        vae_work=width * height * last * _VAE_FACTOR * vae_bytes,
        layer=layer, attached=attached,
    )  # fmt: skip


def available_bytes(device: "torch.device") -> int | None:
    """Return the device's free memory in bytes; None if it is a CPU and the system does not report it."""
    if device.type == "cpu":
        return available_memory_bytes()
    import torch  # imported here, because estimates are made before torch is imported

    if device.type == "mps":
        return max(int(torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()), 0)
    return int(torch.cuda.mem_get_info(device)[0])


def apply(plan: MemoryPlan, model: "LoadedModel", device: "torch.device") -> None:
    """Place a model's components on `device` as a plan requires.

    For RESIDENT and TILED, the model must have been loaded on the CPU or on `device`; for ONE_AT_A_TIME, on the CPU;
    for LAYER_BY_LAYER, on `device`, and prepared by `layer_streaming.stream`.
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
    """Move each module to `device` when it is called, after moving the previous one back to the CPU.

    accelerate's own chain (`cpu_offload_with_hook`) supports only one fixed order. Here, the VAE may run before the
    UNet (img2img), after it, and before it again (second pass).
    """
    hooks: Any = importlib.import_module("accelerate.hooks")
    operations: Any = importlib.import_module("accelerate.utils.operations")
    clear: Any = importlib.import_module("accelerate.utils.memory").clear_device_cache
    here: list[torch.nn.Module] = []

    class Turn(hooks.ModelHook):  # type: ignore[misc]  # accelerate is only imported here
        # the attribute that tells diffusers' pipelines on which device to create their own tensors
        execution_device = device

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
