"""A model in a few lines of arithmetic, for both sides of a comparison: a UNet, a VAE, and civman's holder for them."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from civman.diffusion.denoiser import Conditioning
from civman.diffusion.families.sd1 import SD1
from civman.diffusion.families.sdxl import SDXL
from civman.diffusion.loader import LoadedModel

WIDTH = 8
_generator = torch.Generator().manual_seed(0)
MIX = torch.randn(4, 4, generator=_generator) * 0.4
SHIFT = torch.randn(4, generator=_generator)
TO_LATENT = torch.randn(4, 3, generator=_generator)
TO_PIXEL = torch.randn(3, 4, generator=_generator) * 0.3
COND, UNCOND = (torch.randn(1, 77, WIDTH, generator=_generator) for _ in range(2))
FROM_SHOWN = torch.randn(4, 5, generator=_generator)
CFG = 3.0


def answer(x: Tensor, time: Tensor, context: Tensor) -> Tensor:
    """Smooth in all three; the five channels more of an inpainting UNet (mask, picture) count too where x has them."""
    x, shown = x[:, :4], x[:, 4:]
    told = (context.mean(dim=(1, 2)) * 20)[:, None, None, None]
    turned = torch.einsum("oc,bchw->bohw", MIX, x) + SHIFT[None, :, None, None] * torch.cos(time / 300).reshape(
        -1, 1, 1, 1
    )
    if shown.shape[1]:
        turned = turned + torch.einsum("oc,bchw->bohw", FROM_SHOWN, shown)
    return x * 0.7 + torch.tanh(turned + told) * 0.5


class Unet(nn.Module):
    """`answer` as diffusers' UNet is called."""

    def __init__(self, channels: int = 4) -> None:
        super().__init__()
        self.config = SimpleNamespace(in_channels=channels)
        self.weight = nn.Parameter(torch.zeros(1), requires_grad=False)

    def forward(self, x: Tensor, time: Tensor, *, encoder_hidden_states: Tensor, **_: Any) -> tuple[Tensor]:
        return (answer(x, time, encoder_hidden_states),)


class Vae(nn.Module):
    """Means over 8 x 8 pixels, mixed; keeps the latents that it was last asked to decode."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(scaling_factor=1.0, latent_channels=4)
        self.weight = nn.Parameter(torch.zeros(1), requires_grad=False)
        self.decoded = torch.empty(0)

    def encode(self, pixels: Tensor) -> Any:
        latents = torch.einsum("oc,bchw->bohw", TO_LATENT, nn.functional.avg_pool2d(pixels, 8))
        return SimpleNamespace(latent_dist=SimpleNamespace(mode=lambda: latents))

    def decode(self, latents: Tensor, *, return_dict: bool = True) -> tuple[Tensor]:
        assert not return_dict
        self.decoded = latents.clone()
        pixels = torch.einsum("oc,bchw->bohw", TO_PIXEL, latents)
        return (torch.tanh(nn.functional.interpolate(pixels, scale_factor=8, mode="bilinear")),)


def model(*, v: bool = False, zero_snr: bool = False, xl: bool = False, channels: int = 4) -> LoadedModel:
    """As a loaded checkpoint; `channels`: 9 for an inpainting checkpoint."""
    return LoadedModel(
        path=Path("closed-form"), family=SDXL if xl else SD1,
        prediction="v_prediction" if v else "epsilon", is_zero_snr=zero_snr,
        components={"unet": Unet(channels), "vae": Vae()}, configs={}, metadata={}, device=torch.device("cpu"),
        notes=(), unused=(), tensor_count=0, files={}, sources={},
    )  # fmt: skip


def prompt() -> Conditioning:
    """Without pooled vectors, which this UNet would not look at."""
    return Conditioning(COND, UNCOND)
