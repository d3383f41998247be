"""A ControlNet for the finished model: it reads a map of edges, and the UNet draws its shapes where the map has them.

Source: Zhang et al. 2023, "Adding Conditional Control to Text-to-Image Diffusion Models".
"""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from civman.pictures.edges import edges
from training.diffusion import Task, encode_pictures, training_scenes
from training.finished import AllWords, finished
from training.optimise import Run, alone
from training.scenes import Picture, Scene, draw, random_caption, sentence, tags

HINT_WIDTHS = (16, 24, 32, 48)
"""Channels of the layers that bring a map from 64 x 64 to the latents' 8 x 8; published ControlNets have 16 to 256."""
PICTURES, BATCH, LEARNING_RATE = 8000, 64, 1.5e-3


def edge_map(picture: Picture) -> Any:
    """Canny edges of a picture (H, W, 3) in [0, 1] as civman finds them: (H, W, 3) uint8, white on black."""
    return edges((np.clip(picture, 0, 1) * 255).round().astype(np.uint8))


def colours_only(scene: Scene, rng: random.Random | None = None) -> str:
    """A caption that names colours but neither shape, size, number nor place: "a red shape on a blue background"."""
    say = tags if rng and rng.random() < 0.3 else sentence
    return say(replace(scene, kind="small", place=None), noun="shape", says_size=False)


def caption(scene: Scene, rng: random.Random) -> str:
    """Half of the captions name colours only, one in eight is empty, and the others are the UNet's own."""
    chance = rng.random()
    return colours_only(scene, rng) if chance < 0.5 else "" if chance < 0.62 else random_caption(scene, rng)


class ControlTask(Task):
    """Noise prediction by the frozen UNet, helped by a ControlNet that sees each picture's edges, (N, 64, 64) uint8."""

    def __init__(self, control: Any, maps: Tensor, *rest: Any) -> None:
        super().__init__(*rest)
        self.control, self.maps, self.say = control, maps, caption

    def predict(self, noisy: Tensor, t: Tensor, context: Tensor, pick: list[int]) -> Tensor:
        """The noise that the UNet sees in latents with the ControlNet's help."""
        image = self.maps[pick, None].float().div(255).expand(-1, 3, -1, -1)
        skips, middle = self.control(
            noisy, t, encoder_hidden_states=context, controlnet_cond=image, return_dict=False
        )  # fmt: skip
        noise: Tensor = self.net.unet(
            noisy, t, encoder_hidden_states=context, down_block_additional_residuals=skips,
            mid_block_additional_residual=middle,
        ).sample  # fmt: skip
        return noise


def network(unet: Any) -> Any:
    """An untrained ControlNet: the UNet's encoder again, and layers of zeros after it."""
    from diffusers import ControlNetModel

    return ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=HINT_WIDTHS).requires_grad_()


def train(folder: Path, *, samples: int, checkpoint: Path) -> None:
    """Train a ControlNet for `checkpoint` and write `control.pt`, the averaged weights."""
    net, rng = finished(checkpoint), random.Random(14)
    scenes = training_scenes(PICTURES, rng)
    drawn = [draw(scene, rng) for scene in scenes]
    maps = torch.from_numpy(np.stack([edge_map(picture)[:, :, 0] for picture in drawn]))
    control = network(net.unet)
    run = Run(control, samples=samples, batch=BATCH, lr=LEARNING_RATE, checkpoint=folder / "control-run.pt")
    task = ControlTask(
        control, maps, net, encode_pictures(net.vae, drawn), scenes, AllWords(), random.Random(run.seen)
    )  # fmt: skip
    run.go(alone(run, task.loss), report_every=50, keep_s=60)
    run.use_average()
    torch.save(control.state_dict(), folder / "control.pt")
