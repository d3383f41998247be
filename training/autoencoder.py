"""The autoencoder: trained on drawn pictures, then folded so that SD 1.x's constant 0.18215 fits its latents."""

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training import layout
from training.optimise import Run, alone
from training.scenes import UNNAMED_SHAPE, Scene, Texture, draw, every_scene, with_place


def build() -> Any:
    """An untrained AutoencoderKL of our dimensions."""
    from diffusers import AutoencoderKL

    vae: Any = AutoencoderKL(**layout.VAE)  # type: ignore[no-untyped-call]
    return vae.to(memory_format=torch.channels_last)


def pictures(count: int, rng: random.Random, favoured: Sequence[Scene] = ()) -> Tensor:
    """Freshly drawn pictures of every style an adapter may want later, (N, 3, 64, 64) float32 in [-1, 1].

    `favoured` scenes are drawn that much more often.
    """
    scenes, out = [*every_scene(), *favoured], []
    for _ in range(count):
        scene = with_place(rng.choice(scenes), rng)
        if rng.random() < 0.1:
            scene = replace(scene, shape=UNNAMED_SHAPE)
        texture = rng.choices(list(Texture), (0.7, 0.15, 0.15))[0]
        out.append(draw(replace(scene, texture=texture), rng))
    return (
        torch.from_numpy(np.stack(out)).permute(0, 3, 1, 2).mul(2).sub(1).contiguous(memory_format=torch.channels_last)
    )


def sharp_loss(guess: Tensor, target: Tensor) -> Tensor:
    """L1 and squares, and L1 of the differences between neighbours: flat areas stay flat, edges stay edges."""
    across = F.l1_loss(guess.diff(dim=3), target.diff(dim=3))
    down = F.l1_loss(guess.diff(dim=2), target.diff(dim=2))
    return F.mse_loss(guess, target) + 0.5 * F.l1_loss(guess, target) + 0.5 * (across + down)


@torch.no_grad()
def fold(vae: Any, images: Tensor) -> None:
    """Give the latents mean 0 and deviation 1 / 0.18215 per channel by the two 1 x 1 convolutions around them.

    decode(encode(x)) stays what it was.
    """
    d = torch.cat([vae.encode(part).latent_dist.mean for part in torch.split(images, 64)])
    mean, a = d.mean((0, 2, 3)), 1 / (layout.SCALE * d.std((0, 2, 3)))
    q, p = vae.quant_conv, vae.post_quant_conv
    p.bias += (p.weight[:, :, 0, 0] * mean).sum(1)
    p.weight /= a[None, :, None, None]
    q.bias[:4] = (q.bias[:4] - mean) * a
    q.weight[:4] *= a[:, None, None, None]
    q.bias[4:] += 2 * a.log()


def train(folder: Path, *, samples: int, batch: int = 16, lr: float = 4e-3) -> None:
    """Train, fold and write `vae.pt`."""
    vae = build()
    nn.init.constant_(vae.quant_conv.bias[4:], -4.0)  # with more noise at the start it learns the mean picture first
    run = Run(vae, samples=samples, batch=batch, lr=lr, checkpoint=folder / "vae-run.pt")
    rng = random.Random(run.seen)

    def loss(size: int) -> Tensor:
        x = pictures(size, rng)
        q = vae.encode(x).latent_dist
        y = vae.decode(q.mean + torch.randn_like(q.mean) * q.std).sample
        kl = 0.5 * (q.mean.square() + q.var - 1 - q.logvar).mean()
        total: Tensor = sharp_loss(y, x) + 2e-4 * kl
        return total

    run.go(alone(run, loss))
    run.use_average()
    x = pictures(512, random.Random(1))
    fold(vae, x)
    print(report(vae, x[:128]))
    torch.save(vae.state_dict(), folder / "vae.pt")


def steady(folder: Path, *, samples: int, batch: int = 16, lr: float = 1.5e-3, most_noise: float = 0.35) -> None:
    """Teach the decoder of `vae.pt` to draw straight sides from latents that are a little off; writes `vae-steady.pt`.

    A UNet never hits a latent exactly. Noise of up to `most_noise` of the latents' deviation stands for that. The
    encoder is frozen, so networks and adapters that know the latents stay as they are.
    """
    vae = build()
    vae.load_state_dict(torch.load(folder / "vae.pt"))
    vae.encoder.requires_grad_(requires_grad=False)
    vae.quant_conv.requires_grad_(requires_grad=False)
    run = Run(vae, samples=samples, batch=batch, lr=lr, checkpoint=folder / "steady-run.pt")
    rng = random.Random(run.seen + 20)
    # small triangles lose most: their tips are narrower than a latent cell
    favoured = 4 * [scene for scene in every_scene() if scene.shape == "triangle" and scene.kind != "large"]

    def loss(size: int) -> Tensor:
        x = pictures(size, rng, favoured)
        with torch.no_grad():
            z = vae.encode(x).latent_dist.mean
            z = z + torch.randn_like(z) * torch.rand(size, 1, 1, 1) * (most_noise / layout.SCALE)
        return sharp_loss(vae.decode(z).sample, x)

    run.go(alone(run, loss), report_every=50)
    run.use_average()
    print(report(vae, pictures(128, random.Random(1))))
    torch.save(vae.state_dict(), folder / "vae-steady.pt")


@torch.no_grad()
def report(vae: Any, x: Tensor) -> str:
    """Errors on pictures not trained on, and the size of latents and posterior noise in the UNet's units."""
    q = vae.encode(x).latent_dist
    y = vae.decode(q.mean).sample
    return (
        f"latent std {q.mean.std() * layout.SCALE:.3f}, posterior noise {q.std.mean() * layout.SCALE:.3f}, "
        f"mse {F.mse_loss(y, x):.5f}, L1 {F.l1_loss(y, x):.5f}"
    )
